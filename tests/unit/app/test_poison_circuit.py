"""When the poison circuit opens, half-opens and closes, and that it says why."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.poison_circuit import CircuitState, PoisonCircuit


def opened(**options: Any) -> PoisonCircuit:  # noqa: ANN401 - of the circuit
    """A circuit that opened at second 0."""
    circuit = PoisonCircuit(**options)
    circuit.record(decodable=0, undecodable=500, now_s=0.0)
    assert circuit.state(0.0) is CircuitState.OPEN
    return circuit


def test_it_stays_closed_before_the_window_is_full() -> None:
    """The first 199 records may all be bad: that is no trend yet."""
    circuit = PoisonCircuit()
    circuit.record(decodable=0, undecodable=199, now_s=0.0)
    assert circuit.allowance(0.0) is None
    circuit.record(decodable=0, undecodable=1, now_s=0.0)
    assert circuit.allowance(0.0) == 0


@pytest.mark.parametrize(("undecodable", "is_open"), [(100, False), (101, True)])
def test_it_opens_above_the_share_not_at_it(undecodable: int, is_open: bool) -> None:
    """Half of the window may be bad, one more may not."""
    circuit = PoisonCircuit()
    circuit.record(decodable=200 - undecodable, undecodable=undecodable, now_s=0.0)
    assert circuit.is_holding is is_open


def test_old_records_leave_the_window() -> None:
    """A long good past does not hide a bad present, and a bad past is forgiven."""
    circuit = PoisonCircuit()
    circuit.record(decodable=100_000, undecodable=0, now_s=0.0)
    for _ in range(5):
        circuit.record(decodable=10, undecodable=30, now_s=1.0)
    assert circuit.is_holding
    circuit = PoisonCircuit()
    circuit.record(decodable=0, undecodable=150, now_s=0.0)
    circuit.record(decodable=200, undecodable=0, now_s=0.0)
    circuit.record(decodable=50, undecodable=90, now_s=0.0)
    assert not circuit.is_holding


def test_nothing_fires_until_the_probe_is_due() -> None:
    """Records that were already on their way change nothing, good or bad."""
    circuit = opened(open_s=30.0)
    circuit.record(decodable=1000, undecodable=0, now_s=29.9)
    assert circuit.allowance(29.9) == 0
    assert circuit.allowance(30.0) == 16


def test_a_good_probe_closes_it_and_the_past_is_forgotten() -> None:
    """Afterwards it needs a whole window again before it may open."""
    circuit = opened()
    circuit.record(decodable=8, undecodable=8, now_s=31.0)
    assert circuit.state(31.0) is CircuitState.CLOSED
    circuit.record(decodable=0, undecodable=199, now_s=32.0)
    assert circuit.problem(32.0) is None


def test_a_bad_probe_opens_it_for_as_long_again() -> None:
    """One probe each period, for as long as it takes; an empty micro-batch is no outcome."""
    circuit = opened()
    circuit.record(decodable=0, undecodable=0, now_s=30.0)
    assert circuit.state(30.0) is CircuitState.HALF_OPEN
    circuit.record(decodable=7, undecodable=9, now_s=31.0)
    assert (circuit.state(60.9), circuit.state(61.0)) == (CircuitState.OPEN, CircuitState.HALF_OPEN)
    assert circuit.opened_count == 2


def test_a_share_of_one_switches_it_off() -> None:
    """An operator who wants the dead letters gets them."""
    circuit = PoisonCircuit(share=1.0)
    circuit.record(decodable=0, undecodable=10_000, now_s=0.0)
    assert circuit.allowance(0.0) is None


def test_the_reason_names_cause_and_next_step() -> None:
    """How many of how many, what to look at, when it tries again, how to override it."""
    problem = opened().problem(10.0)
    assert problem is not None
    for words in ("500 of the last 500", "look at the dead letters", "in 20 s", "SLUICE_DELIVERY__POISON_SHARE=1"):
        assert words in problem


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=40), st.integers(1, 400))
def test_it_opens_exactly_when_the_last_records_say_so(counts: list[tuple[int, int]], window: int) -> None:
    """The same as summing anew over the shortest run of last micro-batches that fills the window."""
    circuit = PoisonCircuit(window=window, share=0.5)
    for end, (decodable, undecodable) in enumerate(counts, start=1):
        circuit.record(decodable=decodable, undecodable=undecodable, now_s=0.0)
        records = bad = 0
        for good, rotten in reversed(counts[:end]):
            if records >= window:
                break
            records, bad = records + good + rotten, bad + rotten
        expected = records >= window and bad > 0.5 * records
        assert circuit.is_holding is expected
        if expected:
            return
