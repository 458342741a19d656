"""What must hold after every step, and at the end; the numbers are those of reliability's list.

I1 every consumed offset ends in exactly one terminal record. I2 nothing is committed past an offset without one. I3 a
committed offset never decreases within a generation. I5 answers of a partition keep the order of the input.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tests.simulation.delivery.broker import read_committed
from tests.simulation.delivery.source import ANSWERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.delivery.broker import Entry, Place
    from tests.simulation.delivery.source import Source


class Violation(AssertionError):
    """An invariant does not hold."""


class Judge:
    """Watches what readers of the cluster can see.

    Args:
        source: what there is to be answered.
        is_exactly_once: no terminal record may appear twice.

    Attributes:
        missing: terminal records that no reader has seen yet.
        duplicates: terminal records seen more than once, by input partition.

    """

    def __init__(self, source: Source, *, is_exactly_once: bool) -> None:
        self._source, self._is_exactly_once = source, is_exactly_once
        self._wanted: list[dict[int, set[str]]] = []
        self.missing = 0
        for kinds in source.kinds:
            wanted = {offset: set(ANSWERS[kind]) for offset, kind in kinds.items()}
            self.missing += sum(map(len, wanted.values()))
            self._wanted.append(wanted)
        self._checked = [0] * len(source.kinds)
        self._deleted = [0] * len(source.kinds)
        self._handed_over = [-1] * len(source.kinds)
        self._allowed = [0] * len(source.kinds)
        self.duplicates = [0] * len(source.kinds)

    def appeared(self, place: Place, offsets: Iterable[int]) -> None:
        """Records became visible (I1)."""
        topic, partition = place
        wanted = self._wanted[partition]
        for offset in offsets:
            if topic in wanted[offset]:
                wanted[offset].discard(topic)
                self.missing -= offset >= self._deleted[partition]
            elif self._is_exactly_once:
                msg = f"I1: a second record for offset {offset} of in-{partition} on {topic}"
                raise Violation(msg)
            else:
                self.duplicates[partition] += 1

    def committed(self, partition: int, offset: int, before: int | None, *, is_overtaken: bool) -> None:
        """The group's offset changes (I3); a plain commit that was delayed on the wire may be overtaken by the next."""
        if before is not None and offset < before and not is_overtaken:
            msg = f"I3: committed offset of in-{partition} goes back from {before} to {offset}"
            raise Violation(msg)

    def answered_below(self, committed: dict[int, int]) -> None:
        """All that is committed is answered (I2); what retention deleted needs no answer."""
        for partition, end in committed.items():
            begin = max(self._checked[partition], self._source.log_start[partition])
            for offset in range(begin, end):
                if self._wanted[partition].get(offset):
                    msg = f"I2: {end} of in-{partition} is committed, and offset {offset} has no terminal record"
                    raise Violation(msg)
            self._checked[partition] = max(self._checked[partition], end)

    def forget_deleted(self) -> None:
        """What retention has deleted need not be answered any more, and may be by who has read it before."""
        for partition, start in enumerate(self._source.log_start):
            wanted = self._wanted[partition]
            self.missing -= sum(len(wanted.get(offset, ())) for offset in range(self._deleted[partition], start))
            self._deleted[partition] = start

    def taken_over(self, partition: int, committed: int) -> None:
        """A worker starts at the committed offset: what was handed over beyond it may appear once more."""
        self._allowed[partition] += self._records(partition, committed, self._handed_over[partition] + 1)

    def handed_over(self, partition: int, offsets: list[int], *, is_owner: bool) -> None:
        """A worker gives terminal records to its producer; those of a zombie may repeat the owner's."""
        self._handed_over[partition] = max(self._handed_over[partition], *offsets)
        if not is_owner:
            self._allowed[partition] += self._records(partition, offsets[0], offsets[-1] + 1)

    def _records(self, partition: int, start: int, end: int) -> int:
        kinds = self._source.kinds[partition]
        return sum(len(ANSWERS[kinds[offset]]) for offset in range(start, end) if offset in kinds)

    def conclude(self, logs: dict[Place, list[Entry]]) -> None:
        """At the end: order, the mark, and no more duplicates than the interruptions explain."""
        for place, log in logs.items():
            seen, is_whole = read_committed(log)
            if not is_whole:
                msg = f"liveness: readers of {place} wait for a transaction that nobody ends"
                raise Violation(msg)
            self._check_order(place, seen)
        for partition, count in enumerate(self.duplicates):
            if count > self._allowed[partition]:
                msg = (
                    f"in-{partition}: {count} duplicates, and crashes and rebalances explain {self._allowed[partition]}"
                )
                raise Violation(msg)

    def _check_order(self, place: Place, seen: list[int]) -> None:
        if self._is_exactly_once and any(a >= b for a, b in pairwise(seen)):
            msg = f"I5: {place} reads {seen}"
            raise Violation(msg)
        kept, last = [], -1
        for offset in seen:
            if offset > last:
                kept.append(offset)
                last = offset
        dropped = [offset for offset in set(seen) - set(kept) if offset >= self._source.log_start[place[1]]]
        if dropped:
            msg = f"I1, I5: dropping by mark loses {sorted(dropped)} of {place}, which reads {seen}"
            raise Violation(msg)
