"""Columns: the values of one Avro field over many records, as numpy arrays.

All columns are immutable by convention and may share buffers: ``take`` with a slice returns views. ``valid`` is
None when no row is null, else a mask that is True where there is a value; what lies under a null row is unspecified.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.byte_ranges import PAD_BYTES, expand_ranges, not_utf8, pack, starts_of, words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Indices: TypeAlias = NDArray[Any] | slice
Mask: TypeAlias = NDArray[np.bool_]
Validity: TypeAlias = NDArray[np.bool_] | None

_WASTE_BYTES = 1 << 16
_RECORD_BYTES = 1 << 10
"""Buffers of a record's text columns are joined whole up to this size a row, beyond it each column is packed."""
_KEY_BYTES = 16
_FEW_ROWS = 32
"""Up to so many values are cut out one by one: fewer calls than a copy of their buffer takes."""


@dataclass(frozen=True, slots=True, eq=False)
class NumberColumn:
    """int, long, float, double or boolean; timestamps are their integers.

    Attributes:
        values: shape (n,), int32, int64, float32, float64 or bool.
        valid: shape (n,), or None when no row is null.

    """

    values: NDArray[Any]
    valid: Validity = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.values.size

    def take(self, indices: Indices) -> NumberColumn:
        """The rows at ``indices``, in that order.

        Example:
            >>> NumberColumn(np.array([1, 2, 3])).take(slice(1, None)).values.tolist()
            [2, 3]

        """
        return NumberColumn(self.values[indices], _pick(self.valid, indices))


