"""How a writer's data becomes a reader's: Avro's schema resolution, decided once per pair of schemas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

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
    SchemaNotSupported,
    Shape,
    describe,
)
from schemas.avro_scalar import NUMBER_DTYPES, column_of
from schemas.columns import Column, EnumColumn, ListColumn, MapColumn, NumberColumn, RecordColumn

Conversion: TypeAlias = Callable[[Column], Column]

_PROMOTIONS = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}


def resolve(  # noqa: C901, PLR0911 - one case and one return a rule of the specification
    writer: Shape, reader: Shape, path: str = ""
) -> tuple[Shape, Conversion]:
    """How to read the writer's bytes, and what then makes them the reader's columns.

    Args:
        writer: shape of the bytes.
        reader: shape that is wanted.
        path: the field, for messages.

    Returns:
        The shape to decode with (the writer's, where string and bytes are read as the reader wants them), and the
        conversion of its columns.

    Raises:
        SchemaNotSupported: the reader's shape does not follow from the writer's by an added field with a default, a
            removed or reordered field, a promoted number, string and bytes exchanged, an enum whose new symbols have a
            stand-in, or null allowed where it was not.

    Example:
        >>> shape, convert = resolve(Primitive("int"), Primitive("double"))
        >>> convert(NumberColumn(np.array([1], dtype=np.int32))).values.dtype
        dtype('float64')

    """
    if writer == reader:
        return writer, _same
    match writer, reader:
        case Primitive(), Primitive() if reader.name in _PROMOTIONS.get(writer.name, ()):
            if reader.name in NUMBER_DTYPES:
                return writer, _promotion(reader.name)
            return reader, _same
        case Fixed(), Fixed() if _same_name(writer.name, reader.name) and writer.size == reader.size:
            return writer, _same
        case Enumeration(), Enumeration() if _same_name(writer.name, reader.name):
            return writer, _resolve_enum(writer, reader, path)
        case Array(), Array():
            shape, convert = resolve(writer.items, reader.items, f"{path}[]")
            return Array(shape), _inside_list(convert)
        case Map(), Map():
            shape, convert = resolve(writer.values, reader.values, f"{path}{{}}")
            return Map(shape), _inside_map(convert)
        case Nullable(), Nullable():
            shape, convert = resolve(writer.inner, reader.inner, path)
            return Nullable(shape, writer.null_index), convert
        case _, Nullable() if writer != Primitive("null"):
            return resolve(writer, reader.inner, path)
        case Record(), Record() if _same_name(writer.name, reader.name, reader.aliases):
            return _resolve_record(writer, reader, path)
    return _refuse(path, f"written as {describe(writer)}, cannot be read as {describe(reader)}")


def _resolve_record(writer: Record, reader: Record, path: str) -> tuple[Shape, Conversion]:
    written = {field.name: field for field in writer.fields}
    shapes = {field.name: field.shape for field in writer.fields}
    sources: list[tuple[str, str, Conversion]] = []
    added: dict[str, Column] = {}
    for field in reader.fields:
        inner = f"{path}.{field.name}" if path else field.name
        source = next((name for name in (field.name, *field.aliases) if name in written), None)
        if source is not None:
            shapes[source], convert = resolve(written[source].shape, field.shape, inner)
            sources.append((field.name, source, convert))
        elif field.has_default:
            added[field.name] = column_of(field.shape, [field.default])
        else:
            _refuse(inner, "the writer lacks the field and the reader has no default for it")
    fields = tuple(Field(f.name, shapes[f.name], f.has_default, f.default, f.aliases) for f in writer.fields)
    order = tuple(field.name for field in reader.fields)
    return Record(writer.name, fields, writer.aliases), _inside_record(order, sources, added)


def _resolve_enum(writer: Enumeration, reader: Enumeration, path: str) -> Conversion:
    table = []
    for symbol in writer.symbols:
        known = symbol if symbol in reader.symbols else reader.default
        if known is None:
            _refuse(path, f"the reader lacks the symbol {symbol!r} and has no default")
        table.append(reader.symbols.index(known))
    codes = np.array(table, dtype=np.int32)

    def convert(column: Column) -> Column:
        assert isinstance(column, EnumColumn)
        return EnumColumn(codes[column.codes], reader.symbols, column.valid)

    return convert


def _inside_record(
    order: tuple[str, ...], sources: list[tuple[str, str, Conversion]], added: dict[str, Column]
) -> Conversion:
    def convert(column: Column) -> Column:
        assert isinstance(column, RecordColumn)
        found = {name: change(column.fields[source]) for name, source, change in sources}
        first = np.zeros(column.count, dtype=np.int64)
        found |= {name: one.take(first) for name, one in added.items()}
        return RecordColumn({name: found[name] for name in order}, column.count, column.valid)

    return convert


def _inside_list(change: Conversion) -> Conversion:
    def convert(column: Column) -> Column:
        assert isinstance(column, ListColumn)
        return ListColumn(column.offsets, change(column.items), column.valid)

    return convert


def _inside_map(change: Conversion) -> Conversion:
    def convert(column: Column) -> Column:
        assert isinstance(column, MapColumn)
        return MapColumn(column.offsets, column.keys, change(column.values), column.valid)

    return convert


def _promotion(name: str) -> Conversion:
    dtype: Any = NUMBER_DTYPES[name]

    def convert(column: Column) -> Column:
        assert isinstance(column, NumberColumn)
        return NumberColumn(column.values.astype(dtype), column.valid)

    return convert


def _same(column: Column) -> Column:
    return column


def _same_name(writer: str, reader: str, aliases: tuple[str, ...] = ()) -> bool:
    """Names match without their namespaces, as the specification has it."""
    wanted = {name.rpartition(".")[2] for name in (reader, *aliases)}
    return writer.rpartition(".")[2] in wanted


def _refuse(path: str, reason: str) -> NoReturn:
    msg = f"{path or 'the schema'}: {reason}"
    raise SchemaNotSupported(msg)
