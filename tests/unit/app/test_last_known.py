"""What is held for bad times: the newest rows, no longer than allowed, in bounded memory."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.last_known import GENERATIONS, TAKEN_PER_S, LastKnown

ROOMY = {"entries_max": 10**6, "bytes_max": 2**30}


def test_the_newest_row_of_a_key_is_recalled() -> None:
    """Whether it was read again at once or generations later."""
    known = LastKnown(**ROOMY, age_max_s=40)
    for now_s, row in ((0.0, b"a"), (1.0, b"b"), (15.0, b"c"), (39.0, b"d")):
        known.keep({"k": row}, now_s=now_s)
        assert known.recall(["k", "unknown"], now_s=now_s) == {"k": row}


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.floats(0, 200))
def test_no_row_is_used_after_its_age_nor_given_up_before_three_quarters(gaps_s: list[float], wait_s: float) -> None:
    """Keys that are each read once, at any times: those within 3/4 of the age are there, those above it are not."""
    known = LastKnown(**ROOMY, age_max_s=100)
    now_s, read_s = 0.0, {}
    for number, gap_s in enumerate(gaps_s):
        now_s += gap_s
        read_s[f"k{number}"] = now_s
        known.keep({f"k{number}": b"row"}, now_s=now_s)
    now_s += wait_s
    there = set(known.recall(read_s, now_s=now_s))
    assert there >= {key for key, at_s in read_s.items() if now_s - at_s < 75}
    assert not there & {key for key, at_s in read_s.items() if now_s - at_s > 100}


def test_nothing_is_held_when_the_age_is_zero() -> None:
    """The setting turns it off."""
    known = LastKnown(**ROOMY, age_max_s=0)
    known.keep({"k": b"row"}, now_s=1.0)
    assert (known.entries, known.recall(["k"], now_s=1.0)) == (0, {})


def test_entries_and_bytes_stay_within_their_bounds() -> None:
    """However many keys are read; exceeded by a micro-batch in each generation at most; the latest ones survive."""
    for bounds in ({"entries_max": 1000, "bytes_max": 2**30}, {"entries_max": 10**6, "bytes_max": 250_000}):
        known = LastKnown(**bounds, age_max_s=1e9)
        for step in range(200):
            batch = {f"key-{step:05}-{row:03}": b"x" * 30 for row in range(50)}
            known.keep(batch, now_s=float(step))
            assert known.entries <= bounds["entries_max"] + 50 * GENERATIONS
            assert known.size_bytes <= bounds["bytes_max"] + 50 * 210 * GENERATIONS
            assert known.recall(batch, now_s=float(step)) == batch
        assert known.entries >= 700


def test_keys_that_are_read_all_the_time_outlive_those_that_are_not() -> None:
    """A flood of other keys does not drive them out: least recently used go first."""
    known = LastKnown(entries_max=400, bytes_max=2**30, age_max_s=1e9)
    hot = {f"hot{i}": b"x" for i in range(20)}
    for step in range(500):
        known.keep({**hot, **{f"cold{step}-{i}": b"x" for i in range(20)}}, now_s=0.0)
    assert known.recall(hot, now_s=0.0) == hot
    assert not known.recall(["cold0-0"], now_s=0.0)


def test_no_more_is_taken_than_can_be_afforded() -> None:
    """A second's worth at once; in a flood of 100,000 rows a second a tenth, spread over its whole time."""
    known = LastKnown(**ROOMY, age_max_s=1e9)
    taken_at_s = []
    for step in range(1000):
        before = known.entries
        known.keep({f"{step}-{i}": b"x" for i in range(100)}, now_s=step / 1000)
        if known.entries > before:
            taken_at_s.append(step / 1000)
    assert TAKEN_PER_S <= known.entries <= 2 * TAKEN_PER_S + 100
    assert [known.keep({"late": b"x"}, now_s=3.0), known.recall(["late"], now_s=3.0)] == [None, {"late": b"x"}]
    assert max(later - earlier for earlier, later in pairwise(taken_at_s)) <= 0.011


def test_a_row_that_the_store_has_no_more_is_forgotten_everywhere() -> None:
    """In all generations, with its memory."""
    known = LastKnown(**ROOMY, age_max_s=40)
    for now_s in (0.0, 12.0, 24.0, 36.0):
        known.keep({"k": b"row", "l": b"row"}, now_s=now_s)
    before = known.size_bytes
    assert known.entries == 2 * GENERATIONS
    known.forget(["k", "never seen"])
    assert known.recall(["k", "l"], now_s=36.0) == {"l": b"row"}
    assert known.size_bytes * 2 == before


def test_the_memory_that_is_counted_is_the_memory_that_is_taken() -> None:
    """Within a third, measured by Python's own allocator trace for rows of the usual size."""
    known = LastKnown(**ROOMY, age_max_s=1e9)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for step in range(100):
        known.keep({f"fs:profile:v1:a{step * 300 + i}": bytes(26) + b"%d" % i for i in range(300)}, now_s=step)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.67 < taken / known.size_bytes < 1.33
