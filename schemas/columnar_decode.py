"""Reading Avro column by column: a cursor stands in every record, and all cursors walk the schema together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from schemas import avro_scalar
from schemas.avro_plan import (
    Array,
    Collection,
    Enumeration,
    Fixed,
    Map,
    Nullable,
    Primitive,
    Record,
    Shape,
    Union,
    minimum_bytes,
)
from schemas.avro_scalar import NUMBER_DTYPES, Malformed, ScalarReader, column_of
from schemas.byte_ranges import PAD_BYTES, Bytes, Ints, Mask, expand_ranges, not_utf8, starts_of, window
from schemas.columns import (
    Column,
    EnumColumn,
    ListColumn,
    MapColumn,
    NumberColumn,
    RecordColumn,
    TextColumn,
    concat,
    spread,
)
from schemas.cursors import DEFERRED, REASONS, Cursors

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PATIENT_STEPS = 16
_WORTHWHILE_ROWS = 96
"""After this many steps, one more must serve this many rows; so steps are bounded by 16 + items / 96."""

_DENSE_BYTES = 64
"""Packed varints are found by looking at every byte, which may cost this many bytes an item."""

_WIDTHS: Final = {"float": 4, "double": 8}
_FORMATS: Final = {"float": "<f4", "double": "<f8"}
_BRANCH_BIT = np.uint8(2)


class Reader:
    """Reads one shape for all rows; the base of the readers below.

    Attributes:
        reach: the most bytes a value can move a cursor without a check against its record's end.

    """

    reach: int = 0

    def read(self, cursors: Cursors) -> Column:
        """The column of the next values; at least one row."""
        raise NotImplementedError


@dataclass(slots=True)
class _Integers(Reader):
    name: str
    reach: int = 10

    def read(self, cursors: Cursors) -> Column:
        values = cursors.long()
        if self.name == "long":
            return NumberColumn(values)
        narrow = values.astype(np.int32)
        bad = narrow != values
        if bad.any():
            cursors.fail(bad, avro_scalar.BAD_INT)
        return NumberColumn(narrow)


@dataclass(slots=True)
class _Floats(Reader):
    name: str
    reach: int = 8

    def read(self, cursors: Cursors) -> Column:
        return NumberColumn(cursors.fixed(_FORMATS[self.name]))


@dataclass(slots=True)
class _Booleans(Reader):
    reach: int = 1

    def read(self, cursors: Cursors) -> Column:
        byte = cursors.byte()
        if int(byte.max()) > 1:
            cursors.fail(byte > 1, avro_scalar.BAD_BOOLEAN)
        return NumberColumn(byte == 1)


@dataclass(slots=True)
class _Symbols(Reader):
    symbols: tuple[str, ...]
    reach: int = 10

    def read(self, cursors: Cursors) -> Column:
        codes = cursors.index(len(self.symbols), avro_scalar.BAD_SYMBOL)
        return EnumColumn(codes.astype(np.int32), self.symbols)


@dataclass(slots=True)
class _Texts(Reader):
    """string and bytes (a length, then the bytes) or fixed (``size`` bytes)."""

    is_text: bool
    size: int | None = None
    reach: int = 10

    def read(self, cursors: Cursors) -> Column:
        lengths = cursors.long() if self.size is None else np.full(len(cursors), self.size, dtype=np.int64)
        bad = (lengths < 0) | (lengths > cursors.end - cursors.position)
        if bad.any():
            cursors.fail(bad, avro_scalar.BAD_LENGTH if self.size is None else avro_scalar.TRUNCATED)
            lengths = np.where(bad, 0, lengths)
        starts = cursors.position
        cursors.position = starts + lengths
        if self.is_text:
            invalid = not_utf8(cursors.buffer, starts, lengths)
            if invalid.size:
                cursors.fail(invalid, avro_scalar.BAD_UTF8)
        return TextColumn(cursors.buffer, starts, lengths, binary=not self.is_text)


@dataclass(slots=True)
class _Nullable(Reader):
    inner: Reader
    null_index: int
    reach: int = 0

    def __post_init__(self) -> None:
        self.reach = 10 + self.inner.reach

    def read(self, cursors: Cursors) -> Column:
        byte = cursors.buffer.take(cursors.position)
        there = 2 * (1 - self.null_index)
        if not (byte & ~_BRANCH_BIT).any():
            cursors.position = cursors.position + 1
            valid = byte == there
        else:  # bad, or a branch number in more than one byte
            valid = np.asarray(cursors.index(2, avro_scalar.BAD_BRANCH) == there // 2)
        if valid.all():
            return self.inner.read(cursors)
        if isinstance(self.inner, _Floats):
            return _some_floats(cursors, valid, _FORMATS[self.inner.name])
        rows = np.flatnonzero(valid)
        if not rows.size:
            return with_valid(blank_column(self.inner, len(cursors)), valid)
        part = cursors.subset(rows)
        column = self.inner.read(part)
        cursors.rejoin(rows, part)
        return with_valid(spread(column, rows, len(cursors)), valid)


def _some_floats(cursors: Cursors, valid: Mask, dtype: str) -> Column:
    view = window(cursors.buffer, dtype)
    values = view[cursors.position]
    values[~valid] = 0
    cursors.position = cursors.position + valid * np.int64(view.itemsize)
    return NumberColumn(values, valid)


@dataclass(slots=True)
class _Records(Reader):
    fields: tuple[tuple[str, Reader], ...]
    reach: int = 0
    runs: dict[int, _Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reach = sum(reader.reach for _, reader in self.fields)
        self.runs = _find_runs(self.fields)

    def read(self, cursors: Cursors) -> Column:
        columns: dict[str, Column] = {}
        index = 0
        while index < len(self.fields):
            run = self.runs.get(index)
            if run is not None and run.read(cursors, columns):
                index += len(run.names)
                continue
            name, reader = self.fields[index]
            columns[name] = reader.read(cursors)
            index += 1
        return RecordColumn(columns, len(cursors))


@dataclass(slots=True)
class _Run:
    """Neighbouring floats and doubles, nullable or not, read as one block when no row has a null there."""

    names: tuple[str, ...]
    layout: np.dtype[Any]
    branch_at: NDArray[np.int64]
    branches: NDArray[np.uint8]

    def read(self, cursors: Cursors, columns: dict[str, Column]) -> bool:
        """Read the run if every row takes the expected branches; else leave the cursors alone."""
        view = window(cursors.buffer, f"V{self.layout.itemsize}")
        block = view[cursors.position]
        table = block.view(np.uint8).reshape(block.size, self.layout.itemsize)
        for place, branch in zip(self.branch_at.tolist(), self.branches.tolist(), strict=True):
            if not (table[:, place] == branch).all():
                return False
        fields = block.view(self.layout)
        for name in self.names:
            columns[name] = NumberColumn(np.ascontiguousarray(fields[name]))
        cursors.position = cursors.position + self.layout.itemsize
        return True


def _find_runs(fields: tuple[tuple[str, Reader], ...]) -> dict[int, _Run]:
    """Runs of at least two fields, by the index of their first."""
    runs: dict[int, _Run] = {}
    first = 0
    while first < len(fields):
        last = first
        while last < len(fields) and _run_float(fields[last][1]) is not None:
            last += 1
        if last - first > 1:
            runs[first] = _make_run(fields[first:last])
        first = max(last, first + 1)
    return runs


def _run_float(reader: Reader) -> _Floats | None:
    inner = reader.inner if isinstance(reader, _Nullable) else reader
    return inner if isinstance(inner, _Floats) else None


def _make_run(fields: tuple[tuple[str, Reader], ...]) -> _Run:
    offset = 0
    places, branches, offsets, formats = [], [], [], []
    for _, reader in fields:
        if isinstance(reader, _Nullable):
            places.append(offset)
            branches.append(2 * (1 - reader.null_index))
            offset += 1
        inner = _run_float(reader)
        name = inner.name if inner is not None else ""
        offsets.append(offset)
        formats.append(_FORMATS[name])
        offset += _WIDTHS[name]
    names = tuple(name for name, _ in fields)
    layout = np.dtype({"names": list(names), "formats": formats, "offsets": offsets, "itemsize": offset})
    return _Run(names, layout, np.array(places, dtype=np.int64), np.array(branches, dtype=np.uint8))


@dataclass(slots=True)
class _Items(Reader):
    """Arrays, and maps as arrays of pairs: blocks of items until an empty block."""

    item: Reader
    smallest: int
    is_map: bool
    reach: int = 0

    def __post_init__(self) -> None:
        self.reach = 30 + self.item.reach

    def read(self, cursors: Cursors) -> Column:
        counts = np.zeros(len(cursors), dtype=np.int64)
        parts: list[tuple[Ints, Column]] = []
        rows = np.arange(len(cursors))
        part = cursors
        steps = 0
        while True:
            block, ends = self._block(part)
            if part is not cursors:
                cursors.rejoin(rows, part)
            live = np.flatnonzero(block)
            if not live.size:
                break
            rows, block, ends = rows[live], block[live], ends[live]
            part = cursors.subset(rows)
            if steps >= _PATIENT_STEPS and rows.size < _WORTHWHILE_ROWS:
                part.defer(np.arange(rows.size))
                cursors.rejoin(rows, part)
                break
            taken, items = self._read_items(part, block)
            counts[rows] += taken
            parts.append((np.repeat(rows, taken), items))
            wrong = (ends >= 0) & (ends != part.position)
            if wrong.any():
                part.fail(wrong, avro_scalar.BAD_BLOCK_SIZE)
            steps += 1
        return self.assemble(counts, parts)

    def _block(self, cursors: Cursors) -> tuple[Ints, Ints]:
        """The item count of each row's next block, 0 at the end and for bad rows; where the block ends, or -1."""
        counts = cursors.long()
        ends = np.full(counts.size, -1, dtype=np.int64)
        sized = np.flatnonzero(counts < 0)
        if sized.size:
            counts[sized] = np.negative(counts[sized])  # the least int64 stays negative, and is refused below
            part = cursors.subset(sized)
            sizes = part.long()
            cursors.rejoin(sized, part)
            room = part.end - part.position
            ends[sized] = np.where((sizes >= 0) & (sizes <= room), part.position + sizes, np.iinfo(np.int64).max)
        room = cursors.end - cursors.position
        bad = (counts < 0) | (counts > room // self.smallest)
        bad &= counts != 0
        if bad.any():
            cursors.fail(bad, avro_scalar.BAD_COUNT)
            counts[bad] = 0
        return counts, ends

    def _read_items(self, cursors: Cursors, counts: Ints) -> tuple[Ints, Column]:
        """How many items each row gave, and the items, row by row."""
        if isinstance(self.item, _Floats):
            return counts, NumberColumn(_read_fixed(cursors, counts, _FORMATS[self.item.name]))
        if isinstance(self.item, _Booleans):
            return counts, _read_booleans(cursors, counts)
        if isinstance(self.item, (_Integers, _Symbols)) and _is_dense(cursors, counts):
            return _read_packed(cursors, counts, self.item)
        return self._read_rounds(cursors, counts)

    def _read_rounds(self, cursors: Cursors, counts: Ints) -> tuple[Ints, Column]:
        """Round k reads item k of every row that has one."""
        taken = np.zeros(counts.size, dtype=np.int64)
        rows = np.arange(counts.size)
        parts: list[Column] = []
        owners: list[Ints] = []
        while rows.size:
            if len(parts) >= _PATIENT_STEPS and rows.size < _WORTHWHILE_ROWS:
                cursors.defer(rows)
                break
            part = cursors.subset(rows)
            parts.append(self.item.read(part))
            owners.append(rows)
            over = part.position > part.end
            if over.any():
                part.fail(over, avro_scalar.TRUNCATED)
            cursors.rejoin(rows, part)
            taken[rows] += 1
            rows = rows[(taken[rows] < counts[rows]) & (cursors.faults[cursors.rows[rows]] == 0)]
        return taken, _by_owner(parts, owners)

    def assemble(self, counts: Ints, parts: list[tuple[Ints, Column]]) -> Column:
        """The column of rows with ``counts`` items; each part is some items and the row of each."""
        offsets = starts_of(counts)
        if not parts:
            items = blank_column(self.item, 0)
        elif len(parts) == 1:
            items = parts[0][1]
        else:
            items = _by_owner([items for _, items in parts], [owners for owners, _ in parts])
        if not self.is_map:
            return ListColumn(offsets, items)
        assert isinstance(items, RecordColumn)
        keys = items.fields["key"]
        assert isinstance(keys, TextColumn)
        return MapColumn(offsets, keys, items.fields["value"])


def _by_owner(parts: list[Column], owners: list[Ints]) -> Column:
    """Items gathered part by part, in the order of the rows they belong to."""
    if len(parts) == 1:
        return parts[0]
    return concat(parts).take(np.argsort(np.concatenate(owners), kind="stable"))


def _read_fixed(cursors: Cursors, counts: Ints, dtype: str) -> NDArray[Any]:
    view = window(cursors.buffer, dtype)
    width = view.itemsize
    nth = expand_ranges(np.zeros(counts.size, dtype=np.int64), counts)
    values: NDArray[Any] = view[np.repeat(cursors.position, counts) + width * nth]
    cursors.position = cursors.position + width * counts
    return values


def _read_booleans(cursors: Cursors, counts: Ints) -> Column:
    values = _read_fixed(cursors, counts, "<u1")
    if int(values.max()) > 1:
        owners = np.repeat(np.arange(counts.size), counts)
        cursors.fail(np.unique(owners[values > 1]), avro_scalar.BAD_BOOLEAN)
    return NumberColumn(values == 1)


def _is_dense(cursors: Cursors, counts: Ints) -> bool:
    """Whether a look at every byte between the first cursor and the last end is paid for by the items."""
    span = int(cursors.end.max()) - int(cursors.position.min())
    return span <= _DENSE_BYTES * int(counts.sum())


def _read_packed(cursors: Cursors, counts: Ints, item: _Integers | _Symbols) -> tuple[Ints, Column]:
    """Items of one varint each: the n-th ends at the n-th byte without a continuation bit."""
    first, last = int(cursors.position.min()), int(cursors.end.max())
    closing = first + np.flatnonzero(cursors.buffer[first:last] < 0x80)
    rank = np.searchsorted(closing, cursors.position)
    final = rank + counts - 1
    short = final >= closing.size
    final = np.minimum(final, max(closing.size - 1, 0))
    after = closing[final] + 1 if closing.size else cursors.end + 1
    short |= after > cursors.end
    if short.any():
        cursors.fail(short, avro_scalar.TRUNCATED)
        counts = np.where(short, 0, counts)
    numbers = expand_ranges(rank, counts)
    starts = closing[np.maximum(numbers - 1, 0)] + 1
    begins = starts_of(counts)[:-1]
    some = counts > 0
    starts[begins[some]] = cursors.position[some]
    inner = Cursors(
        cursors.buffer,
        starts,
        np.repeat(cursors.end, counts),
        np.repeat(cursors.rows, counts),
        cursors.faults,
    )
    cursors.position = np.where(short, cursors.end, after)
    return counts, item.read(inner) if starts.size else blank_column(item, 0)


@dataclass(slots=True)
class _Scalars(Reader):
    """Anything else, row by row."""

    shape: Shape
    reach: int = 0

    def read(self, cursors: Cursors) -> Column:
        whole = cursors.buffer.data
        values, position = [], cursors.position.copy()
        bad: dict[str, list[int]] = {}
        for row, (begin, end) in enumerate(zip(cursors.position.tolist(), cursors.end.tolist(), strict=True)):
            reader = ScalarReader(whole, begin, end)
            try:
                values.append(reader.read(self.shape))
                position[row] = reader.position
            except Malformed as error:
                values.append(avro_scalar.blank(self.shape))
                bad.setdefault(str(error), []).append(row)
        cursors.position = position
        for reason, rows in bad.items():
            cursors.fail(np.array(rows, dtype=np.int64), reason)
        return column_of(self.shape, values)


def reader_of(shape: Shape) -> Reader:  # noqa: C901, PLR0911 - one case and one return a shape
    """The reader of a shape."""
    match shape:
        case Primitive("int" | "long"):
            return _Integers(shape.name)
        case Primitive("float" | "double"):
            return _Floats(shape.name)
        case Primitive("boolean"):
            return _Booleans()
        case Primitive("string" | "bytes"):
            return _Texts(shape.name == "string")
        case Fixed():
            return _Texts(is_text=False, size=shape.size)
        case Enumeration():
            return _Symbols(shape.symbols)
        case Nullable():
            return _Nullable(reader_of(shape.inner), shape.null_index)
        case Record():
            return _Records(tuple((inner.name, reader_of(inner.shape)) for inner in shape.fields))
        case Array() if is_flat(shape.items):
            return _Items(reader_of(shape.items), minimum_bytes(shape.items), is_map=False)
        case Map() if is_flat(shape.values):
            pair = (("key", _Texts(is_text=True)), ("value", reader_of(shape.values)))
            return _Items(_Records(pair), 1 + minimum_bytes(shape.values), is_map=True)
        case _:
            return _Scalars(shape)


def is_flat(shape: Shape) -> bool:
    """Whether a value holds no collection and no general union, so that many can be read in few steps."""
    match shape:
        case Record():
            return all(is_flat(inner.shape) for inner in shape.fields)
        case Nullable():
            return is_flat(shape.inner)
        case Primitive():
            return shape.name != "null"
        case _:
            return not isinstance(shape, (*Collection, Union))


def is_vectorised(shape: Shape) -> bool:
    """Whether no part of the shape is read value by value."""
    match shape:
        case Record():
            return all(is_vectorised(inner.shape) for inner in shape.fields)
        case Nullable():
            return is_vectorised(shape.inner)
        case Array():
            return is_flat(shape.items)
        case Map():
            return is_flat(shape.values)
        case _:
            return is_flat(shape)


def with_valid(column: Column, valid: Mask) -> Column:  # noqa: PLR0911 - one return a type
    """The column with a mask."""
    match column:
        case NumberColumn():
            return NumberColumn(column.values, valid)
        case TextColumn():
            return TextColumn(column.data, column.starts, column.lengths, valid, column.binary)
        case EnumColumn():
            return EnumColumn(column.codes, column.symbols, valid)
        case ListColumn():
            return ListColumn(column.offsets, column.items, valid)
        case MapColumn():
            return MapColumn(column.offsets, column.keys, column.values, valid)
        case RecordColumn():
            return RecordColumn(column.fields, column.count, valid)
        case _:
            return column  # an ObjectColumn holds its nulls itself


def blank_column(reader: Reader, count: int) -> Column:
    """A column of zeros, empty values and nulls, as the reader would type it."""
    column = _empty(reader)
    return spread(column, np.zeros(0, dtype=np.int64), count) if count else column


def _empty(reader: Reader) -> Column:  # noqa: PLR0911 - one return a reader
    none = np.zeros(0, dtype=np.int64)
    match reader:
        case _Integers() | _Floats():
            return NumberColumn(np.zeros(0, dtype=NUMBER_DTYPES[reader.name]))
        case _Booleans():
            return NumberColumn(np.zeros(0, dtype=np.bool_))
        case _Symbols():
            return EnumColumn(none.astype(np.int32), reader.symbols)
        case _Texts():
            return TextColumn(np.zeros(PAD_BYTES, dtype=np.uint8), none, none, binary=not reader.is_text)
        case _Nullable():
            return with_valid(_empty(reader.inner), np.zeros(0, dtype=np.bool_))
        case _Records():
            return RecordColumn({name: _empty(inner) for name, inner in reader.fields}, 0)
        case _Items():
            return reader.assemble(none, [])
        case _Scalars():
            return column_of(reader.shape, [])
    msg = f"unknown reader {type(reader).__name__}"
    raise TypeError(msg)


def decode_batch(
    reader: Reader, shape: Record, buffer: Bytes, starts: Ints, ends: Ints
) -> tuple[RecordColumn, NDArray[np.uint8]]:
    """Read all records.

    Args:
        reader: ``reader_of(shape)``.
        shape: the writer's schema.
        buffer: the records, with at least ``reader.reach + PAD_BYTES`` zeros behind the last.
        starts: shape (n,), n >= 1, where each record begins.
        ends: shape (n,), where each record ends; before its start when it has fewer bytes than its frame.

    Returns:
        Columns of n rows, blank where the row is bad; faults, shape (n,), as in ``Cursors``.

    """
    faults = np.zeros(starts.size, dtype=np.uint8)
    cursors = Cursors(buffer, starts.copy(), ends, np.arange(starts.size), faults)
    early = starts > ends
    if early.any():
        cursors.fail(early, avro_scalar.TRUNCATED)
    columns = reader.read(cursors)
    assert isinstance(columns, RecordColumn)
    left = cursors.position != ends
    if left.any():
        cursors.fail(left, avro_scalar.TRAILING)
    if not faults.any():
        return columns, faults
    good = np.flatnonzero(faults == 0)
    pieces: list[Column] = [columns.take(good)]
    rows = [good]
    late = np.flatnonzero(faults == DEFERRED)
    if late.size:
        column, kept = _decode_alone(shape, buffer, starts, ends, late, faults)
        pieces.append(column)
        rows.append(kept)
    order = np.argsort(np.concatenate(rows), kind="stable")
    whole = spread(concat(pieces).take(order), np.concatenate(rows)[order], starts.size)
    assert isinstance(whole, RecordColumn)
    return whole, faults


def _decode_alone(
    shape: Record, buffer: Bytes, starts: Ints, ends: Ints, late: Ints, faults: NDArray[np.uint8]
) -> tuple[Column, Ints]:
    """Read deferred rows one by one, set their faults, and name the good ones."""
    whole = buffer.data
    values, kept = [], []
    for row in late.tolist():
        scalar = ScalarReader(whole, int(starts[row]), int(ends[row]))
        try:
            value = scalar.read(shape)
            scalar.finish()
        except Malformed as error:
            faults[row] = REASONS.index(str(error))
            continue
        values.append(value)
        kept.append(row)
        faults[row] = 0
    return column_of(shape, values), np.array(kept, dtype=np.int64)
