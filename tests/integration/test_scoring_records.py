"""Every kind of bad input, one by one, through one real worker: each is answered once, its neighbours are scored."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from agents import topics
from schemas.registry import local_id
from schemas.wire import HEADER_BYTES, frame_header, source_mark
from tests.integration.delays_service import (
    EVENT_US,
    MODEL,
    Deployment,
    Service,
    encode,
    features,
    put_weather,
    running_service,
)
from tests.integration.kafka_client import Message, header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aiokafka.structs import ConsumerRecord


pytestmark = pytest.mark.integration

ENTITY = "N14228"
KEY = ENTITY.encode()
MIB = 2**20
TRACE = (("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("x-request-id", b"q-1"))
AGES_US = 3 * 3_600_000_000
TEXT_DISTANCE = {
    "type": "record", "name": "ScoreRequest", "namespace": "stranger", "fields": [
        {"name": "request_id", "type": "string"}, {"name": "entity_id", "type": "string"},
        {"name": "event_time", "type": "long"},
        {"name": "features", "type": {"type": "record", "name": "F", "fields": [
            {"name": "distance_mi", "type": "string"}]}},
    ],
}  # fmt: skip
OTHER_FEATURES = {
    "type": "record", "name": "ScoreRequest", "namespace": "later", "fields": [
        {"name": "request_id", "type": "string"}, {"name": "entity_id", "type": "string"},
        {"name": "event_time", "type": "long"},
        {"name": "features", "type": {"type": "record", "name": "F", "fields": [
            {"name": "wind_kmh", "type": "double"}, {"name": "distance_mi", "type": "int"}]}},
    ],
}  # fmt: skip
INVOICE = {"type": "record", "name": "Invoice", "fields": [{"name": "total", "type": "double"}]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str) -> Iterator[Service]:
    """One worker for the whole module, on fresh topics, with the weather of JFK and EWR in the store; LGA has none."""
    minute_old = (EVENT_US - 60_000_000, 21.5)
    put_weather(redis_url, {"JFK": minute_old, "EWR": minute_old})
    writers = {"text_distance": TEXT_DISTANCE, "other_features": OTHER_FEATURES, "invoice": INVOICE}
    folder = tmp_path_factory.mktemp("records")
    with running_service("records", folder, bootstrap_servers, redis_url, writers=writers) as service:
        yield service


@dataclass
class Answered:
    """What came out for some messages.

    Attributes:
        offsets: of the messages.
        scores: decoded answers by source offset.
        predictions: decoded evidence by source offset.
        dead: raw dead letters by source offset.
        raw: raw answers by source offset.
        rounds: how often they were asked.

    """

    offsets: list[int]
    scores: dict[int, dict[str, Any]]
    predictions: dict[int, dict[str, Any]]
    dead: dict[int, ConsumerRecord]
    raw: dict[int, ConsumerRecord]
    rounds: int = 1


def answer(service: Service, messages: list[Message]) -> Answered:
    """Send messages to one partition and collect what the worker made of them."""
    kafka, outputs = service.kafka, (topics.SCORES, topics.PREDICTIONS, topics.REQUESTS_DLQ)
    before = {topic: kafka.ends(topic) for topic in outputs}
    sent = kafka.produce([Message(m.key, m.value, m.headers, 0) for m in messages])
    service.deployment.wait_answered(timeout_s=30)
    assert service.worker.is_running, service.worker.log()[-3000:]
    found = {}
    for topic in outputs:
        records = kafka.read(topic, before[topic])
        assert {r.partition for r in records} <= {0}, "an answer goes to its request's partition"
        assert len({header(r, "x-src") for r in records}) == len(records), f"{topic}: something was answered twice"
        found[topic] = {offset: r for r in records for _, offset in sent if header(r, "x-src") == mark(offset)}
        assert len(found[topic]) == len(records), f"{topic}: an answer to nothing that was asked"
        assert list(found[topic]) == sorted(found[topic]), f"{topic}: out of order"
    decode = service.deployment.decode
    return Answered(
        [offset for _, offset in sent],
        {o: decode(r.value) for o, r in found[topics.SCORES].items()},
        {o: decode(r.value) for o, r in found[topics.PREDICTIONS].items()},
        found[topics.REQUESTS_DLQ],
        found[topics.SCORES],
    )


def mark(offset: int) -> bytes:
    """``x-src`` of an answer to a request in partition 0."""
    return source_mark(topics.REQUESTS, 0, offset)


def among_good(service: Service, message: Message) -> tuple[int, Answered]:
    """Send a message between two good ones, which must be scored; returns its offset and all that came out."""
    good = [Message(KEY, service.deployment.request(name, ENTITY)) for name in ("before", "after")]
    answered = answer(service, [good[0], message, good[1]])
    while answered.rounds < 5 and any("d" in p["feature_status"] for p in answered.predictions.values()):
        # On a busy machine the store's hard limit of 20 ms bites now and then: answered rightly, but not what is meant.
        rounds = answered.rounds + 1
        answered = answer(service, [good[0], message, good[1]])
        answered.rounds = rounds
    first, offset, last = answered.offsets
    for neighbour in (first, last):
        assert answered.scores[neighbour]["status"] == "OK"
        assert answered.predictions[neighbour]["score"] == answered.scores[neighbour]["score"]
        assert neighbour not in answered.dead
    return offset, answered


def raw(value: bytes | None) -> Callable[[Deployment], Message]:
    """A message of exactly these bytes."""
    return lambda _: Message(KEY, value, TRACE)


def request(*, entity_id: str = ENTITY, **changes: Any) -> Callable[[Deployment], Message]:  # noqa: ANN401
    """A request with some features changed, under the key of ``ENTITY``."""
    return lambda d: Message(KEY, d.request("odd", entity_id, **changes), TRACE)


def cut(**slices: int) -> Callable[[Deployment], Message]:
    """A good request of which only some bytes are left."""
    return lambda d: Message(KEY, d.request("odd", ENTITY)[: slices["end"]], TRACE)


def in_schema(schema: dict[str, Any], record: dict[str, Any]) -> Callable[[Deployment], Message]:
    """A record in a schema of a stranger's."""
    return lambda _: Message(KEY, frame_header(local_id(schema)) + encode(schema, record), TRACE)