@dataclass(frozen=True, slots=True, eq=False)
class TextColumn:
    """string, bytes or fixed: byte ranges of one buffer, decoded only when asked.

    Attributes:
        data: shape (size,), uint8, contiguous; shared between columns, so a small column may keep a big buffer alive.
        starts: shape (n,), int64.
        lengths: shape (n,), int64, >= 0.
        valid: shape (n,), or None when no row is null.
        binary: True for Avro bytes and fixed; decides only what ``to_python`` returns.

    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    valid: Validity = None
    binary: bool = False

    def __len__(self) -> int:
        """Number of rows."""
        return self.starts.size

    @classmethod
    def from_values(cls, values: Sequence[str | bytes | None], *, binary: bool = False) -> TextColumn:
        """A column of the given values; str is encoded as UTF-8, None is null.

        Example:
            >>> TextColumn.from_values(["a", None, b"c"]).to_list()
            ['a', None, 'c']

        """
        raw = [_raw(value) for value in values]
        data = np.frombuffer(b"".join((*raw, bytes(PAD_BYTES))), dtype=np.uint8)
        lengths = np.fromiter(map(len, raw), np.int64, len(raw))
        valid = None
        if None in values:
            valid = np.array([value is not None for value in values], dtype=np.bool_)
        return cls(data, starts_of(lengths)[:-1], lengths, valid, binary)

    @classmethod
    def constant(cls, value: bytes | str, n: int) -> TextColumn:
        """The same value in ``n`` rows, stored once."""
        raw = _raw(value)
        data = np.frombuffer(raw + bytes(PAD_BYTES), dtype=np.uint8)
        return cls(data, np.zeros(n, dtype=np.int64), np.full(n, len(raw), dtype=np.int64))

    @classmethod
    def from_codes(cls, codes: NDArray[Any], vocabulary: Sequence[str | bytes]) -> TextColumn:
        """The vocabulary's entry at each code; a negative code is null.

        Args:
            codes: shape (n,), integers below ``len(vocabulary)``.
            vocabulary: the entries.

        Raises:
            IndexError: a code has no entry.

        Example:
            >>> TextColumn.from_codes(np.array([1, 0, -1]), ["no", "yes"]).to_list()
            ['yes', 'no', None]

        """
        if codes.size and int(codes.max()) >= len(vocabulary):
            msg = f"code {int(codes.max())} has no entry in a vocabulary of {len(vocabulary)}"
            raise IndexError(msg)
        entries = cls.from_values([*vocabulary, b""])
        absent = codes < 0
        column = entries.take(np.where(absent, len(vocabulary), codes))
        return cls(column.data, column.starts, column.lengths, ~absent if absent.any() else None)

    def take(self, indices: Indices) -> TextColumn:
        """The rows at ``indices``, in that order; the buffer is shared."""
        picked = _pick(self.valid, indices)
        return TextColumn(self.data, self.starts[indices], self.lengths[indices], picked, self.binary)

    def to_bytes_list(self) -> list[bytes | None]:
        """The values as bytes, None where null. Cost: about 0.1 us a row, plus a copy of the buffer."""
        if len(self.starts) <= _FEW_ROWS:
            raw = self.data.data
            ranges = zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
            return _with_nulls([bytes(raw[start : start + length]) for start, length in ranges], self.valid)
        first = int(self.starts.min(initial=self.data.size))
        whole = self.data[first : int((self.starts + self.lengths).max(initial=first))].tobytes()
        begins = (self.starts - first).tolist()
        ends = (self.starts - first + self.lengths).tolist()
        values = [whole[begin:end] for begin, end in zip(begins, ends, strict=True)]
        return _with_nulls(values, self.valid)

    def to_list(self) -> list[str | None]:
        """The values as text, None where null.

        Raises:
            UnicodeDecodeError: a value is not valid UTF-8 (a ValueError).

        """
        return [None if raw is None else str(raw, "utf-8") for raw in self.to_bytes_list()]

    def codes(self, vocabulary: Sequence[str | bytes], unknown: int = -1) -> NDArray[np.int64]:
        """Index of each value in a vocabulary.

        Args:
            vocabulary: the entries; of equal ones the first counts.
            unknown: stands for a value that is not in the vocabulary, and for null.

        Returns:
            Shape (n,).

        Cost: about 0.05 us a row for values of up to 16 bytes; longer entries 0.15 us a row.

        Example:
            >>> TextColumn.from_values(["b", "x", None, "a"]).codes(["a", "b"]).tolist()
            [1, -1, -1, 0]

        """
        entries = {_raw(entry): index for index, entry in reversed(list(enumerate(vocabulary)))}
        short = {raw: index for raw, index in entries.items() if len(raw) <= _KEY_BYTES}
        found = np.full(len(self), unknown, dtype=np.int64)
        if len(self) and short:
            _match_short(self, short, found)
        if len(short) < len(entries):
            _match_long(self, entries, found)
        if self.valid is not None:
            found[~self.valid] = unknown
        return found


@dataclass(frozen=True, slots=True, eq=False)
class EnumColumn:
    """Enum symbols by index.

    Attributes:
        codes: shape (n,), int32, index into ``symbols``.
        symbols: the schema's symbols.
        valid: shape (n,), or None when no row is null.

    """

    codes: NDArray[np.int32]
    symbols: tuple[str, ...]
    valid: Validity = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.codes.size

    def take(self, indices: Indices) -> EnumColumn:
        """The rows at ``indices``, in that order."""
        return EnumColumn(self.codes[indices], self.symbols, _pick(self.valid, indices))


@dataclass(frozen=True, slots=True, eq=False)
class ListColumn:
    """Arrays: row ``i`` holds ``items[offsets[i] : offsets[i + 1]]``.

    Attributes:
        offsets: shape (n + 1,), int64, non-decreasing; need not start at 0.
        items: the items of all rows.
        valid: shape (n,), or None when no row is null.

    """

    offsets: NDArray[np.int64]
    items: Column
    valid: Validity = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.offsets.size - 1

    def take(self, indices: Indices) -> ListColumn:
        """The rows at ``indices``, in that order; a slice without a step shares the items."""
        offsets, inside = _take_offsets(self.offsets, indices)
        items = self.items if inside is None else self.items.take(inside)
        return ListColumn(offsets, items, _pick(self.valid, indices))


@dataclass(frozen=True, slots=True, eq=False)
class MapColumn:
    """Maps: row ``i`` holds the pairs ``offsets[i] .. offsets[i + 1]`` of ``keys`` and ``values``, in wire order.

    Attributes:
        offsets: shape (n + 1,), int64, non-decreasing; need not start at 0.
        keys: the keys of all rows.
        values: the values of all rows.
        valid: shape (n,), or None when no row is null.

    """

    offsets: NDArray[np.int64]
    keys: TextColumn
    values: Column
    valid: Validity = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.offsets.size - 1

    def take(self, indices: Indices) -> MapColumn:
        """The rows at ``indices``, in that order; a slice without a step shares keys and values."""
        offsets, inside = _take_offsets(self.offsets, indices)
        valid = _pick(self.valid, indices)
        if inside is None:
            return MapColumn(offsets, self.keys, self.values, valid)
        return MapColumn(offsets, self.keys.take(inside), self.values.take(inside), valid)


@dataclass(frozen=True, slots=True, eq=False)
class RecordColumn:
    """Records: one column a field.

    Attributes:
        fields: field name to column, each of ``count`` rows.
        count: number of rows.
        valid: shape (count,), or None when no row is null.

    """

    fields: Mapping[str, Column]
    count: int
    valid: Validity = None

    def __len__(self) -> int:
        """Number of rows."""
        return self.count

    def take(self, indices: Indices) -> RecordColumn:
        """The rows at ``indices``, in that order.

        Example:
            >>> rows = RecordColumn({"x": NumberColumn(np.array([5, 6]))}, 2)
            >>> to_python(rows.take(np.array([1])))
            [{'x': 6}]

        """
        fields = {name: column.take(indices) for name, column in self.fields.items()}
        return RecordColumn(fields, _taken_count(indices, self.count), _pick(self.valid, indices))


@dataclass(frozen=True, slots=True, eq=False)
class ObjectColumn:
    """Python values, for what has no column type (unions of several types, null).

    Attributes:
        values: one value a row.

    """

    values: list[Any]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.values)

    def take(self, indices: Indices) -> ObjectColumn:
        """The rows at ``indices``, in that order."""
        if isinstance(indices, slice):
            return ObjectColumn(self.values[indices])
        return ObjectColumn([self.values[index] for index in _as_positions(indices).tolist()])


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """The same Python value in every row; for encoding only, where it is encoded once.

    Attributes:
        value: a value of the field's type, None for null.
        count: number of rows.

    """

    value: Any
    count: int

    def __len__(self) -> int:
        """Number of rows."""
        return self.count

    def take(self, indices: Indices) -> Constant:
        """As many rows as ``indices`` names."""
        return Constant(self.value, _taken_count(indices, self.count))


Column: TypeAlias = (
    NumberColumn | TextColumn | EnumColumn | ListColumn | MapColumn | RecordColumn | ObjectColumn | Constant
)


def to_python(column: Column) -> list[Any]:  # noqa: PLR0911 - one return a type
    """The column as Python values: numbers, str or bytes, symbols, lists, dicts; None where null.

    Raises:
        UnicodeDecodeError: a text is not valid UTF-8 (a ValueError).

    """
    match column:
        case NumberColumn():
            return _with_nulls(column.values.tolist(), column.valid)
        case TextColumn():
            return column.to_bytes_list() if column.binary else column.to_list()
        case EnumColumn():
            symbols = (*column.symbols, "")  # the last stands under null rows of an enum without symbols
            return _with_nulls([symbols[code] for code in column.codes.tolist()], column.valid)
        case ListColumn():
            lists = _cut(to_python(column.items), column.offsets)
            return _with_nulls(lists, column.valid)
        case MapColumn():
            pairs = list(zip(to_python(column.keys), to_python(column.values), strict=True))
            return _with_nulls([dict(part) for part in _cut(pairs, column.offsets)], column.valid)
        case RecordColumn():
            return _with_nulls(_records(column), column.valid)
        case ObjectColumn():
            return list(column.values)
        case Constant():
            return [column.value] * column.count


def concat(columns: Sequence[Column]) -> Column:
    """The rows of all columns, one after the other.

    Args:
        columns: at least one; all of one type. Enums with different symbols get the union of them.

    Raises:
        ValueError: no column, different types, or records with different fields.

    Example:
        >>> to_python(concat([TextColumn.from_values(["a"]), TextColumn.from_values([None])]))
        ['a', None]

    """
    return _Concatenation().columns(columns)


def spread(column: Column, rows: NDArray[np.int64], count: int) -> Column:
    """A column of ``count`` rows that holds ``column`` at ``rows`` and zero, empty or null elsewhere.

    Args:
        column: shape (k,).
        rows: shape (k,), strictly increasing, where its values go.
        count: number of rows of the result.

    """
    source = np.full(count, -1, dtype=np.int64)
    source[rows] = np.arange(rows.size)
    return _spread(column, source)


def _spread(column: Column, source: NDArray[np.int64]) -> Column:  # noqa: PLR0911 - one return a type
    """``source`` names for each row of the result the row it comes from; -1 for none."""
    match column:
        case NumberColumn():
            return NumberColumn(_spread_array(column.values, source), _spread_valid(column.valid, source))
        case TextColumn():
            starts, lengths = _spread_array(column.starts, source), _spread_array(column.lengths, source)
            return TextColumn(column.data, starts, lengths, _spread_valid(column.valid, source), column.binary)
        case EnumColumn():
            codes = _spread_array(column.codes, source)
            return EnumColumn(codes, column.symbols, _spread_valid(column.valid, source))
        case ListColumn():
            offsets = _spread_offsets(column.offsets, source)
            return ListColumn(offsets, column.items, _spread_valid(column.valid, source))
        case MapColumn():
            offsets = _spread_offsets(column.offsets, source)
            return MapColumn(offsets, column.keys, column.values, _spread_valid(column.valid, source))
        case RecordColumn():
            fields = {name: _spread(inner, source) for name, inner in column.fields.items()}
            return RecordColumn(fields, source.size, _spread_valid(column.valid, source))
        case ObjectColumn():
            return ObjectColumn([None if row < 0 else column.values[row] for row in source.tolist()])
        case Constant():
            return Constant(column.value, source.size)


def _spread_array(values: NDArray[Any], source: NDArray[np.int64]) -> NDArray[Any]:
    result = np.zeros(source.size, dtype=values.dtype)
    filled = source >= 0
    result[filled] = values[source[filled]]
    return result


def _spread_valid(valid: Validity, source: NDArray[np.int64]) -> Validity:
    return None if valid is None else _spread_array(valid, source)


def _spread_offsets(offsets: NDArray[np.int64], source: NDArray[np.int64]) -> NDArray[np.int64]:
    spread_out: NDArray[np.int64] = offsets[0] + starts_of(_spread_array(np.diff(offsets), source))
    return spread_out


def _raw(value: str | bytes | None) -> bytes:
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else bytes(value)


def _pick(valid: Validity, indices: Indices) -> Validity:
    return None if valid is None else valid[indices]


def _with_nulls(values: list[Any], valid: Validity) -> list[Any]:
    if valid is None:
        return values
    return [value if kept else None for value, kept in zip(values, valid.tolist(), strict=True)]


def _as_positions(indices: NDArray[Any]) -> NDArray[np.int64]:
    return np.flatnonzero(indices) if indices.dtype == np.bool_ else indices.astype(np.int64)


def _taken_count(indices: Indices, count: int) -> int:
    if isinstance(indices, slice):
        return len(range(*indices.indices(count)))
    return int(np.count_nonzero(indices)) if indices.dtype == np.bool_ else indices.size


def _take_offsets(offsets: NDArray[np.int64], indices: Indices) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """New offsets, and which items they refer to (None: the same items as before)."""
    count = offsets.size - 1
    if isinstance(indices, slice):
        first, last, step = indices.indices(count)
        if step == 1:
            return offsets[first : max(first, last) + 1], None
        indices = np.arange(first, last, step)
    rows = _as_positions(indices)
    begins = offsets[:-1][rows]
    lengths = offsets[1:][rows] - begins
    return starts_of(lengths), expand_ranges(begins, lengths)


def _cut(values: list[Any], offsets: NDArray[np.int64]) -> list[list[Any]]:
    edges = offsets.tolist()
    return [values[begin:end] for begin, end in itertools.pairwise(edges)]


def _records(column: RecordColumn) -> list[dict[str, Any]]:
    names = list(column.fields)
    if not names:
        return [{} for _ in range(column.count)]
    lists = [_field_values(inner, column.valid) for inner in column.fields.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]


def _field_values(column: Column, parent: Validity) -> list[Any]:
    """The field's values; rows whose record is null are not decoded, for what lies there is unspecified."""
    if parent is None:
        return to_python(column)
    rows = np.flatnonzero(parent)
    values: list[Any] = [None] * parent.size
    for row, value in zip(rows.tolist(), to_python(column.take(rows)), strict=True):
        values[row] = value
    return values


