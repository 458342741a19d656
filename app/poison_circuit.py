"""Stops consuming when most records cannot be decoded: a wrong schema deploy must not drain a topic into the DLQ.

    CLOSED ──── more than the share of the last records undecodable ───▶ OPEN ◀───────────────┐
      ▲                                                                   │ open_s later       │ the probe is bad
      └──────────────────── the probe is good ──────────── HALF_OPEN ◀────┘ ───────────────────┘

No record is lost: while it is open records wait in Kafka and in the queue, unread and uncommitted.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf


class CircuitState(Enum):
    """What may fire: everything, nothing, or one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


class PoisonCircuit:
    """Counts decodable and undecodable records by micro-batch; pure.

    Args:
        window: records that it looks at, >= 1; it may not open before it has seen so many. Micro-batches count whole:
            it looks at as few of the last ones as hold at least this many records.
        share: of undecodable ones, in (0, 1]; above it the circuit opens, so 1 switches it off.
        open_s: seconds from opening to a probe.
        probe_records: records of a probe, >= 1.

    Example:
        >>> circuit = PoisonCircuit(window=4, share=0.5, open_s=30.0, probe_records=1)
        >>> circuit.record(decodable=1, undecodable=3, now_s=10.0)
        >>> circuit.allowance(11.0), circuit.probe_at_s, circuit.allowance(40.0)
        (0, 40.0, 1)
        >>> circuit.record(decodable=1, undecodable=0, now_s=40.1)
        >>> circuit.state(40.1).value, circuit.allowance(40.1)
        ('closed', None)

    """

    def __init__(self, *, window: int = 200, share: float = 0.5, open_s: float = 30.0, probe_records: int = 16) -> None:
        self._window, self._share, self._open_s, self._probe_records = window, share, open_s, probe_records
        self._counts: deque[tuple[int, int]] = deque()
        self._records = self._undecodable = 0
        self.probe_at_s = -inf
        self.opened_count = 0

    def record(self, *, decodable: int, undecodable: int, now_s: float) -> None:
        """A micro-batch was decoded. A probe's own share decides; before its time nothing changes an open circuit.

        Args:
            decodable: requests in it, whatever their answer.
            undecodable: dead letters in it.
            now_s: monotonic seconds.

        """
        if not decodable + undecodable:
            return
        state = self.state(now_s)
        if state is CircuitState.OPEN:
            return  # of before it opened: it was on its way
        if state is CircuitState.HALF_OPEN:
            if undecodable > self._share * (decodable + undecodable):
                self._open(now_s)
            else:
                self._forget()
            return
        self._count(decodable, undecodable)
        if self._records >= self._window and self._undecodable > self._share * self._records:
            self._open(now_s)

    def state(self, now_s: float) -> CircuitState:
        """At a moment, monotonic seconds; it is half open from the end of ``open_s`` to the probe's outcome."""
        if self.probe_at_s == -inf:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now_s < self.probe_at_s else CircuitState.HALF_OPEN

    def allowance(self, now_s: float) -> int | None:
        """Records that may fire now: None for any number, 0 while it is open, then those of the probe."""
        return {
            CircuitState.CLOSED: None,
            CircuitState.OPEN: 0,
            CircuitState.HALF_OPEN: self._probe_records,
        }[self.state(now_s)]

    @property
    def is_holding(self) -> bool:
        """Whether records wait because of it; then waiting is no stall."""
        return self.probe_at_s > -inf

    def problem(self, now_s: float) -> str | None:
        """Why the worker is not ready and what to do; None while it is closed."""
        if not self.is_holding:
            return None
        wait_s = max(self.probe_at_s - now_s, 0.0)
        return (
            f"poison circuit open: {self._undecodable} of the last {self._records} records could not be decoded "
            f"(limit {self._share:.0%}), so none is read; look at the dead letters, then repair the schema or stop the "
            f"producer; a probe of {self._probe_records} records follows in {wait_s:.0f} s; to let all of them become "
            "dead letters, set SLUICE_DELIVERY__POISON_SHARE=1 and restart"
        )

    def _count(self, decodable: int, undecodable: int) -> None:
        self._counts.append((decodable, undecodable))
        self._records += decodable + undecodable
        self._undecodable += undecodable
        while self._records - sum(self._counts[0]) >= self._window:
            first, first_undecodable = self._counts.popleft()
            self._records -= first + first_undecodable
            self._undecodable -= first_undecodable

    def _open(self, now_s: float) -> None:
        self.probe_at_s = now_s + self._open_s
        self.opened_count += 1

    def _forget(self) -> None:
        self._counts.clear()
        self._records = self._undecodable = 0
        self.probe_at_s = -inf
