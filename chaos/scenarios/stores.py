"""Harm to the online feature store; requests must be answered all along, DEGRADED where they must."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis.asyncio

from app.features import ViewCodec
from bench.workload import ACCOUNTS, fill_store
from chaos.evidence import last_answers
from chaos.patience import until
from chaos.scenario import scenario

if TYPE_CHECKING:
    from chaos.world import World


@scenario("store-hung", is_detoured=True)
async def store_hung(world: World) -> None:
    """The store is connected and silent (SIGSTOP), then answers again."""
    for _ in range(world.pick(short=1, long=3)):
        await world.progress(50)
        world.servers.freeze("valkey")
        await world.progress(500)
        await _degraded(world)
        await world.pause(1.0, 4.0)
        world.servers.thaw("valkey")
        await _recovered(world)


@scenario("store-killed")
async def store_killed(world: World) -> None:
    """The store is killed (-9), comes back empty, and is filled again."""
    for _ in range(world.pick(short=1, long=3)):
        await world.progress(50)
        await world.servers.kill("valkey")
        await world.progress(500)
        await _degraded(world)
        await world.servers.restart("valkey")
        await world.progress(200)
        await fill_store(world.settings, world.workload.bundle)
        await _recovered(world)


@scenario("store-slow", is_detoured=True)
async def store_slow(world: World) -> None:
    """Every answer of the store takes longer than the 20 ms that it has."""
    for delay_s in (0.005, 0.03, 0.5)[: world.pick(short=2, long=3)]:
        world.store_link.delay_s = delay_s
        await world.progress(500)
        await world.pause(1.0, 3.0)
    world.store_link.heal()
    await _recovered(world)


@scenario("store-reset", is_detoured=True)
async def store_reset(world: World) -> None:
    """Every connection to the store is reset, again and again."""
    for _ in range(world.pick(short=5, long=30)):
        await world.pause(0.1, 1.0)
        world.store_link.reset()
    await _recovered(world)


@scenario("store-wrong-type")
async def store_wrong_type(world: World) -> None:
    """Rows of the store are lists, or bytes of a wrong length, or of another version."""
    (view,) = world.workload.bundle.spec.views
    codec = ViewCodec(view)
    client = redis.asyncio.Redis.from_url(world.stack.info.redis_url)
    try:
        async with client.pipeline(transaction=False) as pipe:
            for number in range(0, ACCOUNTS, 3):
                key = codec.key([f"a{number}"])
                kind = world.rng.randrange(3)
                pipe.delete(key)
                if kind == 0:
                    pipe.rpush(key, "not a row")
                else:
                    pipe.set(key, b"short" if kind == 1 else world.rng.randbytes(500))
            await pipe.execute()
    finally:
        await client.aclose()
    await world.progress(world.pick(short=1000, long=4000))


async def _degraded(world: World) -> None:
    """Requests are answered without the store, and the answers say so."""
    statuses = {answer.status for answer in await last_answers(world.judge, world.workload, 10)}
    assert statuses == {"DEGRADED"}, f"without a store, answers are {statuses}"


async def _recovered(world: World) -> None:
    """The breaker lets a probe through after a second; then no answer lacks its rows any more."""

    async def is_fresh() -> bool:
        return all(answer.status == "OK" for answer in await last_answers(world.judge, world.workload, 10))

    await world.progress(200)
    await until(is_fresh, "answers that lack nothing", timeout_s=30.0)
    ended = {worker.name: worker.exit_codes for worker in world.workers if worker.exit_codes}
    assert not ended, f"a worker has ended because of the store: {ended}"


SCENARIOS = (store_hung, store_killed, store_slow, store_reset, store_wrong_type)