def _join_valid(columns: Sequence[Any]) -> Validity:
    if all(column.valid is None for column in columns):
        return None
    parts = [np.ones(len(c), dtype=np.bool_) if c.valid is None else c.valid for c in columns]
    return np.concatenate(parts)


class _Concatenation:
    """One call of ``concat``; remembers the buffers it has joined, for the text columns of a batch share theirs."""

    def __init__(self) -> None:
        self._joined: dict[tuple[int, ...], tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
        self._kept: list[list[NDArray[np.uint8]]] = []  # alive, so that no identity is used twice
        self._row_bytes = 0

    def columns(self, columns: Sequence[Column]) -> Column:
        if not columns:
            msg = "nothing to concatenate: pass at least one column"
            raise ValueError(msg)
        if len(columns) == 1:
            return columns[0]
        kinds = {type(column) for column in columns}
        if len(kinds) > 1:
            msg = f"cannot concatenate columns of different types: {', '.join(sorted(k.__name__ for k in kinds))}"
            raise ValueError(msg)
        return self._of_type[kinds.pop()](self, columns)

    def _numbers(self, columns: Sequence[Any]) -> NumberColumn:
        if len({column.values.dtype == np.bool_ for column in columns}) > 1:
            msg = "cannot concatenate booleans with numbers"
            raise ValueError(msg)
        return NumberColumn(np.concatenate([column.values for column in columns]), _join_valid(columns))

    def _texts(self, columns: Sequence[Any]) -> TextColumn:
        lengths = np.concatenate([column.lengths for column in columns])
        total = sum({id(column.data): column.data.size for column in columns}.values())
        if total > max(4 * int(lengths.sum()), self._row_bytes * lengths.size) + _WASTE_BYTES:
            columns = [_packed(column) for column in columns]
        data, base = self._buffer([column.data for column in columns])
        starts = np.concatenate([column.starts + first for column, first in zip(columns, base, strict=True)])
        return TextColumn(data, starts, lengths, _join_valid(columns), columns[0].binary)

    def _buffer(self, parts: list[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The parts end to end, and where each begins."""
        if all(part is parts[0] for part in parts):
            return parts[0], np.zeros(len(parts), dtype=np.int64)
        key = tuple(map(id, parts))
        if key not in self._joined:
            self._kept.append(parts)
            base = starts_of(np.array([part.size for part in parts], dtype=np.int64))[:-1]
            self._joined[key] = np.concatenate([*parts, np.zeros(PAD_BYTES, dtype=np.uint8)]), base
        return self._joined[key]

    def _enums(self, columns: Sequence[Any]) -> EnumColumn:
        symbols = tuple(dict.fromkeys(symbol for column in columns for symbol in column.symbols))
        index = {symbol: code for code, symbol in enumerate(symbols)}
        codes = []
        for column in columns:
            table = np.array([index[symbol] for symbol in column.symbols], dtype=np.int32)
            codes.append(column.codes if column.symbols == symbols[: len(column.symbols)] else table[column.codes])
        return EnumColumn(np.concatenate(codes).astype(np.int32), symbols, _join_valid(columns))

    def _lists(self, columns: Sequence[Any]) -> ListColumn:
        parts = [column.items.take(slice(int(column.offsets[0]), int(column.offsets[-1]))) for column in columns]
        return ListColumn(_join_offsets(columns), self.columns(parts), _join_valid(columns))

    def _maps(self, columns: Sequence[Any]) -> MapColumn:
        inside = [slice(int(column.offsets[0]), int(column.offsets[-1])) for column in columns]
        keys = self._texts([column.keys.take(part) for column, part in zip(columns, inside, strict=True)])
        values = self.columns([column.values.take(part) for column, part in zip(columns, inside, strict=True)])
        return MapColumn(_join_offsets(columns), keys, values, _join_valid(columns))

    def _records(self, columns: Sequence[Any]) -> RecordColumn:
        names = list(columns[0].fields)
        for column in columns:
            if set(column.fields) != set(names):
                odd = ", ".join(sorted(set(column.fields) ^ set(names)))
                msg = f"cannot concatenate records with different fields: {odd}"
                raise ValueError(msg)
        self._row_bytes = _RECORD_BYTES
        fields = {name: self.columns([column.fields[name] for column in columns]) for name in names}
        return RecordColumn(fields, sum(column.count for column in columns), _join_valid(columns))

    def _objects(self, columns: Sequence[Any]) -> ObjectColumn:
        return ObjectColumn([value for column in columns for value in column.values])

    def _constants(self, columns: Sequence[Any]) -> Column:
        first = columns[0].value
        if all(type(column.value) is type(first) and column.value == first for column in columns):
            return Constant(first, sum(column.count for column in columns))
        return ObjectColumn([value for column in columns for value in to_python(column)])

    _of_type: ClassVar[dict[type, Callable[[_Concatenation, Sequence[Any]], Column]]] = {
        NumberColumn: _numbers,
        TextColumn: _texts,
        EnumColumn: _enums,
        ListColumn: _lists,
        MapColumn: _maps,
        RecordColumn: _records,
        ObjectColumn: _objects,
        Constant: _constants,
    }


def _packed(column: TextColumn) -> TextColumn:
    data = pack(column.data, column.starts, column.lengths)
    return TextColumn(data, starts_of(column.lengths)[:-1], column.lengths, column.valid, column.binary)


def _join_offsets(columns: Sequence[Any]) -> NDArray[np.int64]:
    return starts_of(np.concatenate([np.diff(column.offsets) for column in columns]))


_MIX_LOW, _MIX_HIGH, _MIX_LENGTH = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xC2B2AE3D27D4EB4F),
    np.uint64(0x165667B19E3779F9),
)


def _short_keys(column: TextColumn) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first 16 bytes of each value, shape (n, 2), and a hash of them and the length, shape (n,)."""
    pair = words(column.data, column.starts, column.lengths, _KEY_BYTES // 8)
    mixed = pair[:, 0] * _MIX_LOW + pair[:, 1] * _MIX_HIGH + column.lengths.astype(np.uint64) * _MIX_LENGTH
    return pair, mixed ^ (mixed >> np.uint64(29))


def _match_short(column: TextColumn, entries: dict[bytes, int], found: NDArray[np.int64]) -> None:
    known = TextColumn.from_values(list(entries))
    pair, mixed = _short_keys(column)
    known_pair, known_mixed = _short_keys(known)
    order = np.argsort(known_mixed)
    if (np.diff(known_mixed[order]) == 0).any():  # two entries share a hash: let the dictionary tell them apart
        _match_long(column, entries, found)
        return
    slot = order[np.minimum(np.searchsorted(known_mixed[order], mixed), order.size - 1)]
    equal = (pair == known_pair[slot]).all(axis=1) & (column.lengths == known.lengths[slot])
    indices = np.fromiter(entries.values(), np.int64, len(entries))
    found[equal] = indices[slot[equal]]


def _match_long(column: TextColumn, entries: dict[bytes, int], found: NDArray[np.int64]) -> None:
    wanted = np.array(sorted({len(raw) for raw in entries}), dtype=np.int64)
    rows = np.flatnonzero(np.isin(column.lengths, wanted))
    bare = TextColumn(column.data, column.starts[rows], column.lengths[rows])
    for row, raw in zip(rows.tolist(), bare.to_bytes_list(), strict=True):
        index = entries.get(raw or b"")
        if index is not None:
            found[row] = index


def rows_not_utf8(column: TextColumn) -> NDArray[np.int64]:
    """Rows of the column, null ones left out, that are not valid UTF-8; ascending."""
    bad = not_utf8(column.data, column.starts, column.lengths)
    return bad if column.valid is None else bad[column.valid[bad]]
