"""Avro one value at a time: strict reading, and columns from Python values.

This is the slow way, for what has no vectorised form (unions of several types, collections within collections), and
for rows that would make the vectorised walk take too many steps. It judges bytes exactly as the
vectorised walk does, which ``fastavro`` does not: that takes negative branch numbers and endless varints.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from schemas.avro_plan import (
    Array,
    Enumeration,
    Fixed,
    Map,
    Nullable,
    Primitive,
    Record,
    Shape,
    Union,
    Value,
    minimum_bytes,
)
from schemas.byte_ranges import starts_of
from schemas.columns import (
    Column,
    EnumColumn,
    ListColumn,
    MapColumn,
    NumberColumn,
    ObjectColumn,
    RecordColumn,
    TextColumn,
    Validity,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from schemas.byte_ranges import Ints

TRUNCATED = "truncated"
TRAILING = "bytes left after the record"
BAD_LENGTH = "a length is negative or beyond the record's end"
BAD_COUNT = "a block count is beyond the record's end"
BAD_BLOCK_SIZE = "a block's size disagrees with its items"
BAD_VARINT = "a varint is over 10 bytes or over 64 bits"
BAD_INT = "an int is outside 32 bits"
BAD_BOOLEAN = "a boolean is neither 0 nor 1"
BAD_BRANCH = "a union branch is out of range"
BAD_SYMBOL = "an enum index is out of range"
BAD_UTF8 = "a string is not valid UTF-8"

NUMBER_DTYPES = {"boolean": np.bool_, "int": np.int32, "long": np.int64, "float": np.float32, "double": np.float64}
FLOAT_FORMATS = {"float": struct.Struct("<f"), "double": struct.Struct("<d")}


class Malformed(ValueError):
    """The bytes are not a value of the schema; the text is the reason."""


class ScalarReader:
    """Reads values of one record, strictly.

    Attributes:
        position: index of the next byte.

    """

    def __init__(self, data: bytes | memoryview, position: int, end: int) -> None:
        self._data = data
        self.position = position
        self._end = end

    def read(self, shape: Shape) -> Value:  # noqa: PLR0911 - one return a shape
        """The next value; bytes for bytes and fixed, integers for logical types.

        Raises:
            Malformed: the bytes are not a value of the shape.

        """
        match shape:
            case Primitive():
                return self._primitive(shape.name)
            case Nullable():
                return None if self._index(2, BAD_BRANCH) == shape.null_index else self.read(shape.inner)
            case Record():
                return {field.name: self.read(field.shape) for field in shape.fields}
            case Enumeration():
                return shape.symbols[self._index(len(shape.symbols), BAD_SYMBOL)]
            case Array():
                return [self.read(shape.items) for _ in self._items(minimum_bytes(shape.items))]
            case Map():
                pairs = self._items(1 + minimum_bytes(shape.values))
                return {self._text(): self.read(shape.values) for _ in pairs}
            case Union():
                return self.read(shape.branches[self._index(len(shape.branches), BAD_BRANCH)])
            case Fixed():
                return self._bytes(shape.size)

    def finish(self) -> None:
        """Check that the record is used up.

        Raises:
            Malformed: bytes are left.

        """
        if self.position != self._end:
            raise Malformed(TRAILING)

    def _primitive(self, name: str) -> Value:
        if name in FLOAT_FORMATS:
            form = FLOAT_FORMATS[name]
            return form.unpack(self._bytes(form.size))[0]
        match name:
            case "null":
                return None
            case "string":
                return self._text()
            case "bytes":
                return self._sized()
            case "boolean":
                byte = self._bytes(1)[0]
                if byte > 1:
                    raise Malformed(BAD_BOOLEAN)
                return byte == 1
        value = self._long()
        if name == "int" and not -(2**31) <= value < 2**31:
            raise Malformed(BAD_INT)
        return value

    def _long(self) -> int:
        value = shift = 0
        while True:
            byte = self._bytes(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise Malformed(BAD_VARINT)
        if value >= 2**64:
            raise Malformed(BAD_VARINT)
        return (value >> 1) ^ -(value & 1)

    def _index(self, count: int, reason: str) -> int:
        index = self._long()
        if not 0 <= index < count:
            raise Malformed(reason)
        return index

    def _text(self) -> str:
        try:
            return str(self._sized(), "utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(BAD_UTF8) from error

    def _sized(self) -> bytes:
        length = self._long()
        if not 0 <= length <= self._end - self.position:
            raise Malformed(BAD_LENGTH)
        return self._bytes(length)

    def _bytes(self, count: int) -> bytes:
        begin, self.position = self.position, self.position + count
        if self.position > self._end:
            raise Malformed(TRUNCATED)
        return bytes(self._data[begin : self.position])

    def _items(self, smallest: int) -> Iterator[None]:
        """One step an item, over all blocks; the caller reads the item."""
        while count := self._long():
            block_end = None
            if count < 0:
                count, size = -count, self._long()
                block_end = self.position + size
            if count * smallest > self._end - self.position:
                raise Malformed(BAD_COUNT)
            for _ in range(count):
                yield
            if block_end is not None and block_end != self.position:
                raise Malformed(BAD_BLOCK_SIZE)


def column_of(shape: Shape, values: Sequence[Value]) -> Column:
    """A column of Python values, as the decoder gives it for the shape.

    Args:
        shape: their type.
        values: n values as ``ScalarReader.read`` returns them.

    Returns:
        The column of n rows; an ObjectColumn for null and for unions of several types.

    Example:
        >>> column_of(Nullable(Primitive("int"), 0), [7, None]).valid.tolist()
        [True, False]

    """
    if isinstance(shape, Nullable):
        return _column(shape.inner, values, nullable=True)
    return _column(shape, values, nullable=False)


def _column(shape: Shape, values: Sequence[Value], *, nullable: bool) -> Column:  # noqa: PLR0911 - one return a shape
    valid: Validity = None
    if nullable and any(value is None for value in values):
        valid = np.array([value is not None for value in values], dtype=np.bool_)
    match shape:
        case Primitive() if shape.name in NUMBER_DTYPES:
            numbers = [0 if value is None else value for value in values]
            return NumberColumn(np.array(numbers, dtype=NUMBER_DTYPES[shape.name]), valid)
        case Primitive() if shape.name == "null":
            return ObjectColumn(list(values))
        case Primitive() | Fixed():
            binary = isinstance(shape, Fixed) or shape.name == "bytes"
            return TextColumn.from_values(values, binary=binary)
        case Enumeration():
            index = {symbol: code for code, symbol in enumerate(shape.symbols)}
            codes = np.array([index.get(value, 0) for value in values], dtype=np.int32)
            return EnumColumn(codes, shape.symbols, valid)
        case Array():
            items = column_of(shape.items, [item for value in values for item in value or ()])
            return ListColumn(_offsets(values), items, valid)
        case Map():
            keys = TextColumn.from_values([key for value in values for key in value or ()])
            inner = column_of(shape.values, [item for value in values for item in (value or {}).values()])
            return MapColumn(_offsets(values), keys, inner, valid)
        case Record():
            return _record_column(shape, values, valid)
        case _:
            return ObjectColumn(list(values))


def _record_column(shape: Record, values: Sequence[Value], valid: Validity) -> RecordColumn:
    fields = {}
    for field in shape.fields:
        stand_in = blank(field.shape)
        inner = [stand_in if value is None else value[field.name] for value in values]
        fields[field.name] = column_of(field.shape, inner)
    return RecordColumn(fields, len(values), valid)


def _offsets(values: Sequence[Value]) -> Ints:
    return starts_of(np.fromiter((len(value or ()) for value in values), np.int64, len(values)))


def blank(shape: Shape) -> Value:  # noqa: PLR0911 - one return a shape
    """The value that stands where there is none: zero, empty or null; the first symbol of an enum.

    Example:
        >>> blank(Array(Primitive("int"))), blank(Primitive("double"))
        ([], 0.0)

    """
    match shape:
        case Primitive():
            blanks = {"null": None, "boolean": False, "string": "", "bytes": b"", "float": 0.0, "double": 0.0}
            return blanks.get(shape.name, 0)
        case Fixed():
            return b""
        case Enumeration():
            return shape.symbols[0]
        case Array():
            return []
        case Map():
            return {}
        case Record():
            return {field.name: blank(field.shape) for field in shape.fields}
        case Nullable() | Union():
            return None
