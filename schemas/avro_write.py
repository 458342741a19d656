"""Avro written one value at a time, by a function that is made for a shape once.

For a few rows it is cheaper than a walk over columns; and it writes what has no vectorised form (unions of several
types, collections within collections) and constants.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from schemas.avro_plan import (
    Array,
    Enumeration,
    Field,
    Fixed,
    Map,
    Nullable,
    Primitive,
    Record,
    Shape,
    Union,
    Value,
    describe,
)
from schemas.avro_scalar import FLOAT_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

    Writer = Callable[[Value, bytearray], None]

_INTEGER_BITS = {"int": 32, "long": 64}


class NotAValue(ValueError):
    """A value is not of its shape.

    Attributes:
        path: from the value that was to be written down to the one at fault.

    """

    def __init__(self, shape: Shape, value: Value, why: str = "") -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        self._why = why or f"{shown} is not a value of {describe(shape)}"
        self.path = ""
        super().__init__(self._why)

    def __str__(self) -> str:
        """The path and the reason."""
        return f"{self.path}: {self._why}"

    def inside(self, step: str) -> NotAValue:
        """The same, seen from the value around it; ``step`` is a field's name, or an index in brackets."""
        dot = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{step}{dot}{self.path}"
        return self


def write_value(shape: Shape, value: Value, out: bytearray, path: str) -> None:
    r"""Append a Python value as Avro.

    Args:
        shape: the value's type.
        value: the value; integers for logical types.
        out: where to append.
        path: the field, for messages.

    Raises:
        ValueError: the value is not of the type; names the path.

    Example:
        >>> out = bytearray()
        >>> write_value(Array(Primitive("int")), [1, -1], out, "x")
        >>> bytes(out)
        b'\x04\x02\x01\x00'

    """
    try:
        writer_of(shape)(value, out)
    except NotAValue as error:
        raise error.inside(path) if path else error from None


def writer_of(shape: Shape) -> Writer:  # noqa: C901, PLR0911 - one case and one return a shape
    r"""The function that appends values of a shape.

    Returns:
        A function of value and buffer; it raises ``NotAValue``, and the buffer is then spoilt.

    Example:
        >>> out = bytearray()
        >>> writer_of(Primitive("string"))("ab", out)
        >>> bytes(out)
        b'\x04ab'

    """
    match shape:
        case Primitive("int" | "long"):
            return _integer_writer(shape)
        case Primitive("float" | "double"):
            return _float_writer(shape)
        case Primitive():
            return {"null": _write_null, "boolean": _write_boolean, "string": _write_text, "bytes": _write_bytes}[
                shape.name
            ]
        case Fixed():
            return _fixed_writer(shape)
        case Enumeration():
            return _symbol_writer(shape)
        case Nullable():
            return _nullable_writer(shape)
        case Record():
            return _record_writer(shape)
        case Array():
            return _array_writer(shape)
        case Map():
            return _map_writer(shape)
        case Union():
            return _union_writer(shape)


def write_long(value: int, out: bytearray) -> None:
    """Append a varint."""
    rest = (value << 1) ^ (value >> 63)
    while rest >= 0x80:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)


def _write_null(value: Value, out: bytearray) -> None:  # noqa: ARG001 - null has no bytes
    if value is not None:
        raise NotAValue(Primitive("null"), value)


def _write_boolean(value: Value, out: bytearray) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise NotAValue(Primitive("boolean"), value)
    out.append(int(value))


def _write_text(value: Value, out: bytearray) -> None:
    if not isinstance(value, str):
        raise NotAValue(Primitive("string"), value)
    raw = value.encode()
    write_long(len(raw), out)
    out += raw


def _write_bytes(value: Value, out: bytearray) -> None:
    if not isinstance(value, bytes):
        raise NotAValue(Primitive("bytes"), value)
    write_long(len(value), out)
    out += value


def _integer_writer(shape: Primitive) -> Writer:
    end = 1 << (_INTEGER_BITS[shape.name] - 1)

    def write(value: Value, out: bytearray) -> None:
        if value.__class__ is not int:
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise NotAValue(shape, value)
            value = int(value)
        if not -end <= value < end:
            raise NotAValue(shape, value)
        write_long(value, out)

    return write


def _float_writer(shape: Primitive) -> Writer:
    pack = FLOAT_FORMATS[shape.name].pack

    def write(value: Value, out: bytearray) -> None:
        if value.__class__ is not float and (
            not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool)
        ):
            raise NotAValue(shape, value)
        try:
            out += pack(value)
        except (OverflowError, struct.error):
            raise NotAValue(shape, value) from None

    return write


def _fixed_writer(shape: Fixed) -> Writer:
    def write(value: Value, out: bytearray) -> None:
        if not isinstance(value, bytes) or len(value) != shape.size:
            raise NotAValue(shape, value)
        out += value

    return write


def _symbol_writer(shape: Enumeration) -> Writer:
    codes = {symbol: code for code, symbol in enumerate(shape.symbols)}

    def write(value: Value, out: bytearray) -> None:
        code = codes.get(value) if isinstance(value, str) else None
        if code is None:
            raise NotAValue(shape, value)
        write_long(code, out)

    return write


def _nullable_writer(shape: Nullable) -> Writer:
    null, some = shape.null_index * 2, (1 - shape.null_index) * 2  # branches 0 and 1 as varints
    inner = writer_of(shape.inner)

    def write(value: Value, out: bytearray) -> None:
        if value is None:
            out.append(null)
        else:
            out.append(some)
            inner(value, out)

    return write


def _record_writer(shape: Record) -> Writer:
    fields = [(field, field.name, writer_of(field.shape)) for field in shape.fields]

    def write(value: Value, out: bytearray) -> None:
        if not isinstance(value, dict):
            raise NotAValue(shape, value)
        name = ""
        try:
            for field, name, inner in fields:
                if name in value:
                    inner(value[name], out)
                else:
                    inner(_default_of(field), out)
        except NotAValue as error:
            raise error.inside(name) from None

    return write


def _default_of(field: Field) -> Value:
    if not field.has_default:
        raise NotAValue(field.shape, None, "the value is missing and the schema has no default")
    return field.default


def _array_writer(shape: Array) -> Writer:
    inner = writer_of(shape.items)

    def write(value: Value, out: bytearray) -> None:
        if not isinstance(value, (list, tuple)):
            raise NotAValue(shape, value)
        if value:
            write_long(len(value), out)
        for index, item in enumerate(value):
            try:
                inner(item, out)
            except NotAValue as error:
                place = f"[{index}]"
                raise error.inside(place) from None
        out.append(0)

    return write


def _map_writer(shape: Map) -> Writer:
    inner = writer_of(shape.values)

    def write(value: Value, out: bytearray) -> None:
        if not isinstance(value, dict):
            raise NotAValue(shape, value)
        if value:
            write_long(len(value), out)
        for key, item in value.items():
            try:
                _write_text(key, out)
                inner(item, out)
            except NotAValue as error:
                place = f"[{key!r}]"
                raise error.inside(place) from None
        out.append(0)

    return write


def _union_writer(shape: Union) -> Writer:
    branches = [writer_of(branch) for branch in shape.branches]

    def write(value: Value, out: bytearray) -> None:
        for index, branch in enumerate(branches):
            part = bytearray()
            try:
                branch(value, part)
            except NotAValue:
                continue
            write_long(index, out)
            out += part
            return
        raise NotAValue(shape, value)

    return write