def headed(name: str, value: bytes) -> Callable[[Deployment], Message]:
    """A good request with one more header."""
    return lambda d: Message(KEY, d.request("odd", ENTITY), (*TRACE, (name, value)))


ENVELOPE = {"request_id": "odd", "entity_id": ENTITY, "event_time": EVENT_US}

UNDECODABLE: dict[str, tuple[Callable[[Deployment], Message], str, str]] = {
    "not avro": (raw(b"\xfe\xed\xfa\xce" * 9), "decode", "NotFramed"),
    "json": (raw(b'{"request_id": "odd"}'), "decode", "NotFramed"),
    "shorter than a frame": (raw(b"\x00\x40"), "decode", "NotFramed"),
    "unknown schema id": (
        lambda d: Message(KEY, frame_header(77) + d.request("odd", ENTITY)[5:], TRACE), "schema", "UnknownSchema"
    ),
    "another record's schema": (in_schema(INVOICE, {"total": 1.0}), "schema", "WrongSchema"),
    "truncated": (cut(end=-3), "decode", "UndecodableRecord"),
    "nothing behind the frame": (cut(end=HEADER_BYTES), "decode", "UndecodableRecord"),
    "bytes left over": (lambda d: Message(KEY, d.request("odd", ENTITY) + b"x", TRACE), "decode", "UndecodableRecord"),
    "text that is no UTF-8": (
        lambda d: Message(KEY, d.request("odd", ENTITY, tailnum="@@@@").replace(b"@@@@", b"\xff\xfe\xff\xfe"), TRACE),
        "decode", "UndecodableRecord",
    ),
    "empty value": (raw(b""), "decode", "EmptyRecord"),
    "tombstone": (raw(None), "decode", "EmptyRecord"),
    "above the size limit": (request(tailnum="x" * (MIB + 100)), "decode", "OversizedRecord"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDECODABLE)
def test_undecodable_records_become_dead_letters(service: Service, case: str) -> None:
    """What cannot be decoded ends as one dead letter with its very bytes, key, headers and what was wrong."""
    build, stage, error_class = UNDECODABLE[case]
    message = build(service.deployment)
    undecodable = service.worker.figures()["conservation"]["undecodable"]
    offset, answered = among_good(service, message)
    assert offset not in answered.scores
    assert offset not in answered.predictions
    check_dead_letter(answered.dead[offset], message, offset, stage, error_class)
    assert service.worker.figures()["conservation"]["undecodable"] == undecodable + answered.rounds


INVALID: dict[str, tuple[Callable[[Deployment], Message], str]] = {
    "missing required feature": (request(distance_mi=None), "MissingFeature"),
    "wrong type": (in_schema(TEXT_DISTANCE, {**ENVELOPE, "features": {"distance_mi": "far"}}), "WrongType"),
    "NaN": (request(distance_mi=float("nan")), "NotFinite"),
    "infinity": (request(distance_mi=float("-inf")), "NotFinite"),
    "key of another entity": (request(entity_id="N99999"), "KeyMismatch"),
    "no key": (lambda d: Message(None, d.request("odd", ENTITY), TRACE), "KeyMismatch"),
    "no request id": (lambda d: Message(KEY, d.request("", ENTITY), TRACE), "EmptyRequestId"),
    "another model": (request(model="weather"), "UnknownModel"),
    "another version pinned": (headed("x-model-version", b"7"), "UnknownVersion"),
    "another label pinned": (headed("x-model-label", b"challenger"), "UnknownLabel"),
    "deadline that is no number": (headed("x-deadline-unix-ms", b"soon"), "BadDeadline"),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_unfit_requests_are_answered_invalid(service: Service, case: str) -> None:
    """A request that decodes and does not fit is answered INVALID with the reason; a copy goes to the dead letters."""
    build, error_class = INVALID[case]
    message = build(service.deployment)
    before = service.worker.figures()
    offset, answered = among_good(service, message)
    score = answered.scores[offset]
    assert score["status"] == "INVALID"
    assert score["reason"].startswith(f"{error_class}: ")
    assert (score["score"], score["decision"], score["outputs"], score["batch_rows"]) == (None, None, [], 0)
    assert offset not in answered.predictions
    assert answered.raw[offset].key == score["entity_id"].encode()
    check_handed_on(answered.raw[offset], offset)
    check_dead_letter(answered.dead[offset], message, offset, "schema", error_class)
    after = service.worker.figures()
    assert after["statuses"]["INVALID"] == before["statuses"]["INVALID"] + answered.rounds
    assert after["conservation"]["undecodable"] == before["conservation"]["undecodable"], "the copy is not counted"


SCORED: dict[str, tuple[Callable[[Deployment], Message], str, str, list[str]]] = {
    "ordinary": (request(), "OK", "ffffff", []),
    "unknown category, unknown to the store too": (request(origin="XXX"), "OK", "fffffm", []),
    "known category, unknown to the store": (request(origin="LGA"), "OK", "fffffm", []),
    "all that may be null is null": (
        request(origin=None, tailnum=None, departs_at=None, is_wet=None), "OK", "fmmmmm", []),
    "stale weather": (request(event_us=EVENT_US + AGES_US), "DEGRADED", "fffffs", ["weather:stale"]),
    "another schema version": (
        in_schema(OTHER_FEATURES, {**ENVELOPE, "features": {"wind_kmh": 9.0, "distance_mi": 300}}), "OK", "fmmmmm", []),
    "the model by name": (request(model=MODEL), "OK", "ffffff", []),
    "the live version pinned": (headed("x-model-version", b"1"), "OK", "ffffff", []),
    "the champion pinned": (headed("x-model-label", b"champion"), "OK", "ffffff", []),
    "text that is not ASCII": (request(tailnum="Zürich ✈ 東京"), "OK", "ffffff", []),
    "near the size limit": (request(tailnum="x" * (MIB - 200)), "OK", "ffffff", []),
    "plenty of time": (headed("x-deadline-unix-ms", b"%d" % (2**62)), "OK", "ffffff", []),
}  # fmt: skip


@pytest.mark.parametrize("case", SCORED)
def test_odd_but_fit_requests_are_scored(service: Service, case: str) -> None:
    """Unusual requests that the model can take are scored; the evidence says what was missing or old."""
    build, status, letters, degraded = SCORED[case]
    offset, answered = among_good(service, build(service.deployment))
    score, prediction = answered.scores[offset], answered.predictions[offset]
    assert (score["status"], score["degraded"]) == (status, degraded)
    assert 0 < score["score"] < 1
    assert score["decision"] == ("yes" if score["score"] >= 0.5 else "no")
    assert score["batch_rows"] >= 1
    assert (prediction["feature_status"], prediction["degraded"]) == (letters, degraded)
    assert prediction["features"]["temp_c"] == (None if letters[-1] == "m" else 21.5)
    assert prediction["artifact_sha256"] == service.deployment.bundle.sha256
    assert offset not in answered.dead
    check_handed_on(answered.raw[offset], offset)


def test_an_unknown_feature_of_the_schema_is_ignored_and_an_int_is_a_number(service: Service) -> None:
    """A later schema's request is scored as the same request in ours: the same values, the same score."""
    now: dict[str, Any] = {"origin": None, "tailnum": None, "departs_at": None, "is_wet": None}
    theirs = in_schema(OTHER_FEATURES, {**ENVELOPE, "features": {"wind_kmh": 9.0, "distance_mi": 300}})
    ours = request(distance_mi=300.0, **now)
    answered = answer(service, [theirs(service.deployment), ours(service.deployment)])
    scores = [answered.scores[o]["score"] for o in answered.offsets]
    assert scores[0] == scores[1]
    assert [answered.predictions[o]["features"] for o in answered.offsets] == [
        features(distance_mi=300.0, **now, temp_c=None)
    ] * 2


def test_a_duplicate_is_answered_twice_and_recognisable(service: Service) -> None:
    """The same request sent twice gets two equal answers with different marks: the service keeps no memory of ids."""
    message = Message(KEY, service.deployment.request("twin", ENTITY), TRACE)
    answered = answer(service, [message, message])
    first, second = (answered.scores[o] for o in answered.offsets)
    assert first["request_id"] == second["request_id"] == "twin"
    assert first["score"] == second["score"]
    assert [header(answered.raw[o], "x-src") for o in answered.offsets] == [mark(o) for o in answered.offsets]


def test_expired_requests_cost_no_row_on_the_device(service: Service) -> None:
    """Requests past their deadline are answered EXPIRED, never reach the model, and leave no evidence."""
    late = (("x-deadline-unix-ms", b"%d" % (int(time.time() * 1000) - 1)),)
    before = service.worker.figures()
    messages = [Message(KEY, service.deployment.request(f"late-{i}", ENTITY), late) for i in range(200)]
    answered = answer(service, messages)
    assert [answered.scores[o]["request_id"] for o in answered.offsets] == [f"late-{i}" for i in range(200)]
    for score in answered.scores.values():
        assert (score["status"], score["score"], score["batch_rows"]) == ("EXPIRED", None, 0)
        assert score["fire_reason"] == "NONE"
        assert score["reason"].startswith("Expired: ")
    assert not answered.predictions
    assert not answered.dead, "the input is not at fault"
    after = service.worker.figures()
    assert after["statuses"]["EXPIRED"] == before["statuses"]["EXPIRED"] + 200
    for name in ("executions", "rows"):
        assert after["batches"][name] == before["batches"][name]


def test_good_and_bad_in_one_batch(service: Service) -> None:
    """Everything at once, in one produce request: each record still ends in exactly one place, in order."""
    tables = (UNDECODABLE, INVALID, SCORED)
    builders: list[Callable[[Deployment], Message]] = [case[0] for table in tables for case in table.values()]
    cases = [build(service.deployment) for build in builders]
    small = [m for m in cases if len(m.value or b"") < MIB // 2]
    answered = answer(service, small)
    for message, offset in zip(small, answered.offsets, strict=True):
        is_dead = offset in answered.dead
        assert is_dead == (offset not in answered.predictions)
        assert is_dead or offset in answered.scores
        if is_dead:
            assert answered.dead[offset].value == message.value
    invalid = [o for o, s in answered.scores.items() if s["status"] == "INVALID"]
    assert len(invalid) == len(INVALID)
    assert len(answered.dead) == len(INVALID) + len(small) - len(answered.scores)


def test_figures_add_up(service: Service) -> None:
    """At the end consumed = OK + DEGRADED + INVALID + EXPIRED + SHED + ERROR + undecodable; nothing is in flight."""
    figures, kafka = service.worker.figures(), service.kafka
    conservation, statuses = figures["conservation"], figures["statuses"]
    assert conservation["consumed"] == kafka.count(topics.REQUESTS) > 0
    assert sum(statuses.values()) == conservation["terminal"] == kafka.count(topics.SCORES)
    assert conservation["consumed"] == sum(statuses.values()) + conservation["undecodable"]
    assert conservation["in_flight"] == 0
    assert statuses["OK"] + statuses["DEGRADED"] == kafka.count(topics.PREDICTIONS)
    assert conservation["undecodable"] + statuses["INVALID"] + statuses["ERROR"] == kafka.count(topics.REQUESTS_DLQ)
    assert service.worker.start_count == 1


def check_handed_on(record: ConsumerRecord, offset: int) -> None:
    """An answer bears the trace headers of its request, and its mark."""
    assert tuple(record.headers) == (*TRACE, ("x-src", mark(offset)))


def check_dead_letter(record: ConsumerRecord, message: Message, offset: int, stage: str, error_class: str) -> None:
    """Original bytes, key and headers; where it came from and what was wrong, as Kafka Connect writes it."""
    assert record.value == message.value
    assert record.key == message.key
    assert tuple(record.headers)[: len(message.headers)] == message.headers
    named = dict(record.headers)
    facts = {
        "topic": topics.REQUESTS.encode(), "partition": b"0", "offset": b"%d" % offset, "stage": stage.encode(),
        "class.name": b"sluice", "exception.class.name": error_class.encode(),
    }  # fmt: skip
    assert {name: named[f"__connect.errors.{name}"] for name in facts} == facts
    assert 0 < len(named["__connect.errors.exception.message"]) <= 512
    assert named["x-src"] == mark(offset)
