"""Every kind of bad input, one by one and all at once: each is answered, none harms its neighbours."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.models.live_table import LiveTable
from app.models.spec import Feature
from app.record_reader import damaged
from app.request_features import Fault
from app.requests import NO_DEADLINE, RequestDecoder, Requests, own_headers
from schemas.columns import NumberColumn, to_python
from schemas.records import Status
from schemas.registry import SchemaBook, load_schema
from schemas.wire import frame_header
from tests.samples import EVENT_TIME_US, TOPIC, framed, record_batch, request, sample_request_schema, sample_spec
from tests.schema_registry import running_registry

if TYPE_CHECKING:
    from app.models.spec import ModelSpec
    from schemas.records import Headers

SCHEMA = sample_request_schema()


def table_of(*specs: ModelSpec) -> LiveTable[Any]:
    """A table of models of which nothing is known but what they take."""
    return LiveTable.of([SimpleNamespace(spec=spec) for spec in specs])


REQUEST_FEATURES = [f["name"] for f in SCHEMA["fields"][-1]["type"]["fields"]]


@pytest.fixture(scope="module")
def shared_book(request: pytest.FixtureRequest) -> SchemaBook:
    """The contract's schemas."""
    return SchemaBook(request.config.rootpath / "schemas")


@pytest.fixture
def decoder(shared_book: SchemaBook) -> RequestDecoder:
    """Decodes requests for the sample; at most 4 KiB each."""
    shared_book.add(TOPIC, SCHEMA)
    return RequestDecoder(shared_book, table_of(sample_spec()), max_request_bytes=4096)


def _changed(
    change: dict[str, Any], drop: set[str] = frozenset(), feature: dict[str, Any] | None = None
) -> dict[str, Any]:  # type: ignore[assignment]
    """The sample's schema with envelope fields of other types, some dropped, or features of other types."""
    schema = copy.deepcopy(SCHEMA)
    schema["fields"] = [
        {"name": f["name"], "type": change.get(f["name"], f["type"])} for f in schema["fields"] if f["name"] not in drop
    ]
    for field in schema["fields"][-1]["type"]["fields"] if feature else ():
        if field["name"] in (feature or {}):
            field["type"] = (feature or {})[field["name"]]
            del field["default"]
    return schema


class _Writer:
    """Frames records under schemas that the book knows."""

    def __init__(self, book: SchemaBook) -> None:
        self.book = book

    def __call__(self, record: dict[str, Any], schema: dict[str, Any] = SCHEMA) -> bytes:
        """The framed record."""
        return framed(schema, self.book.add(TOPIC, schema), record)


@pytest.fixture
def write(shared_book: SchemaBook) -> _Writer:
    """Frames records."""
    return _Writer(shared_book)


def _key(record: dict[str, Any]) -> bytes:
    return str(record["entity_id"]).encode()


def _assert_good(requests: Requests, row: int, record: dict[str, Any]) -> None:
    """The row came out as it was put in."""
    assert requests.status[row] == Status.OK, requests.faults.get(row)
    assert requests.request_id.take(slice(row, row + 1)).to_list() == [record["request_id"]]
    assert requests.entity_id.take(slice(row, row + 1)).to_list() == [record["entity_id"]]
    assert requests.event_time_us[row] == record["event_time"]
    assert set(requests.shares[0].features) == set(REQUEST_FEATURES)
    for name, column in requests.shares[0].features.items():
        assert to_python(column.take(slice(row, row + 1))) == [record["features"].get(name)], name


def test_good_requests_come_out_as_they_were_put_in(decoder: RequestDecoder, write: _Writer) -> None:
    """Ids, times and features of every row, and where the batch and its offsets came from."""
    records = [request(i) for i in range(9)]
    batch = record_batch([write(r) for r in records], [_key(r) for r in records])
    requests = decoder.decode(batch)
    assert (requests.dead, requests.faults, len(requests)) == ({}, {}, 9)
    assert requests.rows.tolist() == list(range(9))
    assert (requests.deadline_ms == NO_DEADLINE).all()
    for row, record in enumerate(records):
        _assert_good(requests, row, record)


def test_nulls_of_optional_features_and_unknown_categories_are_fine(decoder: RequestDecoder, write: _Writer) -> None:
    """What the model may do without is no fault of the request's."""
    record = request(1, carrier="a carrier founded yesterday", tailnum=None, gate=None, night=None)
    requests = decoder.decode(record_batch([write(record)], [_key(record)]))
    _assert_good(requests, 0, record)


