"""A long run with a fault every now and then; memory, descriptors, threads and tasks must not grow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from chaos.growth import Sample, excess, growth
from chaos.scenario import scenario

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chaos.world import World

SECONDS, FAULT_EVERY_S = 1800.0, 60.0
SAMPLE_EVERY_S, SAMPLES_SHOWN = 5.0, 120


@scenario("soak", is_detoured=True, rate=300.0, is_by_hand=True)
async def soak(world: World) -> None:
    """Half an hour with a random fault a minute; what a worker holds is sampled all along."""
    await _soak(world, SECONDS, FAULT_EVERY_S)


@scenario("soak-minute", is_detoured=True, rate=300.0)
async def soak_minute(world: World) -> None:
    """One minute of the soak, with a fault every ten seconds."""
    await _soak(world, 60.0, 10.0)


async def _soak(world: World, seconds: float, fault_every_s: float) -> None:
    samples: list[Sample] = []
    sampler = asyncio.create_task(_sample(world, samples), name="sample")
    told: list[str] = []
    try:
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            await world.pause(0.8 * fault_every_s, 1.2 * fault_every_s)
            fault = world.rng.choice(FAULTS)
            told.append(fault.__name__.strip("_"))
            world.say(f"soak: {told[-1]}")
            await fault(world)
            await world.progress(50)
    finally:
        sampler.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sampler
    grown = growth(samples)
    shown = samples[:: max(1, len(samples) // SAMPLES_SHOWN)]
    world.extra |= {"faults": told, "growth": grown, "samples": [asdict(each) for each in shown]}
    too_much = excess(grown)
    assert not too_much, "; ".join(too_much)


async def _sample(world: World, samples: list[Sample]) -> None:
    while True:
        for worker in world.workers:
            held = await worker.holdings()
            if held:
                age_s = held.pop("age_s")
                samples.append(Sample(f"{worker.name}#{worker.start_count}", age_s, held))
        await asyncio.sleep(SAMPLE_EVERY_S)


async def _kill_worker(world: World) -> None:
    world.rng.choice(world.workers).kill()


async def _freeze_worker(world: World) -> None:
    worker = world.rng.choice(world.workers)
    worker.freeze()
    await world.pause(1.0, 6.0)
    worker.thaw()


async def _freeze_broker(world: World) -> None:
    world.servers.freeze("kafka-1")
    await world.pause(1.0, 4.0)
    world.servers.thaw("kafka-1")


async def _restart_broker(world: World) -> None:
    await world.servers.kill("kafka-1")
    await world.servers.restart("kafka-1")


async def _reset_links(world: World) -> None:
    world.kafka_link.reset()
    world.store_link.reset()


async def _delay_links(world: World) -> None:
    world.kafka_link.delay_s, world.store_link.delay_s = 0.2, 0.03
    await world.pause(2.0, 5.0)
    world.kafka_link.heal()
    world.store_link.heal()


async def _freeze_store(world: World) -> None:
    world.servers.freeze("valkey")
    await world.pause(1.0, 5.0)
    world.servers.thaw("valkey")


FAULTS: tuple[Callable[[World], Awaitable[None]], ...] = (
    _kill_worker,
    _freeze_worker,
    _freeze_broker,
    _restart_broker,
    _reset_links,
    _delay_links,
    _freeze_store,
)
SCENARIOS = (soak_minute, soak)
