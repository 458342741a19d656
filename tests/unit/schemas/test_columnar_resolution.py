"""Schema resolution: a reader's columns from a writer's bytes, as fastavro resolves them, or a refusal at once."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import pytest

from schemas.columnar import Decoder, EnumColumn, NumberColumn, SchemaNotSupported, TextColumn, to_python

if TYPE_CHECKING:
    from schemas.avro_plan import Value


def record(*fields: dict[str, Any], name: str = "R") -> dict[str, Any]:
    """A record schema."""
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name: str, kind: Value, **rest: Value) -> dict[str, Any]:
    """A field; ``default`` and ``aliases`` by keyword."""
    return {"name": name, "type": kind, **rest}


def enum(*symbols: str, **rest: Value) -> dict[str, Any]:
    """An enum schema named E."""
    return {"type": "enum", "name": "E", "symbols": list(symbols), **rest}


X = field("x", "int")
INNER = record(field("a", "int"), field("b", "string"), name="N")
INNER_MORE = record(field("b", "string"), field("c", "double", default=0.5), field("a", "long"), name="N")
FOLLOWS: list[tuple[str, Any, Any, dict[str, Any], dict[str, Any]]] = [
    ("same", record(X), record(X), {"x": 1}, {"x": 1}),
    ("added", record(X), record(X, field("y", "string", default="é")), {"x": 1}, {"x": 1, "y": "é"}),
    ("added null", record(X), record(X, field("y", ["null", "double"], default=None)), {"x": 1}, {"x": 1, "y": None}),
    (
        "added collections",
        record(X),
        record(
            field("l", {"type": "array", "items": "int"}, default=[1, 2]),
            field("m", {"type": "map", "values": "string"}, default={"k": "v"}),
            field("r", INNER, default={"a": 1, "b": "z"}),
            field("e", enum("A", "B"), default="B"),
            X,
        ),
        {"x": 1},
        {"l": [1, 2], "m": {"k": "v"}, "r": {"a": 1, "b": "z"}, "e": "B", "x": 1},
    ),
    ("removed", record(X, field("y", "string")), record(X), {"x": 1, "y": "gone"}, {"x": 1}),
    ("all removed", record(X), record(), {"x": 1}, {}),
    (
        "reordered",
        record(X, field("y", "string")),
        record(field("y", "string"), X),
        {"x": 1, "y": "s"},
        {"y": "s", "x": 1},
    ),
    *(
        (f"{low} to {high}", record(field("x", low)), record(field("x", high)), {"x": 3}, {"x": 3})
        for low, highs in {"int": ["long", "float", "double"], "long": ["float", "double"], "float": ["double"]}.items()
        for high in highs
    ),
    ("string to bytes", record(field("x", "string")), record(field("x", "bytes")), {"x": "é"}, {"x": "é".encode()}),
    ("bytes to string", record(field("x", "bytes")), record(field("x", "string")), {"x": b"ok"}, {"x": "ok"}),
    (
        "nullable promoted",
        record(field("x", ["null", "int"])),
        record(field("x", ["null", "double"])),
        {"x": 2},
        {"x": 2},
    ),
    (
        "null first to last",
        record(field("x", ["null", "int"])),
        record(field("x", ["int", "null"])),
        {"x": None},
        {"x": None},
    ),
    ("made nullable", record(X), record(field("x", ["null", "long"])), {"x": 2}, {"x": 2}),
    (
        "items promoted",
        record(field("x", {"type": "array", "items": "int"})),
        record(field("x", {"type": "array", "items": "double"})),
        {"x": [1, 2]},
        {"x": [1.0, 2.0]},
    ),
    (
        "map values promoted",
        record(field("x", {"type": "map", "values": "int"})),
        record(field("x", {"type": "map", "values": "long"})),
        {"x": {"k": 1}},
        {"x": {"k": 1}},
    ),
    ("enum grown", record(field("x", enum("A", "B"))), record(field("x", enum("C", "B", "A"))), {"x": "B"}, {"x": "B"}),
    (
        "enum with stand-in",
        record(field("x", enum("A", "NEW"))),
        record(field("x", enum("OTHER", "A", default="OTHER"))),
        {"x": "NEW"},
        {"x": "OTHER"},
    ),
    (
        "record inside",
        record(field("r", INNER), X),
        record(X, field("r", INNER_MORE)),
        {"r": {"a": 1, "b": "t"}, "x": 2},
        {"x": 2, "r": {"b": "t", "c": 0.5, "a": 1}},
    ),
    (
        "nullable record inside",
        record(field("r", ["null", INNER])),
        record(field("r", ["null", INNER_MORE])),
        {"r": None},
        {"r": None},
    ),
    ("field alias", record(X), record(field("z", "long", aliases=["y", "x"])), {"x": 4}, {"z": 4}),
    ("namespace", {**record(X), "namespace": "a"}, {**record(X), "namespace": "b"}, {"x": 4}, {"x": 4}),
    ("unread union", record(field("u", ["int", "string", "null"]), X), record(X), {"u": "s", "x": 1}, {"x": 1}),
]


@pytest.mark.parametrize(
    ("writer", "reader", "row", "expected"), [case[1:] for case in FOLLOWS], ids=[case[0] for case in FOLLOWS]
)
def test_the_reader_gets_its_columns(writer: Value, reader: Value, row: Value, expected: Value) -> None:
    """The rules of resolution that we support, checked against fastavro on the same bytes."""
    parsed = fastavro.parse_schema(json.loads(json.dumps(writer)))
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed, row)
    decoded = Decoder(writer, reader).decode([out.getvalue(), b"", out.getvalue()], skip_bytes=0)
    assert 1 in decoded.errors
    assert [to_python(decoded.columns)[k] for k in (0, 2)] == [expected, expected]
    assert list(decoded.columns.fields) == [f["name"] for f in reader["fields"]]
    theirs = fastavro.schemaless_reader(
        io.BytesIO(out.getvalue()), parsed, fastavro.parse_schema(json.loads(json.dumps(reader)))
    )
    assert theirs == expected


REFUSED: list[tuple[str, Any, Any, str]] = [
    ("added without default", record(X), record(X, field("y", "int")), "y"),
    ("long to int", record(field("x", "long")), record(X), "x"),
    ("double to float", record(field("x", "double")), record(field("x", "float")), "x"),
    ("int to string", record(X), record(field("x", "string")), "x"),
    ("no longer nullable", record(field("x", ["null", "int"])), record(X), "x"),
    ("symbol lost", record(field("x", enum("A", "B"))), record(field("x", enum("A"))), "x"),
    ("another enum", record(field("x", enum("A"))), record(field("x", {**enum("A"), "name": "F"})), "x"),
    ("another record", record(X), record(X, name="S"), "the schema"),
    ("deep", record(field("r", INNER)), record(field("r", record(field("q", "int"), name="N"))), r"r\.q"),
    (
        "fixed size",
        record(field("x", {"type": "fixed", "name": "F", "size": 2})),
        record(field("x", {"type": "fixed", "name": "F", "size": 3})),
        "x",
    ),
    ("unions", record(field("x", ["int", "string", "null"])), record(field("x", ["int", "string"])), "x"),
    (
        "array to map",
        record(field("x", {"type": "array", "items": "int"})),
        record(field("x", {"type": "map", "values": "int"})),
        "x",
    ),
]


@pytest.mark.parametrize(
    ("writer", "reader", "path"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_does_not_follow_is_refused_at_once(writer: Value, reader: Value, path: str) -> None:
    """An incompatible pair is refused when the decoder is made, by field, not when the data comes."""
    with pytest.raises(SchemaNotSupported, match=path):
        Decoder(writer, reader)


def test_defaults_of_bytes_are_bytes() -> None:
    """A default for bytes is text of code points 0 to 255 (the specification; fastavro gives the text itself)."""
    reader = record(X, field("n", "bytes", default="a\u00ff"), field("u", ["bytes", "null"], default="\u00fe"))
    assert to_python(Decoder(record(X), reader).decode([b"\x02"], skip_bytes=0).columns) == [
        {"x": 1, "n": b"a\xff", "u": b"\xfe"}
    ]


def test_bytes_read_as_text_must_be_text() -> None:
    """Resolution from bytes to string judges the bytes."""
    decoder = Decoder(record(field("x", "bytes")), record(field("x", "string")))
    assert list(decoder.decode([b"\x02\xff", b"\x02a"], skip_bytes=0).errors) == [0]


def test_types_follow_the_reader() -> None:
    """Promoted columns have the reader's dtype, enums the reader's symbols and text the reader's kind."""
    writer = record(X, field("e", enum("A")), field("t", "string"))
    reader = record(field("x", "double"), field("e", enum("B", "A")), field("t", "bytes"))
    fields = Decoder(writer, reader).decode([b"\x06\x00\x02a"], skip_bytes=0).columns.fields
    number, symbol, text = fields["x"], fields["e"], fields["t"]
    assert isinstance(number, NumberColumn)
    assert number.values.dtype == np.float64
    assert isinstance(symbol, EnumColumn)
    assert (symbol.symbols, symbol.codes.tolist()) == (("B", "A"), [1])
    assert isinstance(text, TextColumn)
    assert text.binary


def test_an_empty_batch_has_the_reader_s_columns() -> None:
    """Added fields are there even when no row is."""
    decoded = Decoder(record(X), record(X, field("y", "string", default="d"))).decode([])
    assert to_python(decoded.columns) == []
    assert list(decoded.columns.fields) == ["x", "y"]
