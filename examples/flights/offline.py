"""A bundle run over a frame, without the stream: for evaluation, and to prove what the stream said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from app.models.runtime import ScoringModel
from app.postprocess import sigmoid
from examples.evidence import padded_logits

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from app.models.bundle import Bundle


def score_frame(bundle: Bundle, frame: pd.DataFrame) -> NDArray[np.float64]:
    """Calibrated scores of all rows, shape (n,), in the bundle's largest bucket."""
    model = ScoringModel(bundle)
    return bundle.calibration.apply(raw_scores(model, frame, bundle.spec.buckets[-1]))


def raw_scores(model: ScoringModel, frame: pd.DataFrame, bucket: int) -> NDArray[np.float64]:
    """Scores before calibration, shape (n,), every row computed in a batch padded to ``bucket``.

    In the same bucket a row's score is the same to the last bit, whatever its neighbours are.
    """
    return sigmoid(padded_logits(model, frame, bucket))


def auc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Area under the ROC curve, by ranks; NaN when all labels are the same.

    Args:
        labels: 0 or 1, shape (n,).
        scores: higher means rather 1, shape (n,).

    Example:
        >>> auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
        0.875

    """
    positives = float(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def brier(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Mean squared distance of score and label, in [0, 1].

    Example:
        >>> brier(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
        0.25

    """
    return float(np.mean((scores - labels) ** 2))
