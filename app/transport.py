"""A Faust transport that hands an agent whole record batches.

Everything that touches private names of Faust or aiokafka stands here, or in ``app/transaction_protocol.py`` for
transactions; ``tests/unit/app/test_transport_contract.py`` fails when an upgrade moves one of them. Faust 0.15.3,
aiokafka 0.14.0.

For the topics in ``BatchTransport.batch_topics`` an event's value is a ``Fetch``, one ``RecordBatch`` a partition: no
object is built for a record that nobody reads. Other topics are delivered record by record, as Faust does it.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, ClassVar

import faust
import numpy as np
from aiokafka.consumer import fetcher as fetcher_module
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import ConsumerStoppedError, CorruptRecordException
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP, ConsumerMessage

from app.fetched_records import FetchedRecords
from app.record_reader import PlainRecord, damaged
from app.standby import PrimariesFirst
from schemas.records import RecordBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import aiokafka
    from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
    from aiokafka.producer.message_accumulator import BatchBuilder
    from numpy.typing import NDArray

fetcher_module.MemoryRecords = FetchedRecords
"""aiokafka reads a fetch through this name and keeps its bytes to itself; ours reads the same, and keeps them."""


class PassThroughSchema(faust.Schema):  # type: ignore[type-arg]
    """Hands keys and values on as they are: decoding happens in our code, so that it can never throw into a stream."""

    async def decode(self, app: Any, message: Any, **_: Any) -> Any:  # noqa: ANN401 - Faust's own types are dynamic
        """The event of a message, undecoded."""
        return app.Event(app, message.key, message.value, message.headers, message)

    def compile(self, app: Any, **_: Any) -> Any:  # noqa: ANN401 - it needs none of Faust's hooks
        """The decode function that Faust calls for each message."""
        event_type = faust.Event

        async def decode(message: Any, *, propagate: bool = False) -> Any:  # noqa: ANN401, ARG001
            return event_type(app, message.key, message.value, message.headers, message)

        return decode


class Fetch(tuple[RecordBatch, ...]):
    """The record batches of one fetch, one for each partition that had something.

    They travel as one Faust event, that of the first: at moderate load a fetch brings a record or two for each
    partition, and Faust's work for an event costs more than ours for the record.
    """

    __slots__ = ()


class BatchConsumerThread(AIOKafkaConsumerThread):
    """The consumer thread; fetches batches for some topics, and of transactions only what is committed."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:  # noqa: ANN401 - Faust's type
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # noqa: SLF001 - Faust ties it to its own exactly-once
        consumer._partition_assignment_strategy = [transport.assignor]  # noqa: SLF001 - Faust offers none to choose
        return consumer

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek every partition to where its group goes on; without a committed offset to its beginning.

        Faust leaves a partition without one where it stands. A fetch that came back during the rebalance has moved it
        on and was thrown away, so what it held would never be read.
        """
        offsets: Mapping[TP, int] = await self.call_thread(self._seek_all)
        return offsets

    async def _seek_all(self) -> Mapping[TP, int]:
        consumer = self._ensure_consumer()
        offsets: Mapping[TP, int] = await consumer.seek_to_committed()
        fresh = [tp for tp, offset in offsets.items() if not offset]
        if fresh:
            await consumer.seek_to_beginning(*fresh)
        return offsets

    async def _fetch_records(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> dict[TP, list[Any]]:
        if not self.consumer.flow_active:
            return {}
        fetcher = consumer._fetcher  # noqa: SLF001
        if consumer._closed or fetcher._closed:  # noqa: SLF001
            raise ConsumerStoppedError
        transport: Any = self.consumer.transport
        if transport.linger_s:
            await asyncio.sleep(transport.linger_s)
        with fetcher._subscriptions.fetch_context():  # noqa: SLF001
            fetched = await _fetched(
                fetcher, active_partitions, timeout or 0.0, max_records or 4096, transport.batch_topics
            )
        return _bundled(fetched)


class BatchConsumer(Consumer):
    """The consumer on the worker's main thread."""

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def _wait_next_records(self, timeout: float) -> tuple[Any, set[TP] | None]:  # noqa: ASYNC109
        """What was fetched is delivered, even if its partition was paused while it was on its way.

        Faust would drop it, for ``pause_partitions`` changes the very set that is looked at here; the position has
        moved past it by then, so it would be read again after a rebalance at the earliest.
        """
        records, active = await super()._wait_next_records(timeout)
        if records and active is not None:
            active = active | (set(records) & self.assignment())
        return records, active

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:  # noqa: ANN401
        if not isinstance(record, Fetch):
            return super()._to_message(tp, record)
        first = record[0]
        whole: Any = record  # Faust declares bytes
        return ConsumerMessage(
            first.topic, first.partition, int(first.offsets[-1]), first.timestamps_ms[-1] / 1000.0, 0,
            [], None, whole, None, -1, -1, tp, generation_id=self.app.consumer_generation_id,
        )  # fmt: skip


