"""Harm to monitors: what they join and publish is there once, by its mark."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.patience import until
from chaos.scenario import scenario
from chaos.servers import limit_file_size
from chaos.world import SESSION_S

if TYPE_CHECKING:
    from chaos.world import World

ROOMLESS_BYTES = 4096
"""RocksDB's write-ahead log is larger after a few steps."""


@scenario("monitor-kill-loop", workers=1, monitors=1, rate=300.0)
async def monitor_kill_loop(world: World) -> None:
    """The monitor is killed (-9) in mid-stream, again and again."""
    (monitor,) = world.monitors
    for _ in range(world.pick(short=4, long=40)):
        await monitor.wait_ready()
        await world.pause(0.2, 2.0)
        monitor.kill()


@scenario("monitor-moved", workers=1, monitors=2, rate=300.0)
async def monitor_moved(world: World) -> None:
    """Partitions of the join move between two monitors, which end in turn by SIGTERM, SIGKILL and a freeze."""
    for turn in range(world.pick(short=3, long=12)):
        monitor = world.monitors[turn % 2]
        await monitor.wait_ready()
        await world.pause(1.0, 3.0)
        match turn % 3:
            case 0:
                await monitor.terminate()
                await world.pause(2 * SESSION_S)
                monitor.is_wanted = True
            case 1:
                monitor.kill()
            case _:
                monitor.freeze()
                await world.pause(2 * SESSION_S, 3 * SESSION_S)
                monitor.thaw()


@scenario("monitor-disk-full", workers=1, monitors=1, rate=300.0)
async def monitor_disk_full(world: World) -> None:
    """The monitor's store cannot grow: the monitor ends, is started again, and there is room again."""
    (monitor,) = world.monitors
    for _ in range(world.pick(short=1, long=3)):
        await monitor.wait_ready()
        await world.progress(1000)
        starts = monitor.start_count
        limit_file_size(monitor.pid, ROOMLESS_BYTES)
        await until(lambda s=starts: monitor.start_count > s, "a monitor that gives up")  # type: ignore[misc]


@scenario("monitor-store-lost", workers=1, monitors=1, rate=300.0)
async def monitor_store_lost(world: World) -> None:
    """The monitor is killed and its store deleted; it is rebuilt from the topics, and nothing is sent twice."""
    (monitor,) = world.monitors
    for _ in range(world.pick(short=1, long=4)):
        await monitor.wait_ready()
        await world.pause(2.0, 4.0)
        monitor.is_wanted = False
        monitor.kill()
        await until(lambda: not monitor.is_running, "the monitor's end")
        world.delete_monitor_store()
        monitor.is_wanted = True


SCENARIOS = (monitor_kill_loop, monitor_moved, monitor_disk_full, monitor_store_lost)
