"""Writing Avro column by column: every field adds a piece to all rows, then the pieces are put in their places.

Neighbouring pieces of constant width become one block, moved with one scatter. Pieces are written in field order, and
a short cell of varying length may be written over its full width: what it spills lies in the room of later pieces of
the same row, or in the slack behind the row, never in another row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from schemas.avro_plan import Array, Enumeration, Fixed, Map, Nullable, Primitive, Record, Shape, describe
from schemas.avro_write import NotAValue, write_value, writer_of
from schemas.byte_ranges import Bytes, Ints, Mask, Words, copy_ranges, not_utf8, pack, starts_of, window
from schemas.columnar_decode import is_vectorised
from schemas.columns import (
    Column,
    Constant,
    EnumColumn,
    ListColumn,
    MapColumn,
    NumberColumn,
    ObjectColumn,
    RecordColumn,
    TextColumn,
    Validity,
    spread,
    to_python,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_SLACK_BYTES = 16
_SMEAR = np.uint64(0x7F7F7F7F7F7F7F7F)
_CONTINUE = np.uint64(0x8080808080808080)
_INT = np.iinfo(np.int32)


def varint_cells(values: Ints) -> tuple[NDArray[Any], Ints]:
    """Each number zigzagged and as a varint, at the start of a cell.

    Args:
        values: shape (n,), n >= 1.

    Returns:
        Cells, shape (n,), of 2, 4, 8 or 16 bytes, as the longest varint needs; lengths in bytes, shape (n,).

    Example:
        >>> cells, lengths = varint_cells(np.array([-1, 64]))
        >>> [bytes(cell)[:k].hex() for cell, k in zip(cells.view("V2"), lengths.tolist())]
        ['01', '8001']

    """
    raw = ((values << 1) ^ (values >> 63)).view(np.uint64)
    most = int(raw.max())
    if most < 1 << 14:
        return _cells_of_two(raw.astype(np.uint16))
    if most < 1 << 28:
        return _cells_of_four(raw.astype(np.uint32))
    word = raw & np.uint64((1 << 56) - 1)
    word = (word & np.uint64(0x000000000FFFFFFF)) | ((word & np.uint64(0x00FFFFFFF0000000)) << np.uint64(4))
    word = (word & np.uint64(0x00003FFF00003FFF)) | ((word & np.uint64(0x0FFFC0000FFFC000)) << np.uint64(2))
    word = (word & np.uint64(0x007F007F007F007F)) | ((word & np.uint64(0x3F803F803F803F80)) << np.uint64(1))
    higher = word >> np.uint64(8)
    for shift in (8, 16, 32):
        higher |= higher >> np.uint64(shift)
    more = (higher + _SMEAR) & _CONTINUE  # a byte goes on when any byte above it is not zero
    lengths = np.bitwise_count(more).astype(np.int64) + 1
    if most < 1 << 56:
        return word | more, lengths
    return _wide_cells(raw, word, more, lengths)


def _cells_of_two(raw: NDArray[np.uint16]) -> tuple[NDArray[Any], Ints]:
    more = raw >= np.uint16(0x80)
    cells = (raw & np.uint16(0x7F)) | ((raw & np.uint16(0x3F80)) << np.uint16(1))
    cells |= more.view(np.uint8).astype(np.uint16) << np.uint16(7)
    return cells, more + np.int64(1)


def _cells_of_four(raw: NDArray[np.uint32]) -> tuple[NDArray[Any], Ints]:
    """As the 8-byte path of ``varint_cells``, at half the width."""
    word = (raw & np.uint32(0x00003FFF)) | ((raw & np.uint32(0x0FFFC000)) << np.uint32(2))
    word = (word & np.uint32(0x007F007F)) | ((word & np.uint32(0x3F803F80)) << np.uint32(1))
    higher = word >> np.uint32(8)
    for shift in (8, 16):
        higher |= higher >> np.uint32(shift)
    more = (higher + np.uint32(0x7F7F7F7F)) & np.uint32(0x80808080)
    return word | more, np.bitwise_count(more).astype(np.int64) + 1


def _wide_cells(raw: Words, word: Words, more: Words, lengths: Ints) -> tuple[NDArray[Any], Ints]:
    wide = raw >= np.uint64(1 << 56)
    cells = np.zeros((raw.size, 2), dtype=np.uint64)
    cells[:, 0] = word | np.where(wide, _CONTINUE, more)
    ten = raw >= np.uint64(1 << 63)
    ninth = (raw >> np.uint64(56)) & np.uint64(0x7F)
    cells[:, 1] = np.where(ten, ninth | np.uint64(0x180), ninth)
    lengths = np.where(ten, 10, np.where(wide, 9, lengths))
    return cells.reshape(-1).view("V16"), lengths


@dataclass(slots=True)
class _Block:
    """Pieces of constant width side by side: a template row, and the arrays that overwrite parts of it."""

    template: bytearray = field(default_factory=bytearray)
    parts: list[tuple[int, NDArray[Any]]] = field(default_factory=list)

    def rows(self, count: int) -> NDArray[Any]:
        width = len(self.template)
        block = np.empty(count, dtype=f"V{width}")
        block[:] = np.void(bytes(self.template))
        for offset, values in self.parts:
            np.ndarray((count,), values.dtype, buffer=block.data, offset=offset, strides=(width,))[:] = values
        return block


@dataclass(slots=True)
class _Cells:
    """Cells of equal width of which each row keeps the first ``lengths`` bytes."""

    cells: NDArray[Any]
    lengths: Ints


@dataclass(slots=True)
class _Ranges:
    """Byte ranges of another buffer."""

    data: Bytes
    starts: Ints
    lengths: Ints


class RowWriter:
    """Collects the pieces of n rows."""

    def __init__(self, count: int) -> None:
        """Start with empty rows; ``count`` >= 1."""
        self.count = count
        self._pieces: list[_Block | _Cells | _Ranges] = []

    def constant(self, raw: bytes, mask: Mask | None) -> None:
        """The same bytes in every row where the mask is true."""
        if not raw:
            return
        if mask is None:
            self._block().template.extend(raw)
            return
        data = np.frombuffer(raw, dtype=np.uint8)
        lengths = mask * np.int64(len(raw))
        self._pieces.append(_Ranges(data, np.zeros(self.count, dtype=np.int64), lengths))

    def elements(self, values: NDArray[Any], mask: Mask | None) -> None:
        """One element of constant width (at most 16 bytes if masked) a row."""
        if mask is not None:
            self._pieces.append(_Cells(values, mask * np.int64(values.itemsize)))
            return
        block = self._block()
        block.parts.append((len(block.template), values))
        block.template.extend(bytes(values.itemsize))

    def nullable_elements(self, branches: NDArray[np.uint8], values: NDArray[Any], valid: Mask) -> None:
        """A branch byte a row and, where valid, an element of constant width (at most 15 bytes)."""
        cells = _Block(bytearray(1 + values.itemsize), [(0, branches), (1, values)]).rows(self.count)
        self._pieces.append(_Cells(cells, valid * np.int64(values.itemsize) + 1))

    def longs(self, values: Ints, mask: Mask | None) -> None:
        """One varint a row."""
        if int(values.min()) >= -64 and int(values.max()) < 64:
            self.elements(((values << 1) ^ (values >> 63)).astype(np.uint8), mask)
            return
        cells, lengths = varint_cells(values)
        width = int(lengths[0])
        if mask is None and (lengths == width).all():
            self.elements(np.ndarray(cells.shape, f"V{width}", buffer=cells.data, strides=cells.strides), None)
        else:
            self._pieces.append(_Cells(cells, lengths if mask is None else lengths * mask))

    def ranges(self, data: Bytes, starts: Ints, lengths: Ints) -> None:
        """A byte range a row."""
        self._pieces.append(_Ranges(data, starts, lengths))

    def assemble(self) -> tuple[Bytes, Ints, Ints]:
        """Put the pieces together.

        Returns:
            A buffer, and where each row starts and ends in it; between rows lies garbage.

        """
        lengths = np.zeros(self.count, dtype=np.int64)
        for piece in self._pieces:
            lengths += len(piece.template) if isinstance(piece, _Block) else piece.lengths
        starts = starts_of(lengths + _SLACK_BYTES)
        out = np.empty(int(starts[-1]), dtype=np.uint8)
        places = starts[:-1].copy()
        for piece in self._pieces:
            match piece:
                case _Block():
                    window(out, f"V{len(piece.template)}")[places] = piece.rows(self.count)
                    places += len(piece.template)
                case _Cells():
                    window(out, piece.cells.dtype.str)[places] = piece.cells
                    places += piece.lengths
                case _Ranges():
                    copy_ranges(piece.data, piece.starts, piece.lengths, out, places)
                    places += piece.lengths
        return out, starts[:-1], places

    def _block(self) -> _Block:
        last = self._pieces[-1] if self._pieces else None
        if not isinstance(last, _Block):
            last = _Block()
            self._pieces.append(last)
        return last


def encode_batch(shape: Shape, columns: RecordColumn, prefix: bytes) -> list[bytes]:
    """The records of ``columns``, each behind ``prefix``; see ``Encoder.encode``."""
    if not columns.count:
        return []
    writer = RowWriter(columns.count)
    writer.constant(prefix, None)
    _write(writer, shape, columns, "", None)
    out, starts, ends = writer.assemble()
    whole = out.tobytes()
    return [whole[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _write(writer: RowWriter, shape: Shape, column: Column, path: str, mask: Mask | None) -> None:
    """Add a field to all rows where the mask is true."""
    if len(column) != writer.count:
        _refuse(path, f"{len(column)} rows, {writer.count} are needed")
    if isinstance(column, Constant):
        out = bytearray()
        write_value(shape, column.value, out, path)
        writer.constant(bytes(out), mask)
    elif isinstance(column, ObjectColumn) or not _is_column_shape(shape):
        _write_objects(writer, shape, column, path, mask)
    elif isinstance(shape, Nullable):
        _write_nullable(writer, shape, column, path, mask)
    else:
        _check_no_null(column, path, mask)
        _write_values(writer, shape, column, path, mask)


def _is_column_shape(shape: Shape) -> bool:
    """Records are entered whatever they hold; a field that has no vectorised form is written value by value."""
    inner = shape.inner if isinstance(shape, Nullable) else shape
    return isinstance(inner, Record) or is_vectorised(inner)


def _write_objects(writer: RowWriter, shape: Shape, column: Column, path: str, mask: Mask | None) -> None:
    rows = range(writer.count) if mask is None else np.flatnonzero(mask).tolist()
    values = to_python(column if mask is None else column.take(np.flatnonzero(mask)))
    out = bytearray()
    lengths = np.zeros(writer.count, dtype=np.int64)
    write = writer_of(shape)
    for row, value in zip(rows, values, strict=True):
        before = len(out)
        try:
            write(value, out)
        except NotAValue as error:
            place = f"{path}[row {row}]"
            raise error.inside(place) from None
        lengths[row] = len(out) - before
    writer.ranges(np.frombuffer(out, dtype=np.uint8), starts_of(lengths)[:-1], lengths)


def _write_nullable(writer: RowWriter, shape: Nullable, column: Column, path: str, mask: Mask | None) -> None:
    valid = _validity(column)
    null, there = 2 * shape.null_index, 2 * (1 - shape.null_index)
    if valid is None or valid.all():
        writer.constant(bytes([there]), mask)
        _write_values(writer, shape.inner, column, path, mask)
    elif not valid.any():
        _check_type(shape.inner, column, path)
        writer.constant(bytes([null]), mask)
    elif mask is None and shape.inner in (Primitive("double"), Primitive("float")):
        _check_type(shape.inner, column, path)
        assert isinstance(column, NumberColumn)
        width = 8 if shape.inner == Primitive("double") else 4
        values = column.values.astype("<f8", copy=False) if width == 8 else _as_floats(column.values, path, valid)
        writer.nullable_elements(np.where(valid, np.uint8(there), np.uint8(null)), values, valid)
    else:
        writer.elements(np.where(valid, np.uint8(there), np.uint8(null)), mask)
        _write_values(writer, shape.inner, column, path, valid if mask is None else valid & mask)


def _validity(column: Column) -> Validity:
    return None if isinstance(column, (Constant, ObjectColumn)) else column.valid


def _check_no_null(column: Column, path: str, mask: Mask | None) -> None:
    valid = _validity(column)
    if valid is None:
        return
    null = ~valid if mask is None else mask & ~valid
    if null.any():
        _refuse(path, f"row {int(np.argmax(null))} is null, and the schema does not allow it")


def _write_values(writer: RowWriter, shape: Shape, column: Column, path: str, mask: Mask | None) -> None:
    _check_type(shape, column, path)
    match column:
        case NumberColumn():
            assert isinstance(shape, Primitive)
            _write_numbers(writer, shape.name, column.values, path, mask)
        case TextColumn():
            _write_texts(writer, shape, column, path, mask)
        case EnumColumn():
            assert isinstance(shape, Enumeration)
            _write_symbols(writer, shape, column, path, mask)
        case ListColumn() | MapColumn():
            assert isinstance(shape, (Array, Map))
            _write_items(writer, shape, column, path, mask)
        case RecordColumn():
            assert isinstance(shape, Record)
            _write_fields(writer, shape, column.fields, path, mask)


def _check_type(shape: Shape, column: Column, path: str) -> None:
    match shape, column:
        case Primitive("string" | "bytes") | Fixed(), TextColumn():
            return
        case Enumeration(), EnumColumn():
            return
        case Array(), ListColumn():
            return
        case Map(), MapColumn():
            return
        case Record(), RecordColumn():
            return
        case Primitive(), NumberColumn() if column.values.dtype.kind in _KINDS.get(shape.name, ""):
            return
    found = f" of {column.values.dtype}" if isinstance(column, NumberColumn) else ""
    _refuse(path, f"{type(column).__name__}{found} given, the schema says {describe(shape)}")


_KINDS = {"boolean": "b", "int": "iu", "long": "iu", "float": "fiu", "double": "fiu"}


def _write_fields(
    writer: RowWriter, shape: Record, columns: Mapping[str, Column], path: str, mask: Mask | None
) -> None:
    for inner in shape.fields:
        where = f"{path}.{inner.name}" if path else inner.name
        column = columns.get(inner.name)
        if column is None:
            if not inner.has_default:
                _refuse(where, "no column is given and the schema has no default")
            column = Constant(inner.default, writer.count)
        _write(writer, inner.shape, column, where, mask)


def _write_numbers(writer: RowWriter, name: str, values: NDArray[Any], path: str, mask: Mask | None) -> None:
    if name == "boolean":
        writer.elements(values.astype(np.uint8), mask)
    elif name == "double":
        writer.elements(values.astype("<f8", copy=False), mask)
    elif name == "float":
        writer.elements(_as_floats(values, path, mask), mask)
    else:
        if mask is not None:
            values = np.where(mask, values, 0)
        least, most = int(values.min()), int(values.max())
        if most >= 1 << 63 or (name == "int" and not _INT.min <= least <= most <= _INT.max):
            _refuse(path, f"values from {least} to {most} do not fit into {name}")
        writer.longs(values.astype(np.int64, copy=False), mask)


def _as_floats(values: NDArray[Any], path: str, mask: Mask | None) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = values.astype("<f4")
    over = np.isinf(narrow) & np.isfinite(values)
    if mask is not None:
        over &= mask
    if over.any():
        _refuse(path, f"row {int(np.argmax(over))}: {values[np.argmax(over)]} does not fit into float")
    return narrow


def _write_texts(writer: RowWriter, shape: Shape, column: TextColumn, path: str, mask: Mask | None) -> None:
    lengths = column.lengths if mask is None else column.lengths * mask
    if isinstance(shape, Fixed):
        wrong = lengths != (shape.size if mask is None else mask * np.int64(shape.size))
        if wrong.any():
            row = int(np.argmax(wrong))
            _refuse(path, f"row {row} has {int(lengths[row])} bytes, the schema says {describe(shape)}")
    else:
        if shape == Primitive("string"):
            bad = not_utf8(column.data, column.starts, lengths)
            if bad.size:
                _refuse(path, f"row {int(bad[0])} is not valid UTF-8")
        writer.longs(lengths, mask)
    writer.ranges(column.data, column.starts, lengths)


def _write_symbols(writer: RowWriter, shape: Enumeration, column: EnumColumn, path: str, mask: Mask | None) -> None:
    codes = column.codes.astype(np.int64)
    if mask is not None:
        codes = np.where(mask, codes, 0)
    if int(codes.min()) < 0 or int(codes.max()) >= max(len(column.symbols), 1):
        _refuse(path, f"codes from {codes.min()} to {codes.max()}, there are {len(column.symbols)} symbols")
    if column.symbols[: len(shape.symbols)] != shape.symbols[: len(column.symbols)]:
        index = {symbol: code for code, symbol in enumerate(shape.symbols)}
        codes = np.array([index.get(symbol, -1) for symbol in column.symbols], dtype=np.int64)[codes]
    unknown = (codes < 0) | (codes >= len(shape.symbols))
    if mask is not None:
        unknown &= mask
    if unknown.any():
        row = int(np.argmax(unknown))
        _refuse(path, f"row {row}: the schema has no symbol {column.symbols[int(column.codes[row])]!r}")
    writer.longs(codes, mask)


def _write_items(
    writer: RowWriter, shape: Array | Map, column: ListColumn | MapColumn, path: str, mask: Mask | None
) -> None:
    if mask is not None:  # what lies under null rows need not be valid
        rows = np.flatnonzero(mask)
        kept = spread(column.take(rows), rows, writer.count)
        assert isinstance(kept, (ListColumn, MapColumn))
        column = kept
    counts = np.diff(column.offsets)
    first, last = int(column.offsets[0]), int(column.offsets[-1])
    held = len(column.items if isinstance(column, ListColumn) else column.values)
    if int(counts.min()) < 0 or first < 0 or last > held:
        _refuse(path, f"offsets must rise from 0 or more to at most the {held} items")
    some = counts > 0
    if not some.any():
        writer.constant(b"\0", mask)
        return
    data, begins = _encode_items(shape, column, path, first, last)
    edges = begins[column.offsets - first]
    everywhere = mask is None and bool(some.all())
    writer.longs(counts, None if everywhere else some)
    writer.ranges(data, edges[:-1], np.diff(edges))
    writer.constant(b"\0", mask)


def _encode_items(
    shape: Array | Map, column: ListColumn | MapColumn, path: str, first: int, last: int
) -> tuple[Bytes, Ints]:
    """The items end to end, and where each begins; shape (items + 1,)."""
    inside = slice(first, last)
    writer = RowWriter(last - first)
    if isinstance(column, ListColumn):
        assert isinstance(shape, Array)
        items = column.items.take(inside)
        if shape.items == Primitive("double") and isinstance(items, NumberColumn) and items.valid is None:
            _check_type(shape.items, items, f"{path}[]")
            values = np.ascontiguousarray(items.values, dtype="<f8")
            return values.view(np.uint8), np.arange(values.size + 1) * 8
        _write(writer, shape.items, items, f"{path}[]", None)
    else:
        assert isinstance(shape, Map)
        _write(writer, Primitive("string"), column.keys.take(inside), f"{path} keys", None)
        _write(writer, shape.values, column.values.take(inside), f"{path}{{}}", None)
    out, starts, ends = writer.assemble()
    lengths = ends - starts
    return pack(out, starts, lengths), starts_of(lengths)


def _refuse(path: str, reason: str) -> NoReturn:
    msg = f"{path or 'the record'}: {reason}"
    raise ValueError(msg)