def test_the_default_model_and_the_own_name_are_the_same(decoder: RequestDecoder, write: _Writer) -> None:
    """``model`` may be null or name the model that is live."""
    records = [request(1), request(2, model="sample")]
    requests = decoder.decode(record_batch([write(r) for r in records], [_key(r) for r in records]))
    assert requests.status.tolist() == [Status.OK, Status.OK]


DEAD = {
    "tombstone": (None, "EmptyRecord"),
    "empty": (b"", "EmptyRecord"),
    "JSON": (b'{"request_id": "r"}', "NotFramed"),
    "shorter than a frame": (b"\0\0\0", "NotFramed"),
    "unknown id": (frame_header(12345) + b"x", "UnknownSchema"),
    "an id beyond 31 bits": (b"\0\xff\xff\xff\xff" + b"x", "NotFramed"),
}


@pytest.mark.parametrize("name", DEAD)
def test_what_cannot_be_decoded_is_a_dead_letter(decoder: RequestDecoder, write: _Writer, name: str) -> None:
    """The dead letter says what is wrong, and the request beside it is scored."""
    value, error_class = DEAD[name]
    record = request(1)
    requests = decoder.decode(record_batch([value, write(record)], [b"k", _key(record)]))
    assert {row: (f.error_class, bool(f.message)) for row, f in requests.dead.items()} == {0: (error_class, True)}
    assert requests.rows.tolist() == [1]
    _assert_good(requests, 0, record)


@pytest.mark.parametrize("damage", ["truncated", "body gone", "trailing bytes", "not UTF-8"])
def test_a_damaged_body_is_a_dead_letter(decoder: RequestDecoder, write: _Writer, damage: str) -> None:
    """A body that is not exactly one record of its schema is refused alone."""
    record = request(1)
    whole = write(record)
    bad = {
        "truncated": whole[:-3],
        "body gone": whole[:5],
        "trailing bytes": whole + b"\0",
        "not UTF-8": whole.replace(b"r-1", b"\xff-1"),
    }[damage]
    requests = decoder.decode(record_batch([bad, whole], [_key(record)] * 2))
    assert [(row, f.stage, f.error_class) for row, f in requests.dead.items()] == [(0, "decode", "UndecodableRecord")]
    _assert_good(requests, 0, record)


def test_an_oversized_record_is_a_dead_letter_unread(decoder: RequestDecoder, write: _Writer) -> None:
    """Above the limit nothing is decoded; the message names size, limit and setting."""
    big, fits = request(1, tailnum="x" * 5000), request(2)
    requests = decoder.decode(record_batch([write(big), write(fits)], [_key(big), _key(fits)]))
    assert requests.dead[0].error_class == "OversizedRecord"
    assert "at most 4096 (SLUICE_DELIVERY__MAX_REQUEST_BYTES)" in requests.dead[0].message
    _assert_good(requests, 0, fits)


