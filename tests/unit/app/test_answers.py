"""From a computed micro-batch to records: one answer a row, evidence for what was scored, copies of what went wrong."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.answers import STAGES, Timings
from app.batcher import Slice
from app.compute import compute
from app.lookup import ViewLookup
from app.microbatch import form
from app.outboxes import Outbox, OutputTopics
from app.postprocess import sigmoid
from schemas.columnar import Decoder
from schemas.columns import to_python
from schemas.generate import prediction_schema
from schemas.records import FireReason, Status
from schemas.registry import SchemaBook, load_schema
from schemas.wire import parse_source_mark, schema_ids
from tests.fakes import MemoryStore
from tests.samples import EVENT_TIME_US, TOPIC, framed, record_batch, request, sample_request_schema, store_rows

if TYPE_CHECKING:
    from pathlib import Path

    from app.microbatch import MicroBatch
    from app.models.live import LiveModel
    from app.requests import RequestDecoder
    from schemas.records import Headers, RecordBatch

SCHEMA = sample_request_schema()
SERVED_AT_US = EVENT_TIME_US + 5
TRACE: Headers = (("traceparent", b"00-ab-cd-01"), ("x-deadline-unix-ms", b"1000"), ("x-request-id", b"q"))


class Line:
    """The stages of the hot path, called one after the other."""

    def __init__(self, decoder: RequestDecoder, live: LiveModel, book: SchemaBook, folder: Path) -> None:
        self.decoder, self.live, self.writer, self.book = decoder, live, live.writer, book
        self.model = model = live.scorers[0]
        self.output = OutputTopics("scores", "predictions-log", f"{TOPIC}.dlq")
        self.score_schema = load_schema(folder, "score")
        self.prediction_schema = prediction_schema(model.spec.name, model.spec.fields())
        self.store = MemoryStore(store_rows())

    def batch(self, kinds: str, *, headers: bool = False, **place: int) -> RecordBatch:
        """Records by letter: g good, i invalid, d dead, e beyond the model, l late (deadline at 1000 ms)."""
        values: list[bytes | None] = []
        schema_id = self.book.add(TOPIC, SCHEMA)
        records = [request(i, distance={"i": None, "e": 1e300}.get(kind, 100.0 * i)) for i, kind in enumerate(kinds)]
        for kind, record in zip(kinds, records, strict=True):
            values.append(None if kind == "d" else framed(SCHEMA, schema_id, record))
        own: list[Headers] = [TRACE if headers or kind == "l" else () for kind in kinds]
        keys = [str(r["entity_id"]).encode() for r in records]
        return record_batch(values, keys, headers=own if any(own) else [], **place)

    async def run(self, *slices: Slice, now_ms: int = 0) -> MicroBatch:
        """Formed, looked up, computed."""
        batch = form(slices, FireReason.WINDOW, now_s=0.0, planned_s=0.0, in_time_ms=now_ms)
        if len(batch.live):
            lookup = ViewLookup(self.model.spec, self.store)
            batch.lookup = await lookup.fetch(batch.features, batch.event_time_us[batch.live])
        compute(batch, self.live, self.model)
        return batch

    def written(self, batch: MicroBatch) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[list[Outbox]]]:
        """Answers, evidence (both read back) and outboxes."""
        predictions = self.writer.predictions(batch, SERVED_AT_US)
        scores = self.writer.scores(batch, _timings(len(batch)), SERVED_AT_US)
        boxes = self.output.outboxes(batch, scores, predictions)
        return _read(self.score_schema, scores), _read(self.prediction_schema, predictions), boxes

    async def whole(self, kinds: str, *, headers: bool = False, now_ms: int = 0) -> Any:  # noqa: ANN401
        """One fetch, all at once."""
        requests = self.decoder.decode(self.batch(kinds, headers=headers))
        batch = await self.run(Slice(requests, 0, len(requests)), now_ms=now_ms)
        return batch, *self.written(batch)


def _timings(count: int) -> Timings:
    stages = {name: np.arange(count, dtype=np.int64) + i for i, name in enumerate(STAGES)}
    return Timings(stages, np.sum(list(stages.values()), axis=0))


def _read(schema: dict[str, Any], values: list[bytes]) -> list[dict[str, Any]]:
    """What our decoder reads; fastavro reads the same."""
    decoded = Decoder(schema).decode(values)
    assert decoded.errors == {}
    rows = to_python(decoded.columns)
    parsed = fastavro.parse_schema(_without_logical_types(schema))
    for row, value in zip(rows, values, strict=True):
        stream = io.BytesIO(value[5:])
        assert fastavro.schemaless_reader(stream, parsed, None) == row
        assert stream.read() == b""
    return rows


def _without_logical_types(node: Any) -> Any:  # noqa: ANN401 - any JSON
    """So that fastavro gives integers, as we do."""
    if isinstance(node, dict):
        return {k: _without_logical_types(v) for k, v in node.items() if k != "logicalType"}
    return [_without_logical_types(v) for v in node] if isinstance(node, list) else node


@pytest.fixture
def line(
    decoder: RequestDecoder,
    live: LiveModel,
    book: SchemaBook,
    pytestconfig: pytest.Config,
) -> Line:
    """The hot path without queues."""
    return Line(decoder, live, book, pytestconfig.rootpath / "schemas")


async def test_an_answer_says_all_that_was_found(line: Line) -> None:
    """Ids, score, decision, threshold, version, times and reason of a good row, read back by two readers."""
    batch, scores, _, _ = await line.whole("g")
    assert batch.predictions is not None
    score = batch.predictions.scored.score[0]
    assert scores[0] == {
        "request_id": "r-0", "entity_id": "e-0", "status": "OK", "outputs": [score], "score": score,
        "decision": "late" if score >= 0.4 else "on_time", "threshold": 0.4, "model_name": "sample", "model_version": 3,
        "experiment_id": None, "arm": None, "degraded": [], "reason": None, "event_time": EVENT_TIME_US,
        "served_at": SERVED_AT_US, "batch_rows": 1, "fire_reason": "WINDOW",
        "timings": {f"{name}_us": i for i, name in enumerate(STAGES)} | {"total_us": sum(range(len(STAGES)))},
    }  # fmt: skip


async def test_evidence_holds_the_values_as_used(line: Line) -> None:
    """All features before preprocessing, letters and ages, scores, digests and bucket: enough to score it again."""
    batch, scores, evidence, _ = await line.whole("ggg")
    row, bundle = evidence[1], line.model.bundle
    sent = request(1, distance=100.0)["features"]
    assert row["features"] == {**sent, "delay": 9.0, "gust": 6.0}
    assert row["feature_status"] == "ffffffsf", "plane N1 is stale, and so is its feature"
    assert row["feature_age_ms"] == [7_200_000, 0]
    assert (row["raw_score"], row["score"]) == (batch.predictions.scored.raw[1], scores[1]["score"])
    assert (row["artifact_sha256"], row["calibration_sha256"]) == (bundle.sha256, bundle.calibration_sha256)
    assert (row["batch_bucket"], row["device"], row["degraded"]) == (4, "cpu", ["plane:stale"])
    assert [r["request_id"] for r in evidence] == ["r-0", "r-1", "r-2"]
    assert evidence[2]["features"]["delay"] is None
    assert evidence[2]["feature_status"][6] == "m"
    assert evidence[2]["feature_age_ms"][0] == -1


async def test_evidence_scores_again_to_the_same_bits(line: Line) -> None:
    """A replay of the logged values in the logged bucket gives the logged raw score."""
    batch, _, evidence, _ = await line.whole("g" * 11)
    numbers, codes = line.model.preprocessor.transform(batch.features).values()
    for place, row in enumerate(evidence):
        padded = np.zeros((row["batch_bucket"], numbers.shape[1]), np.float32)
        padded_codes = np.zeros((row["batch_bucket"], codes.shape[1]), np.int64)
        padded[0], padded_codes[0] = numbers[place], codes[place]
        assert sigmoid(line.model.predict({"numbers": padded, "codes": padded_codes})[0])[0] == row["raw_score"]


async def test_each_status_has_its_shape(line: Line) -> None:
    """Scored rows carry outputs, the others a reason and no score; statuses as the row's fate was."""
    _, scores, evidence, _ = await line.whole("gilge", now_ms=2000)
    assert [s["status"] for s in scores] == ["OK", "INVALID", "EXPIRED", "OK", "ERROR"]
    for row in scores:
        scored = row["status"] == "OK"
        assert (row["score"] is None, row["decision"] is None, row["threshold"] is None) == (not scored,) * 3
        assert len(row["outputs"]) == scored
        assert (row["reason"] is None) == scored
        assert (row["fire_reason"], row["batch_rows"]) == (("WINDOW", 3) if scored else ("NONE", 0))
    assert [e["request_id"] for e in evidence] == ["r-0", "r-3"]
    assert scores[1]["reason"] == "MissingFeature: feature distance is required and null or absent"


