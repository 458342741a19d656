"""Where to cut a score in two: by the best F1, or by what right and wrong decisions cost; pure.

Both look only at cuts between different scores, because equal scores fall on the same side of any threshold. Of equally
good cuts the highest counts: it decides positive least often.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def best_threshold_for_f1(scores: Floats, labels: Floats) -> tuple[float, float]:
    """The score from which on to decide positive so that F1 is best, and that F1.

    Args:
        scores: shape (n,), n >= 1, finite.
        labels: shape (n,), 0 or 1.

    Raises:
        ValueError: there are no scores, one is not finite, or a label is neither 0 nor 1.

    Example:
        >>> best_threshold_for_f1(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 0.0, 1.0, 1.0]))
        (0.3, 1.0)

    """
    falling, true_positives = _cuts(scores, labels)
    decided = np.arange(1, len(falling) + 1)
    f1 = 2 * true_positives / (decided + labels.sum())
    best = int(np.argmax(np.where(_last_of_run(falling), f1, -1.0)))
    return float(falling[best]), float(f1[best])


def best_threshold_for_cost(
    scores: Floats,
    labels: Floats,
    *,
    false_positive: float,
    false_negative: float,
    true_positive: float = 0.0,
    true_negative: float = 0.0,
) -> tuple[float, float]:
    """The score from which on to decide positive so that the mean cost is lowest, and that mean cost a row.

    A gain is a negative cost. When it is cheapest never to decide positive, the threshold lies just above the largest
    score. Labels must be as frequent as in production: a sample made even would move the threshold.

    Args:
        scores: shape (n,), n >= 1, finite.
        labels: shape (n,), 0 or 1.
        false_positive: cost of a positive decision on a row with label 0.
        false_negative: cost of a negative decision on a row with label 1.
        true_positive: cost of a positive decision on a row with label 1.
        true_negative: cost of a negative decision on a row with label 0.

    Raises:
        ValueError: as for F1, or a cost is not finite.

    Example:
        >>> scores, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, 0.0, 1.0])
        >>> best_threshold_for_cost(scores, labels, false_positive=1.0, false_negative=5.0)
        (0.2, 0.25)
        >>> best_threshold_for_cost(scores, labels, false_positive=5.0, false_negative=1.0)
        (0.4, 0.25)

    """
    if not np.isfinite([false_positive, false_negative, true_positive, true_negative]).all():
        msg = "threshold: every cost must be a finite number"
        raise ValueError(msg)
    falling, true_positives = _cuts(scores, labels)
    # The first place stands for no positive decision at all.
    hits = np.append(0.0, true_positives)
    alarms = np.arange(len(falling) + 1) - hits
    positives = float(labels.sum())
    negatives = len(labels) - positives
    cost = (
        true_positive * hits
        + false_positive * alarms
        + false_negative * (positives - hits)
        + true_negative * (negatives - alarms)
    ) / len(labels)
    is_cut = np.append(True, _last_of_run(falling))
    best = int(np.argmin(np.where(is_cut, cost, np.inf)))
    places = np.append(np.nextafter(falling[0], np.inf), falling)
    return float(places[best]), float(cost[best])


def _cuts(scores: Floats, labels: Floats) -> tuple[Floats, Floats]:
    """The scores, falling, and how many labels are 1 down to each of them."""
    if not len(scores) or len(scores) != len(labels) or not np.isfinite(scores).all():
        msg = f"threshold: as many finite scores as labels are needed, at least one ({len(scores)}, {len(labels)})"
        raise ValueError(msg)
    if not np.isin(labels, (0, 1)).all():
        msg = "threshold: labels must be 0 or 1"
        raise ValueError(msg)
    order = np.argsort(-scores, kind="stable")
    return scores[order], np.cumsum(labels[order])


def _last_of_run(falling: Floats) -> NDArray[np.bool_]:
    return np.append(np.diff(falling) != 0, True)
