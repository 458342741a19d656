"""Decode an Avro record field by field, as far as it goes: what an operator needs to see of a broken one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.avro_plan import Record, parse
from schemas.avro_scalar import Malformed, ScalarReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.avro_plan import Shape


@dataclass(frozen=True, slots=True)
class PartialRecord:
    """What could be read.

    Attributes:
        fields: names, with dots for the fields of inner records, and values, in wire order.
        stopped_at: first byte that was not understood, counted from the value's start; None when all was.
        stopped_in: the field there; empty when bytes are left after the last one.
        reason: why it stopped; empty when it did not.

    """

    fields: tuple[tuple[str, Any], ...]
    stopped_at: int | None = None
    stopped_in: str = ""
    reason: str = ""


def decode_as_far(schema: dict[str, Any], value: bytes, skip_bytes: int) -> PartialRecord:
    r"""The fields up to the first that cannot be read.

    Args:
        schema: of the writer, a record.
        value: the bytes.
        skip_bytes: bytes before the record, 5 for a Confluent frame.

    Raises:
        SchemaNotSupported: the schema is recursive or otherwise refused.

    Example:
        >>> fields = [{"name": "n", "type": "int"}, {"name": "s", "type": "string"}]
        >>> found = decode_as_far({"type": "record", "name": "R", "fields": fields}, b"\x02\x0aab", 0)
        >>> found.fields, found.stopped_at, found.stopped_in
        ((('n', 1),), 1, 's')
        >>> found.reason
        "a length is negative or beyond the record's end"

    """
    reader = ScalarReader(value, skip_bytes, len(value))
    fields: list[tuple[str, Any]] = []
    position, path = skip_bytes, ""
    try:
        for path, shape in _leaves(parse(schema), ""):
            position = reader.position
            fields.append((path, reader.read(shape)))
        position, path = reader.position, ""
        reader.finish()
    except Malformed as error:
        return PartialRecord(tuple(fields), position, path, str(error))
    return PartialRecord(tuple(fields))


def _leaves(record: Record, stem: str) -> Iterator[tuple[str, Shape]]:
    for field in record.fields:
        if isinstance(field.shape, Record):
            yield from _leaves(field.shape, f"{stem}{field.name}.")
        else:
            yield stem + field.name, field.shape
