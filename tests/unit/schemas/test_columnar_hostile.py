"""Hostile bytes and hostile schemas: the bad row is named, its neighbours are unharmed, memory stays bounded."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro_plan import MAX_DEPTH, Value, parse
from schemas.avro_scalar import Malformed, ScalarReader
from schemas.columnar import Decoded, Decoder, NumberColumn, SchemaNotSupported, TextColumn, to_python
from schemas.columnar_decode import blank_column

ENUM = {"type": "enum", "name": "E", "symbols": ["A", "B", "C"]}


def record(*types: Value) -> dict[str, Any]:
    """A record schema with fields f0, f1, ... of the given types."""
    return {"type": "record", "name": "R", "fields": [{"name": f"f{k}", "type": t} for k, t in enumerate(types)]}


RICH = record(
    "string",
    ["null", "double"],
    ["double", "null"],
    "double",
    "long",
    ["null", "string"],
    ENUM,
    {"type": "array", "items": "string"},
    {"type": "array", "items": "int"},
    {"type": "array", "items": "boolean"},
    {"type": "map", "values": "double"},
    "boolean",
    "int",
    "bytes",
    {"type": "fixed", "name": "X", "size": 3},
)
RICH_ROW = {
    "f0": "request-1",
    "f1": 0.25,
    "f2": None,
    "f3": -1.5,
    "f4": 1_757_000_000_000_000,
    "f5": "zürich",
    "f6": "C",
    "f7": ["x", "", "longer text"],
    "f8": [1, 300, -70000],
    "f9": [True, False],
    "f10": {"k": 1.0, "l": 2.0},
    "f11": True,
    "f12": -5,
    "f13": b"\xff\0",
    "f14": b"abc",
}
MIXED = record(
    "int", ["null", "int", "string"], {"type": "array", "items": {"type": "array", "items": "long"}}, "string"
)
MIXED_ROW = {"f0": 7, "f1": "text", "f2": [[1, -1], [], [2**40]], "f3": "end"}


def written(schema: Value, row: Value) -> bytes:
    """The row as fastavro writes it."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(json.dumps(schema))), row)
    return out.getvalue()


def decode(schema: Value, *records: bytes) -> Decoded:
    """Decode records without a frame."""
    return Decoder(schema).decode(records, skip_bytes=0)


def varint(value: int) -> bytes:
    """A zigzag varint of any size, valid or not."""
    rest, out = (value << 1) ^ (value >> 70), bytearray()
    while rest >= 0x80:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    return bytes([*out, rest])


