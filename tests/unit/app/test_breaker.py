"""The breaker on a clock that is set."""

from __future__ import annotations

import pytest

from app.breaker import Breaker


def _breaker() -> Breaker:
    return Breaker(calls=20, failed_share=0.5, open_s=1.0)


def _record(breaker: Breaker, outcomes: str, now_s: float = 10.0) -> None:
    for outcome in outcomes:
        breaker.record(ok=outcome == "+", now_s=now_s)


@pytest.mark.parametrize("outcomes", ["-" * 10, "+-" * 10, "+" * 50 + "-" * 10, "-" * 9 + "+" * 10 + "-"])
def test_ten_failures_in_twenty_calls_open_it(outcomes: str) -> None:
    """Half of the last twenty calls, in a row or not, also before there were twenty; nine do not."""
    breaker = _breaker()
    _record(breaker, outcomes[:-1])
    assert (breaker.is_open(10.0), breaker.awaits_probe) == (False, False) or outcomes.endswith("+")
    _record(breaker, "-")
    assert breaker.is_open(10.0)
    assert breaker.is_open(10.999)
    assert not breaker.is_open(11.0)


def test_failures_that_are_twenty_calls_old_do_not_count() -> None:
    """Nine failures, eleven successes, and nine failures again: never ten in twenty."""
    breaker = _breaker()
    _record(breaker, "-" * 9 + "+" * 11 + "-" * 9)
    assert not breaker.is_open(10.0)
    assert breaker.last_failed


def test_one_failed_probe_opens_it_again() -> None:
    """After the pause a single call decides: failed, it opens for another pause."""
    breaker = _breaker()
    _record(breaker, "-" * 10)
    _record(breaker, "-", now_s=11.5)
    assert breaker.is_open(12.4)
    assert not breaker.is_open(12.5)
    assert breaker.awaits_probe


def test_a_probe_that_goes_well_wipes_the_slate() -> None:
    """Closed again, it takes ten new failures to open it."""
    breaker = _breaker()
    _record(breaker, "-" * 10)
    _record(breaker, "+", now_s=11.5)
    assert not breaker.awaits_probe
    assert not breaker.last_failed
    _record(breaker, "-" * 9, now_s=11.5)
    assert not breaker.is_open(11.5)
    _record(breaker, "-", now_s=11.5)
    assert breaker.is_open(11.5)