async def test_degraded_answers_say_which_view_and_why(line: Line) -> None:
    """Stale and unreachable views degrade an answer, an unknown key does not."""
    _, scores, _, _ = await line.whole("ggg")
    assert [(s["status"], s["degraded"]) for s in scores] == [("OK", []), ("DEGRADED", ["plane:stale"]), ("OK", [])]
    line.store.error = "gone"
    _, scores, evidence, _ = await line.whole("gig")
    assert [s["status"] for s in scores] == ["DEGRADED", "INVALID", "DEGRADED"]
    assert [s["degraded"] for s in scores] == [
        ["plane:default", "weather:default"],
        [],
        ["plane:default", "weather:default"],
    ]
    assert {e["feature_status"][6:] for e in evidence} == {"dd"}
    assert evidence[0]["features"]["delay"] is None


async def test_answers_go_where_their_request_came_from(line: Line) -> None:
    """Same partition, same key, a mark that names the request, its trace and nothing else of its headers."""
    requests = line.decoder.decode(line.batch("gdig", headers=True, partition=2, first=50, step=3))
    batch = await line.run(Slice(requests, 0, 3))
    _, _, [[scores, predictions, dead]] = line.written(batch)
    assert {box.partition for box in (scores, predictions, dead)} == {2}
    assert [box.topic for box in (scores, predictions, dead)] == ["scores", "predictions-log", f"{TOPIC}.dlq"]
    assert scores.keys == [b"e-0", b"e-2", b"e-3"]
    assert predictions.keys == [b"e-0", b"e-3"]
    marks = [dict(headers)["x-src"] for headers in scores.headers]
    assert [parse_source_mark(mark) for mark in marks] == [(TOPIC, 2, offset, 0) for offset in (50, 56, 59)]
    assert predictions.headers == [scores.headers[0], scores.headers[2]]
    assert scores.headers[0][:-1] == [("traceparent", b"00-ab-cd-01"), ("x-request-id", b"q")]


