"""The states of a model version as a table; pure.

A version serves while it is READY. Whatever goes wrong on the way there ends in FAILED and touches no other version.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a version is."""

    NEW = "NEW"
    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"
    FAILED = "FAILED"


class Event(StrEnum):
    """What happens to it."""

    LOAD = "LOAD"
    LOADED = "LOADED"
    WARMED = "WARMED"
    RETIRE = "RETIRE"
    DRAINED = "DRAINED"
    FAIL = "FAIL"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.NEW, Event.LOAD): State.LOADING,
    (State.UNLOADED, Event.LOAD): State.LOADING,
    (State.FAILED, Event.LOAD): State.LOADING,
    (State.LOADING, Event.LOADED): State.WARMING,
    (State.WARMING, Event.WARMED): State.READY,
    (State.READY, Event.RETIRE): State.DRAINING,
    (State.DRAINING, Event.DRAINED): State.UNLOADED,
    (State.DRAINING, Event.LOAD): State.READY,
    (State.LOADING, Event.FAIL): State.FAILED,
    (State.WARMING, Event.FAIL): State.FAILED,
}
"""Every step that there is; any other is a fault of ours."""


def next_state(state: State, event: Event) -> State:
    """The state after an event.

    Raises:
        ValueError: the event cannot happen in this state.

    Example:
        >>> next_state(State.WARMING, Event.WARMED).value
        'READY'

    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        msg = f"{event.value} cannot happen to a version that is {state.value}"
        raise ValueError(msg) from None
