"""How old the features of one view were when they were used, as a histogram from a second to a month."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

AGE_BOUNDS_S = (1, 10, 60, 300, 900, 3600, 21_600, 86_400, 604_800, 2_592_000)
"""Bucket bounds: 1 s, 10 s, 1, 5 and 15 minutes, 1 and 6 hours, 1, 7 and 30 days."""
_BOUNDS_MS = np.array(AGE_BOUNDS_S, dtype=np.int64) * 1000


@dataclass(slots=True)
class FeatureAges:
    """Counts of one view.

    Attributes:
        counts: rows up to each bound and above the bound before, and above all; shape (11,).
        sum_ms: of all ages.

    Example:
        >>> ages = FeatureAges()
        >>> ages.add(np.array([0, 1000, 1001, 10**12]))
        >>> ages.counts.tolist()
        [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]

    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(AGE_BOUNDS_S) + 1, dtype=np.int64))
    sum_ms: int = 0

    def add(self, ages_ms: NDArray[np.int64]) -> None:
        """Count rows; ages in milliseconds, shape (n,), never negative."""
        bins = np.searchsorted(_BOUNDS_MS, ages_ms, side="left")
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.sum_ms += int(ages_ms.sum())
