"""Windows over event time, and integer counts that merge and retract exactly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.windows import CORE_CELLS, SCALARS, Layout, WindowCounts, WindowRule

LAYOUT = Layout(4, (("age", 5), ("town", 3)), b"12345678")
MOMENT = datetime(2013, 3, 31, 23, 59, 59, 999_999, tzinfo=UTC)


def micros(moment: datetime) -> int:
    """Micros since 1970."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "start", "end", "label"),
    [
        ("month", datetime(2013, 3, 1, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC), "2013-03"),
        ("week", datetime(2013, 3, 25, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC), "2013-03-25"),
        ("day", datetime(2013, 3, 31, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC), "2013-03-31"),
        ("hour", datetime(2013, 3, 31, 23, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC), "2013-03-31T23"),
        ("900s", datetime(2013, 3, 31, 23, 45, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC), "2013-03-31T23:45:00"),
    ],
)
def test_a_window_holds_its_last_microsecond(text: str, start: datetime, end: datetime, label: str) -> None:
    """The last microsecond of a window belongs to it, the next one to the next window."""
    rule = WindowRule.parse(text)
    last = np.array([micros(MOMENT), micros(MOMENT) + 1])
    starts = rule.starts(last)
    assert starts.tolist() == [micros(start), micros(end)]
    assert rule.ends(starts)[0] == micros(end)
    assert rule.label(int(starts[0])) == label


@given(st.integers(0, 7_258_118_399_999_999), st.sampled_from(["month", "week", "day", "hour", "7s"]))
def test_the_end_of_one_row_is_the_end_of_many(time_us: int, text: str) -> None:
    """The fast end for single rows agrees with the vectorised one, and every time lies within its window."""
    rule = WindowRule.parse(text)
    start = rule.starts(np.array([time_us]))
    assert rule.end(time_us) == rule.ends(start)[0]
    assert start[0] <= time_us < rule.end(time_us)


@pytest.mark.parametrize("text", ["", "year", "0s", "-5s", "s", "1.5s", "day "])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    """The message names what may stand there."""
    with pytest.raises(ValueError, match="month, week, day, hour or seconds"):
        WindowRule.parse(text)


def labels_of(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random scores, decisions, labels and delays."""
    rng = np.random.default_rng(seed)
    scores = rng.random(rows)
    return scores, scores >= 0.5, rng.integers(0, 2, rows), rng.integers(-(10**9), 10**13, rows)


def filled(seed: int, rows: int, cuts: list[int]) -> WindowCounts:
    """Counts of the same rows, taken in batches that end at ``cuts``."""
    rng = np.random.default_rng(seed)
    scores, decisions, labels, delays = labels_of(seed, rows)
    bins = [rng.integers(0, n, rows) for n in (4, 5, 3)]
    counts = WindowCounts(LAYOUT)
    for start, end in zip([0, *cuts], [*cuts, rows], strict=True):
        part = slice(start, end)
        counts.add_predictions(scores[part], bins[0][part], [b[part] for b in bins[1:]])
        counts.add_labels(scores[part], decisions[part], labels[part], delays[part])
    return counts


@given(st.integers(0, 50), st.lists(st.integers(0, 200), max_size=6))
def test_batch_boundaries_leave_no_trace(seed: int, cuts: list[int]) -> None:
    """The same rows give the same bytes however they are cut into batches."""
    assert filled(seed, 200, sorted(cuts)).to_bytes() == filled(seed, 200, []).to_bytes()


@given(st.integers(0, 20), st.integers(0, 20))
def test_merge_and_retraction_are_exact(one: int, other: int) -> None:
    """Adding counts and subtracting them again, or retracting labels, gives back the very bytes."""
    a, b = filled(one, 100, []), filled(other, 77, [])
    assert a.add(b).subtract(b).to_bytes() == a.to_bytes()
    assert a.add(b).to_bytes() == b.add(a).to_bytes()
    before = a.to_bytes()
    rows = labels_of(other, 50)
    a.add_labels(*rows)
    assert a.to_bytes() != before
    a.add_labels(*rows, sign=-1)
    assert a.to_bytes() == before


def test_every_row_falls_in_one_cell_of_each_histogram() -> None:
    """The histograms of scores, delays and features add up to the rows, and the quadrants to the labels."""
    counts = filled(3, 500, [])
    assert counts.score_bins.sum() == 500
    assert {name: cells.sum() for name, cells in counts.feature_bins().items()} == {"age": 500, "town": 500}
    assert counts.delays.sum() == counts.negatives.sum() + counts.positives.sum() == counts.count("labelled") == 500
    quadrants = ("true_negatives", "false_positives", "false_negatives", "true_positives")
    assert sum(counts.count(name) for name in quadrants) == 500


def test_counts_come_back_from_their_bytes() -> None:
    """Bytes hold the whole state; on another reference only the cells that do not depend on it come back."""
    counts = filled(1, 60, [])
    assert WindowCounts.from_bytes(counts.to_bytes(), LAYOUT).to_bytes() == counts.to_bytes()
    other = WindowCounts.from_bytes(counts.to_bytes(), Layout(4, (("age", 8),), b"87654321"))
    assert other.layout == Layout()
    assert other.cells.tolist() == counts.cells[:CORE_CELLS].tolist()
    merged = counts.add(other)
    assert (merged.layout, merged.count("predictions")) == (Layout(), 120)


@pytest.mark.parametrize(
    "data", [b"", b"WC1", b"xyz" + bytes(8 + 8 * CORE_CELLS), b"WC1" + bytes(8 + 8 * CORE_CELLS + 1)]
)
def test_damaged_bytes_are_refused(data: bytes) -> None:
    """What is no window state raises, with a reason, instead of counting nonsense."""
    with pytest.raises(ValueError, match="not the bytes of window counts"):
        WindowCounts.from_bytes(data, Layout())


def test_counts_on_other_references_are_not_subtracted() -> None:
    """Subtracting what was never added is an error."""
    with pytest.raises(ValueError, match="different references"):
        filled(1, 5, []).subtract(WindowCounts(Layout()))


def test_the_scalars_are_golden() -> None:
    """Two labelled rows, by hand: one hit at 0.75, one miss at 0.75."""
    counts = WindowCounts(Layout())
    counts.add_labels(np.array([0.75, 0.75]), np.array([True, True]), np.array([1, 0]), np.array([0, -1]))
    found = {name: counts.total(name) if name.endswith("_sum") else counts.count(name) for name in SCALARS}
    assert found == {
        "predictions": 0, "score_sum": 0, "labelled": 2, "true_negatives": 0, "false_positives": 1,
        "false_negatives": 0, "true_positives": 1, "labelled_score_sum": 1.5, "squared_error_sum": 0.625,
        "variance_sum": 0.375, "skew_sum": 0.25, "skew_variance_sum": 0.09375, "late_outcomes": 0,
        "retracted_outcomes": 0, "other_labels": 0, "unjudged": 0, "undecided": 0,
    }  # fmt: skip
    assert counts.delays[:2].tolist() == [1, 1]