MANY = b"\xff" * 9 + b"\x7f"
DAMAGE = [
    ("empty", "string", b"", "truncated"),
    ("string cut", "string", b"\x06ab", "a length"),
    ("string of negative length", "string", b"\x01", "a length"),
    ("string of huge length", "string", varint(2**62), "a length"),
    ("string of the largest length", "string", varint(2**63 - 1), "a length"),
    ("string of the least length", "string", varint(-(2**63)), "a length"),
    ("trailing byte", "string", b"\x02a\x00", "bytes left"),
    ("not utf-8", "string", b"\x04\xc3\x28", "UTF-8"),
    ("surrogate", "string", b"\x06\xed\xa0\x80", "UTF-8"),
    ("long text not utf-8", "string", varint(100) + b"a" * 99 + b"\xff", "UTF-8"),
    ("bytes cut", "bytes", b"\x06ab", "a length"),
    ("double cut", "double", b"\0\0\0", "truncated"),
    ("float cut", "float", b"\0\0\0", "truncated"),
    ("nullable double cut", ["null", "double"], b"\x02\0\0\0", "truncated"),
    ("fixed cut", {"type": "fixed", "name": "F", "size": 9}, b"\0" * 8, "truncated"),
    ("varint cut", "long", b"\x80\x80", "truncated"),
    ("varint of 11 bytes", "long", b"\x80" * 10 + b"\x01", "varint"),
    ("varint over 64 bits", "long", MANY, "varint"),
    ("int over 32 bits", "int", varint(2**31), "32 bits"),
    ("boolean 2", "boolean", b"\x02", "boolean"),
    ("branch 2", ["null", "int"], b"\x04", "branch"),
    ("branch -1", ["null", "int"], b"\x01\x00", "branch"),
    ("branch huge", ["null", "int"], varint(2**40), "branch"),
    ("branch -1 of several", ["null", "int", "string"], b"\x01\x00", "branch"),
    ("symbol 3", ENUM, b"\x06", "enum index"),
    ("symbol -1", ENUM, b"\x01", "enum index"),
    ("array without end", {"type": "array", "items": "int"}, b"\x02\x02", "truncated"),
    ("array of packed ints cut", {"type": "array", "items": "int"}, b"\x04\x02\x80", "truncated"),
    ("array count too large", {"type": "array", "items": "int"}, b"\x06\x02\x02", "block count"),
    ("array count huge", {"type": "array", "items": "int"}, varint(2**61), "block count"),
    ("array count least", {"type": "array", "items": "int"}, varint(-(2**63)) + b"\0", "block count"),
    ("array of doubles too large", {"type": "array", "items": "double"}, b"\x04" + b"\0" * 15, "block count"),
    ("array of strings cut", {"type": "array", "items": "string"}, b"\x04\x02a\x06bb", "a length"),
    ("array of bad symbols", {"type": "array", "items": ENUM}, b"\x04\x02\x08\x00", "enum index"),
    ("array of bad booleans", {"type": "array", "items": "boolean"}, b"\x04\x01\x07\x00", "boolean"),
    ("array block size lies", {"type": "array", "items": "int"}, b"\x01\x08\x02\x00", "block's size"),
    ("array block size huge", {"type": "array", "items": "int"}, b"\x01" + varint(2**62) + b"\x02\x00", "block's size"),
    ("map key not utf-8", {"type": "map", "values": "int"}, b"\x02\x02\xff\x02\x00", "UTF-8"),
    ("map count huge", {"type": "map", "values": "double"}, varint(2**40), "block count"),
    (
        "nested count huge",
        {"type": "array", "items": {"type": "array", "items": "int"}},
        b"\x02" + MANY[:-1] + b"\1",
        "",
    ),
]


