"""The monitor on a real broker: what it publishes, what it shows, and what is left when its store is lost."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import pandas as pd
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import TopicPartition
from sklearn.metrics import brier_score_loss, precision_score, recall_score, roc_auc_score

from agents.outcomes import OutcomeMonitor, PartitionNotOwned
from agents.topics import LABELLED, MONITOR_EVENTS, OUTCOMES, OUTCOMES_DLQ, PREDICTIONS, delete_topics, ensure_topics
from app.connections import connection_arguments
from app.producer import OutputProducer
from app.settings import Settings, load_settings
from monitors.rebuild import read_ranges
from schemas.generate import FeatureField, prediction_schema
from schemas.registry import SchemaBook, load_schema
from schemas.wire import frame_header

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from schemas.records import RecordBatch

pytestmark = pytest.mark.integration

FOLDER = Path(__file__).resolve().parents[2] / "schemas"
FEATURES = [FeatureField("age", "number", "request"), FeatureField("town", "category", "store")]
START_US, HOUR_US = 1_362_096_000_000_000, 3_600_000_000
PARTITIONS, ROWS = 2, 900
LABEL_DELAY_US = 2 * HOUR_US
CLOCK_S = 1_800_000_000.0


@dataclass
class Stream:
    """What was put on the topics, and everything that a monitor of it needs."""

    settings: Settings
    book: SchemaBook
    frame: pd.DataFrame
    reference: Path

    async def monitor(self, producer: OutputProducer, committed: dict[tuple[str, int], int]) -> OutcomeMonitor:
        """A monitor that has both partitions."""
        found = OutcomeMonitor(
            self.settings, self.book, producer, lambda _name, _version: self.reference, now_s=lambda: self.now_s
        )
        await found.assigned({0, 1}, committed)
        return found

    now_s: float = CLOCK_S


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    score = rng.random(ROWS)
    return pd.DataFrame({
        "request_id": [f"r{k:05d}" for k in range(ROWS)],
        "entity_id": [f"e{k % 40}" for k in range(ROWS)],
        "partition": [(k % 40) % PARTITIONS for k in range(ROWS)],
        "event_time": START_US + np.arange(ROWS) * (96 * HOUR_US // ROWS),
        "age": rng.normal(0, 1, ROWS),
        "town": rng.choice(["ulm", "bonn"], ROWS),
        "score": score,
        "label": (rng.random(ROWS) < score).astype(float),
    })  # fmt: skip


def _prediction(row: Any) -> dict[str, Any]:  # noqa: ANN401 - a row of itertuples
    return {
        "request_id": row.request_id, "entity_id": row.entity_id, "features": {"age": row.age, "town": row.town},
        "feature_status": "ff", "feature_age_ms": [-1, 5], "raw_score": row.score, "score": row.score,
        "outputs": [row.score], "decision": "yes" if row.score >= 0.5 else "no", "threshold": 0.5,
        "model_name": "demo", "model_version": 3, "artifact_sha256": "a", "preprocess_sha256": "p",
        "calibration_sha256": "c", "batch_bucket": 8, "assignment_bucket": None, "device": "cpu",
        "experiment_id": None, "arm": None, "rollout_epoch": None, "shadow_scores": {}, "degraded": [],
        "event_time": row.event_time, "served_at": row.event_time + 1000,
    }  # fmt: skip


def _encode(schema: dict[str, Any], schema_id: int, record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return frame_header(schema_id) + out.getvalue()


async def _produce(settings: Settings, book: SchemaBook, frame: pd.DataFrame) -> None:
    prediction, outcome = prediction_schema("demo", FEATURES), load_schema(FOLDER, "outcome")
    ids = book.add(PREDICTIONS, prediction), book.add(OUTCOMES, outcome)
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, linger_ms=5)
    await producer.start()
    try:
        for row in frame.itertuples():
            key, partition = row.entity_id.encode(), row.partition
            await producer.send(PREDICTIONS, _encode(prediction, ids[0], _prediction(row)), key, partition)
            result = {"request_id": row.request_id, "entity_id": row.entity_id, "label": row.label,
                      "outcome_time": row.event_time + LABEL_DELAY_US, "revision": 0, "retracted": False}  # fmt: skip
            value = _encode(outcome, ids[1], result)
            await producer.send(OUTCOMES, value, key, partition)
            if row.Index % 10 == 0:
                await producer.send(OUTCOMES, value, key, partition)
        await producer.send(OUTCOMES, b"not avro", b"e0", 0)
        await producer.send(OUTCOMES, value, b"somebody else", 1)
        await producer.flush()
    finally:
        await producer.stop()


async def _read(settings: Settings, topic: str, partitions: int = PARTITIONS) -> list[Any]:
    """All records of a topic, partition by partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await consumer.start()
    try:
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        ends = await consumer.end_offsets(tps)
        records: list[Any] = []
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for found in (await consumer.getmany(timeout_ms=200)).values():
                records += found
        return records
    finally:
        await consumer.stop()