class BatchTransport(Transport):
    """Faust's aiokafka transport with ``BatchConsumer``.

    Attributes:
        batch_topics: the topics that ask for batches.
        linger_s: how long a fetch waits for more after the first records; for readers to whom a batch is worth more
            than a moment.
        assignor: what the consumer joins its group with.

    """

    Consumer: ClassVar[type] = BatchConsumer
    batch_topics: ClassVar[frozenset[str]] = frozenset()
    linger_s: ClassVar[float] = 0.0
    assignor: ClassVar[type[PrimariesFirst]] = PrimariesFirst


async def commit_offsets(app: faust.App, offsets: Mapping[tuple[str, int], int]) -> bool:
    """Commit through Faust's consumer thread; False when the group has moved on and nothing was committed."""
    consumer: Any = app.consumer
    return bool(await consumer._commit({TP(*tp): offset for tp, offset in offsets.items()}))  # noqa: SLF001


def crash_reason(app: faust.App) -> BaseException | None:
    """Why the app, or what keeps its Kafka client's picture of the cluster, has ended; None: both run.

    After a crash Faust would stop half of itself and stay. Without its picture of the cluster a consumer that looks for
    its coordinator waits for ever: it neither commits nor heartbeats, and fetches on.
    """
    if app.crash_reason is not None:
        return app.crash_reason
    thread = getattr(app.consumer, "_thread", None)
    client: Any = None if thread is None or thread._consumer is None else thread._consumer._client  # noqa: SLF001
    keeper = None if client is None else client._sync_task  # noqa: SLF001
    if keeper is None or not keeper.done() or keeper.cancelled():
        return None
    return keeper.exception() or RuntimeError("the Kafka client follows its cluster no more")


def hold_consumer(app: faust.App, is_held: bool) -> None:  # noqa: FBT001 - handed over as a callback of one flag
    """Fetch nothing of the partitions that are assigned, or fetch again; the group membership is kept."""
    consumer: Any = app.consumer
    partitions = consumer.assignment()
    (consumer.pause_partitions if is_held else consumer.resume_partitions)(partitions)


