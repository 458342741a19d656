"""The codec against fastavro and Apache avro: the same bytes out, the same values in."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import avro.io
import avro.schema
import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.avro_plan import Value, parse
from schemas.avro_scalar import column_of
from schemas.columnar import (
    Constant,
    Decoder,
    Encoder,
    EnumColumn,
    ListColumn,
    MapColumn,
    NumberColumn,
    ObjectColumn,
    RecordColumn,
    TextColumn,
    to_python,
)

SCHEMAS = Path(__file__).parents[3] / "schemas"
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FRAME = b"\0\0\0\0\7"
SYMBOLS = ["RED", "GREEN", "BLUE"]
Schema = Value

_finite32 = st.floats(width=32, allow_nan=False)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1) | st.integers(-70, 70),
    "long": st.integers(-(2**63), 2**63 - 1) | st.integers(-9000, 9000),
    "float": _finite32,
    "double": st.floats(allow_nan=False),
    "string": st.text(max_size=20) | st.text(alphabet="ab", min_size=60, max_size=140),
    "bytes": st.binary(max_size=20) | st.binary(min_size=60, max_size=140),
}
_names = itertools.count()


def _fresh(kind: str) -> str:
    return f"{kind}{next(_names)}"


def _enumeration() -> st.SearchStrategy[Schema]:
    return st.builds(lambda: {"type": "enum", "name": _fresh("E"), "symbols": SYMBOLS})


def _record(inner: st.SearchStrategy[Schema], smallest: int) -> st.SearchStrategy[Schema]:
    def build(types: list[Schema]) -> Schema:
        fields = [{"name": f"f{index}", "type": kind} for index, kind in enumerate(types)]
        return {"type": "record", "name": _fresh("R"), "fields": fields}

    return st.builds(build, st.lists(inner, min_size=smallest, max_size=5))


def _nullable(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.builds(lambda kind, first: ["null", kind] if first else [kind, "null"], inner, st.booleans())


_timestamp = st.just({"type": "long", "logicalType": "timestamp-micros"})
_scalar = st.sampled_from(sorted(VALUES)) | _enumeration() | st.just("double") | st.just("string")
_flat = (
    _scalar | _nullable(_scalar) | st.builds(lambda k: {"type": "fixed", "name": _fresh("X"), "size": k}, st.just(3))
)
_list = st.builds(lambda items: {"type": "array", "items": items}, _flat | _record(_flat, 1))
_map = st.builds(lambda values: {"type": "map", "values": values}, _flat)
_simple = _flat | _list | _map | _nullable(_list) | _nullable(_map)
_supported = _simple | _nullable(_record(_simple, 0)) | _record(_simple, 0)
_deep = st.builds(lambda items: {"type": "array", "items": items}, _list | _map)
_union = st.builds(
    lambda a, b: [a, b, "null"], st.sampled_from(["int", "double"]), st.sampled_from(["string", "bytes"])
)
_other = _deep | _union | st.just("null")


def values_of(schema: Schema) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one return a type
    """Values of a schema as ``to_python`` gives them."""
    if isinstance(schema, list):
        return st.one_of([values_of(branch) for branch in schema])
    if isinstance(schema, str):
        return st.none() if schema == "null" else VALUES[schema]
    match schema["type"]:
        case "enum":
            return st.sampled_from(SYMBOLS)
        case "fixed":
            return st.binary(min_size=schema["size"], max_size=schema["size"])
        case "array":
            return st.lists(values_of(schema["items"]), max_size=5)
        case "map":
            return st.dictionaries(st.text(max_size=5), values_of(schema["values"]), max_size=4)
        case "record":
            return st.fixed_dictionaries({f["name"]: values_of(f["type"]) for f in schema["fields"]})
        case primitive:
            return values_of(primitive)


@st.composite
def batches(draw: st.DrawFn, fields: st.SearchStrategy[Schema]) -> tuple[Schema, list[Any]]:
    """A record schema and some rows of it."""
    schema = draw(_record(fields, 1))
    return schema, draw(st.lists(values_of(schema), min_size=1, max_size=12))


def written(schema: Schema, rows: list[Any]) -> list[bytes]:
    """The rows as fastavro writes them, framed."""
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    records = []
    for row in rows:
        out = io.BytesIO()
        out.write(FRAME)
        fastavro.schemaless_writer(out, parsed, row)
        records.append(out.getvalue())
    return records


def assert_same_batch(schema: Schema, rows: list[Any]) -> None:
    """Both directions agree with fastavro, whether columns come from Python values or from our decoder."""
    records = written(schema, rows)
    decoded = Decoder(schema).decode(records)
    assert decoded.errors == {}
    assert to_python(decoded.columns) == rows
    encoder = Encoder(schema)
    assert encoder.encode(decoded.columns, prefix=FRAME) == records
    built = column_of(parse(schema), rows)
    assert isinstance(built, RecordColumn)
    assert encoder.encode(built, prefix=FRAME) == records


@QUICK
@given(batches(_supported))
def test_supported_shapes_agree_with_fastavro(batch: tuple[Schema, list[Any]]) -> None:
    """Every supported shape is vectorised and gives fastavro's bytes and values."""
    schema, rows = batch
    assert Decoder(schema).vectorised
    assert Encoder(schema).vectorised
    assert_same_batch(schema, rows)