@pytest.mark.parametrize(("kind", "broken", "reason"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_damage_is_named_and_stays_in_its_row(kind: Value, broken: bytes, reason: str) -> None:
    """A broken record between two good ones costs itself only, and says why."""
    schema = record("int", kind)
    rows = {"string": "ok", "bytes": b"ok", "double": 1.5, "float": 1.5, "long": 2**60, "int": -9, "boolean": True}
    value = rows.get(kind) if isinstance(kind, str) else None
    if not isinstance(kind, str):
        examples = {"array": [], "map": {}, "fixed": b"123456789", "enum": "B"}
        value = None if isinstance(kind, list) else examples[kind["type"]]
    good = written(schema, {"f0": 5, "f1": value})
    for order in ([0, 1, 2], [1, 0, 2], [1, 2, 0]):
        batch = [[b"\x0a" + broken, good, good][k] for k in order]
        bad = order.index(0)
        decoded = decode(schema, *batch)
        assert list(decoded.errors) == [bad]
        assert reason in decoded.errors[bad]
        assert [to_python(decoded.columns)[k] for k in range(3) if k != bad] == [{"f0": 5, "f1": value}] * 2


@pytest.mark.parametrize("schema", [RICH, MIXED], ids=["vectorised", "by value"])
def test_bad_rows_hold_zero_empty_or_null(schema: Value) -> None:
    """A row of garbage leaves nothing of itself in the columns."""
    row = RICH_ROW if schema is RICH else MIXED_ROW
    decoded = decode(schema, written(schema, row), b"\xff" * 40, b"")
    assert set(decoded.errors) == {1, 2}
    decoder = Decoder(schema)
    assert to_python(decoded.columns)[0] == row
    blank = to_python(blank_column(decoder._reader, 1))[0]
    for index in (1, 2):
        found = to_python(decoded.columns)[index]
        for name, value in blank.items():
            assert found[name] in (value, 0), name


@pytest.mark.parametrize("size", range(6))
def test_values_shorter_than_the_frame_are_bad(size: int) -> None:
    """A value without room for the frame is bad, even where the record itself takes no bytes."""
    assert (0 in Decoder(record("int")).decode([b"\0" * size]).errors) == (size < 6)
    empty = Decoder(record()).decode([b"\0" * size, b"\0" * 5])
    assert list(empty.errors) == ([] if size == 5 else [0])


def test_every_cut_of_a_record_is_bad() -> None:
    """No prefix of a record passes for a record, nor a record with one byte more."""
    whole = written(RICH, RICH_ROW)
    cuts = [whole[:k] for k in range(len(whole))]
    decoded = decode(RICH, *cuts, whole, whole + b"\0")
    assert set(decoded.errors) == {*range(len(whole)), len(whole) + 1}
    assert to_python(decoded.columns)[len(whole)] == RICH_ROW


def verdict(schema: Value, body: bytes) -> Value:
    """What the scalar reader, an independent walk, says: the value, or the reason."""
    reader = ScalarReader(body, 0, len(body))
    try:
        value = reader.read(parse(schema))
        reader.finish()
    except Malformed as error:
        return str(error)
    return value


def assert_judged_alike(schema: Value, row: Value, bodies: list[bytes]) -> None:
    """Each body is judged as it would be alone, by us and by fastavro, between good rows that come out whole."""
    good = written(schema, row)
    batch = [part for body in bodies for part in (good, body)]
    decoded = decode(schema, *batch, good)
    values = to_python(decoded.columns)
    assert all(str(value) == str(row) for value in values[::2])
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    for index, body in enumerate(bodies):
        alone = verdict(schema, body)
        assert (2 * index + 1 in decoded.errors) == isinstance(alone, str), (body, alone, decoded.errors)
        if not isinstance(alone, str):
            assert str(values[2 * index + 1]) == str(alone)
            assert str(fastavro.schemaless_reader(io.BytesIO(body), parsed, None)) == str(alone)


def mutate(rng: random.Random, body: bytes) -> bytes:
    """A few random edits: bytes set, bits flipped, pieces cut, doubled or moved, varints planted."""
    data = bytearray(body)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + 1] = bytes(b ^ (1 << rng.randrange(8)) for b in data[at : at + 1])
            case 2:
                del data[at : at + rng.randrange(1, 6)]
            case 3:
                data[at:at] = data[at : at + rng.randrange(1, 9)]
            case 4:
                data[at:at] = varint(rng.choice([-(2**63), 2**63 - 1, -1, 2**31, 2**20, 70, 1, 0, -3]))
            case _:
                data[at : at + 1] = rng.choice([b"\x80\0", b"\x82\0", b"\xff", b"\x01", b"\0\0"])
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("schema", [RICH, MIXED], ids=["vectorised", "by value"])
def test_mutated_records_are_judged_alike(schema: Value, seed: int) -> None:
    """Hundreds of mutants in one batch: the vectorised walk judges each as the scalar one, which fastavro confirms."""
    rng = random.Random(seed)
    row = RICH_ROW if schema is RICH else MIXED_ROW
    body = written(schema, row)
    assert_judged_alike(schema, row, [mutate(rng, body) for _ in range(300)])


_kinds = st.sampled_from(
    [
        *("int", "long", "boolean", "string", "bytes", "float", ["null", "int"], ["string", "null"], ENUM),
        *({"type": "array", "items": item} for item in ("int", "string", "boolean", ["null", "long"])),
        *({"type": "map", "values": item} for item in ("boolean", "string")),
    ]
)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(_kinds, min_size=1, max_size=4, unique_by=str), st.lists(st.binary(max_size=24), min_size=1, max_size=9)
)
def test_random_bytes_are_judged_alike(kinds: list[Any], bodies: list[bytes]) -> None:
    """Random bytes are accepted exactly when the scalar reader accepts them, with the same values."""
    schema = record(*kinds)
    decoded = decode(schema, *bodies)
    for index, (body, value) in enumerate(zip(bodies, to_python(decoded.columns), strict=True)):
        alone = verdict(schema, body)
        assert (index in decoded.errors) == isinstance(alone, str), (schema, body.hex(), alone)
        if not isinstance(alone, str):
            assert str(value) == str(alone)


