"""Broker and store of the benchmarks: embedded, with the JVM flags for throughput, or those that are named."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from agents.topics import delete_topics, ensure_topics
from app.embedded.stack import Stack
from app.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

PARTITIONS = 4


@dataclass(frozen=True, slots=True)
class Bench:
    """Where everything of one run is.

    Attributes:
        servers: of Kafka.
        redis_url: of the store.
        folder: bundles and logs; gone at the end.
        is_quick: a smoke run; its figures mean nothing.

    """

    servers: str
    redis_url: str
    folder: Path
    is_quick: bool

    @property
    def repository(self) -> Path:
        """Of the bundles."""
        return self.folder / "models"

    def settings(self, **groups: dict[str, Any]) -> Settings:
        """Settings that point at this stack."""
        kafka = {"bootstrap_servers": self.servers, "partitions": PARTITIONS} | groups.pop("kafka", {})
        return load_settings(
            {"kafka": kafka, "redis": {"url": self.redis_url}, **groups}, environ={}, toml=Path("none")
        )


@contextlib.contextmanager
def running_stack(*, is_quick: bool = False) -> Iterator[Bench]:
    """Kafka and store for a run; ``KAFKA_BOOTSTRAP_SERVERS`` and ``REDIS_URL`` name others than embedded ones.

    The topics of the contract are deleted between the parts of a run, so never name a cluster that holds anything.
    """
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    servers, redis_url = os.environ.get("KAFKA_BOOTSTRAP_SERVERS"), os.environ.get("REDIS_URL")
    try:
        if servers and redis_url:
            yield Bench(servers, redis_url, folder, is_quick)
            return
        with Stack.start(folder / "stack", throughput=not is_quick) as stack:
            yield Bench(stack.info.bootstrap_servers, stack.info.redis_url, folder, is_quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def no_stack(*, is_quick: bool = False) -> Iterator[Bench]:
    """A folder alone, for parts that need no broker."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        yield Bench("127.0.0.1:9092", "redis://127.0.0.1:6379/0", Path(folder), is_quick)


async def fresh_topics(bench: Bench) -> None:
    """All topics of the contract, empty."""
    await delete_topics(bench.settings())
    await ensure_topics(bench.settings())


class Ends:
    """Asks how many records topics hold, cheaply enough to ask twenty times a second."""

    def __init__(self, bench: Bench) -> None:
        self._consumer = AIOKafkaConsumer(bootstrap_servers=bench.servers)

    async def of(self, topic: str) -> int:
        """Sum of the end offsets; benchmark topics never lose a record."""
        return sum((await self.by_partition(topic)).values())

    async def by_partition(self, topic: str) -> dict[int, int]:
        """End offset of each partition."""
        partitions = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        return {tp.partition: end for tp, end in (await self._consumer.end_offsets(partitions)).items()}

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        with contextlib.suppress(asyncio.CancelledError):  # aiokafka 0.14 lets it out of a consumer without a group
            await self._consumer.stop()
