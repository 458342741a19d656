"""A Kafka cluster, as far as delivery depends on it: logs, idempotence, transactions, fencing, group offsets.

Every method is one request, applied at once. Sequence numbers, epochs and the states of a transaction follow KIP-98;
a partition without an open transaction of a producer asks the coordinator before it takes a record (KIP-890, part 1).
With ``adds`` it has itself added by asking, and each transaction has an epoch of its own (part 2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.delivery.invariants import Judge
    from tests.simulation.delivery.schedule import Schedule

Place = tuple[str, int]
Entry = tuple[str, int, int]
"""Kind (plain, open, commit, abort), producer, input offset (-1 for a marker)."""

OFFSETS: Place = ("offsets", 0)
"""Where the group's offsets are; to a transaction it is a partition like others."""
TRANSACTION_TICKS = 300
"""The coordinator aborts a transaction that is open for so long; now and then it is much sooner."""
OK, FENCED, REFUSED, CONCURRENT, MOVED = "ok", "fenced", "refused", "concurrent", "moved"


@dataclass(slots=True)
class _Leader:
    """What a partition's leader knows of one producer."""

    epoch: int
    next_sequence: int = 0
    is_open: bool = False
    undecided: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Transactional:
    """What the coordinator knows of one transactional id."""

    pid: int
    epoch: int = 0
    number: int = 0
    is_ending: bool = False
    is_commit: bool = False
    places: list[Place] = field(default_factory=list)
    marks_left: int = 0
    committed: dict[int, int] = field(default_factory=dict)


