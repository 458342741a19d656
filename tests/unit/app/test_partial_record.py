"""Broken Avro records, read as far as they go."""

from __future__ import annotations

import pytest

from app.partial_record import PartialRecord, decode_as_far
from schemas.columnar import Decoder, SchemaNotSupported
from tests.samples import framed, request, sample_request_schema

SCHEMA = sample_request_schema()
WHOLE = framed(SCHEMA, 7, request(1))


def test_a_whole_record_is_read_to_its_end() -> None:
    """All fields come in wire order, inner ones with their path, and nothing stopped the reading."""
    found = decode_as_far(SCHEMA, WHOLE, 5)
    assert found == PartialRecord(found.fields)
    names = [name for name, _ in found.fields]
    assert names[:2] == ["request_id", "entity_id"]
    assert dict(found.fields)["features.distance"] == 101.0


@pytest.mark.parametrize("size", range(5, len(WHOLE)))
def test_a_cut_record_is_read_to_the_cut(size: int) -> None:
    """Wherever it is cut, the fields before are those of the whole, and the place lies before the cut."""
    whole, found = decode_as_far(SCHEMA, WHOLE, 5), decode_as_far(SCHEMA, WHOLE[:size], 5)
    assert found.fields == whole.fields[: len(found.fields)]
    assert found.stopped_in == whole.fields[len(found.fields)][0]
    assert found.stopped_at is not None
    assert 5 <= found.stopped_at <= size


def test_bytes_left_over() -> None:
    """A record with something behind it stops after its last field."""
    found = decode_as_far(SCHEMA, WHOLE + b"x", 5)
    assert (found.stopped_at, found.stopped_in) == (len(WHOLE), "")
    assert len(found.fields) == len(decode_as_far(SCHEMA, WHOLE, 5).fields)


@pytest.mark.parametrize("place", range(5, len(WHOLE)))
def test_it_stops_exactly_where_the_worker_refuses(place: int) -> None:
    """What the worker's decoder calls bad is bad here too, for the same reason; what it takes is read to the end."""
    mutated = WHOLE[:place] + bytes([WHOLE[place] ^ 0xFF]) + WHOLE[place + 1 :]
    errors = Decoder(SCHEMA).decode([mutated]).errors
    found = decode_as_far(SCHEMA, mutated, 5)
    assert found.reason == errors.get(0, "")


def test_a_recursive_schema_is_refused() -> None:
    """A schema that the worker would not use is not used here."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "r", "type": ["null", "R"]}]}
    with pytest.raises(SchemaNotSupported):
        decode_as_far(schema, b"\x00", 0)
