"""The monitor around its partitions: what was damaged on the way, and schemas that only a registry knows."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agents.outcomes import OutcomeMonitor
from agents.topics import LABELLED, OUTCOMES, OUTCOMES_DLQ, PREDICTIONS
from app.record_reader import damaged
from app.settings import Settings, load_settings
from schemas.registry import SchemaBook
from tests.fakes import MemoryCluster, MemoryProducer
from tests.schema_registry import RegistryHandler, running_registry
from tests.unit.monitors.conftest import HOUR_US, START_US, World, batch_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from schemas.records import RecordBatch

SCHEMAS = Path(__file__).parents[3] / "schemas"


@dataclass
class Joined:
    """A monitor with partition 0, and what it sent."""

    settings: Settings
    cluster: MemoryCluster = field(default_factory=MemoryCluster)

    async def start(self, book: SchemaBook) -> OutcomeMonitor:
        """A monitor over the folder's store."""
        producer = MemoryProducer(self.cluster)
        await producer.start()
        monitor = OutcomeMonitor(self.settings, book, producer, lambda _name, _version: None)
        await monitor.assigned({0}, {})
        return monitor

    def counters(self, monitor: OutcomeMonitor) -> dict[str, int]:
        """What it counted, without zeros."""
        counters: dict[str, int] = monitor.snapshot()["counters"]
        return {name: count for name, count in counters.items() if count}


@pytest.fixture
def joined(tmp_path: Path) -> Joined:
    """A fresh store and cluster."""
    tree = {"monitor": {"store": tmp_path / "store", "reports": tmp_path / "reports"}, "schemas": {"folder": SCHEMAS}}
    return Joined(load_settings(tree, toml=tmp_path / "none", environ={}))


def predictions(world: World, *ids: str) -> RecordBatch:
    """Good ones, each scored at the start of its hour."""
    times = [START_US + i * HOUR_US for i in range(len(ids))]
    return batch_of(PREDICTIONS, ids, list(world.predictions(ids, times, [0.7] * len(ids))))


def outcomes(world: World, *ids: str) -> RecordBatch:
    """Good ones, a day later."""
    times = [START_US + 24 * HOUR_US] * len(ids)
    return batch_of(OUTCOMES, ids, list(world.outcomes(ids, [1.0] * len(ids), times)))


async def test_a_damaged_outcome_is_a_dead_letter_with_its_reason(joined: Joined) -> None:
    """Its bytes are kept, though they look like an outcome; its neighbour is taken in."""
    world = World()
    monitor = await joined.start(world.book)
    batch = outcomes(world, "a", "b")
    await monitor.handle(damaged(batch, {1: "its Kafka record is damaged: 7 headers"}))
    [letter] = joined.cluster.records[OUTCOMES_DLQ, 0]
    assert (letter.key, letter.value) == (batch.keys[1], batch.values[1])
    facts = {name.removeprefix("__connect.errors."): value for name, value in letter.headers}
    assert (facts["stage"], facts["exception.class.name"]) == (b"decode", b"UnreadableRecord")
    assert facts["exception.message"] == b"its Kafka record is damaged: 7 headers"
    assert (facts["topic"], facts["partition"], facts["offset"]) == (b"outcomes", b"0", b"1")
    assert joined.counters(monitor) == {"outcomes": 1, "parked": 1, "undecodable": 1}
    await monitor.stop()


async def test_damage_below_the_position_is_not_buried_again(joined: Joined) -> None:
    """A batch that comes again leaves no second dead letter."""
    world = World()
    monitor = await joined.start(world.book)
    batch = damaged(outcomes(world, "a", "b"), {0: "broken"})
    await monitor.handle(batch)
    await monitor.handle(batch)
    assert len(joined.cluster.records[OUTCOMES_DLQ, 0]) == 1
    await monitor.stop()


async def test_a_damaged_prediction_is_only_counted(joined: Joined) -> None:
    """It is not joined, whatever its bytes look like."""
    world = World()
    monitor = await joined.start(world.book)
    await monitor.handle(damaged(predictions(world, "a", "b"), {0: "broken"}))
    await monitor.handle(outcomes(world, "a", "b"))
    assert len(joined.cluster.records[LABELLED, 0]) == 1
    assert joined.counters(monitor)["undecodable_predictions"] == 1
    await monitor.stop()


@dataclass
class Foreign:
    """Records whose schemas a registry alone knows, under its own ids."""

    url: str
    registry: type[RegistryHandler]
    world: World

    def book(self) -> SchemaBook:
        """One that knows none of them."""
        return SchemaBook(None, self.url)

    async def in_the_background(self, monitor: OutcomeMonitor, batch: RecordBatch) -> None:
        """Handle a batch while the registry answers nothing until the event loop, which must go on, opens the gate."""
        gate = self.registry.gate = threading.Event()
        asked = len(self.registry.requests)
        step = asyncio.create_task(monitor.handle(batch))
        try:
            while len(self.registry.requests) == asked and not step.done():  # noqa: ASYNC110 - a thread appends
                await asyncio.sleep(0.001)
        finally:
            gate.set()
        await step


@pytest.fixture
async def foreign() -> AsyncIterator[Foreign]:
    """A running registry."""
    with running_registry() as (url, registry):
        yield Foreign(url, registry, World(SchemaBook(SCHEMAS, url)))


async def test_the_event_loop_goes_on_while_a_registry_is_asked(joined: Joined, foreign: Foreign) -> None:
    """An outcome and a prediction of unknown ids wait for the registry, nothing else does, and they are joined."""
    monitor = await joined.start(foreign.book())
    await foreign.in_the_background(monitor, outcomes(foreign.world, "a"))
    await foreign.in_the_background(monitor, predictions(foreign.world, "a"))
    assert len(joined.cluster.records[LABELLED, 0]) == 1
    assert joined.counters(monitor) == {"outcomes": 1, "predictions": 1, "joined": 1}
    await monitor.stop()


async def test_a_stored_prediction_may_need_the_registry_too(joined: Joined, foreign: Foreign) -> None:
    """After a restart, an outcome of a known schema meets a prediction whose schema is asked for beside the loop."""
    monitor = await joined.start(foreign.book())
    await monitor.handle(predictions(foreign.world, "a"))
    await monitor.stop()
    book = foreign.book()
    await book.fetch([foreign.world.outcome_id])
    again = await joined.start(book)
    await foreign.in_the_background(again, outcomes(foreign.world, "a"))
    assert len(joined.cluster.records[LABELLED, 0]) == 1
    await again.stop()


async def test_a_known_batch_asks_nobody(joined: Joined, foreign: Foreign) -> None:
    """The second batch of a schema sends no request."""
    monitor = await joined.start(foreign.book())
    await monitor.handle(predictions(foreign.world, "a"))
    asked: list[Any] = list(foreign.registry.requests)
    await monitor.handle(predictions(foreign.world, "b"))
    assert foreign.registry.requests == asked
    await monitor.stop()
