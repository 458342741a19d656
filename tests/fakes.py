"""Stand-ins for what lies outside the process: a clock, a Kafka cluster and an online store, all in memory.

Each keeps the contract of the real one as far as our code can see it, and can be told to fail or to hold back.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from app.errors import FeatureStoreError
from app.producer import OutputProducer
from app.settings import KafkaSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schemas.records import Headers


class FakeClock:
    """Seconds that pass only when told to.

    Example:
        >>> clock = FakeClock(10.0)
        >>> clock.advance(2.5)
        >>> clock()
        12.5

    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """The time now."""
        return self.now_s

    def advance(self, by_s: float) -> None:
        """Let time pass."""
        self.now_s += by_s


@dataclass(frozen=True, slots=True)
class Sent:
    """One record as the cluster took it."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class MemoryCluster:
    """Takes the place of ``AIOKafkaProducer``: real batch builders, whose bytes are read back with aiokafka's reader.

    Attributes:
        records: records by topic and partition, in the order in which they were sent.
        batches: number of records of each produce batch, by topic and partition.
        failure: when set, the next produce batch fails with it, once.
        fails_on: the topic whose batch fails; any when None.

    """

    def __init__(self, *, batch_bytes: int = 524_288) -> None:
        self.records: dict[tuple[str, int], list[Sent]] = defaultdict(list)
        self.batches: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.failure: BaseException | None = None
        self.fails_on: str | None = None
        self._batch_bytes = batch_bytes
        self._held: dict[str, list[asyncio.Future[None]]] = {}
        self._held_partition: int | None = None

    def hold(self, topic: str, partition: int | None = None) -> None:
        """Acknowledge nothing of a topic, or of one partition of it, until the topic is released."""
        self._held.setdefault(topic, [])
        self._held_partition = partition

    def release(self, topic: str) -> None:
        """Acknowledge what was held back, and what follows."""
        for future in self._held.pop(topic, []):
            future.set_result(None)

    def topic(self, name: str) -> list[Sent]:
        """All records of a topic, partition by partition."""
        return [sent for (topic, _), records in sorted(self.records.items()) if topic == name for sent in records]

    def create_batch(self) -> BatchBuilder:
        """As aiokafka's."""
        return BatchBuilder(self._batch_bytes, 0)

    async def send_batch(self, builder: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[None]:
        """As aiokafka's: the future is the acknowledgement."""
        await asyncio.sleep(0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.failure is not None and self.fails_on in {None, topic}:
            failure, self.failure = self.failure, None
            future.set_exception(failure)
            return future
        sent = _read(builder)
        self.records[topic, partition] += sent
        self.batches[topic, partition].append(len(sent))
        if topic in self._held and self._held_partition in {None, partition}:
            self._held[topic].append(future)
        else:
            future.set_result(None)
        return future

    async def stop(self) -> None:
        """Nothing to close."""


def _read(builder: BatchBuilder) -> list[Sent]:
    records = MemoryRecords(bytes(builder._build()))
    sent = []
    while records.has_next():
        batch = records.next_batch()
        assert batch.validate_crc()
        sent += [Sent(r.key, r.value, tuple(r.headers)) for r in batch]
    assert len(sent) == builder.record_count()
    return sent


class MemoryProducer(OutputProducer):
    """The real producer, in front of a cluster in memory."""

    def __init__(self, cluster: MemoryCluster, settings: KafkaSettings | None = None) -> None:
        super().__init__(settings or KafkaSettings())
        self.cluster = cluster

    async def start(self) -> None:
        """Connect to the cluster in memory."""
        self._space.set()
        self._producer = self.cluster  # type: ignore[assignment]


class MemoryStore:
    """A ``FeatureStore`` in a dictionary.

    Attributes:
        rows: key to packed value.
        error: when set, every fetch fails with it.
        fetches: the keys of each call.

    """

    def __init__(self, rows: Mapping[str, bytes] | None = None) -> None:
        self.rows = dict(rows or {})
        self.error: str | None = None
        self.fetches: list[list[str]] = []

    async def fetch(self, keys: list[str]) -> list[bytes | None]:
        """Values of all keys.

        Raises:
            FeatureStoreError: ``error`` is set.

        """
        self.fetches.append(keys)
        await asyncio.sleep(0)
        if self.error is not None:
            raise FeatureStoreError(self.error)
        return [self.rows.get(key) for key in keys]

    async def close(self) -> None:
        """Nothing to close."""
