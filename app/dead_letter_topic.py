"""Reading a dead-letter topic from its start to its end of this moment, without a group, a few records at a time."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from app.dead_letters import DeadLetter, DeadLetterError
from app.errors import TopicError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.dead_letters import Selection
    from app.settings import KafkaSettings

POLL_MS = 200
CHUNK_RECORDS = 500


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the brokers say of themselves.

    Attributes:
        name: the cluster's id.
        partitions: number of partitions of each topic.

    """

    name: str
    partitions: dict[str, int]

    def count(self, topic: str) -> int:
        """Partitions of a topic.

        Raises:
            TopicError: there is no such topic.

        """
        if topic not in self.partitions:
            msg = f"there is no topic {topic}; check the name and KAFKA_BOOTSTRAP_SERVERS, or run `sluice topics`"
            raise TopicError(msg)
        return self.partitions[topic]


async def find_cluster(kafka: KafkaSettings) -> Cluster:
    """Ask the brokers; a topic that is asked for is never created by that.

    Raises:
        DeadLetterError: no broker answers.

    """
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    try:
        await admin.start()
        described = await admin.describe_topics()
        cluster = await admin.describe_cluster()
    except KafkaError as exc:
        raise _unreachable(kafka, exc) from exc
    finally:
        await admin.close()
    return Cluster(str(cluster.get("cluster_id")), {t["topic"]: len(t["partitions"]) for t in described})


class TopicReader:
    """Reads ranges of offsets; made by ``open_reader``."""

    def __init__(self, consumer: AIOKafkaConsumer, kafka: KafkaSettings) -> None:
        self._consumer = consumer
        self._kafka = kafka

    async def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset that is kept, and the offset that the next committed record will have."""
        tp = TopicPartition(topic, partition)
        try:
            starts = await self._consumer.beginning_offsets([tp])
            ends = await self._consumer.end_offsets([tp])
        except KafkaError as exc:
            raise _unreachable(self._kafka, exc) from exc
        return int(starts[tp]), int(ends[tp])

    async def first_since(self, topic: str, partition: int, since_ms: int, default: int) -> int:
        """Offset of the first record of that time or later; ``default`` when there is none."""
        tp = TopicPartition(topic, partition)
        try:
            found = (await self._consumer.offsets_for_times({tp: since_ms}))[tp]
        except KafkaError as exc:
            raise _unreachable(self._kafka, exc) from exc
        return default if found is None else int(found.offset)

    async def read(self, topic: str, partition: int, start: int, end: int) -> AsyncIterator[list[Any]]:
        """The committed records of a range in order, at most ``CHUNK_RECORDS`` at a time.

        Raises:
            DeadLetterError: no progress for the request time-out, or a record that cannot be read.

        """
        if start >= end:
            return
        tp = TopicPartition(topic, partition)
        self._consumer.assign([tp])
        self._consumer.seek(tp, start)
        position, moved_s = start, time.monotonic()
        while position < end:
            try:
                fetched = await self._consumer.getmany(tp, timeout_ms=POLL_MS, max_records=CHUNK_RECORDS)
                reached = await self._consumer.position(tp)
            except KafkaError as exc:
                raise _unreachable(self._kafka, exc) from exc
            except UnicodeDecodeError as exc:
                msg = (
                    f"{topic} {partition}: a record from {position} on has a header name that is not UTF-8; "
                    "look at the others with --partition or by their places"
                )
                raise DeadLetterError(msg) from exc
            records = [record for record in fetched.get(tp, ()) if record.offset < end]
            if records:
                yield records
            if reached > position:
                position, moved_s = reached, time.monotonic()
            elif time.monotonic() - moved_s > self._kafka.request_timeout_s:
                msg = (
                    f"{topic} {partition}: nothing came from offset {position} on for "
                    f"{self._kafka.request_timeout_s:.0f} s; look at the brokers, then run the command again"
                )
                raise DeadLetterError(msg)


@asynccontextmanager
async def open_reader(kafka: KafkaSettings) -> AsyncIterator[TopicReader]:
    """A connected reader; it leaves no trace on the brokers.

    Raises:
        DeadLetterError: no broker answers.

    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers,
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",
        request_timeout_ms=int(kafka.request_timeout_s * 1000),
    )
    try:
        await consumer.start()
        await asyncio.sleep(0)  # aiokafka's stop() fails while a task of its own has not had its first turn
        yield TopicReader(consumer, kafka)
    except KafkaError as exc:
        raise _unreachable(kafka, exc) from exc
    finally:
        await consumer.stop()


@dataclass(frozen=True, slots=True)
class Range:
    """What is read of one partition, ``start`` <= offset < ``end``."""

    topic: str
    partition: int
    start: int
    end: int


async def find_ranges(reader: TopicReader, topic: str, partitions: int, selection: Selection) -> list[Range]:
    """Where the wanted dead letters can be, up to the end of this moment.

    Args:
        reader: connected.
        topic: the dead-letter topic.
        partitions: how many it has.
        selection: of dead letters.

    Raises:
        DeadLetterError: the selection names a partition that the topic lacks.

    """
    named = {partition for partition, _ in selection.places}
    if selection.partition is not None:
        named.add(selection.partition)
    if named and max(named) >= partitions:
        msg = f"{topic} has no partition {max(named)}; its partitions are 0 to {partitions - 1}"
        raise DeadLetterError(msg)
    ranges = []
    for partition in range(partitions):
        start, end = selection.span(partition, *await reader.bounds(topic, partition))
        if selection.since_ms is not None and start < end:
            start = max(start, await reader.first_since(topic, partition, selection.since_ms, end))
        ranges.append(Range(topic, partition, start, end))
    return ranges


async def read_letters(reader: TopicReader, ranges: list[Range]) -> AsyncIterator[DeadLetter]:
    """All dead letters of the ranges, partition by partition, in order."""
    for span in ranges:
        async for records in reader.read(span.topic, span.partition, span.start, span.end):
            for r in records:
                headers = tuple((name, value or b"") for name, value in r.headers)
                yield DeadLetter(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, headers)


def _unreachable(kafka: KafkaSettings, cause: Exception) -> DeadLetterError:
    return DeadLetterError(
        f"Kafka at {kafka.bootstrap_servers} does not answer ({cause}); start it (`sluice up`), "
        "or set KAFKA_BOOTSTRAP_SERVERS"
    )