async def test_dead_letters_are_the_original_bytes(line: Line) -> None:
    """Undecodable records, and copies of INVALID and ERROR requests, in offset order with key, value and headers."""
    raw = line.batch("digel", headers=True, first=10)
    requests = line.decoder.decode(raw)
    batch = await line.run(Slice(requests, 0, 4), now_ms=2000)
    _, _, [[_, _, dead]] = line.written(batch)
    assert dead.keys == [raw.keys[0], raw.keys[1]], "all others are past the deadline that every header names"
    batch = await line.run(Slice(requests, 0, 4), now_ms=0)
    _, _, [[_, _, dead]] = line.written(batch)
    assert list(dead.values) == [raw.values[i] for i in (0, 1, 3)]
    assert dead.keys == [raw.keys[i] for i in (0, 1, 3)]
    for headers, (offset, stage, error_class) in zip(
        dead.headers,
        [(10, "decode", "EmptyRecord"), (11, "schema", "MissingFeature"), (13, "inference", "NotFinite")],
        strict=True,
    ):
        assert headers[: len(TRACE)] == TRACE
        named = dict(headers)
        assert named["__connect.errors.offset"] == str(offset).encode()
        assert named["__connect.errors.stage"] == stage.encode()
        assert named["__connect.errors.exception.class.name"] == error_class.encode()
        assert parse_source_mark(named["x-src"]) == (TOPIC, 0, offset, 0)


