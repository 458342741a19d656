"""Quality of the labelled predictions of a window, from its counts; a reason instead of a number that means nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from monitors.windows import DELAY_EDGES_US, SECOND_US

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from monitors.windows import WindowCounts


METRICS = (
    "precision", "recall", "f1", "accuracy", "base_rate", "brier", "mean_score", "coverage", "auc", "label_delay_p99_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quality:
    """Metrics of one model version in one window.

    Attributes:
        values: metric name to value; None: undefined.
        reasons: for each undefined metric, why.

    """

    values: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def quality(counts: WindowCounts) -> Quality:
    """Precision, recall, F1, accuracy, AUC, Brier score, base rate, mean score, coverage and label delay.

    Returns:
        Shares and scores in [0, 1]; ``label_delay_p99_s`` in seconds (upper edge of its bin).

    Cost: O(1000), once per window and snapshot, never per record.
    """
    found = Quality()
    reason = why_unjudged(counts)
    if reason is not None:
        for name in METRICS:
            _put(found, name, None, reason)
        return found
    tn, fp, fn, tp = (counts.count(n) for n in ("true_negatives", "false_positives", "false_negatives",
                                                "true_positives"))  # fmt: skip
    labelled, predictions = counts.count("labelled"), counts.count("predictions")
    no_label = "no labelled prediction yet"
    if counts.count("undecided"):
        for name in ("precision", "recall", "f1", "accuracy"):
            _put(found, name, None, "the model decides nothing: it has no threshold")
    else:
        _share(found, "precision", tp, tp + fp, "no labelled prediction was decided positive" if labelled else no_label)
        _share(found, "recall", tp, tp + fn, "no labelled prediction is positive" if labelled else no_label)
        _share(found, "f1", 2 * tp, 2 * tp + fp + fn, "neither a positive label nor a positive decision")
        _share(found, "accuracy", tp + tn, labelled, no_label)
    _share(found, "base_rate", tp + fn, labelled, no_label)
    _share(found, "brier", counts.total("squared_error_sum"), labelled, no_label)
    _share(found, "mean_score", counts.total("score_sum"), predictions, "no prediction")
    _share(found, "coverage", labelled, predictions, "no prediction")
    area = area_under_curve(counts.negatives, counts.positives)
    _put(found, "auc", area, "labels of a single class" if labelled else no_label)
    _put(found, "label_delay_p99_s", delay_quantile_s(counts.delays, 0.99), no_label)
    return found


def why_unjudged(counts: WindowCounts) -> str | None:
    """Why the scores of a window cannot be held against labels 0 and 1; None: they can.

    Predictions are then counted, and drift is judged. A regression with all scores in [0, 1] is told by its labels.
    """
    unjudged = counts.count("unjudged")
    if unjudged:
        return f"{unjudged} predictions have several outputs or a score outside 0 .. 1: their quality is not judged"
    others = counts.count("other_labels")
    if others > counts.count("labelled"):
        return f"{others} labels are neither 0 nor 1, more than those that are: quality is not judged"
    return None


def area_under_curve(negatives: NDArray[np.int64], positives: NDArray[np.int64]) -> float | None:
    """Area under the ROC curve from score histograms of the two classes, ties (same cell) counted half.

    Args:
        negatives: counts per score cell, shape (k,), lowest scores first.
        positives: counts per score cell, shape (k,), same cells.

    Returns:
        In [0, 1]; None when a class is empty. Differs from the exact area by at most half the share of pairs that
        fall in one cell.

    Example:
        >>> area_under_curve(np.array([1, 1, 0]), np.array([0, 1, 1]))
        0.875

    """
    negative_count, positive_count = int(negatives.sum()), int(positives.sum())
    if negative_count == 0 or positive_count == 0:
        return None
    above = positive_count - np.cumsum(positives)
    doubled = sum(int(n) * int(2 * a + p) for n, a, p in zip(negatives, above, positives, strict=True) if n)
    return doubled / (2 * negative_count * positive_count)


def delay_quantile_s(delays: NDArray[np.int64], share: float) -> float | None:
    """Upper edge in seconds of the bin in which the ``share`` quantile of the label delays lies; None: no label.

    Example:
        >>> delays = np.zeros(len(DELAY_EDGES_US) + 1, dtype=np.int64)
        >>> delays[2] = 5
        >>> delay_quantile_s(delays, 0.99)
        2.0

    """
    total = int(delays.sum())
    if total == 0:
        return None
    at = int(np.searchsorted(np.cumsum(delays), share * total))
    return float(DELAY_EDGES_US[min(at, len(DELAY_EDGES_US) - 1)]) / SECOND_US


def _share(found: Quality, name: str, part: float, whole: float, reason: str) -> None:
    _put(found, name, part / whole if whole > 0 else None, reason)


def _put(found: Quality, name: str, value: float | None, reason: str) -> None:
    found.values[name] = value
    if value is None:
        found.reasons[name] = reason
