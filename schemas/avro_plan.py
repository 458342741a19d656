"""Avro schemas as trees of shapes: parsing, what is refused, and how a writer's data becomes a reader's.

The parser takes schemas from outside, so it is strict and bounded: anything recursive, malformed, deeper than
``MAX_DEPTH`` or larger than ``MAX_NODES`` is refused with ``SchemaNotSupported``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

MAX_DEPTH = 32
MAX_NODES = 20_000
"""Nodes of the tree after named types are written out; a few lines can otherwise stand for billions."""

Json: TypeAlias = Any
"""A part of a parsed JSON document, not yet judged."""

Value: TypeAlias = Any
"""An Avro value as Python has it: numbers, str, bytes, None, lists, dicts; integers for logical types."""

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


class SchemaNotSupported(ValueError):
    """The schema is malformed, unsafe to decode, or the reader's does not follow from the writer's."""


@dataclass(frozen=True, slots=True)
class Primitive:
    """One of ``PRIMITIVES``; a logical type is its underlying primitive."""

    name: str


@dataclass(frozen=True, slots=True)
class Fixed:
    """``size`` bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Enumeration:
    """Symbols by index; ``default`` stands in for a writer's symbol that the reader lacks."""

    name: str
    symbols: tuple[str, ...]
    default: str | None


@dataclass(frozen=True, slots=True)
class Array:
    """Any number of items."""

    items: Shape


