"""The input: records, poison, compacted gaps, transaction markers, and a log whose beginning is deleted under way."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.delivery.schedule import Schedule

SCORES, DEAD_LETTERS = "scores", "dead-letters"
ANSWERS = {"good": (SCORES,), "invalid": (SCORES, DEAD_LETTERS), "dead": (DEAD_LETTERS,)}
"""Topics of the terminal records of each kind of request."""
MOST_AT_ONCE = 5


@dataclass(frozen=True, slots=True)
class Fetched:
    """What the product calls a record batch: records of offsets ``start .. end - 1`` of one partition."""

    partition: int
    start: int
    end: int
    offsets: tuple[int, ...]


class Source:
    """The input partitions.

    Attributes:
        kinds: for each partition the kind of request at each offset that has one.
        log_start: for each partition the first offset that is still there.

    """

    def __init__(self, schedule: Schedule, partitions: int) -> None:
        self._schedule = schedule
        self.kinds: list[dict[int, str]] = []
        self._offsets: list[list[int]] = []
        for _ in range(partitions):
            kinds: dict[int, str] = {}
            offset = schedule.some(4) - 1
            for _ in range(7 + schedule.some(14)):
                draw = schedule.random()
                kinds[offset] = "good" if draw < 0.75 else "invalid" if draw < 0.87 else "dead"
                draw = schedule.random()
                offset += 1 if draw < 0.8 else 2 if draw < 0.92 else schedule.some(5)  # compacted, or a marker
            self.kinds.append(kinds)
            self._offsets.append(list(kinds))
        self.log_start = [0] * partitions

    def fetch(self, partition: int, position: int) -> Fetched | None:
        """Records from a position on; None when none is left.

        The range begins at the position, or later when what lies between holds only markers; it ends after the last
        record, or before the next when a marker follows in the same fetch.
        """
        offsets = self._offsets[partition]
        start = max(position, self.log_start[partition])
        at = bisect_left(offsets, start)
        to = at + self._schedule.some(MOST_AT_ONCE)
        taken = tuple(offsets[at:to])
        if not taken:
            return None
        if self._schedule.random() < 0.2:
            start = taken[0]
        is_swallowed = to < len(offsets) and self._schedule.random() < 0.5
        return Fetched(partition, start, offsets[to] if is_swallowed else taken[-1] + 1, taken)

    def delete_before(self, partition: int) -> None:
        """Retention deletes a few records from the front."""
        kept = [offset for offset in self._offsets[partition] if offset >= self.log_start[partition]]
        gone = self._schedule.some(6)
        if gone < len(kept):
            self.log_start[partition] = kept[gone]
            self._schedule.note("retention:", f"in-{partition} begins at {kept[gone]}")
