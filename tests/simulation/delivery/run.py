"""Many seeds, on some processes; what they went through, and the seeds that found something."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from tests.simulation.delivery.invariants import Violation
from tests.simulation.delivery.worker import Worker
from tests.simulation.delivery.world import Outcome, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SEEDS_AT_ONCE = 1000
"""A process takes so many from the pile at a time."""


@dataclass(slots=True)
class Tally:
    """What some runs have gone through, summed up.

    Attributes:
        runs: how many.
        total: sums over them.
        failures: seed and what was wrong.

    """

    runs: int = 0
    total: Outcome = field(default_factory=Outcome)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count the runs of another tally too."""
        self.runs += other.runs
        self.failures += other.failures
        for item in fields(Outcome):
            setattr(self.total, item.name, getattr(self.total, item.name) + getattr(other.total, item.name))

    def __str__(self) -> str:
        sums = ", ".join(f"{getattr(self.total, item.name):,} {item.name}" for item in fields(Outcome))
        return f"{self.runs:,} seeds: {sums}, {len(self.failures)} violations"


def problem_of(seed: int, worker_type: Callable[[World, str], Worker] = Worker, **mode: bool) -> str | None:
    """What is wrong with a run; None when nothing is."""
    try:
        World(seed, worker_type, **mode).run()
    except (Violation, ValueError) as found:
        return _described(found)
    return None


def run_seeds(first: int, count: int) -> Tally:
    """Run seeds ``first .. first + count - 1`` one after the other."""
    tally = Tally(runs=count)
    for seed in range(first, first + count):
        try:
            tally.add(Tally(total=World(seed).run()))
        except Exception as found:  # noqa: BLE001 - whatever it is, its seed is what matters
            tally.failures.append((seed, _described(found)))
    return tally


def run_campaign(first: int, count: int, processes: int) -> Iterator[Tally]:
    """Run seeds on some processes; yields the tally so far, again and again."""
    tally = Tally()
    end = first + count
    pieces = [(at, min(SEEDS_AT_ONCE, end - at)) for at in range(first, end, SEEDS_AT_ONCE)]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for piece in pool.map(run_seeds, *zip(*pieces, strict=True)):
            tally.add(piece)
            yield tally


def trace(seed: int) -> list[str]:
    """Everything worth telling of one run, and how it ended."""
    world = World(seed, is_traced=True)
    mode = "exactly_once" if world.is_exactly_once else "at_least_once"
    head = [f"seed {seed}, {mode}", *(f"in-{p}: {kinds}" for p, kinds in enumerate(world.source.kinds))]
    try:
        end = str(world.run())
    except (Violation, ValueError) as found:
        end = _described(found)
    return [*head, *(world.schedule.lines or ()), end]


def advice(failures: list[tuple[int, str]]) -> str:
    """The failing seeds, and the command that shows the first."""
    shown = "\n".join(f"  seed {seed}: {what}" for seed, what in failures[:10])
    return f"{len(failures)} seeds fail:\n{shown}\npython -m tests.simulation.delivery --seed {failures[0][0]} --trace"


def _described(found: Exception) -> str:
    return str(found) if isinstance(found, Violation) else f"{type(found).__name__}: {found}"
