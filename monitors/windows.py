"""Event-time windows, and the integer counts that one model version collects in one of them.

Integers only: merging is adding and retracting is subtracting, both exact, so that the same records give the
same bytes whatever the batch boundaries, duplicates or crashes were. Sums of fractions are fixed-point.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
MONDAY_US = 4 * DAY_US
"""1970-01-05 was a Monday; weeks are counted from it."""
LENGTHS_US = {"hour": 3_600 * SECOND_US, "day": DAY_US, "week": 7 * DAY_US}
FIXED_POINT = float(2**32)
"""A fraction in [-1, 1] is counted in units of 2**-32; 2**31 rows fit in 63 bits."""
SCORE_CELLS = 1000
"""Equal cells of [0, 1] for the score histograms of the two classes (area under the curve)."""
DELAY_EDGES_US = np.array([0, *(SECOND_US << k for k in range(25))], dtype=np.int64)
"""Edges of the label delay histogram: below 0, then doubling from 1 s to about 194 days."""
DELAY_BINS = len(DELAY_EDGES_US) + 1

SCALARS = (
    "predictions", "score_sum", "labelled", "true_negatives", "false_positives", "false_negatives", "true_positives",
    "labelled_score_sum", "squared_error_sum", "variance_sum", "skew_sum", "skew_variance_sum",
    "late_outcomes", "retracted_outcomes", "other_labels", "unjudged", "undecided",
)  # fmt: skip
"""Names of the first cells: plain counts, and fixed-point sums (`_sum`) over predictions or labelled predictions.

