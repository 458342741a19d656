"""Harm to scoring workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chaos.evidence import served_span_s
from chaos.scenario import scenario
from chaos.world import SESSION_S

if TYPE_CHECKING:
    from chaos.world import World


@scenario("kill-loop", workers=3)
async def kill_loop(world: World) -> None:
    """A serving worker is killed (-9) in mid-stream, again and again, poison in the stream."""
    for _ in range(world.pick(short=12, long=200)):
        victim = await world.serving_worker()
        await world.progress(20)
        await world.pause(0.0, 0.3)
        victim.kill()
        await world.look_at_commits()


@scenario("zombie", workers=2)
async def zombie(world: World) -> None:
    """A worker is stopped past its session, another takes over, then it wakes up and believes it still owns all."""
    for _ in range(world.pick(short=1, long=5)):
        victim = world.rng.choice(world.workers)
        await victim.wait_ready()
        await world.progress(50)
        victim.freeze()
        await world.pause(2 * SESSION_S, 3 * SESSION_S)
        await world.progress(50)
        victim.thaw()
        await world.pause(SESSION_S)


@scenario("rebalance-storm", workers=1)
async def rebalance_storm(world: World) -> None:
    """Workers join and leave all the time, some by SIGTERM, some by SIGKILL."""
    for _ in range(world.pick(short=3, long=15)):
        newcomer = await world.add_worker()
        await world.pause(3.0, 8.0)
        await world.progress(50)
        if world.rng.random() < 0.5:
            newcomer.is_wanted = False
            newcomer.kill()
        else:
            await newcomer.terminate()
        await world.progress(50)
    for newcomer in world.workers[1:]:
        newcomer.end()
    world.workers = world.workers[:1]


@scenario("sigterm-loop", workers=2)
async def sigterm_loop(world: World) -> None:
    """A worker is asked to end in mid-stream and started again: exit code 0 each time."""
    codes = []
    for _ in range(world.pick(short=3, long=15)):
        worker = world.rng.choice(world.workers)
        await worker.wait_ready()
        await world.progress(50)
        codes.append(await worker.terminate())
        worker.is_wanted = True
        await world.look_at_commits()
    world.extra["exit_codes"] = codes
    assert not any(codes), f"a worker that was asked to end did not end well: {codes}"


@scenario("sigterm-in-outage", workers=2)
async def sigterm_in_outage(world: World) -> None:
    """A worker is asked to end while the broker is gone, and while the group forms anew after its return."""
    for turn in range(world.pick(short=2, long=6)):
        worker = await world.serving_worker()
        await world.progress(20)
        await world.servers.kill("kafka-1")
        restart = asyncio.create_task(world.servers.restart("kafka-1"))
        if turn % 2:
            await restart
            await world.pause(0.0, 1.0)
        try:
            await worker.terminate()
        finally:
            await restart
            worker.is_wanted = True
        await world.progress(20)


@scenario("stepped-clock", workers=2, is_clock_stepped=True)
async def stepped_clock(world: World) -> None:
    """The workers' wall clock jumps by hours, ahead and back, under load; nobody restarts for it."""
    for hours in (1.0, -1.0, 24.0, 0.0)[: world.pick(short=2, long=4)]:
        world.clock.step_to(hours * 3600)
        await world.pause(4.0, 6.0)
        await world.progress(50)
    restarts = sum(worker.start_count - 1 for worker in world.workers)
    assert restarts == 0, f"{restarts} restarts because of a clock"
    span_s = await served_span_s(world.judge, world.workload)
    assert span_s > 3000, f"no worker has seen the step: answers span {span_s:.0f} s of wall clock"
    world.extra["answers_span_s"] = round(span_s)


SCENARIOS = (kill_loop, zombie, rebalance_storm, sigterm_loop, sigterm_in_outage, stepped_clock)