async def test_ids_in_the_frames_are_those_that_were_registered(line: Line) -> None:
    """A reader finds each record's schema by its frame."""
    batch, _, _, [[scores, predictions, _]] = await line.whole("gg")
    assert len(batch) == 2
    assert set(schema_ids(scores.values).tolist()) == {line.book.add("scores", line.score_schema)}
    assert set(schema_ids(predictions.values).tolist()) == {line.book.add("p", line.prediction_schema)}


async def test_long_durations_are_clipped_not_wrapped(line: Line) -> None:
    """A row that waited for more than 35 minutes shows the largest int, never a negative one."""
    requests = line.decoder.decode(line.batch("g"))
    batch = await line.run(Slice(requests, 0, 1))
    line.writer.predictions(batch, SERVED_AT_US)
    timings = Timings({name: np.array([2**40]) for name in STAGES}, np.array([2**43]))
    [answer] = _read(line.score_schema, line.writer.scores(batch, timings, SERVED_AT_US))
    assert set(answer["timings"].values()) == {2**31 - 1}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet="gggidel", min_size=1, max_size=6), min_size=1, max_size=3), st.booleans(), st.data())
async def test_every_record_has_exactly_one_terminal_record(
    line: Line, fetches: list[str], late: bool, data: st.DataObject
) -> None:
    """Whatever is in a micro-batch, each request is answered once, in order, each dead record is one dead letter."""
    slices = []
    for partition, kinds in enumerate(fetches):
        requests = line.decoder.decode(line.batch(kinds, partition=partition, first=7))
        first = data.draw(st.integers(0, max(len(requests) - 1, 0)))
        slices.append(Slice(requests, first, len(requests)))
    if sum(map(len, slices)) > line.model.spec.buckets[-1]:
        return
    batch = await line.run(*slices, now_ms=2000 if late else 0)
    scores, evidence, boxes = line.written(batch)
    answered = [row["request_id"] for row in scores]
    assert answered == batch.request_id.to_list()
    assert [e["request_id"] for e in evidence] == [s["request_id"] for s in scores if s["status"] in {"OK", "DEGRADED"}]
    assert [s["status"] for s in scores] == [Status(value).name for value in batch.status.tolist()]
    assert len(boxes) == len(slices)
    for part, (mine, logged, dead) in zip(batch.parts, boxes, strict=True):
        offsets = part.requests.batch.offsets[part.requests.rows[part.start : part.end]].tolist()
        assert [parse_source_mark(dict(h)["x-src"])[2] for h in mine.headers] == offsets
        assert len(mine.keys) == len(mine.values) == len(mine.headers) == len(part)
        assert len(logged.keys) == len(logged.values) == len(logged.headers)
        dead_offsets = [parse_source_mark(dict(h)["x-src"])[2] for h in dead.headers]
        assert dead_offsets == sorted(dead_offsets)
        base = sum(len(p) for p in batch.parts[: batch.parts.index(part)])
        copies = [o for i, o in enumerate(offsets) if scores[base + i]["status"] in {"INVALID", "ERROR"}]
        undecodable = part.requests.batch.offsets[list(part.dead)].tolist() if part.dead else []
        assert sorted(copies + undecodable) == dead_offsets