@pytest.fixture
async def stream(bootstrap_servers: str, tmp_path: Path) -> Stream:
    """Fresh topics with four days of predictions, an outcome for each, some twice, and two that nobody can use."""
    settings = load_settings(
        {
            "kafka": {"bootstrap_servers": bootstrap_servers, "partitions": PARTITIONS},
            "monitor": {"store": tmp_path / "store", "reports": tmp_path / "reports", "window": "day",
                        "maturity_s": 86_400, "allowed_lateness_s": 3600},
            "schemas": {"folder": FOLDER},
        },
        environ={},
    )  # fmt: skip
    await delete_topics(settings)
    await ensure_topics(settings)
    book, frame = SchemaBook(FOLDER), _frame()
    await _produce(settings, book, frame)
    reference = tmp_path / "reference.parquet"
    frame.rename(columns={"score": "raw_score"}).assign(score=frame["score"])[
        ["age", "town", "raw_score", "score", "label"]
    ].to_parquet(reference)
    return Stream(settings, book, frame, reference)


@pytest.fixture
async def producer(stream: Stream) -> AsyncIterator[OutputProducer]:
    """A started producer."""
    made = OutputProducer(stream.settings.kafka)
    await made.start()
    yield made
    await made.stop()


ALL = {(topic, p): (0, 2**62) for topic in (PREDICTIONS, OUTCOMES) for p in range(PARTITIONS)}


async def _play(stream: Stream, monitor: OutcomeMonitor) -> dict[tuple[str, int], int]:
    """Feed both topics to their ends; returns what a group would have committed."""
    committed: dict[tuple[str, int], int] = {}

    async def take(batch: RecordBatch) -> None:
        await monitor.handle(batch)
        committed[batch.topic, batch.partition] = batch.next_offset

    await read_ranges(connection_arguments(stream.settings.kafka), ALL, take, max_records=100)
    return committed