``unjudged``: predictions that are no probability of one thing, left out of every sum; ``undecided``: labelled ones that
were compared with no threshold.
"""
_AT = {name: at for at, name in enumerate(SCALARS)}
_DELAYS = len(SCALARS)
_NEGATIVES = _DELAYS + DELAY_BINS
_POSITIVES = _NEGATIVES + SCORE_CELLS
CORE_CELLS = _POSITIVES + SCORE_CELLS
_MAGIC = b"WC2"


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Tumbling windows over UTC event time.

    Attributes:
        name: month, week (from Monday), day, hour, or seconds as in ``900s``.
        length_us: length of every window; 0 for months.

    """

    name: str
    length_us: int

    @classmethod
    def parse(cls, text: str) -> WindowRule:
        """The rule that ``text`` names.

        Raises:
            ValueError: it is none of month, week, day, hour, ``<n>s`` with n >= 1.

        Example:
            >>> WindowRule.parse("900s").length_us
            900000000

        """
        if text == "month":
            return cls(text, 0)
        if text in LENGTHS_US:
            return cls(text, LENGTHS_US[text])
        match = re.fullmatch(r"([1-9]\d{0,8})s", text)
        if match is None:
            msg = f"window {text!r} is not one of month, week, day, hour or seconds such as 900s"
            raise ValueError(msg)
        return cls(text, int(match[1]) * SECOND_US)

    def starts(self, times_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """Start of the window that holds each time, shape (n,), UTC micros.

        Example:
            >>> WindowRule.parse("month").starts(np.array([1_364_000_000_000_000])).tolist()
            [1362096000000000]

        """
        if self.length_us == 0:
            months = times_us.astype("datetime64[us]").astype("datetime64[M]")
            return months.astype("datetime64[us]").astype(np.int64)
        anchor = MONDAY_US if self.name == "week" else 0
        return (times_us - anchor) // self.length_us * self.length_us + anchor

    def ends(self, starts_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """First moment after each window, given its start, shape (n,), UTC micros."""
        if self.length_us == 0:
            months = starts_us.astype("datetime64[us]").astype("datetime64[M]") + np.timedelta64(1, "M")
            return months.astype("datetime64[us]").astype(np.int64)
        return starts_us + self.length_us

    def end(self, time_us: int) -> int:
        """First moment after the window that holds ``time_us``; about 0.3 us, for single rows.

        Example:
            >>> WindowRule.parse("day").end(1), WindowRule.parse("month").end(1)
            (86400000000, 2678400000000)

        """
        if self.length_us == 0:
            return _month_end(time_us // DAY_US)
        anchor = MONDAY_US if self.name == "week" else 0
        return ((time_us - anchor) // self.length_us + 1) * self.length_us + anchor

    def label(self, start_us: int) -> str:
        """How people call the window.

        Example:
            >>> WindowRule.parse("month").label(1362096000000000), WindowRule.parse("day").label(1362096000000000)
            ('2013-03', '2013-03-01')

        """
        cut = {"month": 7, "week": 10, "day": 10, "hour": 13}.get(self.name, 19)
        return str(np.datetime64(start_us, "us"))[:cut]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which cells follow the core ones: a histogram of the score, then one of each feature, on frozen edges.

    Attributes:
        score_bins: bins of the score's histogram, >= 0.
        features: name and number of bins of each feature, in the order of the cells.
        fingerprint: eight bytes that tell one frozen reference from another; zeros: no reference.

    """

    score_bins: int = 0
    features: tuple[tuple[str, int], ...] = ()
    fingerprint: bytes = bytes(8)

    @property
    def cells(self) -> int:
        """Number of all cells."""
        return CORE_CELLS + self.score_bins + sum(bins for _, bins in self.features)

    def slices(self) -> dict[str, slice]:
        """Where the cells of each feature lie."""
        found, at = {}, CORE_CELLS + self.score_bins
        for name, bins in self.features:
            found[name] = slice(at, at + bins)
            at += bins
        return found


class WindowCounts:
    """All counts of one model version in one window: one int64 vector, so that merge is ``+``.

    Example:
        >>> counts = WindowCounts(Layout())
        >>> counts.add_predictions(np.array([0.25, 0.75]))
        >>> counts.add_labels(np.array([0.75]), np.array([True]), np.array([1]), np.array([60_000_000]))
        >>> counts.count("predictions"), counts.count("true_positives"), counts.total("squared_error_sum")
        (2, 1, 0.0625)

    """

    __slots__ = ("cells", "layout")

    def __init__(self, layout: Layout, cells: NDArray[np.int64] | None = None) -> None:
        """Empty counts, or those in ``cells``, shape (layout.cells,)."""
        self.layout = layout
        self.cells: NDArray[np.int64] = np.zeros(layout.cells, dtype=np.int64) if cells is None else cells

    def count(self, name: str) -> int:
        """One of ``SCALARS`` as it is counted."""
        return int(self.cells[_AT[name]])

    def total(self, name: str) -> float:
        """One of the fixed-point sums of ``SCALARS`` as a number."""
        return self.count(name) / FIXED_POINT

    @property
    def delays(self) -> NDArray[np.int64]:
        """Label delays, shape (DELAY_BINS,), on ``DELAY_EDGES_US``."""
        return self.cells[_DELAYS:_NEGATIVES]

    @property
    def negatives(self) -> NDArray[np.int64]:
        """Scores of the labelled negatives, shape (SCORE_CELLS,)."""
        return self.cells[_NEGATIVES:_POSITIVES]

    @property
    def positives(self) -> NDArray[np.int64]:
        """Scores of the labelled positives, shape (SCORE_CELLS,)."""
        return self.cells[_POSITIVES:CORE_CELLS]

    @property
    def score_bins(self) -> NDArray[np.int64]:
        """Scores of all predictions on the reference's deciles, shape (layout.score_bins,)."""
        return self.cells[CORE_CELLS : CORE_CELLS + self.layout.score_bins]

    def feature_bins(self) -> dict[str, NDArray[np.int64]]:
        """Values of each feature on the reference's frozen edges."""
        return {name: self.cells[part] for name, part in self.layout.slices().items()}

    def add_predictions(
        self,
        scores: NDArray[np.float64],
        score_bins: NDArray[np.int64] | None = None,
        feature_bins: Sequence[NDArray[np.int64]] = (),
        *,
        unjudged: int = 0,
    ) -> None:
        """Count predictions.

        Args:
            scores: of those that are judged, shape (m,), in [0, 1].
            score_bins: bin of each score, shape (n,); none: not counted.
            feature_bins: for each feature of the layout, the bin of each row, shape (n,).
            unjudged: how many others there are, n - m.

        """
        self.cells[_AT["predictions"]] += len(scores) + unjudged
        self.cells[_AT["unjudged"]] += unjudged
        self.cells[_AT["score_sum"]] += int(_fixed(scores).sum())
        at = CORE_CELLS
        if self.layout.score_bins and score_bins is not None:
            self._histogram(at, self.layout.score_bins, score_bins, 1)
        at += self.layout.score_bins
        for (_, bins), rows in zip(self.layout.features, feature_bins, strict=False):
            self._histogram(at, bins, rows, 1)
            at += bins

    def add_labels(
        self,
        scores: NDArray[np.float64],
        decisions: NDArray[np.bool_],
        labels: NDArray[np.int64],
        delays_us: NDArray[np.int64],
        *,
        sign: int = 1,
    ) -> None:
        """Count labelled predictions (sign 1) or take them back (sign -1).

        Args:
            scores: shape (n,), in [0, 1].
            decisions: whether the score reached the threshold, shape (n,).
            labels: 0 or 1, shape (n,).
            delays_us: outcome time minus event time, shape (n,).
            sign: 1 or -1.

        """
        positive = labels == 1
        variance = scores * (1.0 - scores)
        lean = 1.0 - 2.0 * scores
        cells = self.cells
        cells[_AT["labelled"]] += sign * len(scores)
        quadrants = np.bincount(decisions.astype(np.int64) + 2 * positive, minlength=4)
        cells[_AT["true_negatives"] : _AT["true_positives"] + 1] += sign * quadrants
        for name, values in (
            ("labelled_score_sum", scores),
            ("squared_error_sum", (labels - scores) ** 2),
            ("variance_sum", variance),
            ("skew_sum", (labels - scores) * lean),
            ("skew_variance_sum", lean * lean * variance),
        ):
            cells[_AT[name]] += sign * int(_fixed(values).sum())
        self._histogram(_DELAYS, DELAY_BINS, np.searchsorted(DELAY_EDGES_US, delays_us, side="right"), sign)
        at = np.minimum((scores * SCORE_CELLS).astype(np.int64), SCORE_CELLS - 1)
        self._histogram(_NEGATIVES, SCORE_CELLS, at[~positive], sign)
        self._histogram(_POSITIVES, SCORE_CELLS, at[positive], sign)

    def tally(self, name: str, count: int) -> None:
        """Add ``count`` to one of the plain counts of ``SCALARS``."""
        self.cells[_AT[name]] += count

    def add(self, other: WindowCounts) -> WindowCounts:
        """Merged counts; where the references differ only what does not depend on them is kept."""
        if self.layout == other.layout:
            return WindowCounts(self.layout, self.cells + other.cells)
        return WindowCounts(Layout(), self.cells[:CORE_CELLS] + other.cells[:CORE_CELLS])

    def subtract(self, other: WindowCounts) -> WindowCounts:
        """Counts without those of ``other``.

        Raises:
            ValueError: the layouts differ.

        """
        if self.layout != other.layout:
            msg = "counts on different references cannot be subtracted"
            raise ValueError(msg)
        return WindowCounts(self.layout, self.cells - other.cells)

    def to_bytes(self) -> bytes:
        """The counts, byte-equal for equal counts."""
        return _MAGIC + self.layout.fingerprint + self.cells.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> WindowCounts:
        """Counts from their bytes; those on another reference come back with the core cells only.

        Raises:
            ValueError: these are no window counts.

        """
        head = len(_MAGIC) + 8
        if data[: len(_MAGIC)] != _MAGIC or (len(data) - head) % 8 or len(data) < head + 8 * CORE_CELLS:
            msg = (
                "not the bytes of window counts: the store is of another version or damaged; remove its folder, and it "
                "is rebuilt from the topics"
            )
            raise ValueError(msg)
        cells = np.frombuffer(data, dtype="<i8", offset=head).astype(np.int64)
        if data[len(_MAGIC) : head] == layout.fingerprint and len(cells) == layout.cells:
            return cls(layout, cells)
        return cls(Layout(), cells[:CORE_CELLS].copy())

    def _histogram(self, at: int, bins: int, rows: NDArray[np.int64], sign: int) -> None:
        self.cells[at : at + bins] += sign * np.bincount(rows, minlength=bins)


@lru_cache(maxsize=4096)
def _month_end(day: int) -> int:
    month = np.datetime64(day, "D").astype("datetime64[M]") + np.timedelta64(1, "M")
    return int(month.astype("datetime64[us]").astype(np.int64))


def _fixed(values: NDArray[np.float64]) -> NDArray[np.int64]:
    # Rounded row by row: a float sum would depend on the batch boundaries, a sum of integers does not.
    return np.rint(values * FIXED_POINT).astype(np.int64)
