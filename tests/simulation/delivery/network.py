"""Requests between workers and the cluster: answered, applied without an answer, lost, or late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.delivery.schedule import Schedule
    from tests.simulation.delivery.worker import Worker

TIMEOUT_TICKS = 10
WIRE_TICKS = 3
"""One way takes so long at most, unless a fault says otherwise: an answer comes before the time-out."""
LATE_TICKS = 60
"""A late request arrives after so long at most; whoever sent it may be gone, and another may have taken over."""


class Network:
    """Between workers and brokers.

    Args:
        schedule: when things arrive.
        fault_share: how many of the requests are lost, late, or lose their answer.

    Attributes:
        late: requests still on their way to the cluster that nobody waits for any more.

    """

    def __init__(self, schedule: Schedule, fault_share: float) -> None:
        self._schedule = schedule
        self.fault_share = fault_share
        self.late = 0

    def request(self, worker: Worker, reply: Callable[[Any], None], call: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401
        """Send; the reply gets the result, or None when its fate is unknown."""
        schedule = self._schedule
        draw = schedule.random()
        if draw >= self.fault_share:
            schedule.after(schedule.some(WIRE_TICKS), self._arrive, worker, worker.life, reply, call, arguments)
            return
        schedule.after(TIMEOUT_TICKS, worker.run, worker.life, reply, None)
        if draw < self.fault_share * 0.25:
            schedule.note(worker.name, call.__name__, arguments, "is lost")
            return
        most = WIRE_TICKS if draw < self.fault_share * 0.6 else LATE_TICKS
        self.late += 1
        schedule.after(schedule.some(most), self._arrive_unheard, worker.name, call, arguments)

    def _arrive(
        self,
        worker: Worker,
        life: int,
        reply: Callable[[Any], None],
        call: Callable[..., Any],
        arguments: Any,  # noqa: ANN401
    ) -> None:
        result = call(*arguments)
        if self._schedule.lines is not None:
            self._schedule.note(worker.name, call.__name__, *arguments, "->", result)
        self._schedule.after(self._schedule.some(WIRE_TICKS), worker.run, life, reply, result)

    def _arrive_unheard(self, name: str, call: Callable[..., Any], arguments: Any) -> None:  # noqa: ANN401
        self.late -= 1
        result = call(*arguments)
        if self._schedule.lines is not None:
            self._schedule.note(name, call.__name__, *arguments, "->", result, "(nobody hears it)")