async def test_outcomes_are_joined_counted_and_published(stream: Stream, producer: OutputProducer) -> None:
    """Each labelled prediction leaves once with its mark, bad outcomes are dead letters, figures are scikit-learn's."""
    monitor = await stream.monitor(producer, {})
    await _play(stream, monitor)
    await monitor.tick()

    labelled = await _read(stream.settings, LABELLED)
    schema = stream.book.schema(int.from_bytes(labelled[0].value[1:5], "big"))
    assert schema is not None
    decoded = [fastavro.schemaless_reader(io.BytesIO(r.value[5:]), schema, None) for r in labelled]
    assert sorted(d["request_id"] for d in decoded) == stream.frame["request_id"].tolist()
    truth = stream.frame.set_index("request_id")
    for record, row in zip(labelled, decoded, strict=True):
        expected = truth.loc[row["request_id"]]
        assert (row["label"], row["features"]["age"]) == (expected["label"], expected["age"])
        assert (record.partition, record.key.decode()) == (expected["partition"], expected["entity_id"])
    assert len({dict(r.headers)["x-src"] for r in labelled}) == ROWS

    dead = await _read(stream.settings, OUTCOMES_DLQ)
    reasons = {r.value[:8]: dict(r.headers)["__connect.errors.exception.class.name"] for r in dead}
    assert len(dead) == 2
    assert reasons[b"not avro"] == b"NotFramed"
    assert set(reasons.values()) == {b"NotFramed", b"KeyMismatch"}

    snapshot = monitor.snapshot()
    counters = snapshot["counters"]
    assert (counters["predictions"], counters["joined"], counters["duplicates_outcomes"]) == (ROWS, ROWS, ROWS // 10)
    assert counters["undecodable"] == 2
    first = snapshot["windows"][0]
    day = stream.frame[stream.frame["event_time"] < START_US + 24 * HOUR_US]
    decided = day["score"] >= 0.5
    assert (first["label"], first["closing"], first["labelled"]) == ("2013-03-01", "final", len(day))
    assert first["precision"] == pytest.approx(precision_score(day["label"], decided))
    assert first["recall"] == pytest.approx(recall_score(day["label"], decided))
    assert first["brier"] == pytest.approx(brier_score_loss(day["label"], day["score"]), abs=1e-9)
    assert first["auc"] == pytest.approx(roc_auc_score(day["label"], day["score"]), abs=2e-3)
    assert first["drifted"] == []
    await monitor.stop()


async def test_each_closing_is_published_once(stream: Stream, producer: OutputProducer) -> None:
    """A closed window gives WINDOW_CLOSED, QUALITY and DRIFT once; ticking again, or restarting, publishes nothing."""
    monitor = await stream.monitor(producer, {})
    committed = await _play(stream, monitor)
    await monitor.tick()
    await monitor.tick()
    await monitor.stop()
    records = await _read(stream.settings, MONITOR_EVENTS, 1)
    schema = load_schema(FOLDER, "monitor_event")
    events: list[Any] = [fastavro.schemaless_reader(io.BytesIO(r.value[5:]), schema, None) for r in records]
    closed = [(e["window_start"].day, e["final"]) for e in events if e["kind"] == "WINDOW_CLOSED"]
    # The watermark stands at the end of day 4 less an hour: days 1 and 2 are mature, day 3 is closed.
    assert closed == [(1, True), (2, True), (3, False)]
    assert [e["kind"] for e in events] == ["WINDOW_CLOSED", "QUALITY", "DRIFT"] * 3
    assert events[1]["metrics"]["auc"] > 0.5

    again = await stream.monitor(producer, committed)
    await again.tick()
    await again.stop()
    shutil.rmtree(stream.settings.monitor.store)
    rebuilt = await stream.monitor(producer, committed)
    await rebuilt.tick()
    await rebuilt.stop()
    assert len(await _read(stream.settings, MONITOR_EVENTS, 1)) == len(records)


async def test_a_lost_store_is_rebuilt_byte_for_byte_in_silence(stream: Stream, producer: OutputProducer) -> None:
    """Without its store the monitor reads the topics again: equal windows, equal counters, nothing sent twice."""
    monitor = await stream.monitor(producer, {})
    committed = await _play(stream, monitor)
    before = _state(monitor)
    await monitor.stop()
    sent = len(await _read(stream.settings, LABELLED)), len(await _read(stream.settings, OUTCOMES_DLQ))
    shutil.rmtree(stream.settings.monitor.store)

    rebuilt = await stream.monitor(producer, committed)
    assert _state(rebuilt) == before
    await _play(stream, rebuilt)
    assert _state(rebuilt) == before
    assert rebuilt.snapshot()["counters"]["redelivered"] > 0
    await rebuilt.stop()
    assert sent == (len(await _read(stream.settings, LABELLED)), len(await _read(stream.settings, OUTCOMES_DLQ)))


async def test_a_cancelled_step_is_finished_before_the_store_closes(stream: Stream, producer: OutputProducer) -> None:
    """Whoever cancels `handle` half-way finds the whole step in the store, and its outputs sent once."""
    monitor = await stream.monitor(producer, {})

    async def take_and_cancel(batch: RecordBatch) -> None:
        task = asyncio.create_task(monitor.handle(batch))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    await read_ranges(connection_arguments(stream.settings.kafka), ALL, take_and_cancel)
    await monitor.stop()
    again = await stream.monitor(producer, {})
    assert again.snapshot()["counters"]["joined"] == ROWS
    assert len(await _read(stream.settings, LABELLED)) == ROWS
    await again.stop()


async def test_a_batch_of_a_partition_that_is_not_owned_is_refused(stream: Stream, producer: OutputProducer) -> None:
    """Nothing is done with it, so that nobody commits it; the partitions that are owned go on."""
    monitor = await stream.monitor(producer, {})
    await monitor.revoked({1})
    refused = 0

    async def take(batch: RecordBatch) -> None:
        nonlocal refused
        try:
            await monitor.handle(batch)
        except PartitionNotOwned:
            assert batch.partition == 1
            refused += 1

    await read_ranges(connection_arguments(stream.settings.kafka), ALL, take)
    assert refused > 0
    assert monitor.snapshot()["counters"]["joined"] == (stream.frame["partition"] == 0).sum()
    await monitor.stop()


async def test_a_report_is_written_for_a_closed_window(stream: Stream, producer: OutputProducer) -> None:
    """Closing a window leaves an HTML file of that window and `latest.html`, while the join goes on."""
    monitor = await stream.monitor(producer, {})
    await _play(stream, monitor)
    await monitor.tick()
    task = monitor._report_task
    assert task is not None
    await task
    names = monitor.snapshot()["reports"]
    assert names == ["demo-v3-2013-03-01.html"]
    for name in (*names, "latest.html"):
        page = (stream.settings.monitor.reports / name).read_text()
        assert "population stability index" in page
    await monitor.stop()


def _state(monitor: OutcomeMonitor) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for number, partition in monitor._partitions.items():
        found[number] = partition.meta.tallies
        for key in sorted(partition.revisions):
            counts = partition.window(key)
            assert counts is not None
            found[number, key] = counts.to_bytes()
    assert len(found) > PARTITIONS
    return found