@dataclass(frozen=True, slots=True)
class Map:
    """Any number of pairs with a string key."""

    values: Shape


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record; ``default`` counts only if ``has_default`` and is a value as ``to_python`` gives them."""

    name: str
    shape: Shape
    has_default: bool
    default: Value
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """Fields in wire order."""

    name: str
    fields: tuple[Field, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Nullable:
    """A union of null and one other type; ``null_index`` is 0 or 1, the branch that is null."""

    inner: Shape
    null_index: int


@dataclass(frozen=True, slots=True)
class Union:
    """Any other union."""

    branches: tuple[Shape, ...]


Shape: TypeAlias = Primitive | Fixed | Enumeration | Array | Map | Record | Nullable | Union
Collection = (Array, Map)


def parse(schema: str | dict[str, Json]) -> Record:
    """The shape of a record schema.

    Args:
        schema: Avro schema as JSON text or as the parsed document.

    Raises:
        SchemaNotSupported: malformed, recursive, too deep or too large, an array or map whose items take no bytes,
            or not a record.

    Example:
        >>> parse('{"type": "record", "name": "R", "fields": [{"name": "x", "type": ["null", "int"]}]}').fields[0].shape
        Nullable(inner=Primitive(name='int'), null_index=0)

    """
    try:
        document = json.loads(schema) if isinstance(schema, str) else schema
    except (ValueError, RecursionError) as error:
        msg = f"the schema is not JSON: {error}"
        raise SchemaNotSupported(msg) from error
    shape = _Parser().shape(document, "", "", 0)
    if not isinstance(shape, Record):
        msg = f"the schema's top level is {describe(shape)}; a record is needed"
        raise SchemaNotSupported(msg)
    return shape


def describe(shape: Shape) -> str:  # noqa: PLR0911 - one return a shape
    """A short name for messages.

    Example:
        >>> describe(Array(Primitive("int")))
        'array of int'

    """
    match shape:
        case Primitive():
            return shape.name
        case Array():
            return f"array of {describe(shape.items)}"
        case Map():
            return f"map of {describe(shape.values)}"
        case Nullable():
            return f"nullable {describe(shape.inner)}"
        case Union():
            return "union of " + ", ".join(describe(branch) for branch in shape.branches)
        case Fixed():
            return f"fixed {shape.name}"
        case Enumeration():
            return f"enum {shape.name}"
        case Record():
            return f"record {shape.name}"


def minimum_bytes(shape: Shape) -> int:
    """The fewest bytes a value can take.

    Example:
        >>> minimum_bytes(Nullable(Primitive("double"), 0)), minimum_bytes(Primitive("null"))
        (1, 0)

    """
    match shape:
        case Primitive():
            return {"null": 0, "float": 4, "double": 8}.get(shape.name, 1)
        case Fixed():
            return shape.size
        case Record():
            return sum(minimum_bytes(field.shape) for field in shape.fields)
        case Nullable() | Union() | Array() | Map() | Enumeration():
            return 1


class _Parser:
    """Resolves names and counts nodes while it walks the document once."""

    def __init__(self) -> None:
        self._documents: dict[str, tuple[dict[str, Json], str]] = {}
        self._open: list[str] = []
        self._nodes = 0

    def shape(self, document: Json, namespace: str, path: str, depth: int) -> Shape:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            _refuse(path, f"the schema is deeper than {MAX_DEPTH} or has more than {MAX_NODES} nodes")
        if isinstance(document, str):
            if document in PRIMITIVES:
                return Primitive(document)
            return self._named(document, namespace, path, depth)
        if isinstance(document, list):
            return self._union(document, namespace, path, depth)
        if not isinstance(document, dict) or "type" not in document:
            _refuse(path, "a type must be a name, a list or an object with `type`")
        return self._object(document, namespace, path, depth)

    def _object(self, document: dict[str, Json], namespace: str, path: str, depth: int) -> Shape:
        kind = document["type"]
        if kind == "array":
            return Array(self._items(document.get("items"), namespace, f"{path}[]", depth))
        if kind == "map":
            return Map(self._items(document.get("values"), namespace, f"{path}{{}}", depth))
        if kind in ("record", "error", "enum", "fixed"):
            return self._define(document, namespace, path, depth)
        return self.shape(kind, namespace, path, depth + 1)

    def _items(self, document: Json, namespace: str, path: str, depth: int) -> Shape:
        items = self.shape(document, namespace, path, depth + 1)
        if minimum_bytes(items) == 0:
            _refuse(path, f"items of {describe(items)} can take no bytes: a few bytes could claim any number of them")
        return items

    def _union(self, document: list[Any], namespace: str, path: str, depth: int) -> Shape:
        branches = tuple(self.shape(branch, namespace, path, depth + 1) for branch in document)
        if any(isinstance(branch, (Nullable, Union)) for branch in branches):
            _refuse(path, "a union directly inside a union")
        nulls = [index for index, branch in enumerate(branches) if branch == Primitive("null")]
        if len(branches) == 2 and len(nulls) == 1:
            return Nullable(branches[1 - nulls[0]], nulls[0])
        if not branches:
            _refuse(path, "a union without types")
        return Union(branches)

    def _named(self, name: str, namespace: str, path: str, depth: int) -> Shape:
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        if full not in self._documents:
            full = name
        if full not in self._documents:
            _refuse(path, f"unknown type {name!r}")
        document, inside = self._documents[full]
        return self._build(full, document, inside, path, depth)

    def _define(self, document: dict[str, Json], namespace: str, path: str, depth: int) -> Shape:
        name = document.get("name")
        if not isinstance(name, str) or not name:
            _refuse(path, "a named type without a name")
        if "." in name:
            full = name
        else:
            own = document.get("namespace", namespace) or ""
            full = f"{own}.{name}" if own else name
        if full in self._documents:
            _refuse(path, f"the type {full!r} is defined twice")
        inside = full.rpartition(".")[0]
        self._documents[full] = ({**document, "name": full}, inside)
        return self._build(full, document, inside, path, depth)

    def _build(self, full: str, document: dict[str, Json], inside: str, path: str, depth: int) -> Shape:
        if full in self._open:
            _refuse(path, f"the type {full!r} contains itself; recursive schemas are not decoded")
        if document["type"] == "enum":
            return _enumeration(full, document, path)
        if document["type"] == "fixed":
            size = document.get("size")
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                _refuse(path, "a fixed type needs a size >= 0")
            return Fixed(full, size)
        self._open.append(full)
        fields = self._fields(document.get("fields"), inside, path, depth)
        self._open.pop()
        return Record(full, fields, _names(document.get("aliases", []), path))

    def _fields(self, documents: Json, namespace: str, path: str, depth: int) -> tuple[Field, ...]:
        if not isinstance(documents, list):
            _refuse(path, "a record needs a list of fields")
        fields: dict[str, Field] = {}
        for document in documents:
            if not isinstance(document, dict) or not isinstance(document.get("name"), str) or "type" not in document:
                _refuse(path, "a field needs a name and a type")
            name = document["name"]
            inner = f"{path}.{name}" if path else name
            if name in fields:
                _refuse(inner, "the field is there twice")
            fields[name] = self._field(document, namespace, inner, depth)
        return tuple(fields.values())

    def _field(self, document: dict[str, Json], namespace: str, path: str, depth: int) -> Field:
        shape = self.shape(document["type"], namespace, path, depth + 1)
        has_default = "default" in document
        default = _default(document["default"], shape, path) if has_default else None
        return Field(document["name"], shape, has_default, default, _names(document.get("aliases", []), path))


def _enumeration(full: str, document: dict[str, Json], path: str) -> Enumeration:
    symbols = _names(document.get("symbols"), path)
    default = document.get("default")
    if not symbols or len(set(symbols)) < len(symbols) or (default is not None and default not in symbols):
        _refuse(path, "an enum needs distinct symbols, its default among them")
    return Enumeration(full, symbols, default)


def _names(values: Json, path: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        _refuse(path, "a list of names is needed")
    return tuple(values)


def _default(value: Json, shape: Shape, path: str) -> Value:  # noqa: PLR0911 - one return a shape
    """The default as a Python value; JSON writes bytes as text of code points 0 to 255."""
    match shape:
        case Nullable():
            return None if value is None else _default(value, shape.inner, path)
        case Union():
            return _union_default(value, shape, path)
        case Array() if isinstance(value, list):
            return [_default(item, shape.items, path) for item in value]
        case Map() if isinstance(value, dict):
            return {key: _default(item, shape.values, path) for key, item in value.items()}
        case Record() if isinstance(value, dict):
            return _record_default(value, shape, path)
        case Enumeration() if value in shape.symbols:
            return value
        case Fixed() if isinstance(value, str):
            return _default_bytes(value, path)
        case Primitive():
            return _primitive_default(value, shape.name, path)
    return _refuse(path, f"the default {value!r} is not a value of {describe(shape)}")


def _union_default(value: Json, shape: Union, path: str) -> Value:
    for branch in shape.branches:
        try:
            return _default(value, branch, path)
        except SchemaNotSupported:
            continue
    return _refuse(path, f"the default {value!r} fits no branch of the union")


def _record_default(value: dict[str, Json], shape: Record, path: str) -> dict[str, Json]:
    result = {}
    for field in shape.fields:
        if field.name in value:
            result[field.name] = _default(value[field.name], field.shape, f"{path}.{field.name}")
        elif field.has_default:
            result[field.name] = field.default
        else:
            _refuse(path, f"the default lacks the field {field.name!r}")
    return result


def _primitive_default(value: Json, name: str, path: str) -> Value:  # noqa: PLR0911 - one return a type
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "null" and value is None:
        return None
    if name == "boolean" and isinstance(value, bool):
        return value
    if name in ("int", "long") and number and int(value) == value and abs(value) < 2 ** (31 if name == "int" else 63):
        return int(value)
    if name in ("float", "double") and number:
        return float(value)
    if name == "string" and isinstance(value, str):
        return value
    if name == "bytes" and isinstance(value, str):
        return _default_bytes(value, path)
    return _refuse(path, f"the default {value!r} is not a value of {name}")


def _default_bytes(value: str, path: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        _refuse(path, f"the default {value!r} has characters beyond one byte")


def _refuse(path: str, reason: str) -> NoReturn:
    msg = f"{path or 'the schema'}: {reason}"
    raise SchemaNotSupported(msg)
