"""The states of a version: every step of the table, and every step that is none."""

from __future__ import annotations

import itertools

import pytest

from app.models.lifecycle import TRANSITIONS, Event, State, next_state

PATHS = {
    "first load": "NEW LOAD LOADING LOADED WARMING WARMED READY",
    "unload and load": "READY RETIRE DRAINING DRAINED UNLOADED LOAD LOADING",
    "wanted again while it drains": "DRAINING LOAD READY",
    "bad files, tried again": "LOADING FAIL FAILED LOAD LOADING",
    "bad answers": "WARMING FAIL FAILED",
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_through_the_table(name: str) -> None:
    """State, event, state, event, ..."""
    words = PATHS[name].split()
    for state, event, following in zip(words[::2], words[1::2], words[2::2], strict=False):
        assert next_state(State(state), Event(event)) is State(following)


@pytest.mark.parametrize(("state", "event"), sorted(set(itertools.product(State, Event)) - set(TRANSITIONS)))
def test_what_is_not_in_the_table_is_refused(state: State, event: Event) -> None:
    """The message names both; nothing but the table makes a version READY."""
    with pytest.raises(ValueError, match=f"{event.value} cannot happen to a version that is {state.value}"):
        next_state(state, event)


def test_only_warm_versions_serve() -> None:
    """READY is entered from WARMING, and from DRAINING, which has been READY."""
    into_ready = {(state, event) for (state, event), following in TRANSITIONS.items() if following is State.READY}
    assert into_ready == {(State.WARMING, Event.WARMED), (State.DRAINING, Event.LOAD)}


def test_nothing_fails_that_is_not_under_way() -> None:
    """What serves is never failed by something else: only loading and warming can fail."""
    assert {state for state, event in TRANSITIONS if event is Event.FAIL} == {State.LOADING, State.WARMING}