def blocks(items: list[bytes], *, sized: bool) -> bytes:
    """One block an item."""
    if sized:
        return b"".join(varint(-1) + varint(len(item)) + item for item in items) + b"\0"
    return b"".join(varint(1) + item for item in items) + b"\0"


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "plain"])
@pytest.mark.parametrize("count", [1, 2, 15, 17, 300])
def test_arrays_in_many_blocks(count: int, sized: bool) -> None:
    """Blocks of one item each, with and without byte sizes, among rows with one block or none."""
    schema = record({"type": "array", "items": "int"}, {"type": "array", "items": "string"})
    numbers = blocks([varint(k) for k in range(count)], sized=sized)
    texts = blocks([b"\x02" + bytes([97 + k % 26]) for k in range(count)], sized=sized)
    short = b"\x04\x02\x04\x00" + b"\x00"
    decoded = decode(schema, short, numbers + texts, b"\0\0", numbers + texts[:-1], short)
    assert list(decoded.errors) == [3]
    long_row = {"f0": list(range(count)), "f1": [chr(97 + k % 26) for k in range(count)]}
    short_row = {"f0": [1, 2], "f1": []}
    found = to_python(decoded.columns)
    assert [found[k] for k in (0, 1, 2, 4)] == [short_row, long_row, {"f0": [], "f1": []}, short_row]


def test_long_collections_of_text() -> None:
    """A row with many strings is read alone when its neighbours have few; the result is the same."""
    schema = record({"type": "array", "items": "string"}, {"type": "map", "values": "string"})
    many = {"f0": [f"t{k}" for k in range(500)], "f1": {f"k{k}": "é" for k in range(100)}}
    few = {"f0": ["a"], "f1": {}}
    decoded = decode(schema, *[written(schema, row) for row in (few, many, few, many)])
    assert decoded.errors == {}
    assert to_python(decoded.columns) == [few, many, few, many]


def test_many_rows_of_long_collections() -> None:
    """Where many rows have many strings, all are read together."""
    schema = record({"type": "array", "items": "string"})
    rows = [{"f0": [f"{k}.{i}" for i in range(k % 40)]} for k in range(900)]
    decoded = decode(schema, *[written(schema, row) for row in rows])
    assert decoded.errors == {}
    assert to_python(decoded.columns) == rows


WORST = {
    "one-byte ints": ({"type": "array", "items": "int"}, varint(40_000) + b"\x02" * 40_000 + b"\0"),
    "booleans": ({"type": "array", "items": "boolean"}, varint(40_000) + b"\x01" * 40_000 + b"\0"),
    "empty strings": ({"type": "array", "items": "string"}, varint(40_000) + b"\0" * 40_000 + b"\0"),
    "blocks of one": ({"type": "array", "items": "boolean"}, b"\x02\x01" * 20_000 + b"\0"),
    "claimed strings": ({"type": "array", "items": "string"}, varint(40_000) + b"\xff" * 40_000),
    "long text": ("string", varint(40_000) + b"\xc3\xa9" * 20_000),
}


