"""When a micro-batch fires; pure, the clock comes in as a value.

Rows come in segments (the rows of one fetched record batch), so the cost is for a segment, not for a row. Rules, first match:

1. full: ``max_batch_size`` rows wait.
2. deadline: the oldest deadline minus the learned cost is reached.
3. window: ``window_s`` has passed since the first waiting row arrived.
4. idle: the device is idle; waiting would only add latency.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.records import FireReason

if TYPE_CHECKING:
    from collections.abc import Hashable

COST_SMOOTHING = 0.2
"""Weight of the newest batch in the learned cost; about the last ten batches count."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``start .. end - 1`` of a segment."""

    segment: Hashable
    start: int
    end: int

    def __len__(self) -> int:
        """Number of rows; 0 for a segment that holds only dead letters."""
        return self.end - self.start


@dataclass(slots=True)
class _Waiting:
    segment: Hashable
    rows: int
    arrival_s: float
    deadline_s: float
    taken: int = 0


@dataclass(slots=True)
class MicroBatcher:
    """Collects rows and says when to run them.

    Attributes:
        max_batch_size: rows of a micro-batch at most.
        window_s: how long a row may wait for company.

    Example:
        >>> batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
        >>> batcher.add("a", rows=3, now_s=0.0)
        >>> batcher.fire_reason(now_s=0.0, device_idle=False) is None
        True
        >>> batcher.fire_reason(now_s=0.0, device_idle=True).name
        'IDLE'
        >>> batcher.add("b", rows=3, now_s=0.001)
        >>> batcher.fire_reason(now_s=0.001, device_idle=False).name
        'FULL'
        >>> batcher.take()
        [Slice(segment='a', start=0, end=3), Slice(segment='b', start=0, end=1)]
        >>> batcher.waiting_rows
        2

    """

    max_batch_size: int
    window_s: float
    waiting_rows: int = 0
    cost_s: float = 0.0
    _waiting: deque[_Waiting] = field(default_factory=deque)

    def add(self, segment: Hashable, *, rows: int, now_s: float, deadline_s: float = math.inf) -> None:
        """Rows that arrived now; a segment without rows still fires, alone or with others.

        Args:
            segment: handed back by ``take``.
            rows: >= 0.
            now_s: monotonic seconds.
            deadline_s: the earliest deadline of its rows.

        """
        self._waiting.append(_Waiting(segment, rows, now_s, deadline_s))
        self.waiting_rows += rows

    def fire_reason(self, *, now_s: float, device_idle: bool) -> FireReason | None:
        """Why to fire now, or None."""
        if not self._waiting:
            return None
        if self.waiting_rows >= self.max_batch_size:
            return FireReason.FULL
        if now_s >= self._earliest_deadline_s() - self.cost_s:
            return FireReason.DEADLINE
        if now_s >= self._waiting[0].arrival_s + self.window_s:
            return FireReason.WINDOW
        return FireReason.IDLE if device_idle else None

    def wake_at_s(self) -> float:
        """When to ask again if nothing else happens; infinity when nothing waits."""
        if not self._waiting:
            return math.inf
        return min(self._waiting[0].arrival_s + self.window_s, self._earliest_deadline_s() - self.cost_s)

    def take(self) -> list[Slice]:
        """The oldest rows, at most ``max_batch_size``, in order of arrival."""
        room = self.max_batch_size
        slices: list[Slice] = []
        while self._waiting:
            first = self._waiting[0]
            rows = min(first.rows - first.taken, room)
            if first.rows and not rows:
                break
            slices.append(Slice(first.segment, first.taken, first.taken + rows))
            first.taken += rows
            room -= rows
            self.waiting_rows -= rows
            if first.taken == first.rows:
                self._waiting.popleft()
        return slices

    def clear(self) -> None:
        """Forget everything; the rows will be delivered again to whoever has their partition."""
        self._waiting.clear()
        self.waiting_rows = 0

    def learn_cost(self, cost_s: float) -> None:
        """What the last micro-batch took from firing to its answers."""
        self.cost_s += COST_SMOOTHING * (cost_s - self.cost_s)

    def _earliest_deadline_s(self) -> float:
        return min(w.deadline_s for w in self._waiting)
