"""Harm to the link between the workers and Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.patience import until
from chaos.proxy import PRODUCE
from chaos.scenario import scenario

if TYPE_CHECKING:
    from chaos.world import World


@scenario("link-delay", is_detoured=True)
async def link_delay(world: World) -> None:
    """Every byte to and from Kafka comes late, by up to half a second."""
    for _ in range(world.pick(short=2, long=6)):
        world.kafka_link.delay_s = world.rng.uniform(0.02, 0.5)
        await world.pause(4.0, 8.0)
        await world.progress(50)


@scenario("link-reset", is_detoured=True)
async def link_reset(world: World) -> None:
    """Every connection to Kafka is reset, again and again."""
    cut = 0
    for _ in range(world.pick(short=5, long=30)):
        await world.pause(0.5, 3.0)
        cut += world.kafka_link.reset()
        await world.progress(20)
    world.extra["connections_cut"] = cut


@scenario("link-black-hole", is_detoured=True)
async def link_black_hole(world: World) -> None:
    """Nothing comes through to Kafka or back, for less and for more than the workers' time-outs."""
    for seconds in (1.0, 4.0, 12.0)[: world.pick(short=2, long=3)]:
        await world.progress(50)
        world.kafka_link.hold()
        await world.pause(seconds)
        world.kafka_link.heal()
        await world.progress(50)


@scenario("produce-black-hole", is_detoured=True)
async def produce_black_hole(world: World) -> None:
    """Produce requests vanish while fetches and heartbeats go on; late, they arrive after the worker gave up."""
    for _ in range(world.pick(short=1, long=3)):
        await world.progress(50)
        starts = sum(worker.start_count for worker in world.workers)
        world.kafka_link.hold(PRODUCE)
        await until(lambda s=starts: _start_count(world) > s, "a worker that gives up")  # type: ignore[misc]
        await world.pause(0.5, 4.0)
        world.kafka_link.heal()
        await world.progress(50)
    world.extra["held"] = world.kafka_link.held_count


def _start_count(world: World) -> int:
    return sum(worker.start_count for worker in world.workers)


SCENARIOS = (link_delay, link_reset, link_black_hole, produce_black_hole)
