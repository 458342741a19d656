"""A bounded, reproducible sample of request ids: those with the smallest hash."""

from __future__ import annotations

import heapq
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class SmallestHashes:
    """Keeps the ``capacity`` ids with the smallest CRC-32; the same ids whatever the order they come in.

    Example:
        >>> sample = SmallestHashes(2)
        >>> kept, evicted = sample.offer([b"a", b"b", b"c"])
        >>> len(kept), len(evicted), len(sample.members)
        (2, 0, 2)

    """

    __slots__ = ("_heap", "capacity", "members")

    def __init__(self, capacity: int, members: Iterable[bytes] = ()) -> None:
        """An empty sample, or the one that held ``members``."""
        self.capacity = capacity
        self.members = set(members)
        self._heap = [(-zlib.crc32(m), m) for m in self.members]
        heapq.heapify(self._heap)

    def offer(self, ids: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
        """Rows of ``ids`` that are in the sample now, and the ids that had to leave for them."""
        kept: dict[bytes, int] = {}
        evicted: list[bytes] = []
        for row, member in enumerate(ids):
            rank = (-zlib.crc32(member), member)
            if len(self._heap) < self.capacity:
                heapq.heappush(self._heap, rank)
            elif rank > self._heap[0]:
                gone = heapq.heapreplace(self._heap, rank)[1]
                self.members.discard(gone)
                if kept.pop(gone, None) is None:
                    evicted.append(gone)
            else:
                continue
            kept[member] = row
            self.members.add(member)
        return list(kept.values()), evicted
