"""The last known good rows of the online store, for when it cannot be asked: bounded, and cheap while it can.

Healthy, a micro-batch costs one ``dict.update``. Times are kept for a generation of rows, not for each row: a row
that is read again moves to the newest generation, and the oldest is dropped whole. That is least recently used with
the grain of a generation, without any work for a single row. And no more rows a second are taken than can be afforded:
above that whole micro-batches are let pass, and what is read often is taken with a later one.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

GENERATIONS = 4
"""A row may be used for at least 3/4 of the greatest age; a key that is read all the time is held 4 times at most."""
ENTRY_BYTES = 160
"""What Python takes for a key and its value beside their characters: two headers (82), rounding, the table."""
TAKEN_PER_S = 10_000
"""Rows taken a second, at 0.1 to 0.3 us each; those of one second may come at once."""


class _Generation:
    """Rows that were read from ``start_s`` on."""

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self.values: dict[str, bytes] = {}
        self.size_bytes = 0

    def add(self, values: dict[str, bytes]) -> None:
        """Take rows in; a key that is here already keeps its place and its size: rows of a view are equally long."""
        before = len(self.values)
        self.values.update(values)
        grown = len(self.values) - before
        if grown:
            keys = sum(map(len, islice(reversed(self.values), grown)))
            rows = sum(map(len, islice(reversed(self.values.values()), grown)))
            self.size_bytes += keys + rows + grown * ENTRY_BYTES

    def drop(self, key: str) -> None:
        """Forget one key."""
        value = self.values.pop(key, None)
        if value is not None:
            self.size_bytes -= len(key) + len(value) + ENTRY_BYTES


class LastKnown:
    """Rows that the store gave, by key.

    Args:
        entries_max: rows held; exceeded by one micro-batch in each of the 4 generations at most.
        bytes_max: memory held, about; exceeded likewise.
        age_max_s: seconds after which a row is not used any more; 0: nothing is held.

    Example:
        >>> known = LastKnown(entries_max=100, bytes_max=100_000, age_max_s=60)
        >>> known.keep({"fs:w:v1:JFK": b"row"}, now_s=10.0)
        >>> known.recall(["fs:w:v1:JFK", "fs:w:v1:LGA"], now_s=70.0)
        {'fs:w:v1:JFK': b'row'}
        >>> known.recall(["fs:w:v1:JFK"], now_s=70.1)
        {}

    """

    def __init__(self, *, entries_max: int, bytes_max: int, age_max_s: float) -> None:
        self._generation_entries = max(1, entries_max // GENERATIONS)
        self._generation_bytes = max(1, bytes_max // GENERATIONS)
        self._age_max_s = age_max_s
        self._span_s = age_max_s / GENERATIONS
        self._generations: deque[_Generation] = deque(maxlen=GENERATIONS)  # the newest first
        self._paid_until_s = -inf

    @property
    def entries(self) -> int:
        """Rows held; a key that was read in several generations counts in each."""
        return sum(len(generation.values) for generation in self._generations)

    @property
    def size_bytes(self) -> int:
        """Memory held, about."""
        return sum(generation.size_bytes for generation in self._generations)

    def keep(self, values: dict[str, bytes], *, now_s: float) -> None:
        """Hold rows that the store has just given, unless more than ``TAKEN_PER_S`` have been taken lately.

        Args:
            values: key to row; never one that the store lacks or that cannot be read.
            now_s: monotonic seconds, never before those of an earlier call.

        """
        if not self._age_max_s or self._paid_until_s > now_s:
            return
        self._paid_until_s = max(self._paid_until_s, now_s - 1) + len(values) / TAKEN_PER_S
        newest = self._generations[0] if self._generations else None
        if (
            newest is None
            or now_s - newest.start_s >= self._span_s
            or len(newest.values) >= self._generation_entries
            or newest.size_bytes >= self._generation_bytes
        ):
            newest = _Generation(now_s)
            self._generations.appendleft(newest)
        newest.add(values)

    def forget(self, keys: Iterable[str]) -> None:
        """The store has no row for these any more."""
        for key in keys:
            for generation in self._generations:
                generation.drop(key)

    def recall(self, keys: Iterable[str], *, now_s: float) -> dict[str, bytes]:
        """The newest row of each key that was read at most ``age_max_s`` ago; others are left out.

        A row counts as old as the start of its generation, so it may be given up early, by a quarter, never late.
        """
        young = [g.values for g in self._generations if now_s - g.start_s <= self._age_max_s]
        found: dict[str, bytes] = {}
        for key in keys:
            for values in young:
                value = values.get(key)
                if value is not None:
                    found[key] = value
                    break
        return found