@pytest.mark.parametrize("name", sorted(WORST))
def test_memory_is_bounded(name: str) -> None:
    """One byte of input never costs more than 200 bytes of memory, however it is meant."""
    kind, body = WORST[name]
    decoder = Decoder(record(kind))
    decoder.decode([b"\0"], skip_bytes=0)
    tracemalloc.start()
    try:
        decoder.decode([body, body], skip_bytes=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2 * len(body)


def test_the_buffer_is_shared_not_copied() -> None:
    """Text columns of a batch refer to one buffer; nothing is copied until somebody asks."""
    columns = decode(record("string", "string"), b"\x02a\x02b", b"\x02c\x02d").columns.fields
    first, second = columns["f0"], columns["f1"]
    assert isinstance(first, TextColumn)
    assert isinstance(second, TextColumn)
    assert first.data is second.data
    assert first.take(slice(1, 2)).to_list() == ["c"]


def test_overlong_varints_are_read() -> None:
    """Varints padded with zero groups are unusual but legal, for numbers, branches and lengths."""
    body = b"\x82\x80\0" + b"\x82\0" + b"\x02" + b"\x82\0a"
    decoded = decode(record("int", ["null", "int"], "string"), body)
    assert decoded.errors == {}
    assert to_python(decoded.columns) == [{"f0": 1, "f1": 1, "f2": "a"}]


def _nested(depth: int) -> Value:
    kind: Value = "int"
    for level in range(depth):
        kind = {"type": "record", "name": f"N{level}", "fields": [{"name": "x", "type": kind}]}
    return kind


def _bomb() -> Value:
    """A schema of 3 kB that stands for 10**18 fields."""
    fields: list[Any] = [{"name": f"x{k}", "type": "int"} for k in range(10)]
    kind: Value = {"type": "record", "name": "B0", "fields": fields}
    for level in range(1, 18):
        rest = [{"name": f"x{k}", "type": f"B{level - 1}"} for k in range(9)]
        kind = {"type": "record", "name": f"B{level}", "fields": [{"name": "first", "type": kind}, *rest]}
    return kind


REFUSED = [
    ("recursive", record(["null", "R"])),
    ("recursive through an array", record({"type": "array", "items": "R"})),
    ("array of null", record({"type": "array", "items": "null"})),
    ("map of null", record({"type": "map", "values": "null"})),
    ("array of empty records", record({"type": "array", "items": {**record(), "name": "Empty"}})),
    ("array of empty fixed", record({"type": "array", "items": {"type": "fixed", "name": "Z", "size": 0}})),
    ("too deep", _nested(MAX_DEPTH + 2)),
    ("too large", _bomb()),
    ("deep JSON", "[" * 100_000),
    ("not JSON", "{"),
    ("not a record", '"int"'),
    ("unknown type", record("nosuch")),
    ("no type", record({"items": "int"})),
    ("union in a union", record([["null", "int"], "string"])),
    ("empty union", record([])),
    ("no symbols", record({"type": "enum", "name": "E", "symbols": []})),
    ("negative fixed", record({"type": "fixed", "name": "F", "size": -1})),
    ("field twice", {"type": "record", "name": "R", "fields": [{"name": "x", "type": "int"}] * 2}),
    ("no fields", {"type": "record", "name": "R"}),
    ("defined twice", record(ENUM, {"type": "array", "items": ENUM})),
    ("bad default", {"type": "record", "name": "R", "fields": [{"name": "x", "type": "int", "default": "a"}]}),
]


@pytest.mark.parametrize("schema", [case[1] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_unsafe_schemas_are_refused(schema: Value) -> None:
    """A schema that is recursive, endless or malformed is refused when the decoder is made."""
    with pytest.raises(SchemaNotSupported):
        Decoder(schema)


def test_a_named_type_may_be_used_twice() -> None:
    """A reference to a type defined before, with or without its namespace, is that type."""
    inner = {"type": "record", "name": "P", "fields": [{"name": "x", "type": "int"}]}
    schema = {**record(inner, "P", "n.P"), "namespace": "n"}
    decoded = decode(schema, b"\x02\x04\x06")
    assert to_python(decoded.columns) == [{"f0": {"x": 1}, "f1": {"x": 2}, "f2": {"x": 3}}]


def test_only_bad_rows() -> None:
    """A batch without a good row still has columns of its length."""
    decoded = decode(RICH, b"", b"\xff")
    assert set(decoded.errors) == {0, 1}
    number = decoded.columns.fields["f3"]
    assert isinstance(number, NumberColumn)
    assert np.array_equal(number.values, [0.0, 0.0])