class Broker:
    """The cluster.

    Args:
        schedule: markers of a decided transaction arrive later, each on its own.
        judge: told of everything that becomes visible or committed.
        adds: ``transaction.version`` 2: no producer asks for a partition or a group to be added.

    Attributes:
        logs: entries of each output partition.
        committed: the group's offset of each input partition.
        aborted: how many transactions were aborted.

    """

    def __init__(self, schedule: Schedule, judge: Judge, *, adds: bool) -> None:
        self._schedule, self._judge, self.adds = schedule, judge, adds
        self.logs: dict[Place, list[Entry]] = {}
        self.committed: dict[int, int] = {}
        self.members: dict[str, int] = {}
        self.generation = 0
        self.aborted = 0
        self._leaders: dict[tuple[Place, int], _Leader] = {}
        self._ids: dict[str, _Transactional] = {}
        self._staged: dict[int, dict[int, int]] = {}
        self._last_commit: dict[int, int] = {}
        self._pids = 0

    def new_pid(self) -> int:
        """InitProducerId without a transactional id."""
        self._pids += 1
        return self._pids

    def init(self, name: str) -> tuple[int, int] | str:
        """InitProducerId: aborts what a former producer has open, then gives a new epoch."""
        known = self._ids.get(name)
        if known is None:
            self._ids[name] = known = _Transactional(self.new_pid())
            return known.pid, known.epoch
        if known.is_ending:
            return CONCURRENT
        known.epoch += 1
        if known.places:
            self._finish(known, is_commit=False)
            return CONCURRENT
        return known.pid, known.epoch

    def add(self, name: str, pid: int, epoch: int, place: Place) -> str:
        """AddPartitionsToTxn, AddOffsetsToTxn: opens a transaction when none is open."""
        known = self._ids[name]
        if (pid, epoch) != (known.pid, known.epoch):
            return FENCED
        if known.is_ending:
            return CONCURRENT
        if not known.places:
            ticks = self._schedule.some(60) if self._schedule.random() < 0.01 else TRANSACTION_TICKS
            self._schedule.after(ticks, self._time_out, known, known.number)
        if place not in known.places:
            known.places.append(place)
        return OK

    def produce(self, place: Place, producer: tuple[str | None, int, int], sequence: int, offsets: list[int]) -> str:
        """One batch of one partition."""
        name, pid, epoch = producer
        leader = self._leader(place, pid, epoch)
        refusal = self._refusal(leader, producer, place)
        if refusal is not None:
            return refusal
        if epoch > leader.epoch:
            leader.epoch, leader.next_sequence = epoch, 0
        if sequence < leader.next_sequence:
            return OK  # written before
        if sequence > leader.next_sequence:
            return REFUSED
        leader.next_sequence += len(offsets)
        log = self.logs.setdefault(place, [])
        if name is None:
            log += [("plain", pid, offset) for offset in offsets]
            self._judge.appeared(place, offsets)
        else:
            leader.is_open = True
            leader.undecided += offsets
            log += [("open", pid, offset) for offset in offsets]
        return OK

    def stage(self, name: str, pid: int, epoch: int, offsets: dict[int, int]) -> str:
        """TxnOffsetCommit: offsets that count when the transaction is committed."""
        leader = self._leader(OFFSETS, pid, epoch)
        refusal = self._refusal(leader, (name, pid, epoch), OFFSETS)
        if refusal is not None:
            return refusal
        leader.epoch, leader.is_open = epoch, True
        self._staged.setdefault(pid, {}).update(offsets)
        return OK

    def end(self, name: str, pid: int, epoch: int) -> str:
        """EndTxn, to commit; the transaction that is open now, whichever the sender meant.

        Brokers that add partitions tell the transactions apart by their epochs.
        """
        known = self._ids[name]
        if (pid, epoch) != (known.pid, known.epoch):
            return FENCED
        if known.is_ending:
            return OK if known.is_commit else FENCED
        if known.places:
            known.epoch += self.adds
            self._finish(known, is_commit=True)
        return OK

    def commit(self, member: str, generation: int, offsets: dict[int, int], number: int) -> str:
        """OffsetCommit of a member; only the group's generation is checked, not who owns the partition."""
        if member not in self.members or generation != self.generation:
            return MOVED
        for partition, offset in offsets.items():
            overtaken = number < self._last_commit.get(partition, 0)
            self._last_commit[partition] = max(number, self._last_commit.get(partition, 0))
            self._judge.committed(partition, offset, self.committed.get(partition), is_overtaken=overtaken)
            self.committed[partition] = offset
        self._judge.answered_below(offsets)
        self._schedule.note("committed", offsets, "by", member)
        return OK

    def offsets(self, partitions: list[int]) -> dict[int, int]:
        """OffsetFetch, without require-stable: what a decided transaction has not marked yet is not seen."""
        return {partition: self.committed.get(partition, 0) for partition in partitions}

    def is_settled(self) -> bool:
        """Whether no transaction is open or ending."""
        return not any(known.places for known in self._ids.values())

    def _leader(self, place: Place, pid: int, epoch: int) -> _Leader:
        leader = self._leaders.get((place, pid))
        if leader is None:
            self._leaders[place, pid] = leader = _Leader(epoch)
        return leader

    def _refusal(self, leader: _Leader, producer: tuple[str | None, int, int], place: Place) -> str | None:
        name, pid, epoch = producer
        if epoch < leader.epoch:
            return FENCED
        if name is None or (leader.is_open and epoch == leader.epoch):
            return None
        if self.adds:
            added = self.add(name, pid, epoch, place)
            return None if added == OK else added
        known = self._ids[name]
        if (pid, epoch) != (known.pid, known.epoch) or known.is_ending or place not in known.places:
            return REFUSED
        return None

    def _time_out(self, known: _Transactional, number: int) -> None:
        if known.number == number and known.places and not known.is_ending:
            known.epoch += 1
            self._schedule.note("the coordinator aborts an old transaction of producer", known.pid)
            self._finish(known, is_commit=False)

    def _finish(self, known: _Transactional, *, is_commit: bool) -> None:
        known.is_ending, known.is_commit = True, is_commit
        known.number += 1
        known.marks_left = len(known.places)
        self.aborted += not is_commit
        for place in known.places:
            self._schedule.after(self._schedule.some(4), self._mark, known, place)

    def _mark(self, known: _Transactional, place: Place) -> None:
        leader = self._leader(place, known.pid, known.epoch)
        if known.epoch > leader.epoch:
            leader.epoch, leader.next_sequence = known.epoch, 0
        leader.is_open = False
        if place == OFFSETS:
            staged = self._staged.pop(known.pid, {})
            if known.is_commit:
                known.committed = staged
                self._commit_staged(staged)
        else:
            undecided, leader.undecided = leader.undecided, []
            self.logs.setdefault(place, []).append(("commit" if known.is_commit else "abort", known.pid, -1))
            if known.is_commit:
                self._judge.appeared(place, undecided)
        known.marks_left -= 1
        if not known.marks_left:
            known.is_ending, known.places = False, []
            self._judge.answered_below(known.committed)
            known.committed = {}

    def _commit_staged(self, staged: dict[int, int]) -> None:
        for partition, offset in staged.items():
            self._judge.committed(partition, offset, self.committed.get(partition), is_overtaken=False)
            self.committed[partition] = offset
        self._schedule.note("transaction committed", staged)


def read_committed(log: list[Entry]) -> tuple[list[int], bool]:
    """What a reader of committed records sees, and whether it sees the log to its end.

    Example:
        >>> log = [("open", 1, 5), ("open", 2, 6), ("commit", 1, -1), ("abort", 2, -1), ("plain", 3, 7), ("open", 1, 8)]
        >>> read_committed(log)
        ([5, 7], False)

    """
    fate: dict[int, str] = {}
    stable = len(log)
    seen: list[tuple[int, int]] = []
    for at in range(len(log) - 1, -1, -1):
        kind, pid, offset = log[at]
        if kind in {"commit", "abort"}:
            fate[pid] = kind
        elif kind == "plain" or fate.get(pid) == "commit":
            seen.append((at, offset))
        elif pid not in fate:
            stable = at
    return [offset for at, offset in reversed(seen) if at < stable], stable == len(log)
