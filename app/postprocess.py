"""From the network's logits to calibrated scores and decisions; pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.calibration import Calibration
    from app.models.spec import Output

    Floats = NDArray[np.float64]

FITTING = {
    "sigmoid": ("identity", "platt", "isotonic", "temperature"),
    "softmax": ("identity", "temperature"),
    "identity": ("identity",),
}
"""Kinds of calibration by kind of output: platt and isotonic map one probability, and the rest would no longer sum to
1; a regression has no probabilities."""


def sigmoid(logits: NDArray[Any]) -> Floats:
    """Probabilities, float64, shaped like the logits, without overflow for any finite logit.

    Example:
        >>> sigmoid(np.array([0.0, -1000.0], dtype=np.float32)).tolist()
        [0.5, 0.0]

    """
    wide = logits.astype(np.float64)
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def softmax(logits: NDArray[Any]) -> Floats:
    """Probabilities that sum to 1 in each row, float64 (n, m), without overflow for any finite logit.

    Example:
        >>> softmax(np.array([[0.0, 0.0], [3e38, -3e38]], dtype=np.float32)).tolist()
        [[0.5, 0.5], [1.0, 0.0]]

    """
    wide = np.array(logits.T, np.float64, order="C")  # across rows numpy is many times faster than within short ones
    wide -= wide.max(axis=0)
    weights = np.exp(wide, out=wide)
    weights /= weights.cumsum(axis=0)[-1]  # sum() adds a row alone in another order than a row among others
    return weights.T


def unchanged(logits: NDArray[Any]) -> Floats:
    """The network's numbers themselves, float64."""
    return logits.astype(np.float64)


ACTIVATIONS = {"sigmoid": sigmoid, "softmax": softmax, "identity": unchanged}


@dataclass(frozen=True, slots=True)
class Scored:
    """What the logits of n rows came to.

    Attributes:
        raw: shape (n,), float64, the score before calibration.
        score: shape (n,), float64, the score.
        outputs: shape (n, m), float64, every output after calibration.
        decision: shape (n,), int64, index into ``decision_labels``; -1: no decision.
        decision_labels: the decisions that the indices stand for.
        threshold: shape (n,), float64, what the decision was compared with; NaN: nothing. With several labels it is
            that of the most probable label (softmax) or of the output that is the score.

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

    Raises:
        BundleError: this kind of calibration does not fit the kind of output.

    """

    def __init__(self, output: Output, calibration: Calibration) -> None:
        check_calibration(output, calibration)
        self._output = output
        self._calibration = calibration
        self._activate = ACTIVATIONS[output.kind]
        self._scored = output.output_names.index(output.score) if output.score is not None else 0
        self._follows_label = output.kind == "softmax" and output.score is None
        limits = output.reached_at
        self._limits = np.array([np.nan if limit is None else limit for limit in limits])

    def apply(self, logits: NDArray[Any]) -> Scored:
        """Scores and decisions.

        Args:
            logits: float32 (n,) or (n, m), finite; n may be 0.

        Raises:
            BundleError: there are not as many logits in a row as outputs are declared.

        Example:
            >>> from app.calibration import Calibration
            >>> from app.models.spec import Output
            >>> animal = Postprocessor(Output(kind="softmax", labels=("cat", "dog")), Calibration())
            >>> scored = animal.apply(np.log(np.array([[3.0, 1.0], [1.0, 4.0]])))
            >>> [scored.decision_labels[i] for i in scored.decision], scored.score.round(6).tolist()
            (['cat', 'dog'], [0.75, 0.8])

        """
        table = logits[:, None] if logits.ndim == 1 else logits
        if table.ndim != 2 or table.shape[1] != len(self._limits):
            msg = (
                f"output: the network gives {table.shape[1:]} numbers a row, and {len(self._limits)} outputs are "
                f"declared ({', '.join(self._output.output_names[:8])})"
            )
            raise BundleError(msg)
        raw = self._activate(table)
        outputs = self._calibration.calibrate(table, self._activate)
        chosen = outputs.argmax(axis=1) if self._output.kind == "softmax" else np.zeros(len(table), np.int64)
        if self._output.decimals is not None:
            outputs = outputs.round(self._output.decimals)
        rows = np.arange(len(table))
        place = chosen if self._follows_label else np.full(len(table), self._scored)
        score = outputs[rows, place]
        decided_by = chosen if self._output.kind == "softmax" else place
        decision, labels = self._decide(outputs, score, decided_by)
        return Scored(raw[rows, place], score, outputs, decision, labels, self._limits[decided_by])

    def _decide(
        self, outputs: Floats, score: Floats, chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        output = self._output
        if output.is_multi_label:
            return joined_labels(outputs >= self._limits, output.output_names, output.otherwise)
        if output.kind == "softmax":
            missed = outputs[np.arange(len(outputs)), chosen] < self._limits[chosen]
            if output.otherwise is None:
                return np.where(missed, -1, chosen), output.labels
            return np.where(missed, len(output.labels), chosen), (*output.labels, output.otherwise)
        if output.threshold is None:
            return np.full(len(score), -1, np.int64), output.labels
        return (score >= output.threshold).astype(np.int64), output.labels


def check_calibration(output: Output, calibration: Calibration) -> None:
    """Whether a calibration may follow an output.

    Raises:
        BundleError: it may not, and why.

    """
    fitting = FITTING[output.kind]
    if calibration.kind not in fitting:
        why = (
            "each probability by itself would be mapped, and they would no longer sum to 1"
            if output.kind == "softmax"
            else "there are no probabilities"
        )
        msg = f"calibration: {calibration.kind} does not fit {output.kind}: {why}; use {' or '.join(fitting)}"
        raise BundleError(msg)


def joined_labels(
    reached: NDArray[np.bool_], names: Sequence[str], otherwise: str | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The names that each row reached, joined by commas.

    Args:
        reached: shape (n, m).
        names: m names.
        otherwise: stands for no name at all; None: -1 does.

    Returns:
        For each row an index, shape (n,), into the texts that occur; and these.

    Example:
        >>> joined_labels(np.array([[True, True], [False, False], [False, True]]), ("a", "b"), None)
        (array([ 2, -1,  1]), ('', 'b', 'a,b'))

    """
    width = -(-len(names) // 64) * 8
    packed = np.zeros((len(reached), width), np.uint8)
    packed[:, : -(-len(names) // 8)] = np.packbits(reached, axis=1)
    keys = packed.view(np.uint64 if width == 8 else f"S{width}")[
        :, 0
    ]  # numbers and texts are sorted fast, rows are not
    _, first, index = np.unique(keys, return_index=True, return_inverse=True)
    texts = [",".join(itertools.compress(names, row)) for row in reached[first].tolist()]
    if otherwise is None:
        return np.where(reached.any(axis=1), index, -1), tuple(texts)
    return index, tuple(text or otherwise for text in texts)
