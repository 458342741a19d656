"""From the network's logits to calibrated scores and decisions; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from app.calibration import Calibration as Calibration  # noqa: PLC0414, TC001 - until all callers name app.calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.models.spec import Output

    Floats = NDArray[np.float64]


def sigmoid(logits: NDArray[np.float32]) -> Floats:
    """Probabilities, float64 (n,), without overflow for any finite logit.

    Example:
        >>> sigmoid(np.array([0.0, -1000.0], dtype=np.float32)).tolist()
        [0.5, 0.0]

    """
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


@dataclass(frozen=True, slots=True)
class Scored:
    """What the logits of n rows came to.

    Attributes:
        raw: shape (n,), float64, the score before calibration.
        score: shape (n,), float64, the score.
        outputs: shape (n, m), float64, every output after calibration.
        decision: shape (n,), index into ``decision_labels``; -1: no decision.
        decision_labels: the decisions that occur.
        threshold: shape (n,), float64, what the decision was compared with; NaN: nothing.

    """

    raw: Floats
    score: Floats
    outputs: Floats
    decision: NDArray[np.int64]
    decision_labels: tuple[str, ...]
    threshold: Floats

    def take(self, rows: NDArray[np.int64]) -> Scored:
        """Those of some rows."""
        return Scored(
            self.raw[rows],
            self.score[rows],
            self.outputs[rows],
            self.decision[rows],
            self.decision_labels,
            self.threshold[rows],
        )


class Postprocessor:
    """What ``model.yaml`` declares under ``output``, with its calibration.

    Args:
        output: kind, labels and thresholds.
        calibration: of the probabilities.

    """

    def __init__(self, output: Output, calibration: Calibration) -> None:
        self._output = output
        self._calibration = calibration

    def apply(self, logits: NDArray[Any]) -> Scored:
        """Scores and decisions.

        Args:
            logits: float32 (n,) or (n, m), finite.

        """
        output = self._output
        raw = sigmoid(logits)
        score = self._calibration.apply(raw)
        decision = decide(score, output.threshold, output.labels)
        return Scored(raw, score, score[:, None], decision, output.labels, np.full(len(score), output.threshold))


def decide(scores: Floats, threshold: float, labels: Sequence[str]) -> NDArray[np.int64]:
    """Index into ``labels``: 1 where the score is at or above the threshold, else 0.

    Example:
        >>> decide(np.array([0.2, 0.5]), 0.5, ("no", "yes")).tolist()
        [0, 1]

    """
    assert len(labels) == 2, "one threshold separates two labels"
    return (scores >= threshold).astype(np.int64)
