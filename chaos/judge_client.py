"""The judge's own connection to Kafka, by the brokers' true ports: ends, commits, whole topics."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import ConsumerRecord, TopicPartition

if TYPE_CHECKING:
    from typing import Self

Isolation = Literal["read_committed", "read_uncommitted"]
READ_TIMEOUT_S = 120.0


class JudgeClient:
    """Reads what is really there.

    Args:
        bootstrap_servers: of the brokers themselves, never of a proxy.

    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)
        self.admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)

    async def ends(self, topic: str) -> dict[int, int]:
        """Partition to the offset that its next record will have; transaction markers count."""
        partitions = await self._partitions(self._consumer, topic)
        return {tp.partition: end for tp, end in (await self._consumer.end_offsets(partitions)).items()}

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition to the group's committed offset; partitions without one are left out."""
        found = await self.admin.list_consumer_group_offsets(group)
        return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic and at.offset >= 0}

    async def lag(self, group: str, topic: str) -> int:
        """Records of a topic, transaction markers included, that a group has not committed."""
        committed = await self.committed(group, topic)
        return sum(end - committed.get(p, 0) for p, end in (await self.ends(topic)).items())

    async def read(
        self, topic: str, isolation: Isolation = "read_committed", *, last: int | None = None
    ) -> list[ConsumerRecord]:
        """All records, partition by partition.

        Args:
            topic: to be read to its end as of now.
            isolation: whether records of open and aborted transactions count.
            last: only so many offsets before the end of each partition; None: from the beginning.

        Raises:
            TimeoutError: the end is not reached within 120 s.

        """
        found: dict[int, list[ConsumerRecord]] = {}
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers, isolation_level=isolation, max_partition_fetch_bytes=2**22
        )
        await consumer.start()
        try:
            partitions = await self._partitions(consumer, topic)
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            for tp in partitions:
                consumer.seek(tp, 0 if last is None else max(0, ends[tp] - last))
            async with asyncio.timeout(READ_TIMEOUT_S):
                while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
                    for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                        found.setdefault(tp.partition, []).extend(records)
        finally:
            await consumer.stop()
        return [record for partition in sorted(found) for record in found[partition]]

    async def set_topic_config(self, topic: str, config: dict[str, str]) -> None:
        """Replace a topic's own settings by these; what is not named goes back to the broker's default."""
        await self.admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])

    async def leader(self, topic: str, partition: int) -> int:
        """Node id of a partition's leader; -1 when there is none."""
        (described,) = await self.admin.describe_topics([topic])
        return next(int(p["leader"]) for p in described["partitions"] if p["partition"] == partition)

    async def group_coordinator(self, group: str) -> int:
        """Node id of the broker that coordinates a group."""
        return int(await self.admin.find_coordinator(group))

    async def transaction_coordinator(self, transactional_id: str) -> int:
        """Node id of the broker that coordinates the transactions of an id."""
        client = self.admin._client  # noqa: SLF001 - the admin client offers only groups
        return int(await client.coordinator_lookup(1, transactional_id))

    @staticmethod
    async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
        known = consumer.partitions_for_topic(topic)
        if not known:
            client = consumer._client  # noqa: SLF001 - without a subscription it would never ask for this topic
            await client.add_topic(topic)
            await client.force_metadata_update()
            known = consumer.partitions_for_topic(topic)
        return [TopicPartition(topic, p) for p in sorted(known or ())]

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._consumer.start()
        await self.admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        with contextlib.suppress(asyncio.CancelledError):  # aiokafka 0.14 lets it out of a consumer without a group
            await self._consumer.stop()
        await self.admin.close()
