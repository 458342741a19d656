"""One read position in every record of a batch, moved together.

Nothing is checked against a record's end except what could send a cursor far away (lengths and counts). Cursors
never move backwards, so a record whose cursor ends exactly at its end was read within its bounds; any other is bad.
A bad row is parked at its end and goes along until the walk is over, its values are thrown away then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from schemas import avro_scalar
from schemas.byte_ranges import window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.byte_ranges import Bytes, Ints, Mask, Words

REASONS: Final = (
    "",
    avro_scalar.TRUNCATED,
    avro_scalar.TRAILING,
    avro_scalar.BAD_LENGTH,
    avro_scalar.BAD_COUNT,
    avro_scalar.BAD_BLOCK_SIZE,
    avro_scalar.BAD_VARINT,
    avro_scalar.BAD_INT,
    avro_scalar.BAD_BOOLEAN,
    avro_scalar.BAD_BRANCH,
    avro_scalar.BAD_SYMBOL,
    avro_scalar.BAD_UTF8,
)
_CODE: Final = {reason: code for code, reason in enumerate(REASONS)}
DEFERRED: Final = 100
"""Not bad: the row has so many blocks or items that reading it alone costs less than more steps of the walk."""

_CONTINUE = np.uint64(0x8080808080808080)
_ONE = np.uint64(1)


@dataclass(slots=True)
class Cursors:
    """One cursor a row; a subset shares the buffer and the faults of the whole batch.

    Attributes:
        buffer: all records end to end, zeros behind.
        position: shape (n,), the next byte of each row.
        end: shape (n,), where each row's record ends.
        rows: shape (n,), which row of the batch this is.
        faults: shape (batch,), 0 while the row is good, else an index into REASONS, or DEFERRED.

    """

    buffer: Bytes
    position: Ints
    end: Ints
    rows: Ints
    faults: NDArray[np.uint8]

    def __len__(self) -> int:
        """Number of rows."""
        return self.position.size

    def subset(self, pick: Ints) -> Cursors:
        """Cursors of some rows only; hand them back with ``rejoin``."""
        return Cursors(self.buffer, self.position[pick], self.end[pick], self.rows[pick], self.faults)

    def rejoin(self, pick: Ints, part: Cursors) -> None:
        """Take over the positions of a subset."""
        self.position[pick] = part.position

    def fail(self, bad: Mask | Ints, reason: str) -> None:
        """Mark rows as bad and park them; a row that had already run over its end is truncated."""
        pick = np.flatnonzero(bad) if bad.dtype == np.bool_ else bad
        rows, over = self.rows[pick], self.position[pick] > self.end[pick]
        codes = np.where(over, _CODE[avro_scalar.TRUNCATED], _CODE[reason])
        self.faults[rows] = np.where(self.faults[rows] == 0, codes, self.faults[rows])
        self.position[pick] = self.end[pick]

    def defer(self, pick: Ints) -> None:
        """Leave rows to the scalar reader."""
        rows = self.rows[pick]
        self.faults[rows] = np.where(self.faults[rows] == 0, DEFERRED, self.faults[rows])
        self.position[pick] = self.end[pick]

    def byte(self) -> Bytes:
        """The next byte of each row."""
        found: Bytes = self.buffer.take(self.position)
        self.position = self.position + 1
        return found

    def long(self) -> Ints:
        """The next varint of each row, zigzag undone."""
        values, lengths, bad = varints(self.buffer, self.position)
        self.position = self.position + lengths
        if bad is not None:
            self.fail(bad, avro_scalar.BAD_VARINT)
        return values

    def index(self, count: int, reason: str) -> Ints:
        """The next varint of each row, which must be below ``count``."""
        values = self.long()
        bad = (values < 0) | (values >= count)
        if bad.any():
            self.fail(bad, reason)
            values = np.where(bad, 0, values)
        return values

    def fixed(self, dtype: str) -> NDArray[Any]:
        """The next element of each row."""
        view = window(self.buffer, dtype)
        found: NDArray[Any] = view[self.position]
        self.position = self.position + view.itemsize
        return found


def varints(buffer: Bytes, position: Ints) -> tuple[Ints, Ints | int, Mask | None]:
    """The varint at each position.

    Args:
        buffer: at least 10 bytes behind every position.
        position: shape (n,).

    Returns:
        Values with zigzag undone, shape (n,); their lengths in bytes, shape (n,) or one for all; which are
        malformed (None: none is), their values and lengths being 0 and 10.

    Example:
        >>> data = np.frombuffer(bytes([1, 0x80, 1]) + bytes(10), dtype=np.uint8)
        >>> [part.tolist() for part in varints(data, np.array([0, 1]))[:2]]
        [[-1, 64], [1, 2]]

    """
    first = buffer.take(position)
    if first.size == 0 or int(first.max()) < 0x80:
        small = first.astype(np.int64)
        return (small >> 1) ^ -(small & 1), 1, None
    word = window(buffer, "<u8")[position]
    stop = ~word & _CONTINUE
    kept = stop ^ (stop - _ONE)  # up to and including the lowest stop bit; all bits when there is none
    lengths = (np.bitwise_count(kept) >> 3).astype(np.int64)
    raw = _squeeze(word & kept)
    bad = None
    if not stop.all():
        bad = _long_varints(buffer, position, raw, lengths, np.flatnonzero(stop == 0))
    return (raw >> _ONE).view(np.int64) ^ -(raw & _ONE).view(np.int64), lengths, bad


def _squeeze(word: NDArray[Any]) -> Words:
    """Eight groups of 7 bits, one a byte, as one number of 56 bits."""
    word = (word & np.uint64(0x007F007F007F007F)) | ((word & np.uint64(0x7F007F007F007F00)) >> _ONE)
    word = (word & np.uint64(0x00003FFF00003FFF)) | ((word & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2))
    squeezed: Words = (word & np.uint64(0x000000000FFFFFFF)) | ((word & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4))
    return squeezed


def _long_varints(buffer: Bytes, position: Ints, raw: Words, lengths: Ints, rows: Ints) -> Mask | None:
    """Complete, in place, the varints of 9 and 10 bytes; returns which are malformed."""
    ninth = buffer.take(position[rows] + 8).astype(np.uint64)
    tenth = buffer.take(position[rows] + 9).astype(np.uint64)
    more = ninth >= np.uint64(0x80)
    raw[rows] |= (ninth & np.uint64(0x7F)) << np.uint64(56)
    raw[rows] |= np.where(more, tenth << np.uint64(63), np.uint64(0))
    lengths[rows] = np.where(more, 10, 9)
    over = more & (tenth > _ONE)
    if not over.any():
        return None
    raw[rows[over]] = 0
    bad = np.zeros(position.size, dtype=np.bool_)
    bad[rows[over]] = True
    return bad
