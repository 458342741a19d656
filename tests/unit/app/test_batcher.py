"""When a micro-batch fires, rule by rule, on times that are given."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batcher import COST_SMOOTHING, MAX_LATE_BATCHES, LearnedCost, MicroBatcher, Slice
from schemas.records import FireReason

FREE, BUSY_S = -math.inf, 99.0
"""When the device is free: long ago, or far from now."""


@pytest.fixture
def batcher() -> MicroBatcher:
    """At most four rows, at most 5 ms of waiting."""
    return MicroBatcher(max_batch_size=4, window_s=0.005)


def test_nothing_waits_nothing_fires(batcher: MicroBatcher) -> None:
    """Without rows an idle device gets nothing, and there is no time to wake at."""
    assert batcher.fire_reason(now_s=9.0, device_free_s=FREE) is None
    assert batcher.wake_at_s(now_s=9.0, device_free_s=FREE) == math.inf
    assert batcher.take(now_s=0.0, device_free_s=FREE).slices == []


def test_a_full_batch_fires_at_once(batcher: MicroBatcher) -> None:
    """``max_batch_size`` rows fire whatever the device does, and before every other rule."""
    batcher.add("a", rows=4, now_s=1.0, deadlines_s=np.zeros(4))
    assert batcher.fire_reason(now_s=1.0, device_free_s=FREE) is FireReason.FULL
    assert batcher.fire_reason(now_s=1.0, device_free_s=BUSY_S) is FireReason.FULL


def test_the_earliest_deadline_fires_in_time_for_the_learned_cost(batcher: MicroBatcher) -> None:
    """A batch fires when what it will take is all that is left until the earliest deadline, whatever the hold."""
    batcher.run.learn(2, 0.002)
    batcher.add("a", rows=1, now_s=1.0)
    batcher.add("b", rows=1, now_s=1.0, deadlines_s=np.array([1.004]))
    assert batcher.wake_at_s(now_s=1.0, device_free_s=1.001) == pytest.approx(1.001)
    assert batcher.fire_reason(now_s=1.0019, device_free_s=1.0) is not FireReason.DEADLINE
    assert batcher.fire_reason(now_s=1.0021, device_free_s=1.0) is FireReason.DEADLINE
    assert batcher.fire_reason(now_s=1.0021, device_free_s=1.0025) is None, "on a busy device it would end no earlier"


def test_nothing_fires_while_the_device_stays_busy(batcher: MicroBatcher) -> None:
    """Until the device is about to be free rows gain company for nothing; then they are prepared just in time."""
    batcher.prepare.learn(1, 0.001)
    batcher.add("a", rows=1, now_s=1.0)
    assert batcher.wake_at_s(now_s=1.006, device_free_s=1.010) == pytest.approx(1.009)
    assert batcher.fire_reason(now_s=1.006, device_free_s=1.010) is None
    assert batcher.fire_reason(now_s=1.0091, device_free_s=1.010) is FireReason.WINDOW


def test_the_window_counts_from_the_first_waiting_row(batcher: MicroBatcher) -> None:
    """A later arrival does not extend the wait of the first, and a learned hold never goes beyond the window."""
    batcher.add("a", rows=1, now_s=1.0, device_free_s=FREE)
    batcher.hold.seconds = 1.0
    batcher.add("b", rows=1, now_s=1.004, device_free_s=FREE)
    assert batcher.wake_at_s(now_s=1.004, device_free_s=FREE) == pytest.approx(1.005)
    assert batcher.fire_reason(now_s=1.0049, device_free_s=FREE) is None
    assert batcher.fire_reason(now_s=1.0051, device_free_s=FREE) is FireReason.WINDOW


def test_an_idle_device_gets_what_there_is(batcher: MicroBatcher) -> None:
    """One row on an idle device does not wait for company."""
    batcher.add("a", rows=1, now_s=1.0, device_free_s=FREE)
    assert batcher.fire_reason(now_s=1.0, device_free_s=FREE) is FireReason.IDLE


def test_a_learned_hold_keeps_the_first_row_of_a_quiet_spell(batcher: MicroBatcher) -> None:
    """Where bursts are usual the first row waits for them; rows that met a busy device have waited already."""
    batcher.hold.seconds = 0.002
    batcher.add("a", rows=1, now_s=1.0, device_free_s=FREE)
    assert batcher.fire_reason(now_s=1.0019, device_free_s=FREE) is None
    assert batcher.wake_at_s(now_s=1.0019, device_free_s=FREE) == pytest.approx(1.002)
    assert batcher.fire_reason(now_s=1.0021, device_free_s=FREE) is FireReason.IDLE
    batcher.take(now_s=0.0, device_free_s=FREE)
    batcher.add("b", rows=1, now_s=1.003, device_free_s=1.0031)
    assert batcher.fire_reason(now_s=1.0032, device_free_s=1.0031) is FireReason.IDLE


def test_rows_one_by_one_are_never_held() -> None:
    """After any number of lone rows the hold is zero."""
    batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
    batcher.run.learn(1, 0.001)
    for second in range(20):
        batcher.add("a", rows=1, now_s=float(second), device_free_s=FREE)
        assert batcher.fire_reason(now_s=float(second), device_free_s=FREE) is FireReason.IDLE
        batcher.take(now_s=0.0, device_free_s=FREE)


def test_a_segment_without_rows_is_handed_out(batcher: MicroBatcher) -> None:
    """Dead letters alone make a segment of no rows: it fires too, and once."""
    batcher.add("dead", rows=0, now_s=1.0)
    assert batcher.fire_reason(now_s=1.0, device_free_s=FREE) is FireReason.IDLE
    assert batcher.take(now_s=0.0, device_free_s=FREE).slices == [Slice("dead", 0, 0)]
    assert batcher.take(now_s=0.0, device_free_s=FREE).slices == []


def test_a_learned_cost_follows_the_newest_batches() -> None:
    """A lasting change is learned, a single outlier mostly forgotten, each size for itself."""
    cost = LearnedCost()
    cost.learn(100, 1.0)
    for _ in range(50):
        cost.learn(3, 0.004)
    cost.learn(4, 0.104)
    assert cost.of(3) == pytest.approx(0.004 + COST_SMOOTHING * 0.1)
    assert cost.of(128) == cost.of(65) == 1.0
    assert cost.of(16) == 1.0, "at most what the next larger known size takes"
    assert cost.of(512) == 4.0, "nothing larger is known: it grows with the rows"


def test_waking_at_the_named_time_finds_a_reason() -> None:
    """Nobody polls: whoever sleeps until ``wake_at_s`` fires then, or is told a later time."""

    @settings(max_examples=200, deadline=None)
    @given(st.floats(0, 0.02), st.floats(0, 0.02), st.floats(0, 0.005), st.floats(0, 0.01), st.integers(0, 3))
    def check(deadline_s: float, free_s: float, hold_s: float, prepare_s: float, rows: int) -> None:
        batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
        batcher.prepare.learn(1, prepare_s)
        batcher.hold.seconds = hold_s
        batcher.add("a", rows=rows, now_s=0.0, deadlines_s=np.full(rows, deadline_s), device_free_s=free_s)
        now_s = 0.0
        for _ in range(5):
            if batcher.fire_reason(now_s=now_s, device_free_s=free_s) is not None:
                return
            wake_s = batcher.wake_at_s(now_s=now_s, device_free_s=free_s)
            assert wake_s > now_s
            now_s = wake_s
        pytest.fail("woken five times for nothing")

    check()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 8), st.data())
def test_take_conserves_rows_and_order(sizes: list[int], max_batch_size: int, data: st.DataObject) -> None:
    """However adds and takes alternate, every row comes out once, in order of arrival, never too many at a time."""
    batcher = MicroBatcher(max_batch_size=max_batch_size, window_s=1.0)
    expected = [(number, row) for number, rows in enumerate(sizes) for row in range(rows)]
    out: list[tuple[int, int]] = []
    seen: list[int] = []

    def take() -> None:
        slices = batcher.take(now_s=0.0, device_free_s=FREE).slices
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
    while batcher.fire_reason(now_s=0.0, device_free_s=FREE) is not None:
        take()
    assert out == expected
    assert set(seen) == set(range(len(sizes))), "a segment without rows is handed out as well"
    assert batcher.waiting_rows == 0


def test_late_rows_take_no_place() -> None:
    """Rows that cannot be answered in time come along, so that the device gets a full batch of those that can."""
    batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
    batcher.run.learn(4, 0.010)
    deadlines = np.array([1.0, 1.005, 1.02, 1.0, 1.03, 1.04, 1.05, 1.06, 1.07])
    batcher.add("a", rows=9, now_s=0.9, deadlines_s=deadlines)
    assert batcher.take(now_s=1.0, device_free_s=FREE).slices == [Slice("a", 0, 7)]
    assert batcher.take(now_s=1.0, device_free_s=FREE).slices == [Slice("a", 7, 9)]


def test_late_rows_of_one_step_are_bounded() -> None:
    """A backlog of rows that are all too late is answered in steps, not at once."""
    batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
    batcher.add("a", rows=100, now_s=0.0, deadlines_s=np.zeros(100))
    assert batcher.take(now_s=1.0, device_free_s=FREE).slices == [Slice("a", 0, 4 * MAX_LATE_BATCHES)]
    assert batcher.waiting_rows == 100 - 4 * MAX_LATE_BATCHES


def test_a_batch_is_no_larger_than_its_deadlines_allow() -> None:
    """A model that takes 10 ms a row, 50 ms to go: four rows can be answered in time, eight could not."""
    batcher = MicroBatcher(max_batch_size=64, window_s=0.005)
    for rows in (1, 2, 4, 8, 64):
        batcher.run.learn(rows, 0.010 * rows)
    batcher.add("a", rows=64, now_s=0.0, deadlines_s=np.full(64, 0.050))
    taken = batcher.take(now_s=0.0, device_free_s=FREE)
    assert 1 <= sum(map(len, taken.slices)) <= 4
    assert taken.planned_s <= 0.050


def test_the_size_that_answers_most_in_time_is_taken() -> None:
    """Where batching pays, the largest batch that meets the deadlines is better than small ones."""
    batcher = MicroBatcher(max_batch_size=64, window_s=0.005)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        batcher.run.learn(rows, 0.010 + 0.001 * rows)
    batcher.add("a", rows=64, now_s=0.0, deadlines_s=np.full(64, 0.050))
    assert batcher.take(now_s=0.0, device_free_s=FREE).slices == [Slice("a", 0, 32)]


def test_time_that_the_device_is_busy_counts() -> None:
    """A batch that fires while the device is busy starts later, and so must be smaller."""
    batcher = MicroBatcher(max_batch_size=8, window_s=0.005)
    for rows in (1, 2, 4, 8):
        batcher.run.learn(rows, 0.010 * rows)
    batcher.add("a", rows=8, now_s=0.0, deadlines_s=np.full(8, 0.050))
    assert sum(map(len, batcher.take(now_s=0.0, device_free_s=0.025).slices)) <= 2


def test_a_cost_that_lets_nothing_through_is_doubted() -> None:
    """After one long hiccup of the device the learned cost comes down again, although nothing runs."""
    batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
    batcher.run.learn(1, 5.0)
    for second in range(60):
        batcher.add("a", rows=1, now_s=float(second), deadlines_s=np.array([second + 0.1]))
        taken = batcher.take(now_s=float(second), device_free_s=FREE)
        if taken.in_time_s < second + 0.1:
            return
    pytest.fail("60 requests expired for a device that may be fast again")


def test_a_row_that_may_be_late_is_tried_when_there_is_room() -> None:
    """Nobody is helped by leaving a place empty: only a row that cannot be in time is left out."""
    batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
    for _ in range(100):
        batcher.beyond.learn(0.020)
    batcher.run.learn(4, 0.001)
    batcher.add("a", rows=4, now_s=0.0, deadlines_s=np.array([0.0005, 0.010, 0.1, 0.1]))
    taken = batcher.take(now_s=0.0, device_free_s=FREE)
    assert 0.0005 < taken.in_time_s < 0.010


def test_of_a_queue_that_is_too_long_the_front_goes() -> None:
    """Ten ms for two rows, 35 ms for all: two batches can be in time, so the oldest rows beyond those are left out."""
    batcher = MicroBatcher(max_batch_size=2, window_s=0.005)
    batcher.run.learn(1, 0.010)
    batcher.run.learn(2, 0.010)
    deadlines = np.array([0.031, 0.032, 0.033, 0.034, 0.035, 0.036, 0.037, 0.038, 0.039, 0.0395])
    batcher.add("a", rows=10, now_s=0.0, deadlines_s=deadlines)
    taken = batcher.take(now_s=0.0, device_free_s=FREE)
    late = int(np.count_nonzero(deadlines <= taken.in_time_s))
    assert 2 <= late <= 4
    assert taken.slices == [Slice("a", 0, late + 2)]


def test_nothing_is_left_out_of_a_queue_that_can_be_served() -> None:
    """More rows than fit one batch are no overload: the next batches come in time."""
    batcher = MicroBatcher(max_batch_size=2, window_s=0.005)
    for _ in range(100):
        batcher.beyond.learn(0.020)
    batcher.run.learn(1, 0.010)
    batcher.run.learn(2, 0.010)
    batcher.add("a", rows=8, now_s=0.0, deadlines_s=np.linspace(0.08, 0.1, 8))
    taken = batcher.take(now_s=0.0, device_free_s=FREE)
    assert taken.slices == [Slice("a", 0, 2)]
    assert taken.in_time_s == taken.planned_s


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.one_of(st.just(math.inf), st.just(-math.inf), st.floats(-1e12, 1e12)), min_size=1, max_size=40),
    st.floats(0, 10),
    st.floats(0, 10),
    st.integers(1, 8),
)
def test_any_deadlines_can_be_taken(deadlines: list[float], run_s: float, beyond_s: float, max_batch_size: int) -> None:
    """None, long past or far away, mixed: every row comes out once, and the device never gets too many."""
    batcher = MicroBatcher(max_batch_size=max_batch_size, window_s=0.005)
    batcher.run.learn(1, run_s)
    batcher.beyond.learn(beyond_s)
    given_s = np.array(deadlines)
    batcher.add("a", rows=len(deadlines), now_s=0.0, deadlines_s=given_s)
    at = 0
    while batcher.waiting_rows:
        taken = batcher.take(now_s=0.0, device_free_s=FREE)
        rows = sum(map(len, taken.slices))
        assert rows > 0
        assert np.count_nonzero(given_s[at : at + rows] > taken.in_time_s) <= max_batch_size
        at += rows
    assert at == len(deadlines)