async def committed_offsets(app: faust.App, partitions: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The group's committed offsets; 0 where there is none."""
    consumer: Any = app.consumer
    thread = consumer._thread  # noqa: SLF001
    found: dict[tuple[str, int], int] = {}
    for tp in partitions:
        offset = await thread.call_thread(thread._ensure_consumer().committed, TP(*tp))  # noqa: SLF001
        found[tp] = int(offset or 0)
    return found


def append_records(
    builder: BatchBuilder,
    keys: list[bytes | None],
    values: Sequence[bytes | None],
    headers: Sequence[Sequence[tuple[str, bytes]]] | None,
    start: int,
    timestamp_ms: int,
) -> int:
    """Fill a producer batch with records ``start`` .. and return the first that did not fit.

    Skips aiokafka's Python wrapper around its C builder, which costs more than the C code itself.
    """
    append = builder._builder.append  # noqa: SLF001
    none: list[tuple[str, bytes]] = []
    given = headers or repeat(none)
    rows = zip(islice(keys, start, None), islice(values, start, None), islice(given, start, None), strict=False)
    count = 0
    for key, value, row_headers in rows:
        own = row_headers if row_headers.__class__ is list else list(row_headers)  # the C builder takes lists only
        if append(count, timestamp_ms, key, value, own) is None:
            break
        count += 1
    builder._relative_offset = count  # noqa: SLF001
    builder.close()
    return start + count


async def _fetched(
    fetcher: Fetcher, partitions: set[TP], timeout_s: float, max_records: int, batch_topics: frozenset[str]
) -> dict[TP, list[Any]]:
    """What ``Fetcher.fetched_records`` does, with ``_drain`` in place of ``FetchResult.getall``."""
    deadline = time.monotonic() + timeout_s
    while True:
        if fetcher._subscriptions.reassignment_in_progress:  # noqa: SLF001
            await fetcher._subscriptions.wait_for_assignment()  # noqa: SLF001
        drained = _drain_ready(fetcher, partitions, max_records, batch_topics)
        remaining = deadline - time.monotonic()
        if drained or remaining <= 0:
            return drained
        waiter = fetcher._create_fetch_waiter()  # noqa: SLF001
        done, pending = await asyncio.wait([waiter], timeout=remaining)
        if not done or fetcher._closed:  # noqa: SLF001
            for future in pending:
                future.cancel()
            return {}
        waiter.result()  # an authorization error of the fetch task surfaces here


def _bundled(fetched: dict[TP, list[Any]]) -> dict[TP, list[Any]]:
    batches = [record for records in fetched.values() for record in records if isinstance(record, RecordBatch)]
    if not batches:
        return fetched
    carrier = TP(batches[0].topic, batches[0].partition)
    others = {tp: records for tp, records in fetched.items() if not isinstance(records[0], RecordBatch)}
    return {**others, carrier: [Fetch(batches)]}


def _drain_ready(
    fetcher: Fetcher, partitions: set[TP], max_records: int, batch_topics: frozenset[str]
) -> dict[TP, list[Any]]:
    drained: dict[TP, list[Any]] = {}
    for tp in list(fetcher._records):  # noqa: SLF001
        if partitions and tp not in partitions:
            if not fetcher._subscriptions.is_assigned(tp):  # noqa: SLF001
                del fetcher._records[tp]  # noqa: SLF001
            continue
        result = fetcher._records[tp]  # noqa: SLF001
        if type(result) is not FetchResult:
            if drained:
                break  # deliver what there is; the error is raised by the next call
            del fetcher._records[tp]  # noqa: SLF001
            fetcher._notify(fetcher._wait_consume_future)  # noqa: SLF001
            result.check_raise()
            continue
        records = _drain(result, max_records) if tp.topic in batch_topics else result.getall(max_records)
        if not result.has_more():
            del fetcher._records[tp]  # noqa: SLF001
            fetcher._notify(fetcher._wait_consume_future)  # noqa: SLF001
        if records:
            drained[tp] = records
    return drained


def _drain(result: FetchResult, max_records: int) -> list[RecordBatch]:
    """At most one batch: the whole Kafka batches of a fetch until ``max_records`` are reached."""
    tp = result._topic_partition  # noqa: SLF001
    if not result.check_assignment(tp) or not result.has_more():
        return []
    source = result._partition_records  # noqa: SLF001
    start = source.next_fetch_offset
    records = _take_records(source, max_records)
    result._update_position()  # noqa: SLF001
    next_offset = source.next_fetch_offset
    batches: FetchedRecords = source._records  # noqa: SLF001
    if batches.rest is None and not batches.has_next():
        result._partition_records = None  # noqa: SLF001
    return [_record_batch(tp, records, start, next_offset, is_suspect=batches.is_suspect)] if records else []


def _record_batch(tp: TP, records: list[Any], start: int, next_offset: int, *, is_suspect: bool) -> RecordBatch:
    headers = [r.headers for r in records]
    first, last = records[0].offset, records[-1].offset
    is_dense = last - first + 1 == len(records)  # not compacted: no need to ask each record
    batch = RecordBatch(
        topic=tp.topic,
        partition=tp.partition,
        start_offset=start,
        next_offset=next_offset,
        offsets=np.arange(first, last + 1) if is_dense else np.array([r.offset for r in records], dtype=np.int64),
        timestamps_ms=_timestamps_ms(records),
        keys=[r.key for r in records],
        values=[r.value for r in records],
        headers=[tuple(h) for h in headers] if any(headers) else [],
        received_s=time.monotonic(),
    )
    if not is_suspect:
        return batch
    problems = {i: r.problem for i, r in enumerate(records) if isinstance(r, PlainRecord) and r.problem is not None}
    return damaged(batch, problems)


def _timestamps_ms(records: list[Any]) -> NDArray[np.int64]:
    stamps = [r.timestamp for r in records]
    try:
        return np.array(stamps, dtype=np.int64)
    except TypeError:  # a producer may leave it out, and brokers let it
        return np.array([-1 if stamp is None else stamp for stamp in stamps], dtype=np.int64)


def _take_records(source: PartitionRecords, max_records: int) -> list[Any]:
    """Records of the next Kafka batches, as ``PartitionRecords._unpack_records`` would yield them."""
    taken: list[Any] = []
    batches: FetchedRecords = source._records  # noqa: SLF001
    while len(taken) < max_records:
        if batches.rest is not None:
            records, source.next_fetch_offset = batches.take_rest(max_records - len(taken))
            taken += records
            continue
        if not batches.has_next():
            break
        batch = batches.next_batch()
        if source._check_crcs and not batch.validate_crc():  # noqa: SLF001
            msg = f"Invalid CRC - {source._tp}"  # noqa: SLF001
            raise CorruptRecordException(msg)
        if not _is_hidden(source, batch):
            # The first wanted offset lies inside a batch when that offset was committed.
            found = batches.records_of(batch, source.next_fetch_offset)
            if found is None:
                continue
            taken += found
        source.next_fetch_offset = batch.next_offset
    return taken


def _is_hidden(source: PartitionRecords, batch: Any) -> bool:  # noqa: ANN401 - a C extension type
    """A transaction marker, or for read_committed a batch of an aborted transaction."""
    if source._isolation_level == READ_COMMITTED and batch.producer_id is not None:  # noqa: SLF001
        source._consume_aborted_up_to(batch.base_offset)  # noqa: SLF001
        if batch.is_control_batch and source._contains_abort_marker(batch):  # noqa: SLF001
            source._aborted_producers.discard(batch.producer_id)  # noqa: SLF001
        if batch.is_transactional and batch.producer_id in source._aborted_producers:  # noqa: SLF001
            return True
    return bool(batch.is_control_batch)
