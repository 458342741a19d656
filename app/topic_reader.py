"""Reading ranges of a topic without a group, a few records at a time; it leaves no trace on the brokers."""

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

from app.connections import access_hint, connection_arguments
from app.errors import TopicError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

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
        TopicError: no broker answers.

    """
    admin = AIOKafkaAdminClient(**connection_arguments(kafka))
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
            TopicError: no progress for the request time-out, or a record that cannot be read.

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
                raise TopicError(msg) from exc
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
                raise TopicError(msg)

    async def read_together(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> AsyncIterator[list[Any]]:
        """The committed records of a range of each of some partitions, side by side; in order for each partition.

        Args:
            topic: its name.
            ranges: first offset and the one beyond the last, by partition.

        Raises:
            TopicError: no broker answers, or a record cannot be read.

        """
        left = {TopicPartition(topic, p): end for p, (start, end) in ranges.items() if start < end}
        self._consumer.assign(list(left))
        for tp in left:
            self._consumer.seek(tp, ranges[tp.partition][0])
        try:
            while left:
                fetched = await self._consumer.getmany(*left, timeout_ms=POLL_MS)
                for tp, records in fetched.items():
                    yield [record for record in records if record.offset < left[tp]]
                left = {tp: end for tp, end in left.items() if await self._consumer.position(tp) < end}
        except (KafkaError, UnicodeDecodeError) as exc:
            raise _unreachable(self._kafka, exc) from exc


@asynccontextmanager
async def open_reader(kafka: KafkaSettings) -> AsyncIterator[TopicReader]:
    """A connected reader; it leaves no trace on the brokers.

    Raises:
        TopicError: no broker answers.

    """
    consumer = AIOKafkaConsumer(
        **connection_arguments(kafka),
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


def _unreachable(kafka: KafkaSettings, cause: Exception) -> TopicError:
    return TopicError(
        f"Kafka at {kafka.bootstrap_servers} does not answer ({cause}); start it (`sluice up`), "
        f"or set KAFKA_BOOTSTRAP_SERVERS{access_hint(kafka)}"
    )
