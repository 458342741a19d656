"""One run: a cluster, two or three workers, and what goes wrong; all decided by the seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.delivery.broker import Broker
from tests.simulation.delivery.group import SESSION_TICKS, Group
from tests.simulation.delivery.invariants import Judge, Violation
from tests.simulation.delivery.network import Network
from tests.simulation.delivery.schedule import Schedule
from tests.simulation.delivery.source import Source
from tests.simulation.delivery.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

PARTITIONS = 2
FAULT_TICKS = 220
"""After it nothing more goes wrong, and everything must be answered."""
DISTURBED_TICKS = 140
MOST_STEPS = 20_000
MOST_CRASHES = 4


@dataclass(slots=True)
class Outcome:
    """What a run has gone through."""

    steps: int = 0
    kills: int = 0
    crashes: int = 0
    zombies: int = 0
    rebalances: int = 0
    aborted: int = 0
    duplicates: int = 0


class World:
    """All there is in a run.

    Args:
        seed: decides everything, the mode too unless it is given.
        worker_type: the shell to be tested.
        is_exactly_once: the mode; None: as the seed says.
        is_traced: keep a trace.

    """

    def __init__(
        self,
        seed: int,
        worker_type: Callable[[World, str], Worker] = Worker,
        *,
        is_exactly_once: bool | None = None,
        is_traced: bool = False,
    ) -> None:
        self.schedule = schedule = Schedule(seed, is_traced=is_traced)
        drawn = schedule.random() < 0.5
        self.is_exactly_once = drawn if is_exactly_once is None else is_exactly_once
        self.source = Source(schedule, PARTITIONS)
        self.judge = Judge(self.source, is_exactly_once=self.is_exactly_once)
        self.broker = Broker(schedule, self.judge, adds=schedule.random() < 0.5)
        self.group = Group(schedule, self.broker, PARTITIONS)
        self.network = Network(schedule, 0.06 * schedule.random())
        self.outcome = Outcome()
        self._blow = schedule.some(120)
        self._blows_left = schedule.some(MOST_CRASHES + 1) - 1
        self.workers = [worker_type(self, name) for name in ("a", "b", "c")[: 2 + (schedule.random() < 0.2)]]
        for worker in self.workers:
            schedule.after(schedule.some(20), worker.start)
        for _ in range(schedule.some(5)):
            schedule.after(10 + schedule.some(DISTURBED_TICKS), self._disturb)

    def run(self) -> Outcome:
        """Until everything is answered and nothing is on its way.

        Raises:
            Violation: an invariant does not hold.

        """
        schedule, outcome = self.schedule, self.outcome
        while not self._is_over():
            if schedule.steps > MOST_STEPS or not schedule.step():
                msg = f"liveness: {self.judge.missing} terminal records are missing after {schedule.steps} steps"
                raise Violation(msg)
        self.judge.conclude(self.broker.logs)
        outcome.steps, outcome.aborted = schedule.steps, self.broker.aborted
        outcome.duplicates = sum(self.judge.duplicates)
        outcome.rebalances = self.broker.generation
        return outcome

    def _is_over(self) -> bool:
        return (
            self.judge.missing == 0
            and not self.network.late
            and self.broker.is_settled()
            and all(w.is_alive and not w.unanswered and self.schedule.now >= w.paused_until for w in self.workers)
        )

    @property
    def is_faulty(self) -> bool:
        """Whether things may still go wrong."""
        return self.schedule.now < FAULT_TICKS

    def is_struck(self) -> bool:
        """Whether the process that asks is killed here."""
        self._blow -= 1
        if self._blow or not self._blows_left:
            return False
        self._blows_left -= 1
        self._blow = self.schedule.some(120)
        return self.is_faulty

    def has_ended(self, worker: Worker, *, is_killed: bool) -> None:
        """A process is gone: the group finds out, and the supervisor starts it again."""
        self.outcome.kills += is_killed
        self.outcome.crashes += not is_killed
        self.schedule.after(SESSION_TICKS, self.group.evict, worker.member)
        self.schedule.after(2 + self.schedule.some(60), self._restart, worker)

    def _restart(self, worker: Worker) -> None:
        worker.paused_until = worker.cut_until = 0
        self.schedule.note(worker.name, "starts again")
        worker.start()

    def handed_over(self, worker: Worker, partition: int, offsets: list[int]) -> None:
        """For the judge: who gives terminal records to its producer."""
        is_owner = self.group.owners.get(partition) == worker.member and worker.generation == self.broker.generation
        self.judge.handed_over(partition, offsets, is_owner=is_owner)

    def _disturb(self) -> None:
        worker = self.workers[self.schedule.some(len(self.workers)) - 1]
        draw = self.schedule.random()
        if draw < 0.12:
            self.source.delete_before(self.schedule.some(PARTITIONS) - 1)
            self.judge.forget_deleted()
        elif draw < 0.4:
            self.schedule.note("group: rebalance")
            self.group.rebalance()
        elif not worker.is_alive:
            return
        elif draw < 0.55:
            worker.tell("stop", worker.member)
        else:
            self._make_zombie(worker, is_paused=draw < 0.78)

    def _make_zombie(self, worker: Worker, *, is_paused: bool) -> None:
        """Out of the group's sight, longer than its session or not."""
        now, ticks = self.schedule.now, self.schedule.some(3 * SESSION_TICKS)
        self.schedule.note(worker.name, "is stopped" if is_paused else "is cut off from its group", "for", ticks)
        worker.cut_until = now + ticks
        if is_paused:
            worker.paused_until = now + ticks
        if ticks > SESSION_TICKS:
            self.outcome.zombies += 1
            self.schedule.after(SESSION_TICKS, self.group.evict, worker.member)
