"""Reads a topic as whole record batches, and says when each record was there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from app.transport import _fetched
from bench.stack import PARTITIONS, Bench

if TYPE_CHECKING:
    from typing import Self

    from schemas.records import RecordBatch


class Reader:
    """A consumer without a group, fed by the transport's own fetch: no object is built for a record.

    Args:
        bench: where.
        topic: all its partitions are read.
        from_end: start behind what is there, else at the beginning.
        isolation: ``read_committed`` sees of transactions only what is committed.

    """

    def __init__(self, bench: Bench, topic: str, *, from_end: bool, isolation: str = "read_uncommitted") -> None:
        self._topic, self._from_end = topic, from_end
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=bench.servers, max_partition_fetch_bytes=2**20, auto_offset_reset="earliest",
            isolation_level=isolation,
        )  # fmt: skip

    async def fetch(self, timeout_s: float) -> list[RecordBatch]:
        """What has come; empty when nothing comes in time."""
        fetcher = self._consumer._fetcher  # noqa: SLF001 - as in app/transport.py
        with fetcher._subscriptions.fetch_context():  # noqa: SLF001
            got = await _fetched(fetcher, set(), timeout_s, 8192, frozenset([self._topic]))
        return [batch for batches in got.values() for batch in batches]

    async def __aenter__(self) -> Self:
        """Connect, with every position fixed when this returns."""
        await self._consumer.start()
        partitions = [TopicPartition(self._topic, p) for p in range(PARTITIONS)]
        self._consumer.assign(partitions)
        ends = await self._consumer.end_offsets(partitions)
        self.first = {tp.partition: ends[tp] if self._from_end else 0 for tp in partitions}
        for tp in partitions:
            self._consumer.seek(tp, self.first[tp.partition])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._consumer.stop()