FOREIGN = {
    "a score": None,
    "request_id is an int": _changed({"request_id": "int"}),
    "event_time is text": _changed({"event_time": "string"}),
    "event_time may be null": _changed({"event_time": ["null", "long"]}),
    "event_time in millis": _changed({"event_time": {"type": "long", "logicalType": "timestamp-millis"}}),
    "no entity_id": _changed({}, drop={"entity_id"}),
    "no event_time": _changed({}, drop={"event_time"}),
    "features may be null": _changed({"features": ["null", SCHEMA["fields"][-1]["type"]]}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_schema_on_the_topic_is_a_dead_letter(
    decoder: RequestDecoder, shared_book: SchemaBook, write: _Writer, name: str, pytestconfig: pytest.Config
) -> None:
    """A record whose schema is known but is no score request is refused by its schema, without a look at the body."""
    schema = FOREIGN[name] or load_schema(pytestconfig.rootpath / "schemas", "score")
    foreign = frame_header(shared_book.add("elsewhere", schema)) + b"\2x\2x\2\2\2"
    record = request(1)
    requests = decoder.decode(record_batch([write(record), foreign], [_key(record), b"k"]))
    assert [(row, f.stage, f.error_class) for row, f in requests.dead.items()] == [(1, "schema", "WrongSchema")]
    _assert_good(requests, 0, record)


def test_a_recursive_schema_is_refused(decoder: RequestDecoder, shared_book: SchemaBook) -> None:
    """A schema that the codec refuses makes dead letters, not an error."""
    schema = {"type": "record", "name": "Chain", "fields": [{"name": "next", "type": ["null", "Chain"]}]}
    requests = decoder.decode(record_batch([frame_header(shared_book.add("elsewhere", schema)) + b"\0"], [b"k"]))
    assert requests.dead[0].error_class == "RefusedSchema"
    assert len(requests) == 0


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "required number null": ({"distance": None}, "MissingFeature"),
    "required time null": ({"departure": None}, "MissingFeature"),
    "NaN": ({"distance": math.nan}, "NotFinite"),
    "infinite": ({"distance": math.inf}, "NotFinite"),
    "optional and infinite": ({"gate": -math.inf}, "NotFinite"),
    "empty request_id": ({"request_id": ""}, "EmptyRequestId"),
    "another model": ({"model": "another"}, "UnknownModel"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_request_that_does_not_fit_is_invalid(decoder: RequestDecoder, write: _Writer, name: str) -> None:
    """A decodable request that the model cannot take is INVALID with a reason, and its neighbour is scored."""
    changes, error_class = INVALID[name]
    records = [request(1, **changes), request(2)]
    requests = decoder.decode(record_batch([write(r) for r in records], [_key(r) for r in records]))
    assert requests.dead == {}
    assert requests.status.tolist() == [Status.INVALID, Status.OK]
    assert (requests.faults[0].stage, requests.faults[0].error_class) == ("schema", error_class)
    _assert_good(requests, 1, records[1])


@pytest.mark.parametrize("key", [None, b"", b"somebody else", b"e-1\0"])
def test_a_key_that_is_not_the_entity_is_invalid(decoder: RequestDecoder, write: _Writer, key: bytes | None) -> None:
    """A request under a foreign key lies on the wrong partition: its outcome would never meet it."""
    records = [request(1), request(2)]
    requests = decoder.decode(record_batch([write(r) for r in records], [key, _key(records[1])]))
    assert requests.status.tolist() == [Status.INVALID, Status.OK]
    assert requests.faults[0].error_class == "KeyMismatch"


@pytest.mark.parametrize(
    ("headers", "error_class"),
    [
        ((("x-model-version", b"4"),), "UnknownVersion"),
        ((("x-model-version", b""),), "UnknownVersion"),
        ((("x-model-label", b"shadow"),), "UnknownLabel"),
        ((("x-deadline-unix-ms", b"soon"),), "BadDeadline"),
        ((("x-deadline-unix-ms", b""),), "BadDeadline"),
        ((("x-deadline-unix-ms", None),), "BadDeadline"),
        ((("x-deadline-unix-ms", b"9" * 30),), "BadDeadline"),
        ((("x-deadline-unix-ms", b"9" * 5000),), "BadDeadline"),
        ((("x-deadline-unix-ms", b"\xff"),), "BadDeadline"),
    ],
)
def test_headers_that_cannot_be_met_are_invalid(
    decoder: RequestDecoder, write: _Writer, headers: Headers, error_class: str
) -> None:
    """A version that is not live, or a deadline that is no number, is answered INVALID."""
    records = [request(1), request(2)]
    batch = record_batch([write(r) for r in records], [_key(r) for r in records], headers=[headers, ()])
    requests = decoder.decode(batch)
    assert requests.status.tolist() == [Status.INVALID, Status.OK]
    assert requests.faults[0].error_class == error_class


def test_headers_that_can_be_met_are(decoder: RequestDecoder, write: _Writer) -> None:
    """The live version and label may be pinned, and a deadline is read."""
    record = request(1)
    headers: Headers = (("x-model-version", b"3"), ("x-model-label", b"champion"), ("x-deadline-unix-ms", b"1700"))
    requests = decoder.decode(record_batch([write(record)], [_key(record)], headers=[headers]))
    assert (requests.status.tolist(), requests.deadline_ms.tolist()) == ([Status.OK], [1700])


def test_only_what_belongs_to_the_request_is_handed_on() -> None:
    """Trace context and request id travel with the answer; deadlines and foreign headers do not."""
    headers: Headers = (
        ("traceparent", b"t"),
        ("x-deadline-unix-ms", b"1"),
        ("tracestate", b"s"),
        ("x-request-id", b"r"),
    )
    assert own_headers(headers) == (("traceparent", b"t"), ("tracestate", b"s"), ("x-request-id", b"r"))


WRONG_TYPES: dict[str, tuple[str, Any, Any]] = {
    "text for a number": ("distance", ["null", "string"], "far"),
    "flag for a number": ("distance", "boolean", True),
    "number for a category": ("carrier", "double", 1.0),
    "millis for a time": ("departure", {"type": "long", "logicalType": "timestamp-millis"}, 1),
    "text for a flag": ("night", "string", "yes"),
    "union of two types": ("distance", ["null", "double", "string"], 1.0),
    "array": ("distance", {"type": "array", "items": "double"}, [1.0]),
    "text with a hint": ("gate", {"type": "string", "avro.java.string": "String"}, "A"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_feature_of_the_wrong_type_is_invalid(decoder: RequestDecoder, write: _Writer, name: str) -> None:
    """Every row of a schema whose feature has another type is INVALID, with feature, found and wanted type."""
    feature, avro_type, value = WRONG_TYPES[name]
    schema = _changed({}, feature={feature: avro_type})
    records = [request(1, **{feature: value}), request(2)]
    values = [write(records[0], schema), write(records[1])]
    requests = decoder.decode(record_batch(values, [_key(r) for r in records]))
    assert requests.dead == {}
    assert requests.status.tolist() == [Status.INVALID, Status.OK]
    assert requests.faults[0].error_class == "WrongType"
    assert requests.faults[0].message.startswith(f"feature {feature}: ")
    _assert_good(requests, 1, records[1])


NUMBERS = [("int", 7), ("long", 2**40), ("float", 0.5), (["double", "null"], 1.5), ({"type": "double"}, 1.5)]


@pytest.mark.parametrize(("avro_type", "value"), NUMBERS)
def test_any_numeric_type_makes_a_number(
    decoder: RequestDecoder, write: _Writer, avro_type: object, value: float
) -> None:
    """Producers may write a number as int, long, float or double."""
    record = request(1, distance=value)
    schema = _changed({}, feature={"distance": avro_type})
    requests = decoder.decode(record_batch([write(record, schema)], [_key(record)]))
    _assert_good(requests, 0, record)
    column = requests.shares[0].features["distance"]
    assert isinstance(column, NumberColumn)
    assert column.values.dtype == np.float64


def test_an_enum_makes_a_category(decoder: RequestDecoder, write: _Writer) -> None:
    """A category may be an enum, nullable or not."""
    enum = {"type": "enum", "name": "Carrier", "symbols": ["UA", "AA"]}
    schema = _changed({}, feature={"carrier": ["null", enum]})
    records = [request(1, carrier="AA"), request(2, carrier=None), request(3, carrier="UA")]
    requests = decoder.decode(record_batch([write(r, schema) for r in records], [_key(r) for r in records]))
    for row, record in enumerate(records):
        _assert_good(requests, row, record)


def test_text_as_java_writes_its_type_is_text(decoder: RequestDecoder, write: _Writer) -> None:
    """Java's generated classes write string as an object with a hint, which means the same."""
    text = {"type": "string", "avro.java.string": "String"}
    schema = _changed({"request_id": text, "entity_id": text}, feature={"carrier": ["null", text]})
    record = request(1)
    requests = decoder.decode(record_batch([write(record, schema)], [_key(record)]))
    assert requests.dead == {}
    _assert_good(requests, 0, record)


def _older_and_newer() -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema without an optional feature, and one with an envelope field and a feature that the model lacks."""
    older, newer = copy.deepcopy(SCHEMA), copy.deepcopy(SCHEMA)
    older["fields"][-1]["type"]["fields"] = [
        f for f in older["fields"][-1]["type"]["fields"] if f["name"] not in {"gate", "carrier"}
    ]
    newer["fields"].insert(0, {"name": "channel", "type": ["null", "string"], "default": None})
    newer["fields"][-1]["type"]["fields"].insert(0, {"name": "fuel", "type": ["null", "double"], "default": None})
    return older, newer


def _mixture(write: _Writer) -> tuple[list[bytes | None], list[bytes | None], dict[int, dict[str, Any]]]:
    """Good rows of three schema versions between rows of every bad kind; the good ones by their place."""
    older, newer = _older_and_newer()
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    good: dict[int, dict[str, Any]] = {}
    bad: list[tuple[bytes | None, bytes | None]] = [(value, b"k") for value, _ in DEAD.values()]
    bad += [(write(request(5, **changes)), b"e-5") for changes, _ in INVALID.values()]
    bad += [
        (write(request(5, **{feature: value}), _changed({}, feature={feature: kind})), b"e-5")
        for feature, kind, value in WRONG_TYPES.values()
    ]
    bad += [
        (write(request(6)), b"not e-6"),
        (write(request(6))[:-1], b"e-6"),
        (write(request(6, tailnum="x" * 9999)), b"e-6"),
    ]
    for number, (value, key) in enumerate(bad):
        record = request(number)
        absent = {"gate", "carrier"} if number % 3 == 1 else set()
        record["features"] = {n: None if n in absent else v for n, v in record["features"].items()}
        good[len(values)] = record
        schema = (SCHEMA, older, newer)[number % 3]
        written = {**record, "channel": "web", "features": {**record["features"], "fuel": 1.0}}
        values += [write(written, schema), value]
        keys += [_key(record), key]
    return values, keys, good


def test_a_mixture_keeps_its_order_and_its_good_rows(decoder: RequestDecoder, write: _Writer) -> None:
    """Good rows of three schema versions between all kinds of bad ones: order and good rows are kept."""
    values, keys, good = _mixture(write)
    requests = decoder.decode(record_batch(values, keys, step=2))
    assert (np.diff(requests.rows) > 0).all()
    assert set(requests.rows.tolist()) | set(requests.dead) == set(range(len(values)))
    assert not set(requests.rows.tolist()) & set(requests.dead)
    assert not set(good) & set(requests.dead)
    assert len(requests.dead) == len(DEAD) + 2
    for row, place in enumerate(requests.rows.tolist()):
        if place in good:
            _assert_good(requests, row, good[place])
        else:
            assert requests.status[row] == Status.INVALID
            assert requests.faults[row].message


async def test_new_ids_are_fetched_before_their_records_are_decoded() -> None:
    """All ids of a fetch at once, before anything is a dead letter; the loop goes on while the registry thinks."""
    with running_registry() as (url, registry):
        registry.schemas[7] = json.dumps(SCHEMA)
        registry.gate = threading.Event()
        decoder = RequestDecoder(SchemaBook(None, url), table_of(sample_spec()), max_request_bytes=4096)
        good, unknown = framed(SCHEMA, 7, request(0)), frame_header(9) + b"x"
        batches = [record_batch([good], [b"N0"]), record_batch([good, unknown], [b"N0", b"N0"], partition=1)]
        decoding = asyncio.create_task(decoder.with_schemas(partial(decoder.decode_together, batches)))
        async with asyncio.timeout(30):
            while len(registry.requests) < 2:  # noqa: ASYNC110 - the questions arrive in other threads
                await asyncio.sleep(0.001)
        registry.gate.set()
        first, second = await decoding
        assert [len(first), len(second)] == [1, 1]
        assert second.dead[1].error_class == "UnknownSchema"
        assert "or the registry does not answer" in second.dead[1].message
        assert len(await decoder.with_schemas(partial(decoder.decode, batches[0]))) == 1
        assert sorted(registry.requests) == ["/schemas/ids/7", "/schemas/ids/9"]


def test_what_the_reader_could_not_read_is_a_dead_letter_with_its_reason(
    decoder: RequestDecoder, write: _Writer
) -> None:
    """Whatever bytes it has, also in a fetch of several partitions; a sound record beside it is a request."""
    good = write(request(0))
    sound = record_batch([good, good], [b"N0", b"N0"])
    bad = damaged(record_batch([good, good, bytes(5000)], [None, b"N0", None], partition=1), {0: "cut", 2: "huge"})
    alone = decoder.decode(bad)
    assert alone.dead == {0: Fault("decode", "UnreadableRecord", "cut"), 2: Fault("decode", "UnreadableRecord", "huge")}
    assert alone.rows.tolist() == [1]
    first, second = decoder.decode_together([sound, bad])
    assert (first.dead, second.dead) == ({}, alone.dead)
    assert (first.rows.tolist(), second.rows.tolist()) == ([0, 1], [1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.none(),
            st.binary(max_size=40),
            st.binary(max_size=60).map(lambda b: b"\0" + b),
            st.tuples(st.integers(0, 80), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_no_bytes_make_it_raise(
    decoder: RequestDecoder, write: _Writer, junk: list[bytes | tuple[int, int] | None]
) -> None:
    """Random bytes and flipped bytes are dead letters, INVALID or, if they make sense, requests; never an error."""
    record = request(3)
    whole = write(record)
    values: list[bytes | None] = []
    for item in junk:
        if isinstance(item, tuple):
            place, byte = item
            values.append(whole[: place % len(whole)] + bytes([byte]) + whole[place % len(whole) + 1 :])
        else:
            values.append(item)
    batch = record_batch([*values, whole], [_key(record)] * (len(values) + 1))
    requests = decoder.decode(batch)
    assert sorted([*requests.rows.tolist(), *requests.dead]) == list(range(len(values) + 1))
    _assert_good(requests, len(requests) - 1, record)
    assert requests.event_time_us[-1] == EVENT_TIME_US + 3


OTHER = sample_spec(
    name="other", version=1, features=(Feature(name="distance"), Feature(name="hops", default=1.0)), views=()
)
TABLE = LiveTable(
    "sample",
    {(spec.name, spec.version): SimpleNamespace(spec=spec) for spec in (sample_spec(), sample_spec(version=4), OTHER)},
    {("sample", "champion"): 3, ("sample", "challenger"): 4, ("other", "champion"): 1},
)
ASKED = {
    "nothing": (None, (), ("sample", 3)),
    "the default by name": ("sample", (), ("sample", 3)),
    "a version": (None, (("x-model-version", b"4"),), ("sample", 4)),
    "a label": ("sample", (("x-model-label", b"challenger"),), ("sample", 4)),
    "both": (None, (("x-model-version", b"4"), ("x-model-label", b"challenger")), ("sample", 4)),
    "another model": ("other", (), ("other", 1)),
    "another schema": ("other", (("schema", b"other"),), ("other", 1)),
    "nobody": ("nobody", (), "UnknownModel"),
    "two versions": (None, (("x-model-version", b"3"), ("x-model-label", b"challenger")), "ConflictingPins"),
    "a version of another": ("other", (("x-model-version", b"4"),), "UnknownVersion"),
}


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(sorted(ASKED)), min_size=1, max_size=12), st.data())
def test_each_request_goes_to_the_model_that_it_asks_for(names: list[str], data: st.DataObject) -> None:
    """Whatever stands beside it and wherever the fetch is cut: model, version, label and schema are its own."""
    book = SchemaBook(None)
    ids = [book.add(TOPIC, sample_request_schema(spec)) for spec in (sample_spec(), OTHER)]
    decoder = RequestDecoder(book, TABLE, max_request_bytes=4096)
    values, keys, headers = [], [], []
    for i, name in enumerate(names):
        model, own, _ = ASKED[name]
        is_other = ("schema", b"other") in own
        record = request(i, model=model)
        if is_other:
            record["features"] = {"distance": 100.0 + i, "hops": float(i)}
        values.append(framed(sample_request_schema(OTHER if is_other else sample_spec()), ids[is_other], record))
        keys.append(str(record["entity_id"]).encode())
        headers.append(tuple(own))
    whole = decoder.decode(record_batch(values, keys, headers=headers))
    assert not whole.dead
    found: dict[int, tuple[str, int]] = {}
    for share in whole.shares:
        numbers = to_python(share.features["distance"])
        assert share.features.keys() == {f.name for f in share.model.spec.features if f.source == "request"}
        for row, number in zip(share.rows.tolist(), numbers, strict=True):
            assert number == 100.0 + row, "the features of a row are its own"
            found[row] = share.model.spec.name, share.model.spec.version
    assert sorted(found) == list(range(len(names))), "every request is in one share"
    for row, name in enumerate(names):
        expected = ASKED[name][2]
        if isinstance(expected, str):
            assert whole.faults[row].error_class == expected
        else:
            assert (whole.status[row], found[row]) == (Status.OK, expected)
    start = data.draw(st.integers(0, len(names)))
    for share in whole.shares:
        cut = share.cut(start, len(names))
        assert (cut.rows + start).tolist() == [row for row in share.rows.tolist() if row >= start]
        assert to_python(cut.features["distance"]) == [100.0 + start + row for row in cut.rows.tolist()]
