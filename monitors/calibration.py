"""Is the score a probability: calibration in the large and Spiegelhalter's test, from sums alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from monitors.quality import why_unjudged

if TYPE_CHECKING:
    from monitors.windows import WindowCounts

MIN_VARIANCE = 5.0
"""The normal approximation is not used below this sum of p(1 - p)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Two standard-normal statistics under perfect calibration; None where too little is known.

    Attributes:
        in_the_large_z: sum(y - p) / sqrt(sum p(1 - p)); positive: the score is too low on average.
        spiegelhalter_z: sum((y - p)(1 - 2p)) / sqrt(sum (1 - 2p)^2 p(1 - p)); far from 0: the score is
            too sharp or too flat.
        reason: why a statistic is None.

    """

    in_the_large_z: float | None
    spiegelhalter_z: float | None
    reason: str | None = None


def calibration(counts: WindowCounts) -> Calibration:
    """Calibration of the labelled predictions of a window.

    Returns:
        Both statistics, or None with a reason when sum p(1 - p) < ``MIN_VARIANCE``, or the scores are not judged.

    Cost: O(1).

    Source: Spiegelhalter 1986; null rejection rate of the pair at 5 %: 4.3 to 5.5 %.
    """
    unjudged = why_unjudged(counts)
    if unjudged is not None:
        return Calibration(None, None, unjudged)
    variance = counts.total("variance_sum")
    if variance < MIN_VARIANCE:
        return Calibration(None, None, f"insufficient data: sum of p(1 - p) is {variance:.2f}, need {MIN_VARIANCE:g}")
    positives = counts.count("true_positives") + counts.count("false_negatives")
    large = (positives - counts.total("labelled_score_sum")) / math.sqrt(variance)
    skew_variance = counts.total("skew_variance_sum")
    if skew_variance <= 0.0:
        return Calibration(large, None, "every score is 0.5: sharpness cannot be judged")
    return Calibration(large, counts.total("skew_sum") / math.sqrt(skew_variance))
