"""Latency histograms as rows of integer counts over one fine, fixed set of edges.

Fine bins (at most 5 % wide) make a p99 worth reading; the Prometheus bounds are a subset of the edges,
so the coarse family is an exact sum of fine bins. Counts are integers: histograms of workers and of
seconds add and subtract without error.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BIN_GROWTH = 1.05
"""Ratio of neighbouring edges, at most; the relative error of a quantile is below 5 %."""
TOP_US = 100_000_000
"""Upper edge of the last bounded bin, 100 s; above it one open bin."""
LATENCY_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds of every duration family, seconds."""
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Bucket bounds of the batch size family, rows."""


def _fine_edges() -> NDArray[np.int64]:
    edges, edge = [0], 0
    bounds = [round(bound * 1e6) for bound in LATENCY_BOUNDS_S]
    while edge < TOP_US:
        step = min(max(edge + 1, int(edge * BIN_GROWTH)), TOP_US)
        edge = min([step, *(bound for bound in bounds if bound > edge)])
        edges.append(edge)
    return np.array(edges, dtype=np.int64)


EDGES_US: NDArray[np.int64] = _fine_edges()
"""Upper edges of the bins, shape (BIN_COUNT - 1,), whole microseconds; bin i holds edge[i-1] < v <= edge[i]."""
BIN_COUNT = len(EDGES_US) + 1
_EDGE_LIST: list[int] = EDGES_US.tolist()
_BOUND_BINS: NDArray[np.int64] = np.searchsorted(
    EDGES_US, np.round(np.array(LATENCY_BOUNDS_S) * 1e6).astype(np.int64), side="left"
).astype(np.int64)


def bin_of(value_us: int) -> int:
    """Bin of one duration, 0 <= bin < BIN_COUNT; negative durations count as zero.

    Example:
        >>> bin_of(0), bin_of(3), bin_of(10**12) == BIN_COUNT - 1
        (0, 3, True)

    """
    return bisect_left(_EDGE_LIST, value_us)


def bin_counts(values_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts per bin of many durations.

    Args:
        values_us: shape (n,), any integers, microseconds; negative ones count as zero.

    Returns:
        Shape (BIN_COUNT,), int64, sum n.

    Cost: O(n log BIN_COUNT), about 11 ns a value.

    Example:
        >>> int(bin_counts(np.array([1, 1, 7])).sum())
        3

    """
    return np.bincount(np.searchsorted(EDGES_US, values_us, side="left"), minlength=BIN_COUNT)


def quantiles(counts: NDArray[np.int64], shares: Sequence[float]) -> list[float | None]:
    """Quantiles in microseconds, interpolated inside the bin; None each when the histogram is empty.

    Args:
        counts: shape (BIN_COUNT,), >= 0.
        shares: each in [0, 1].

    Returns:
        One value per share, relative error below 5 % (below 1 us absolute under 20 us); the open bin
        answers with its lower edge, 100 s.

    Example:
        >>> quantiles(bin_counts(np.arange(1, 1001)), [0.5])
        [500.0]
        >>> quantiles(np.zeros(BIN_COUNT, dtype=np.int64), [0.5])
        [None]

    """
    running = np.cumsum(counts)
    total = int(running[-1])
    if total == 0:
        return [None] * len(shares)
    return [_quantile(counts, running, share * total) for share in shares]


def _quantile(counts: NDArray[np.int64], running: NDArray[np.int64], rank: float) -> float:
    index = int(np.searchsorted(running, max(rank, 1.0), side="left"))
    if index >= len(EDGES_US):
        return float(EDGES_US[-1])
    upper = float(EDGES_US[index])
    lower = float(EDGES_US[index - 1]) if index else 0.0
    inside = (max(rank, 1.0) - float(running[index] - counts[index])) / float(counts[index])
    return round(lower + (upper - lower) * inside, 1)


def cumulative_at_bounds(counts: NDArray[np.int64]) -> list[int]:
    """Number of values at or below each of ``LATENCY_BOUNDS_S``, exact.

    Example:
        >>> cumulative_at_bounds(bin_counts(np.array([500, 501, 2_000])))[:3]
        [1, 2, 3]

    """
    running = np.cumsum(counts)
    return [int(running[index]) for index in _BOUND_BINS]
