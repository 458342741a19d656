"""A plain Kafka client for tests: produce, read whole topics, ask what a group has committed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord, TopicPartition

from agents import topics
from schemas.wire import parse_source_mark

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from app.settings import Settings
    from schemas.records import Headers

T = TypeVar("T")
READ_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Message:
    """What a producer sends; without a partition the default partitioner (murmur2) chooses."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class KafkaClient:
    """Blocking calls on an event loop of their own, so that tests and fixtures of any scope can use it."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._runner = asyncio.Runner()
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None

    def fresh_topics(self, settings: Settings) -> None:
        """Delete all topics of the contract, and make them again."""
        self.delete_topics(settings)
        self._run(topics.ensure_topics(settings))

    def delete_topics(self, settings: Settings) -> None:
        """Delete all topics of the contract."""
        self._run(topics.delete_topics(settings))

    def create_topic(self, name: str, partitions: int) -> None:
        """Make one topic."""
        self._run(self._create(name, partitions))

    def produce(self, messages: Sequence[Message], topic: str = topics.REQUESTS) -> list[tuple[int, int]]:
        """Send all messages; returns partition and offset of each."""
        return self._run(self._produce(topic, messages))

    def ends(self, topic: str) -> dict[int, int]:
        """Partition to the offset that its next record will have."""
        return self._run(self._ends(topic))

    def count(self, topic: str) -> int:
        """Offsets of a topic that never lost a record: its records, and transaction markers if any."""
        return sum(self.ends(topic).values())

    def lag(self, group: str, topic: str = topics.REQUESTS) -> int:
        """Records of a topic that a group has not committed."""
        return self._run(self._lag(group, topic))

    def read(self, topic: str, since: dict[int, int] | None = None) -> list[ConsumerRecord]:
        """All committed records, or those from some offsets on, partition by partition."""
        return self._run(self._read(topic, since))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)

    async def _create(self, name: str, partitions: int) -> None:
        admin = await self._connected_admin()
        response = await admin.create_topics([NewTopic(name, partitions, 1)])
        assert all(code == 0 for _, code, *_ in response.topic_errors), response

    async def _connected_admin(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
            await self._admin.start()
        return self._admin

    async def _produce(self, topic: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._servers, max_request_size=2**21, max_batch_size=2**18, linger_ms=2
            )
            await self._producer.start()
        futures = [
            await self._producer.send(topic, m.value, m.key, m.partition, headers=list(m.headers)) for m in messages
        ]
        return [(done.partition, done.offset) for done in await asyncio.gather(*futures)]

    async def _ends(self, topic: str) -> dict[int, int]:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(bootstrap_servers=self._servers)
            await self._consumer.start()
        partitions = await self._partitions(self._consumer, topic)
        ends = await self._consumer.end_offsets(partitions)
        return {tp.partition: offset for tp, offset in ends.items()}

    async def _lag(self, group: str, topic: str) -> int:
        admin = await self._connected_admin()
        ends = await self._ends(topic)
        committed = await admin.list_consumer_group_offsets(group)
        done = {tp.partition: max(found.offset, 0) for tp, found in committed.items() if tp.topic == topic}
        return sum(end - done.get(partition, 0) for partition, end in ends.items())

    async def _read(self, topic: str, since: dict[int, int] | None) -> list[ConsumerRecord]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers, isolation_level="read_committed", max_partition_fetch_bytes=2**22
        )
        await consumer.start()
        try:
            partitions = await self._partitions(consumer, topic)
            consumer.assign(partitions)
            for tp in partitions:
                consumer.seek(tp, (since or {}).get(tp.partition, 0))
            ends = await consumer.end_offsets(partitions)
            found: dict[TopicPartition, list[ConsumerRecord]] = {tp: [] for tp in partitions}
            async with asyncio.timeout(READ_TIMEOUT_S):
                while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
                    for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                        found[tp] += records
            return [record for tp in sorted(found) for record in found[tp]]
        finally:
            await consumer.stop()

    @staticmethod
    async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
        known = consumer.partitions_for_topic(topic)
        if not known:
            await consumer._client.force_metadata_update()
            await consumer._client.add_topic(topic)
            known = consumer.partitions_for_topic(topic)
        return [TopicPartition(topic, p) for p in sorted(known or ())]

    async def _close(self) -> None:
        for client in (self._producer, self._consumer):
            if client is not None:
                await client.stop()
        if self._admin is not None:
            await self._admin.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._run(self._close())
        self._runner.close()


def header(record: ConsumerRecord, name: str) -> bytes | None:
    """The last header of a name; None when there is none."""
    found: bytes | None = dict(record.headers).get(name)
    return found


def source(record: ConsumerRecord) -> tuple[int, int]:
    """Partition and offset of the request that a record answers, from its ``x-src``."""
    mark = header(record, "x-src")
    assert mark is not None, f"{record.topic}-{record.partition}@{record.offset} has no x-src"
    _, partition, offset, _ = parse_source_mark(mark)
    return partition, offset


def without_redelivered(records: Iterable[ConsumerRecord]) -> list[ConsumerRecord]:
    """What a reader keeps that drops everything at or below the last source offset seen of each partition."""
    last: dict[int, int] = {}
    kept = []
    for record in records:
        partition, offset = source(record)
        if offset > last.get(partition, -1):
            last[partition] = offset
            kept.append(record)
    return kept
