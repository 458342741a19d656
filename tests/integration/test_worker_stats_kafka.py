"""Two workers on a real broker see each other's figures."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agents.topics import ensure_topics
from agents.worker_stats import WorkerIdentity, WorkerStats
from app.producer import OutputProducer
from app.settings import KafkaSettings, SchemaSettings, Settings
from schemas.registry import SchemaBook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.integration
FOLDER = Path(__file__).parents[2] / "schemas"


@asynccontextmanager
async def running(
    settings: Settings, name: str, role: str, stats: Callable[[], dict[str, Any]]
) -> AsyncIterator[WorkerStats]:
    """A worker's statistics between start and stop, with a producer of their own."""
    producer = OutputProducer(settings.kafka)
    await producer.start()
    worker = WorkerStats(settings, SchemaBook(FOLDER), producer, WorkerIdentity(name, role, f"http://{name}"), stats)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
        await producer.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most 30 s."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the condition reads what arrives over Kafka
            await asyncio.sleep(0.05)


async def test_workers_see_each_other(bootstrap_servers: str) -> None:
    """Each worker's document holds both workers; figures keep coming; a late starter sees who was there before."""
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=bootstrap_servers), schemas=SchemaSettings(folder=FOLDER))
    await ensure_topics(settings)
    calls = iter(range(10**6))
    async with running(settings, "s1", "scoring", lambda: {"tick": next(calls)}) as first:

        def tick(worker: WorkerStats) -> int:
            return int(worker.document()["workers"].get("s1", {"stats": {"tick": -1}})["stats"]["tick"])

        await until(lambda: tick(first) > 3)
        async with running(settings, "m1", "monitor", lambda: {"windows": []}) as second:
            await until(lambda: set(second.document()["workers"]) == {"s1", "m1"})
            await until(lambda: set(first.document()["workers"]) == {"s1", "m1"})
            seen = tick(second)
            await until(lambda: tick(second) > seen)
            assert first.document()["workers"]["m1"]["role"] == "monitor"
            assert first.document()["workers"]["m1"]["web_url"] == "http://m1"
