"""The private names of Faust 0.15.3 and aiokafka 0.14 that ``app/transport.py`` stands on, one by one.

An upgrade that moves one of them fails here, with its name, instead of in a worker.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.fetcher
import faust
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CorruptRecordException
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.producer import AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatch, LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, ConsumerMessage
from hypothesis import given, settings
from hypothesis import strategies as st

import app.transport
from app.fetched_records import FetchedRecords
from app.record_reader import DamagedBatch
from app.transport import (
    BatchConsumer,
    BatchConsumerThread,
    BatchTransport,
    Fetch,
    PassThroughSchema,
    _bundled,
    _drain,
    append_records,
    crash_reason,
)
from bench.kafka_batches import COMPRESS, record
from bench.kafka_batches import batch as raw_batch
from schemas.records import RecordBatch
from tests.samples import record_batch

TOPIC = TP("score-requests", 3)


def _parameters(function: Any) -> list[str]:  # noqa: ANN401 - any callable
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(("package", "known"), [("faust-streaming", "0.15.3"), ("aiokafka", "0.14.")])
def test_the_versions_are_those_that_were_read(package: str, known: str) -> None:
    """Another version means: read the sources again, then change this line."""
    assert version(package).startswith(known)


SIGNATURES: dict[str, tuple[Any, list[str]]] = {
    "AIOKafkaConsumerThread._fetch_records": (
        AIOKafkaConsumerThread._fetch_records, ["self", "consumer", "active_partitions", "timeout", "max_records"],
    ),
    "AIOKafkaConsumerThread._ensure_consumer": (AIOKafkaConsumerThread._ensure_consumer, ["self"]),
    "AIOKafkaConsumerThread._create_worker_consumer": (
        AIOKafkaConsumerThread._create_worker_consumer, ["self", "transport"],
    ),
    "AIOKafkaConsumerThread.call_thread": (AIOKafkaConsumerThread.call_thread, ["self", "fun", "args", "kwargs"]),
    "Consumer._new_consumer_thread": (Consumer._new_consumer_thread, ["self"]),
    "Consumer._wait_next_records": (Consumer._wait_next_records, ["self", "timeout"]),
    "Consumer._to_message": (Consumer._to_message, ["self", "tp", "record"]),
    "Consumer._commit": (Consumer._commit, ["self", "offsets"]),
    "Schema.decode": (faust.Schema.decode, ["self", "app", "message", "propagate"]),
    "Event": (faust.Event.__init__, ["self", "app", "key", "value", "headers", "message"]),
    "Fetcher.fetched_records": (Fetcher.fetched_records, ["self", "partitions", "timeout", "max_records"]),
    "Fetcher._create_fetch_waiter": (Fetcher._create_fetch_waiter, ["self"]),
    "Fetcher._notify": (Fetcher._notify, ["self", "future"]),
    "FetchResult": (FetchResult.__init__, ["self", "tp", "assignment", "partition_records", "backoff"]),
    "FetchResult.check_assignment": (FetchResult.check_assignment, ["self", "tp"]),
    "FetchResult.has_more": (FetchResult.has_more, ["self"]),
    "FetchResult.getall": (FetchResult.getall, ["self", "max_records"]),
    "FetchResult._update_position": (FetchResult._update_position, ["self"]),
    "FetchError.check_raise": (FetchError.check_raise, ["self"]),
    "PartitionRecords._consume_aborted_up_to": (PartitionRecords._consume_aborted_up_to, ["self", "batch_offset"]),
    "PartitionRecords._contains_abort_marker": (PartitionRecords._contains_abort_marker, ["self", "next_batch"]),
    "SubscriptionState.fetch_context": (SubscriptionState.fetch_context, ["self"]),
    "SubscriptionState.is_assigned": (SubscriptionState.is_assigned, ["self", "tp"]),
    "SubscriptionState.wait_for_assignment": (SubscriptionState.wait_for_assignment, ["self"]),
    "AIOKafkaProducer.create_batch": (AIOKafkaProducer.create_batch, ["self"]),
    "AIOKafkaProducer.send_batch": (AIOKafkaProducer.send_batch, ["self", "batch", "topic", "partition"]),
    "BatchBuilder.close": (BatchBuilder.close, ["self"]),
    "AIOKafkaConsumerThread.seek_to_committed": (AIOKafkaConsumerThread.seek_to_committed, ["self"]),
    "AIOKafkaConsumer.seek_to_committed": (AIOKafkaConsumer.seek_to_committed, ["self", "partitions"]),
    "AIOKafkaConsumer.seek_to_beginning": (AIOKafkaConsumer.seek_to_beginning, ["self", "partitions"]),
    "Consumer.pause_partitions": (Consumer.pause_partitions, ["self", "tps"]),
    "Consumer.resume_partitions": (Consumer.resume_partitions, ["self", "tps"]),
    "AIOKafkaConsumer.committed": (AIOKafkaConsumer.committed, ["self", "partition"]),
}  # fmt: skip


async def test_partitions_without_a_commit_go_back_to_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that was thrown away in a rebalance has moved their position on; Faust would go on from there."""

    class Seeker:
        def __init__(self) -> None:
            self.to_beginning: list[TP] = []

        async def seek_to_committed(self) -> dict[TP, int | None]:
            return {TP("t", 0): 7, TP("t", 1): None, TP("t", 2): 0}

        async def seek_to_beginning(self, *partitions: TP) -> None:
            self.to_beginning += partitions

    seeker, thread = Seeker(), BatchConsumerThread.__new__(BatchConsumerThread)
    monkeypatch.setattr(BatchConsumerThread, "_ensure_consumer", lambda _: seeker)
    assert (await thread._seek_all())[TP("t", 0)] == 7
    assert seeker.to_beginning == [TP("t", 1), TP("t", 2)]


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_name_has_the_signature_that_we_call(name: str) -> None:
    """What we override or call takes what we take or give."""
    function, expected = SIGNATURES[name]
    assert _parameters(function) == expected


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (Fetcher, ["_subscriptions", "_records", "_closed", "_wait_consume_future"]),
        (FetchResult, ["_topic_partition", "_partition_records"]),
        (
            PartitionRecords,
            ["_records", "_tp", "_check_crcs", "_isolation_level", "_aborted_producers", "next_fetch_offset"],
        ),
        (AIOKafkaConsumer, ["_fetcher", "_closed", "_isolation_level", "_partition_assignment_strategy", "_client"]),
        (AIOKafkaClient, ["_sync_task"]),
        (BatchBuilder, ["_builder", "_relative_offset"]),
        (AIOKafkaConsumerThread, ["consumer", "_consumer"]),
        (Consumer, ["_thread"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_class_keeps_the_attributes_that_we_read(owner: type, names: list[str]) -> None:
    """The sources assign each of them."""
    sources = "\n".join(inspect.getsource(cls) for cls in owner.__mro__ if cls is not object and _has_source(cls))
    tree = ast.parse(inspect.cleandoc(sources) if sources.startswith(" ") else sources)
    assigned = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    declared = {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    assert set(names) <= assigned | declared


def _has_source(cls: type) -> bool:
    try:
        inspect.getsource(cls)
    except (OSError, TypeError):
        return False
    return True


async def test_a_client_that_follows_its_cluster_no_more_is_a_reason_to_end() -> None:
    """Its consumer would wait for a coordinator for ever; before it starts, and while it stops, there is no reason."""

    async def fail() -> None:
        msg = "the handler is closed"
        raise RuntimeError(msg)

    client = SimpleNamespace(_sync_task=None)
    thread = SimpleNamespace(_consumer=None)
    worker: Any = SimpleNamespace(crash_reason=None, consumer=SimpleNamespace(_thread=thread))
    assert crash_reason(worker) is None
    thread._consumer = SimpleNamespace(_client=client)
    assert crash_reason(worker) is None
    client._sync_task = asyncio.create_task(asyncio.sleep(60))
    assert crash_reason(worker) is None
    client._sync_task.cancel()
    await asyncio.wait([client._sync_task])
    assert crash_reason(worker) is None
    client._sync_task = asyncio.create_task(fail())
    await asyncio.wait([client._sync_task])
    assert "the handler is closed" in str(crash_reason(worker))
    worker.crash_reason = ValueError("Faust's own")
    assert crash_reason(worker) is worker.crash_reason


def test_every_private_name_that_is_used_is_listed_here() -> None:
    """``transport.py`` reaches for no private name that this file does not hold."""
    here = Path(__file__).read_text(encoding="utf-8")
    tree = ast.parse(Path(app.transport.__file__).read_text(encoding="utf-8"))
    used = {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("_") and n.attr[1] != "_"
    }
    assert len(used) > 10
    assert {name for name in used if re.search(rf"(?<!\w){name}\b", here) is None} == set()


async def test_what_was_fetched_is_delivered_though_its_partition_was_paused_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a partition that is still ours; of one that was taken away nothing is delivered."""
    active = {TP("t", 0), TP("t", 1)}

    async def fetch(self: Consumer, timeout: float) -> tuple[Any, set[TP]]:  # noqa: ASYNC109, ARG001
        active.clear()  # as ``pause_partitions`` does, in the very set that Faust looks at afterwards
        return {TP("t", 0): ["a"], TP("t", 9): ["b"]}, active

    monkeypatch.setattr(Consumer, "_wait_next_records", fetch)
    consumer = object.__new__(BatchConsumer)
    monkeypatch.setattr(BatchConsumer, "assignment", lambda _: {TP("t", 0), TP("t", 1)})
    records, delivered = await consumer._wait_next_records(1.0)
    assert set(records) & delivered == {TP("t", 0)}


def test_the_transport_is_built_from_our_classes() -> None:
    """Faust asks the transport for its consumer and the consumer for its thread."""
    assert BatchTransport.Consumer is BatchConsumer
    assert issubclass(BatchTransport, Transport)
    assert isinstance(SubscriptionState.reassignment_in_progress, property)
    assert issubclass(BatchConsumerThread, AIOKafkaConsumerThread)
    assert inspect.iscoroutinefunction(AIOKafkaConsumerThread._fetch_records)
    assert inspect.iscoroutinefunction(Consumer._commit)
    assert inspect.iscoroutinefunction(AIOKafkaProducer.send_batch)
    assert not inspect.iscoroutinefunction(AIOKafkaProducer.create_batch)


def test_a_message_carries_a_batch_with_its_generation() -> None:
    """The stream's events know value, partition and offset, and of which generation of the group they are."""
    wanted = ["topic", "partition", "offset", "timestamp", "timestamp_type", "headers", "key", "value", "checksum"]
    wanted += ["serialized_key_size", "serialized_value_size", "tp"]
    assert _parameters(ConsumerMessage)[:12] == wanted
    assert "generation_id" in _parameters(ConsumerMessage)
    compiled = PassThroughSchema().compile(None, on_key_decode_error=None, on_value_decode_error=None)
    assert "propagate" in _parameters(compiled)


def _builder(size: int = 65_536) -> BatchBuilder:
    return BatchBuilder(size, 0)


def test_the_c_builder_is_the_one_that_we_know() -> None:
    """Relative offset, timestamp, key, value and headers by position; None when it is full; offsets from 0."""
    builder = _builder()
    assert type(builder._builder) is DefaultRecordBatchBuilder
    assert builder._builder.append(0, 1000, b"k", b"v", [("h", b"x")]) is not None
    assert builder._builder.append(1, 1001, None, None, []) is not None
    small = _builder(100)
    assert small._builder.append(0, 1000, None, b"x" * 200, []) is not None, "the first record always fits"
    assert small._builder.append(1, 1000, None, b"x" * 200, []) is None


records_strategy = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=5),
        st.none() | st.binary(max_size=60),
        st.lists(st.tuples(st.text(max_size=4), st.binary(max_size=4)), max_size=2),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(records_strategy, st.integers(80, 600))
def test_what_is_appended_is_what_a_consumer_reads(records: list[Any], batch_bytes: int) -> None:
    """Keys, values and headers of all records, in order, over as many batches as it takes."""
    keys, values, headers = ([r[i] for r in records] for i in range(3))
    read, start = [], 0
    while start < len(values):
        builder = _builder(batch_bytes)
        end = append_records(builder, keys, values, headers, start, 1_700_000_000_000)
        assert end > start
        assert (builder.record_count(), builder.closed()) == (end - start, True)
        batches = MemoryRecords(bytes(builder._build()))
        while batches.has_next():
            read += [(r.key, r.value, list(r.headers)) for r in batches.next_batch()]
        start = end
    assert read == records


class _Assignment:
    """One partition, active, at a position."""

    active = True

    def __init__(self, position: int) -> None:
        self.position, self.paused = position, False

    def state_value(self, _: TopicPartition) -> _Assignment:
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def _kafka_batch(base: int, values: list[bytes], *, producer: int = -1, transactional: bool = False) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, int(transactional), producer, 0, 0, 65_536)
    for i, value in enumerate(values):
        builder.append(i, 1000 + i, b"k", value, [])
    raw = bytearray(builder.build())
    raw[:8] = base.to_bytes(8, "big")  # brokers assign the base offset; the checksum does not cover it
    return bytes(raw)


def _fetch(
    raw: bytes, position: int, *, aborted: list[tuple[int, int]] | None = None, isolation: int = 0
) -> FetchResult:
    source = PartitionRecords(TOPIC, FetchedRecords(raw), aborted, position, None, None, True, isolation)
    return FetchResult(TOPIC, assignment=_Assignment(position), partition_records=source, backoff=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=5),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_a_drain_gives_what_getall_gives(shape: list[tuple[int, int]], skipped: int, max_records: int) -> None:
    """Same records as aiokafka's own way, in batches whose ranges touch, from a position inside a Kafka batch on."""
    raw, base = b"", 0
    for count, gap in shape:
        raw += _kafka_batch(base, [b"%d" % (base + i) for i in range(count)])
        base += count + gap
    position = min(skipped, shape[0][0] - 1)
    expected = _fetch(raw, position).getall()
    result, drained = _fetch(raw, position), []
    while result.has_more():
        drained += _drain(result, max_records)
    assert all(isinstance(batch, RecordBatch) for batch in drained)
    assert [v for batch in drained for v in batch.values] == [r.value for r in expected]
    assert np.concatenate([batch.offsets for batch in drained]).tolist() == [r.offset for r in expected]
    assert drained[0].start_offset == position
    assert drained[-1].next_offset == expected[-1].offset + 1
    assert all(a.next_offset == b.start_offset for a, b in pairwise(drained))


def test_aborted_transactions_stay_hidden() -> None:
    """With read_committed the records of an aborted transaction are skipped, and their offsets stand in the range."""
    raw = (
        _kafka_batch(0, [b"a"])
        + _kafka_batch(1, [b"gone", b"gone"], producer=7, transactional=True)
        + _kafka_batch(3, [b"b"])
    )
    result = _fetch(raw, 0, aborted=[(7, 1)], isolation=READ_COMMITTED)
    [batch] = _drain(result, 100)
    assert batch.values == [b"a", b"b"]
    assert (batch.start_offset, batch.next_offset, batch.offsets.tolist()) == (0, 4, [0, 3])


def test_a_flipped_bit_is_noticed() -> None:
    """A checksum that does not fit raises what aiokafka raises."""
    raw = bytearray(_kafka_batch(0, [b"value"]))
    raw[-2] ^= 1
    with pytest.raises(CorruptRecordException):
        _drain(_fetch(bytes(raw), 0), 100)


def test_records_of_an_old_assignment_are_dropped() -> None:
    """After a seek, a pause or a rebalance what was fetched before is not delivered."""
    for change in ({"position": 5}, {"paused": True}, {"active": False}):
        result = _fetch(_kafka_batch(0, [b"a"]), 0)
        for name, value in change.items():
            setattr(result._assignment, name, value)
        assert _drain(result, 100) == []
        assert not result.has_more()


def test_batches_of_aiokafka_have_the_attributes_that_we_read() -> None:
    """The C type names its offsets, its producer and its kind so."""
    batch = MemoryRecords(_kafka_batch(5, [b"a", b"b"])).next_batch()
    assert isinstance(batch, DefaultRecordBatch)
    assert (batch.base_offset, batch.next_offset, batch.is_control_batch, batch.is_transactional) == (
        5,
        7,
        False,
        False,
    )
    assert batch.producer_id == -1
    assert batch.validate_crc()
    record = next(iter(batch))
    assert (record.offset, record.timestamp, record.key, record.value, list(record.headers)) == (
        5,
        1000,
        b"k",
        b"a",
        [],
    )


def test_aiokafka_reads_a_fetch_through_our_class() -> None:
    """The fetcher looks the name up in its module each time, and finds ours there, which reads what its own does."""
    assert aiokafka.consumer.fetcher.MemoryRecords is FetchedRecords
    assert "records = MemoryRecords(part_data[-1])" in inspect.getsource(Fetcher._proc_fetch_request)
    raw = _kafka_batch(5, [b"a"]) + _kafka_batch(6, [b"b"])
    records = FetchedRecords(raw)
    assert (records.has_next(), records.size_in_bytes(), records.raw) == (True, len(raw), raw)
    assert [records.next_batch().base_offset, records.next_batch().base_offset] == [5, 6]
    assert not records.has_next()


def _values(result: FetchResult, max_records: int = 100) -> list[RecordBatch]:
    drained = []
    while result.has_more():
        drained += _drain(result, max_records)
    return drained


@pytest.mark.parametrize("codec", COMPRESS)
def test_an_odd_header_name_is_read_by_our_own_reader(codec: int) -> None:
    """Aiokafka raises for a name that is not UTF-8; its record and its neighbours are delivered all the same."""
    odd = raw_batch([record(b"a", headers=[(b"x\xff", b"1")]), record(b"b", place=1)], base=1, codec=codec)
    [batch] = _values(_fetch(_kafka_batch(0, [b"first"]) + odd + _kafka_batch(3, [b"last"]), 0))
    assert not isinstance(batch, DamagedBatch)
    assert batch.values == [b"first", b"a", b"b", b"last"]
    assert batch.headers[1] == (("x\\xff", b"1"),)
    assert (batch.start_offset, batch.next_offset, batch.offsets.tolist()) == (0, 4, [0, 1, 2, 3])
    [inside] = _values(_fetch(odd, 2))
    assert (inside.values, inside.start_offset) == ([b"b"], 2)


def test_compressed_batches_are_found_among_others() -> None:
    """Each in its place, whatever lies between them, and also when the first one is read a second time."""
    odd = [record(b"odd", headers=[(b"\xff", b"")])]
    raw = b"".join(
        raw_batch(odd if base % 5 == 0 else [record(b"%d" % base)], base=base, codec=base % 3) for base in range(40)
    )
    batches = _values(_fetch(raw, 0), 7)
    assert [v for b in batches for v in b.values] == [b"odd" if base % 5 == 0 else b"%d" % base for base in range(40)]


def test_a_batch_that_cannot_be_inflated_is_delivered_in_pieces() -> None:
    """Each offset once, never more at a time than is asked for, and what follows is read."""
    lost = raw_batch([b""] * 5, base=1, codec=4, body=b"not zstd")
    batches = _values(_fetch(_kafka_batch(0, [b"first"]) + lost + _kafka_batch(6, [b"last"]), 0), 2)
    assert [b.offsets.tolist() for b in batches] == [[0, 1], [2, 3], [4, 5], [6]]
    assert all(a.next_offset == b.start_offset for a, b in pairwise(batches))
    assert batches[0].values[1] == lost
    unreadable = [b.unreadable if isinstance(b, DamagedBatch) else {} for b in batches]
    assert [sorted(u) for u in unreadable] == [[1], [0, 1], [0, 1], []]
    assert "a zstd batch is corrupt" in unreadable[0][1]


def test_a_huge_record_of_a_small_batch_is_cut() -> None:
    """Sent compressed, it is larger than any topic takes: it is delivered as damaged, its neighbours as they are."""
    huge = raw_batch([record(b"a"), record(bytes(2**21), place=1), record(b"c", place=2)], codec=1)
    [batch] = _values(_fetch(huge, 0))
    assert isinstance(batch, DamagedBatch)
    assert list(batch.unreadable) == [1]
    assert (batch.values[0], len(batch.values[1] or b""), batch.values[2]) == (b"a", 2**20, b"c")


def test_a_record_without_a_time_is_read() -> None:
    """Brokers take a record without a timestamp; it is -1, as on the wire."""
    [batch] = _values(_fetch(raw_batch([record(b"a"), record(b"b", place=1, later_ms=3)], first_ms=-1), 0))
    assert batch.timestamps_ms.tolist() == [-1, 2]


def _old_format() -> bytearray:
    builder = LegacyRecordBatchBuilder(1, LegacyRecordBatch.CODEC_GZIP, 1000)
    builder.append(0, 1000, b"k", b"value" * 20)
    builder.append(1, 1001, b"k", b"other")
    return bytearray(builder.build())


def test_the_old_format_is_read() -> None:
    """Logs that began before Kafka 0.11 may still hold it."""
    [batch] = _values(_fetch(bytes(_old_format()), 0))
    assert (batch.values, batch.offsets.tolist()) == ([b"value" * 20, b"other"], [0, 1])


def test_a_broken_batch_of_the_old_format_stops_the_worker_with_a_remedy() -> None:
    """Nothing of it can be saved, and going on would lose it: the message says how to go past it."""
    broken = _old_format()
    broken[-30:] = bytes(30)
    source = PartitionRecords(TOPIC, FetchedRecords(bytes(broken)), None, 0, None, None, False, 0)
    result = FetchResult(TOPIC, assignment=_Assignment(0), partition_records=source, backoff=0)
    with pytest.raises(CorruptRecordException, match=r"offset 0 .* before Kafka 0\.11 and damaged .* --reset-offsets"):
        _drain(result, 10)


def test_a_fetch_travels_as_one_event() -> None:
    """The batches of all partitions go under the first; other topics keep their records; nothing is lost or doubled."""
    batches = [record_batch([b"x"], [b"k"], partition=p, first=10 * p) for p in (1, 2)]
    others = {TP("other", 0): ["a", "b"]}
    fetched = {TP(b.topic, b.partition): [b] for b in batches} | others
    bundled = _bundled(fetched)
    assert list(bundled) == [*others, TP(batches[0].topic, 1)]
    [fetch] = bundled[TP(batches[0].topic, 1)]
    assert isinstance(fetch, Fetch)
    assert [one is other for one, other in zip(fetch, batches, strict=True)] == [True, True]
    assert bundled[TP("other", 0)] == ["a", "b"]
    assert _bundled(others) == others
    assert _bundled({}) == {}
