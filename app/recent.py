"""Requests that were answered lately, so that the same request again gets the same answer; pure.

Ids are looked up and entered a micro-batch at a time, in a table that is indexed by their hash. Of two ids that fall on
one place the older moves to a second table, so about one in a thousand is forgotten early; none is ever taken for
another, since a hit is compared with the id itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from schemas.byte_ranges import words
from schemas.records import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from schemas.columns import TextColumn

PLACES = 4
"""Of the first table, for each id."""
SECOND_PLACES = 1
FEW_ROWS = 8
MAX_WORDS = 8
"""An id counts with its first 64 bytes and its length; longer ones that begin alike forget each other."""
_MIX = np.array(
    [
        0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93,
        0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3, 0x1D8E4E27C47D124F,
    ],
    dtype=np.uint64,
)  # fmt: skip
_FACTORS: list[int] = _MIX.tolist()
_WORD = 2**64 - 1
_ROW_BITS = 20


class _Table:
    """Hashes and places, indexed by some bits of the hash."""

    def __init__(self, least: int, shift: int) -> None:
        size = 1 << max(least - 1, 1).bit_length()
        self._mask, self._shift = np.uint64(size - 1), np.uint64(shift)
        self.hashes = np.zeros(size, np.uint64)
        self.places = np.full(size, -1, np.int64)

    def slots(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return (hashes >> self._shift) & self._mask

    def find(self, hashes: NDArray[np.uint64], oldest: int) -> NDArray[np.int64]:
        """The place of each hash; -1 where it is not there or forgotten."""
        slots = self.slots(hashes)
        places = self.places[slots]
        return np.where((self.hashes[slots] == hashes) & (places >= oldest), places, -1)

    def find_one(self, mixed: int, oldest: int) -> int:
        """As ``find``, of one hash."""
        slot = (mixed >> int(self._shift)) & int(self._mask)
        place = int(self.places[slot])
        return place if place >= oldest and int(self.hashes[slot]) == mixed else -1

    def put_one(self, mixed: int, place: int) -> tuple[int, int]:
        """Put one hash; returns hash and place that stood there."""
        slot = (mixed >> int(self._shift)) & int(self._mask)
        displaced = int(self.hashes[slot]), int(self.places[slot])
        self.hashes[slot], self.places[slot] = mixed, place
        return displaced

    def put(self, hashes: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        """Of two that fall on one slot the first stays."""
        slots = self.slots(hashes)[::-1]
        self.hashes[slots] = hashes[::-1]
        self.places[slots] = places[::-1]


@dataclass(slots=True, eq=False)
class AnsweredBatch:
    """The answers of one micro-batch.

    Attributes:
        ids: n request ids.
        at_s: when they were entered, monotonic seconds.
        statuses: shape (n,); of the answers, before that as far as they are known.
        answers: n records of ``scores``, one after the other; empty until they are encoded.
        ends: shape (n,), where each of them ends.

    """

    ids: TextColumn
    at_s: float
    statuses: NDArray[np.int8]
    answers: bytes = b""
    ends: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def answer(self, row: int) -> bytes:
        """The record of one row."""
        return self.answers[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])]

    def is_repeatable(self, row: int) -> bool:
        """Whether the same request gets this answer again: it has a score, or may still get one."""
        return self.statuses[row] in (Status.OK, Status.DEGRADED)


class Original(NamedTuple):
    """Where the first request with an id stands."""

    batch: AnsweredBatch
    row: int


class RecentAnswers:
    """The last requests and their answers.

    Args:
        remembered: how many, at most; 0: none.
        max_age_s: for how long.

    Example:
        >>> from schemas.columns import TextColumn
        >>> recent = RecentAnswers(remembered=100, max_age_s=600.0)
        >>> good = np.zeros(3, np.int8)
        >>> first, originals = recent.enter(TextColumn.from_values(["a", "b", "a"]), good, now_s=0.0)
        >>> [(row, original.row) for row, original in originals.items()]
        [(2, 0)]
        >>> recent.answered(first, [b"A", b"B", b"A"], good)
        >>> _, originals = recent.enter(TextColumn.from_values(["b"]), good[:1], now_s=1.0)
        >>> originals[0].batch.answer(originals[0].row)
        b'B'

    """

    def __init__(self, *, remembered: int, max_age_s: float) -> None:
        self._remembered, self._max_age_s = remembered, max_age_s
        self._table = _Table(PLACES * remembered, shift=0)
        self._second = _Table(SECOND_PLACES * remembered, shift=32)
        self._batches: deque[AnsweredBatch] = deque()
        self._first = 0
        """Number of the oldest batch; a place is a batch's number and a row."""
        self.rows = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is remembered at all."""
        return self._remembered > 0

    def enter(
        self, ids: TextColumn, statuses: NDArray[np.int8], *, now_s: float
    ) -> tuple[AnsweredBatch, dict[int, Original]]:
        """Enter requests, and find those that came before.

        Args:
            ids: n request ids, at most a million.
            statuses: shape (n,), of ``Status``: a request that is not OK now is nobody's original.
            now_s: monotonic seconds.

        Returns:
            The batch, to be ``answered``; and for each row that is not the first with its id the one that is.

        Cost: about 60 us and 0.1 us a row.

        """
        self._forget(now_s, len(ids))
        batch = AnsweredBatch(ids, now_s, statuses.copy())
        number = self._first + len(self._batches)
        self._batches.append(batch)
        self.rows += len(ids)
        enter = self._enter_few if len(ids) <= FEW_ROWS else self._enter_many
        return batch, enter(ids, number)

    def _enter_few(self, ids: TextColumn, number: int) -> dict[int, Original]:
        """As ``_enter_many``, id by id: array operations cost as much for one row as for a thousand."""
        originals: dict[int, Original] = {}
        oldest = self._oldest
        for row in range(len(ids)):
            raw = _text(ids, row)
            mixed = _hash(raw)
            place = max(self._table.find_one(mixed, oldest), self._second.find_one(mixed, oldest))
            original = self._original(place, raw) if place >= 0 else None
            if original is not None:
                originals[row] = original
                continue
            displaced = self._table.put_one(mixed, (number << _ROW_BITS) + row)
            if displaced[0] != mixed and displaced[1] >= oldest:
                self._second.put_one(*displaced)
        return originals

    def _enter_many(self, ids: TextColumn, number: int) -> dict[int, Original]:
        hashes = _hashes(ids)
        rows = np.arange(len(ids), dtype=np.int64)
        places = (number << _ROW_BITS) + rows
        known = self._find(hashes)
        seen = np.flatnonzero(known >= 0)
        originals = self._originals(ids, seen, known[seen])
        new = rows if not originals else np.setdiff1d(rows, np.fromiter(originals, np.int64), assume_unique=True)
        self._put(hashes[new], places[new])
        if len(new) > 1:
            first = self._find(hashes[new])
            twice = (first != places[new]) & (first >= 0)
            originals |= self._originals(ids, new[twice], first[twice])
        return originals

    def answered(self, batch: AnsweredBatch, answers: Sequence[bytes], statuses: NDArray[np.int8]) -> None:
        """The batch's answers, in order; kept as one piece, for to keep each costs the allocator more than to copy."""
        batch.answers, batch.statuses = b"".join(answers), statuses
        batch.ends = np.cumsum(np.fromiter(map(len, answers), np.int64, len(answers)))

    def clear(self) -> None:
        """Forget all: the partitions are somebody else's now."""
        self._first += len(self._batches)
        self._batches.clear()
        self.rows = 0

    @property
    def _oldest(self) -> int:
        """The first place that is not forgotten."""
        return self._first << _ROW_BITS

    def _find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        places = self._table.find(hashes, self._oldest)
        return places if (places >= 0).all() else np.maximum(places, self._second.find(hashes, self._oldest))

    def _put(self, hashes: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
        slots = self._table.slots(hashes)
        moved, moved_to = self._table.hashes[slots], self._table.places[slots]
        older = (moved_to >= self._oldest) & (moved != hashes)
        if older.any():
            self._second.put(moved[older], moved_to[older])
        self._table.put(hashes, places)
        without = self._table.hashes[slots] != hashes
        if without.any():
            self._second.put(hashes[without], places[without])

    def _originals(self, ids: TextColumn, rows: NDArray[np.int64], places: NDArray[np.int64]) -> dict[int, Original]:
        found: dict[int, Original] = {}
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            original = self._original(place, _text(ids, row))
            if original is not None:
                found[row] = original
        return found

    def _original(self, place: int, request_id: bytes) -> Original | None:
        """What stands at a place, if it is the same request and its answer is one to repeat."""
        batch = self._batches[(place >> _ROW_BITS) - self._first]
        row = place & ((1 << _ROW_BITS) - 1)
        return Original(batch, row) if batch.is_repeatable(row) and _text(batch.ids, row) == request_id else None

    def _forget(self, now_s: float, coming: int) -> None:
        while self._batches and (
            self.rows + coming > self._remembered or now_s - self._batches[0].at_s > self._max_age_s
        ):
            self.rows -= len(self._batches.popleft().ids)
            self._first += 1


def _hashes(ids: TextColumn) -> NDArray[np.uint64]:
    count = min(max(-(-int(ids.lengths.max(initial=1)) // 8), 1), MAX_WORDS)
    table = words(ids.data, ids.starts, ids.lengths, count)
    mixed: NDArray[np.uint64] = ids.lengths.astype(np.uint64) * _MIX[MAX_WORDS]
    for i in range(count):
        column = table[:, i]
        mixed += (column ^ (column >> np.uint64(31))) * _MIX[i]
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX[0]
    mixed ^= mixed >> np.uint64(29)
    return mixed


def _hash(raw: bytes) -> int:
    """As ``_hashes``, of one id."""
    mixed = len(raw) * _FACTORS[MAX_WORDS]
    for i in range(0, min(len(raw), 8 * MAX_WORDS), 8):
        word = int.from_bytes(raw[i : i + 8], "little")
        mixed += (word ^ (word >> 31)) * _FACTORS[i // 8]
    mixed &= _WORD
    mixed ^= mixed >> 32
    mixed = mixed * _FACTORS[0] & _WORD
    return mixed ^ (mixed >> 29)


def _text(ids: TextColumn, row: int) -> bytes:
    start = int(ids.starts[row])
    return ids.data[start : start + int(ids.lengths[row])].tobytes()