@QUICK
@given(batches(_other | _supported))
def test_other_shapes_agree_with_fastavro(batch: tuple[Schema, list[Any]]) -> None:
    """Unions of several types, nulls and collections in collections come out the same, read value by value."""
    assert_same_batch(*batch)


@QUICK
@given(batches(_flat | _list | _map))
def test_repeated_rows_agree_with_fastavro(batch: tuple[Schema, list[Any]]) -> None:
    """Batches of hundreds of rows take the same bytes as small ones."""
    schema, rows = batch
    assert_same_batch(schema, rows * (400 // len(rows)))


@pytest.mark.parametrize("kind", [_deep, _union, st.just("null")], ids=["nested", "union", "null"])
def test_other_shapes_say_so(kind: st.SearchStrategy[Schema]) -> None:
    """A schema with a part that is read value by value is not called vectorised."""

    @settings(max_examples=5, deadline=None)
    @given(kind)
    def check(inner: Schema) -> None:
        schema = {"type": "record", "name": _fresh("R"), "fields": [{"name": "f", "type": inner}]}
        assert not Decoder(schema).vectorised
        assert not Encoder(schema).vectorised

    check()


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.avsc")), ids=lambda path: path.stem)
def test_our_own_schemas_are_vectorised(path: Path) -> None:
    """No topic of ours takes the slow way."""
    text = path.read_text(encoding="utf-8")
    assert Decoder(text).vectorised
    assert Encoder(text).vectorised


CORPUS: list[tuple[str, Schema, list[Any]]] = [
    (
        "outcome",
        json.loads((SCHEMAS / "outcome.avsc").read_text(encoding="utf-8")),
        [
            {"request_id": "r-1", "entity_id": "é", "label": 1.5, "outcome_time": 1_757_000_000_000_000}
            | {"revision": 0, "retracted": False, "source": None},
            {"request_id": "", "entity_id": "x" * 300, "label": -0.0, "outcome_time": -1}
            | {"revision": 2**31 - 1, "retracted": True, "source": "shop"},
        ],
    ),
    (
        "collections",
        {
            "type": "record",
            "name": "C",
            "fields": [
                {"name": "a", "type": {"type": "array", "items": "long"}},
                {"name": "m", "type": {"type": "map", "values": ["null", "string"]}},
                {"name": "e", "type": {"type": "array", "items": {"type": "enum", "name": "E", "symbols": SYMBOLS}}},
                {"name": "f", "type": ["float", "null"]},
                {"name": "x", "type": {"type": "fixed", "name": "X", "size": 2}},
            ],
        },
        [
            {"a": [], "m": {}, "e": ["BLUE"], "f": None, "x": b"ab"},
            {"a": [2**63 - 1, -(2**63), 0], "m": {"k": None, "": "v"}, "e": [], "f": 0.5, "x": b"\0\xff"},
        ],
    ),
]


@pytest.mark.parametrize(("schema", "rows"), [case[1:] for case in CORPUS], ids=[case[0] for case in CORPUS])
def test_apache_avro_reads_and_writes_the_same(schema: Schema, rows: list[Any]) -> None:
    """The Apache implementation reads what we write, and we read what it writes."""
    parsed = avro.schema.parse(json.dumps(_without_logical(schema)))
    theirs = []
    for row in rows:
        out = io.BytesIO()
        avro.io.DatumWriter(parsed).write(row, avro.io.BinaryEncoder(out))
        theirs.append(out.getvalue())
    decoded = Decoder(schema).decode(theirs, skip_bytes=0)
    assert decoded.errors == {}
    assert to_python(decoded.columns) == rows
    for record, row in zip(Encoder(schema).encode(decoded.columns), rows, strict=True):
        assert avro.io.DatumReader(parsed).read(avro.io.BinaryDecoder(io.BytesIO(record))) == row


def _without_logical(schema: Schema) -> Schema:
    """Apache avro takes and gives datetimes for logical types, where the codec has integers."""
    if isinstance(schema, dict):
        return {key: _without_logical(value) for key, value in schema.items() if key != "logicalType"}
    return [_without_logical(part) for part in schema] if isinstance(schema, list) else schema


GOLDEN = {
    "type": "record",
    "name": "G",
    "fields": [
        {"name": "s", "type": "string"},
        {"name": "n", "type": ["null", "long"]},
        {"name": "d", "type": "double"},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": SYMBOLS}},
        {"name": "a", "type": {"type": "array", "items": "int"}},
        {"name": "b", "type": "boolean"},
    ],
}
GOLDEN_BYTES = [
    "046869" + "027f" + "000000000000f03f" + "04" + "04" + "8001" + "01" + "00" + "01",
    "00" + "00" + "00000000000000c0" + "00" + "00" + "00",
]
GOLDEN_ROWS = [
    {"s": "hi", "n": -64, "d": 1.0, "e": "BLUE", "a": [64, -1], "b": True},
    {"s": "", "n": None, "d": -2.0, "e": "RED", "a": [], "b": False},
]


def test_golden_bytes() -> None:
    """The bytes of two records, worked out by hand from the specification."""
    records = [bytes.fromhex(text) for text in GOLDEN_BYTES]
    decoded = Decoder(GOLDEN).decode(records, skip_bytes=0)
    assert to_python(decoded.columns) == GOLDEN_ROWS
    assert Encoder(GOLDEN).encode(decoded.columns) == records


def test_types_of_decoded_columns() -> None:
    """Each Avro type has its column type, and a column without nulls has no mask."""
    fields = Decoder(GOLDEN).decode([bytes.fromhex(GOLDEN_BYTES[0])], skip_bytes=0).columns.fields
    assert isinstance(fields["s"], TextColumn)
    assert isinstance(fields["e"], EnumColumn)
    assert isinstance(fields["a"], ListColumn)
    number = fields["n"]
    assert isinstance(number, NumberColumn)
    assert number.values.dtype == np.int64
    assert number.valid is None
    items = fields["a"].items
    assert isinstance(items, NumberColumn)
    assert items.values.dtype == np.int32


def test_nan_and_infinities_survive() -> None:
    """Doubles keep their bits, NaN's payload included."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": "double"}]}
    odd = np.array([0x7FF8_0000_0000_0001, 0x7FF0_0000_0000_0000, 0x8000_0000_0000_0000], dtype=np.uint64)
    records = Encoder(schema).encode(RecordColumn({"x": NumberColumn(odd.view(np.float64))}, 3))
    column = Decoder(schema).decode(records, skip_bytes=0).columns.fields["x"]
    assert isinstance(column, NumberColumn)
    assert math.isnan(column.values[0])
    assert column.values.view(np.uint64).tolist() == odd.tolist()


@pytest.mark.parametrize("bits", range(0, 64, 3))
def test_varints_of_every_length(bits: int) -> None:
    """Varints of 1 to 10 bytes, alone and mixed, agree with fastavro."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "x", "type": "long"}, {"name": "y", "type": "long"}]}
    edge = 1 << bits
    numbers = [n for n in (edge - 1, -edge, edge, 0, 5) if -(2**63) <= n < 2**63]
    assert_same_batch(schema, [{"x": n, "y": -n} for n in numbers if n != -(2**63)])
    assert_same_batch(schema, [{"x": min(edge, 2**63 - 1), "y": -edge}] * 3)


def test_long_and_short_strings_together() -> None:
    """One huge string among short ones is exact, and costs memory only in proportion to what is written."""
    schema = {"type": "record", "name": "R", "fields": [{"name": "s", "type": "string"}, {"name": "n", "type": "int"}]}
    rows = [{"s": "é" * (k % 50), "n": k} for k in range(300)] + [{"s": "z" * 1_000_003, "n": -1}]
    assert_same_batch(schema, rows)


SCORE = (SCHEMAS / "score.avsc").read_text(encoding="utf-8")


def _score_columns(n: int) -> RecordColumn:
    rng = np.random.default_rng(5)
    score = rng.random(n)
    stages = ["ingest", "queue", "features", "preprocess", "inference", "postprocess", "emit", "total"]
    timings = {f"{stage}_us": NumberColumn(rng.integers(0, 9000, n)) for stage in stages}
    return RecordColumn(
        {
            "request_id": TextColumn.from_values([f"r{k}" for k in range(n)]),
            "entity_id": TextColumn.from_values([b"e%d" % (k % 7) for k in range(n)]),
            "status": EnumColumn(np.arange(n, dtype=np.int32) % 2, ("OK", "DEGRADED")),
            "outputs": ListColumn(np.arange(n + 1), NumberColumn(score)),
            "score": NumberColumn(score, score > 0.1),
            "decision": TextColumn.from_codes(np.where(score > 0.5, 1, -1), ["no", "yes"]),
            "threshold": Constant(0.5, n),
            "model_name": TextColumn.constant("flights", n),
            "model_version": Constant(3, n),
            "degraded": ObjectColumn([["v:stale"] if k % 3 else [] for k in range(n)]),
            "event_time": NumberColumn(np.arange(n) + 1_757_000_000_000_000),
            "served_at": Constant(1_757_000_000_000_000, n),
            "timings": RecordColumn(timings, n),
            "batch_rows": NumberColumn(np.full(n, 512, dtype=np.int32)),
            "fire_reason": Constant("FULL", n),
        },
        n,
    )


@pytest.mark.parametrize("n", [1, 2, 100])
def test_a_score_from_constants_and_columns(n: int) -> None:
    """Constants, vocabularies, Python values and missing fields with a default make the record fastavro makes."""
    columns = _score_columns(n)
    absent = {"experiment_id": None, "arm": None, "reason": None}
    rows = [row | absent for row in to_python(columns)]
    assert Encoder(SCORE).encode(columns, prefix=FRAME) == written(json.loads(SCORE), rows)


def test_no_rows() -> None:
    """An empty batch is no special case for the caller."""
    decoded = Decoder(SCORE).decode([])
    assert (len(decoded.columns), decoded.errors) == (0, {})
    assert Encoder(SCORE).encode(decoded.columns) == []
    timings = decoded.columns.fields["timings"]
    assert isinstance(timings, RecordColumn)
    assert isinstance(timings.fields["emit_us"], NumberColumn)


def _encode_one(kind: Schema, column: Value, n: int = 2) -> list[bytes]:
    schema = {"type": "record", "name": "R", "fields": [{"name": "outer", "type": kind}]}
    return Encoder(schema).encode(RecordColumn({} if column is None else {"outer": column}, n))


_int = NumberColumn(np.array([1, 2]))
WRONG: list[tuple[str, Schema, Any]] = [
    ("missing", "int", None),
    ("text for int", "int", TextColumn.constant("x", 2)),
    ("float for int", "int", NumberColumn(np.array([1.0, 2.0]))),
    ("bool for int", "int", NumberColumn(np.array([True, False]))),
    ("int for bool", "boolean", _int),
    ("number for text", "string", _int),
    ("too few rows", "int", NumberColumn(np.array([1]))),
    ("beyond int", "int", NumberColumn(np.array([1, 2**31]))),
    ("beyond long", "long", NumberColumn(np.array([1, 2**63], dtype=np.uint64))),
    ("beyond float", "float", NumberColumn(np.array([1.0, 1e300]))),
    ("null not allowed", "int", NumberColumn(np.array([1, 2]), np.array([True, False]))),
    ("not utf-8", "string", TextColumn.from_values([b"ok", b"\xff"])),
    ("unknown symbol", {"type": "enum", "name": "E", "symbols": ["A"]}, EnumColumn(np.array([0, 1]), ("A", "B"))),
    ("code out of range", {"type": "enum", "name": "E", "symbols": ["A"]}, EnumColumn(np.array([0, 3]), ("A",))),
    ("wrong constant", "int", Constant("x", 2)),
    ("wrong object", "int", ObjectColumn([1, 2.5])),
    ("null constant", "int", Constant(None, 2)),
    ("fixed size", {"type": "fixed", "name": "F", "size": 2}, TextColumn.from_values([b"ab", b"c"])),
    ("items", {"type": "array", "items": "int"}, ListColumn(np.array([0, 1, 1]), TextColumn.constant("x", 1))),
    ("offsets", {"type": "array", "items": "int"}, ListColumn(np.array([0, 3, 1]), _int)),
    ("too few items", {"type": "array", "items": "int"}, ListColumn(np.array([0, 1, 9]), _int)),
    ("list for map", {"type": "map", "values": "int"}, ListColumn(np.array([0, 1, 2]), _int)),
    ("nullable text for number", ["null", "double"], TextColumn.from_values([None, "x"])),
]


@pytest.mark.parametrize(("kind", "column"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_wrong_columns_are_refused_by_name(kind: Schema, column: Value) -> None:
    """What the schema cannot hold is a ValueError that names the field."""
    with pytest.raises(ValueError, match="outer"):
        _encode_one(kind, column)


def test_the_path_of_a_nested_field_is_named() -> None:
    """A fault deep in the record is found by its whole path."""
    columns = _score_columns(2)
    timings = columns.fields["timings"]
    assert isinstance(timings, RecordColumn)
    broken = RecordColumn({**timings.fields, "emit_us": TextColumn.constant("x", 2)}, 2)
    with pytest.raises(ValueError, match=r"timings\.emit_us"):
        Encoder(SCORE).encode(RecordColumn({**columns.fields, "timings": broken}, 2))


def test_what_lies_under_null_rows_does_not_matter() -> None:
    """Values under null rows may be anything: too large, not UTF-8, no symbol."""
    null = np.array([True, False])
    text = TextColumn.from_values([b"a", b"\xff"])
    enum = {"type": "enum", "name": "E", "symbols": ["A"]}
    items = ListColumn(np.array([0, 1, 2]), TextColumn.from_values([b"a", b"\xff"]), null)
    pairs = MapColumn(np.array([0, 1, 2]), text, NumberColumn(np.array([1.0, 2.0])), null)
    cases: list[tuple[Schema, Any, str]] = [
        ("int", NumberColumn(np.array([1, 2**40]), null), "0202"),
        ("float", NumberColumn(np.array([0.0, 1e300]), null), "0200000000"),
        ("string", TextColumn(text.data, text.starts, text.lengths, null), "020261"),
        (enum, EnumColumn(np.array([0, 9], dtype=np.int32), ("A",), null), "0200"),
        ({"type": "array", "items": "string"}, items, "0202026100"),
        ({"type": "map", "values": "float"}, pairs, "020202610000803f00"),
    ]
    for kind, column, first in cases:
        assert [record.hex() for record in _encode_one(["null", kind], column)] == [first, "00"]
