"""Harm to brokers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chaos.patience import until
from chaos.scenario import scenario
from schemas import topic_names

if TYPE_CHECKING:
    from chaos.world import World

NARROW_BYTES = "100"
"""A produce request with any answer in it is larger."""


@scenario("broker-freeze")
async def broker_freeze(world: World) -> None:
    """The only broker stands still (SIGSTOP), shorter and longer than the workers' patience."""
    for seconds in (3.0, 8.0, 20.0)[: world.pick(short=2, long=3)]:
        await world.progress(50)
        world.servers.freeze("kafka-1")
        await world.pause(seconds)
        world.servers.thaw("kafka-1")
        await world.progress(50)


@scenario("broker-restart")
async def broker_restart(world: World) -> None:
    """The only broker is killed (-9) and started again every twenty seconds."""
    for _ in range(world.pick(short=1, long=4)):
        await world.progress(50)
        await world.servers.kill("kafka-1")
        await world.pause(0.0, 3.0)
        await world.servers.restart("kafka-1")
        await world.progress(50)
        await world.pause(world.pick(short=0, long=20))


@scenario("leader-lost", brokers=3)
async def leader_lost(world: World) -> None:
    """Of three brokers the one that leads a partition of scores is killed, and comes back."""
    for partition in range(world.pick(short=1, long=3)):
        await world.progress(50)
        await _lose(world, await world.judge.leader(topic_names.SCORES, partition))


@scenario("group-coordinator-lost", brokers=3)
async def group_coordinator_lost(world: World) -> None:
    """Of three brokers the one that coordinates the workers' group is killed, and comes back."""
    for _ in range(world.pick(short=1, long=3)):
        await world.progress(50)
        await _lose(world, await world.judge.group_coordinator(world.group))


@scenario("transaction-coordinator-lost", brokers=3)
async def transaction_coordinator_lost(world: World) -> None:
    """Of three brokers the one that coordinates a partition's transactions is killed, and comes back."""
    for partition in range(world.pick(short=1, long=3)):
        await world.progress(50)
        await _lose(world, await world.judge.transaction_coordinator(world.transactional_id(partition)))


@scenario("rejected-produces")
async def rejected_produces(world: World) -> None:
    """The broker refuses every answer as too large, until somebody corrects the topic's settings."""
    for _ in range(world.pick(short=1, long=2)):
        await world.progress(50)
        await world.judge.set_topic_config(topic_names.SCORES, {"max.message.bytes": NARROW_BYTES})
        await until(lambda: sum(w.start_count for w in world.workers) > len(world.workers), "a worker that gives up")
        await world.pause(2.0, 4.0)
        await world.judge.set_topic_config(topic_names.SCORES, {"max.message.bytes": str(2**21)})
        await world.progress(50, timeout_s=120.0)


@scenario("broker-disk-full")
async def broker_disk_full(world: World) -> None:
    """No file of the broker may grow: it gives up its log folder and ends; there is room again, and it is restarted."""
    for _ in range(world.pick(short=1, long=2)):
        await world.progress(200)
        world.servers.fill_disk("kafka-1")
        await until(lambda: not world.servers.is_running("kafka-1"), "a broker that ends on a full disk")
        await world.pause(0.0, 3.0)
        await world.servers.restart("kafka-1")
        await world.progress(50)


async def _lose(world: World, node_id: int) -> None:
    name = f"kafka-{node_id}"
    world.say(f"losing {name}")
    await world.servers.kill(name)
    await world.progress(100)
    await world.pause(1.0, 3.0)
    await world.servers.restart(name)
    # A broker that is back is no replica in sync yet: the next loss would leave too few.
    await until(lambda: _is_in_sync(world), "all replicas to be in sync", timeout_s=90.0)


async def _is_in_sync(world: World) -> bool:
    described = await world.judge.admin.describe_topics([topic_names.SCORES, topic_names.REQUESTS])
    await asyncio.sleep(0.5)
    return all(len(p["isr"]) == len(p["replicas"]) for topic in described for p in topic["partitions"])


SCENARIOS = (
    broker_freeze,
    broker_restart,
    leader_lost,
    group_coordinator_lost,
    transaction_coordinator_lost,
    rejected_produces,
    broker_disk_full,
)
