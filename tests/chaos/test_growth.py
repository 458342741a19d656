"""What a process holds more and more of: it must be seen, and a sample that says less must not hide it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.growth import LIMITS, WARM_S, Sample, excess, growth
from chaos.service_process import ServiceProcess

if TYPE_CHECKING:
    from pathlib import Path

FLAT = {"rss_mb": 600.0, "fds": 80.0, "threads": 20.0, "tasks": 40.0}


def samples(*held: dict[str, float], life: str = "worker-0#1") -> list[Sample]:
    """Of one process, a second apart, from when it is warm."""
    return [Sample(life, WARM_S + i, each) for i, each in enumerate(held)]


def test_a_process_that_holds_the_same_is_within_every_limit() -> None:
    """Nothing grew, so nothing is said."""
    grown = growth(samples(FLAT, FLAT))
    assert grown == {"worker-0#1": dict.fromkeys(LIMITS, 0.0)}
    assert excess(grown) == []


def test_tasks_that_leak_are_seen() -> None:
    """65 more than when it was warm are too many, 64 are not."""
    assert excess(growth(samples(FLAT, FLAT | {"tasks": 104.0}))) == []
    [said] = excess(growth(samples(FLAT, FLAT | {"tasks": 105.0})))
    assert said == "worker-0#1 holds 65 tasks more than when it was warm; 64 are allowed"


def test_a_sample_without_tasks_hides_nothing() -> None:
    """A worker that did not answer at the end, or at first, is judged by what it said before and after."""
    silent = {name: amount for name, amount in FLAT.items() if name != "tasks"}
    leaking = growth(samples(silent, FLAT, FLAT | {"tasks": 900.0}, silent))
    assert leaking["worker-0#1"]["tasks"] == 860.0
    assert "tasks" not in growth(samples(silent, silent))["worker-0#1"]


def test_a_young_process_and_another_life_do_not_count() -> None:
    """What a process takes to get warm is no growth, nor what its successor has more."""
    young = Sample("worker-0#1", WARM_S - 1, FLAT | {"tasks": 1.0})
    assert excess(growth([young, *samples(FLAT), *samples(FLAT | {"tasks": 500.0}, life="worker-0#2")])) == []


async def test_a_worker_that_is_not_up_is_sampled_without_tasks(tmp_path: Path) -> None:
    """Before its start it holds nothing; while it starts it has memory, but nobody who tells its tasks."""
    worker = ServiceProcess(tmp_path, "scoring", "worker-0", {})
    assert await worker.holdings() == {}
    worker.start()
    try:
        held = await worker.holdings()
    finally:
        worker.end()
    assert held.keys() == {"rss_mb", "fds", "threads", "age_s"}
