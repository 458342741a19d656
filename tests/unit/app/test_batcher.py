"""When a micro-batch fires, rule by rule, on times that are given."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batcher import COST_SMOOTHING, MicroBatcher, Slice
from schemas.records import FireReason


@pytest.fixture
def batcher() -> MicroBatcher:
    """At most four rows, at most 5 ms of waiting."""
    return MicroBatcher(max_batch_size=4, window_s=0.005)


def test_nothing_waits_nothing_fires(batcher: MicroBatcher) -> None:
    """Without rows an idle device gets nothing, and there is no time to wake at."""
    assert batcher.fire_reason(now_s=9.0, device_idle=True) is None
    assert batcher.wake_at_s() == math.inf
    assert batcher.take() == []


def test_a_full_batch_fires_at_once(batcher: MicroBatcher) -> None:
    """``max_batch_size`` rows fire whatever the device does, and before every other rule."""
    batcher.add("a", rows=4, now_s=1.0, deadline_s=0.0)
    assert batcher.fire_reason(now_s=1.0, device_idle=True) is FireReason.FULL


def test_the_earliest_deadline_fires_in_time_for_the_learned_cost(batcher: MicroBatcher) -> None:
    """A batch fires when what it will take is all that is left until the earliest deadline."""
    batcher.learn_cost(0.010)
    cost_s = COST_SMOOTHING * 0.010
    batcher.add("a", rows=1, now_s=1.0)
    batcher.add("b", rows=1, now_s=1.0, deadline_s=1.004)
    assert batcher.wake_at_s() == pytest.approx(1.004 - cost_s)
    assert batcher.fire_reason(now_s=1.004 - cost_s - 1e-6, device_idle=False) is None
    assert batcher.fire_reason(now_s=1.004 - cost_s + 1e-6, device_idle=False) is FireReason.DEADLINE


def test_the_window_counts_from_the_first_waiting_row(batcher: MicroBatcher) -> None:
    """A later arrival does not extend the wait of the first."""
    batcher.add("a", rows=1, now_s=1.0)
    batcher.add("b", rows=1, now_s=1.004)
    assert batcher.wake_at_s() == pytest.approx(1.005)
    assert batcher.fire_reason(now_s=1.0049, device_idle=False) is None
    assert batcher.fire_reason(now_s=1.0051, device_idle=False) is FireReason.WINDOW


def test_an_idle_device_gets_what_there_is(batcher: MicroBatcher) -> None:
    """One row on an idle device does not wait for company."""
    batcher.add("a", rows=1, now_s=1.0)
    assert batcher.fire_reason(now_s=1.0, device_idle=False) is None
    assert batcher.fire_reason(now_s=1.0, device_idle=True) is FireReason.IDLE


def test_a_segment_without_rows_is_handed_out(batcher: MicroBatcher) -> None:
    """Dead letters alone make a segment of no rows: it fires too, and once."""
    batcher.add("dead", rows=0, now_s=1.0)
    assert batcher.fire_reason(now_s=1.0, device_idle=True) is FireReason.IDLE
    assert batcher.take() == [Slice("dead", 0, 0)]
    assert batcher.take() == []


def test_the_learned_cost_follows_the_newest_batches(batcher: MicroBatcher) -> None:
    """A lasting change of cost is learned, a single outlier mostly forgotten."""
    for _ in range(50):
        batcher.learn_cost(0.004)
    assert batcher.cost_s == pytest.approx(0.004, rel=1e-3)
    batcher.learn_cost(0.104)
    assert batcher.cost_s == pytest.approx(0.004 + COST_SMOOTHING * 0.1, rel=1e-3)


def test_clear_forgets_all(batcher: MicroBatcher) -> None:
    """After a revocation nothing of the old rows is handed out."""
    batcher.add("a", rows=3, now_s=1.0)
    batcher.clear()
    assert (batcher.waiting_rows, batcher.take()) == (0, [])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 8), st.data())
def test_take_conserves_rows_and_order(sizes: list[int], max_batch_size: int, data: st.DataObject) -> None:
    """However adds and takes alternate, every row comes out once, in order of arrival, never too many at a time."""
    batcher = MicroBatcher(max_batch_size=max_batch_size, window_s=1.0)
    expected = [(number, row) for number, rows in enumerate(sizes) for row in range(rows)]
    out: list[tuple[int, int]] = []
    seen: list[int] = []

    def take() -> None:
        slices = batcher.take()
        assert sum(map(len, slices)) <= max_batch_size
        for part in slices:
            assert isinstance(part.segment, int)
            out.extend((part.segment, row) for row in range(part.start, part.end))
            seen.append(part.segment)

    for number, rows in enumerate(sizes):
        batcher.add(number, rows=rows, now_s=float(number))
        assert batcher.waiting_rows == sum(sizes[: number + 1]) - len(out)
        if data.draw(st.booleans()):
            take()
    while batcher.fire_reason(now_s=0.0, device_idle=True) is not None:
        take()
    assert out == expected
    assert set(seen) == set(range(len(sizes))), "a segment without rows is handed out as well"
    assert batcher.waiting_rows == 0
