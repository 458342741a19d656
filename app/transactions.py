"""Which records go into which transaction of one input partition, and when it is committed; pure.

Outputs and the offset of the requests that they answer are committed together. One transaction is open at a time; what
is handed over while it commits goes into the next one (group commit). An open one is committed as soon as all its
records are acknowledged and no more of the partition is on its way, at the latest when it is ``max_s`` old or holds
``max_records``: at light load at once, under load as seldom as allowed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto


class Action(Enum):
    """What is to be done next."""

    BEGIN = auto()
    SEND = auto()
    COMMIT = auto()


@dataclass(frozen=True, slots=True)
class Parcel:
    """The terminal records of offsets ``start .. end - 1``.

    Attributes:
        start: first offset that they answer.
        end: one beyond the last.
        records: how many there are.
        content: handed back with the step; not looked at.

    """

    start: int
    end: int
    records: int
    content: object = None


@dataclass(frozen=True, slots=True)
class Step:
    """One effect, to be carried out before the next is asked for.

    Attributes:
        action: which.
        parcels: to be sent, for SEND.
        offset: to be committed with the transaction, for COMMIT.

    """

    action: Action
    parcels: tuple[Parcel, ...] = ()
    offset: int = 0


class _State(Enum):
    IDLE = auto()
    OPEN = auto()
    COMMITTING = auto()
    FAILED = auto()


@dataclass(slots=True)
class TransactionLane:
    """The transactions of one input partition, from its assignment to its revocation.

    Attributes:
        max_s: age at which a transaction takes no more records.
        max_records: size at which it takes no more.

    Example:
        >>> lane = TransactionLane(max_s=0.05, max_records=1000)
        >>> lane.hand_over(Parcel(7, 9, records=4))
        >>> lane.step(now_s=0.0, more_coming=False).action.name
        'BEGIN'
        >>> lane.step(now_s=0.0, more_coming=False).action.name
        'SEND'
        >>> lane.step(now_s=0.0, more_coming=False) is None
        True
        >>> lane.acknowledged(1)
        >>> step = lane.step(now_s=0.0, more_coming=False)
        >>> step.action.name, step.offset
        ('COMMIT', 9)
        >>> [(parcel.start, parcel.end) for parcel in lane.committed()]
        [(7, 9)]

    """

    max_s: float
    max_records: int
    next_offset: int | None = None
    _waiting: deque[Parcel] = field(default_factory=deque)
    _sent: list[Parcel] = field(default_factory=list)
    _records: int = 0
    _unacknowledged: int = 0
    _began_s: float = -math.inf
    _state: _State = _State.IDLE

    def hand_over(self, parcel: Parcel) -> None:
        """Terminal records, in the order of their offsets.

        Raises:
            ValueError: the parcel is empty of offsets, or does not follow the one before it.

        """
        if parcel.start >= parcel.end or (self.next_offset is not None and parcel.start < self.next_offset):
            msg = f"offsets {parcel.start} .. {parcel.end} handed over after {self.next_offset}"
            raise ValueError(msg)
        self.next_offset = parcel.end
        self._waiting.append(parcel)

    def step(self, *, now_s: float, more_coming: bool) -> Step | None:
        """The next effect, or None until something happens or ``wake_at_s`` has come.

        Args:
            now_s: monotonic seconds.
            more_coming: more offsets of the partition were delivered than handed over; their answers will follow.

        """
        if self._state is _State.IDLE and self._waiting:
            self._state, self._began_s = _State.OPEN, now_s
            return Step(Action.BEGIN)
        if self._state is not _State.OPEN:
            return None
        if self._waiting and not self._is_full(now_s):
            return Step(Action.SEND, self._take())
        if self._unacknowledged or (more_coming and not self._is_full(now_s)):
            return None
        self._state = _State.COMMITTING
        return Step(Action.COMMIT, offset=self._sent[-1].end)

    def wake_at_s(self) -> float:
        """When to ask again if nothing happens before."""
        return self._began_s + self.max_s if self._state is _State.OPEN and not self._unacknowledged else math.inf

    def acknowledged(self, parcels: int) -> None:
        """The brokers have all records of so many more parcels.

        Raises:
            ValueError: more than were sent.

        """
        if parcels > self._unacknowledged:
            msg = f"{parcels} parcels acknowledged, {self._unacknowledged} are under way"
            raise ValueError(msg)
        self._unacknowledged -= parcels

    def committed(self) -> list[Parcel]:
        """The transaction is committed; returns what was in it.

        Raises:
            ValueError: none was being committed.

        """
        if self._state is not _State.COMMITTING:
            msg = f"a commit came back and the transaction is {self._state.name}"
            raise ValueError(msg)
        done, self._sent, self._records, self._state = self._sent, [], 0, _State.IDLE
        return done

    def fail(self) -> None:
        """Something went wrong: nothing more is sent or committed; only a new assignment helps."""
        self._state = _State.FAILED

    def _is_full(self, now_s: float) -> bool:
        return bool(self._sent) and (self._records >= self.max_records or now_s >= self._began_s + self.max_s)

    def _take(self) -> tuple[Parcel, ...]:
        taken: list[Parcel] = []
        while self._waiting and (not taken or self._records + self._waiting[0].records <= self.max_records):
            parcel = self._waiting.popleft()
            self._records += parcel.records
            taken.append(parcel)
        self._sent += taken
        self._unacknowledged += len(taken)
        return tuple(taken)
