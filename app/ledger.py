"""Which offsets are answered: the only source of what may be committed; pure.

For each partition the ledger holds where the contiguous answered prefix ends, and the answered ranges beyond it.
Ranges come from ``RecordBatch.start_offset .. next_offset``, so compacted gaps and transaction markers are inside.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

Partition = tuple[str, int]


@dataclass(slots=True)
class _Account:
    delivered: int
    answered: int
    committed: int
    beyond: list[tuple[int, int]] = field(default_factory=list)


class Ledger:
    """Offsets delivered, answered and committed for each partition.

    Example:
        >>> ledger = Ledger()
        >>> ledger.deliver(("t", 0), 5, 9)
        >>> ledger.answer(("t", 0), 7, 9)
        >>> ledger.committable()
        {}
        >>> ledger.answer(("t", 0), 5, 7)
        >>> ledger.committable()
        {('t', 0): 9}

    """

    def __init__(self) -> None:
        self._accounts: dict[Partition, _Account] = {}

    def deliver(self, partition: Partition, start: int, end: int) -> None:
        """Offsets ``start .. end - 1`` have been handed to us.

        A start beyond the last delivery is a gap in the log (retention, a seek forward): nothing lies in it that could
        be answered, so it counts as answered.

        Raises:
            ValueError: the range is empty, or was delivered before in this assignment.

        """
        if start >= end:
            msg = f"{partition}: empty range {start} .. {end}"
            raise ValueError(msg)
        account = self._accounts.get(partition)
        if account is None:
            self._accounts[partition] = _Account(delivered=end, answered=start, committed=start)
            return
        if start < account.delivered:
            msg = f"{partition}: offset {start} delivered again, after {account.delivered - 1}"
            raise ValueError(msg)
        if start > account.delivered:
            gap = account.delivered
            account.delivered = start
            self.answer(partition, gap, start)
        account.delivered = end

    def answer(self, partition: Partition, start: int, end: int) -> None:
        """The terminal records of offsets ``start .. end - 1`` are acknowledged by the broker.

        Ignored when the partition is no longer ours: whoever has it now answers again.

        Raises:
            ValueError: the range was never delivered, or was answered before.

        """
        account = self._accounts.get(partition)
        if account is None:
            return
        if end > account.delivered or start < account.answered or start >= end:
            known = f"delivered up to {account.delivered}, answered up to {account.answered}"
            msg = f"{partition}: answered {start} .. {end}, {known}"
            raise ValueError(msg)
        place = bisect_left(account.beyond, (start, end))
        neighbours = account.beyond[max(place - 1, 0) : place + 1]
        if any(s < end and start < e for s, e in neighbours):
            msg = f"{partition}: {start} .. {end} answered twice"
            raise ValueError(msg)
        account.beyond.insert(place, (start, end))
        while account.beyond and account.beyond[0][0] == account.answered:
            account.answered = account.beyond.pop(0)[1]

    def committable(self) -> dict[Partition, int]:
        """For each partition with progress the end of its contiguous answered prefix."""
        return {tp: a.answered for tp, a in self._accounts.items() if a.answered > a.committed}

    def commit(self, offsets: dict[Partition, int]) -> None:
        """These offsets are committed, all or none; partitions that are no longer ours are ignored.

        Raises:
            ValueError: one lies beyond the answered prefix, or behind an earlier commit.

        """
        ours = {partition: offset for partition, offset in offsets.items() if partition in self._accounts}
        for partition, offset in ours.items():
            account = self._accounts[partition]
            if not account.committed <= offset <= account.answered:
                msg = f"{partition}: commit of {offset} outside {account.committed} .. {account.answered}"
                raise ValueError(msg)
        for partition, offset in ours.items():
            self._accounts[partition].committed = offset

    def delivered(self, partition: Partition) -> int:
        """End of what was delivered of a partition; 0 when it is not ours."""
        account = self._accounts.get(partition)
        return 0 if account is None else account.delivered

    def revoke(self, partitions: set[Partition] | None = None) -> None:
        """Forget partitions (all when none are named); answers to them are ignored from now on."""
        for partition in list(self._accounts) if partitions is None else partitions:
            self._accounts.pop(partition, None)

    def in_flight(self) -> dict[Partition, int]:
        """For each partition how many offsets are delivered and not yet answered."""
        return {
            tp: a.delivered - a.answered - sum(end - start for start, end in a.beyond)
            for tp, a in self._accounts.items()
        }
