"""When a micro-batch fires; pure, the clock comes in as a value.

Rows come in segments (the rows of one fetched record batch), so the cost is for a segment, not for a row. The device
takes one micro-batch at a time; one more may be formed ahead, so that its features are there when the device is free.

Rules, the first that holds:

1. full: ``max_batch_size`` rows wait; more company is impossible.
2. While the device will be busy for longer than preparing takes, nothing fires: the rows gain company for nothing.
3. deadline: the earliest deadline is as close as answering the waiting rows takes (learned).
4. window: ``window_s`` has passed since the first waiting row arrived.
5. idle: the device is free, and the hold that ``hold.py`` has learned for the first row of a quiet spell is over. When
   rows come one by one it is zero: a lone row fires at once, whatever the window.

How many rows come along is decided when it fires. Rows that can no longer be answered in time take no place. When those
that wait behind the batch would be late, so many of the oldest take none that the others are in time. When the largest
batch would take longer than the deadlines allow, that size is chosen which answers most rows in time for each second of
the device; among equally good ones a large one, as long as the rows behind it do not lose much of their time to it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from app.hold import LearnedHold
from schemas.records import FireReason

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

MAX_LATE_BATCHES = 8
"""Late rows that one micro-batch takes along at most, in full batches: a bound on the work of one step."""
COST_SMOOTHING = 0.2
"""Weight of the newest batch in a learned cost; about the last ten count."""
DOUBT = 0.9
"""What is left of the learned costs when they would let no row through: a cost that is not tried is not learned."""
NEARLY_BEST = 0.9
"""Sizes that answer this share of what the best one answers in time are as good."""
PATIENCE = 0.25
"""Of those the largest is taken that lets the rows behind it wait no longer than this share of the time they have."""
FAR_S = 3600.0
"""A deadline so far away is none."""
MIN_RUN_S = 1e-6
"""Stands for a run time that is not known yet."""
MEAN_SMOOTHING, DEVIATION_SMOOTHING, DEVIATIONS = 1 / 8, 1 / 4, 4
"""As TCP estimates its time-out from round-trip times (RFC 6298)."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``start .. end - 1`` of a segment."""

    segment: Hashable
    start: int
    end: int

    def __len__(self) -> int:
        """Number of rows; 0 for a segment that holds only dead letters."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Taken:
    """What fires now.

    Attributes:
        slices: the rows, in order of arrival.
        planned_s: monotonic; when the device should be done with them.
        in_time_s: monotonic; rows with a deadline up to this do not go to the device.

    """

    slices: list[Slice]
    planned_s: float
    in_time_s: float


@dataclass(slots=True)
class LearnedCost:
    """Seconds that a micro-batch of some size takes, learned for each power of two.

    A size that was never seen costs what the next larger known one does, at most; beyond the largest it is taken to
    grow with the rows, so that a size is not tried before one half as large has shown what it takes.

    Args:
        known_s: what is known already, by rows.

    Example:
        >>> cost = LearnedCost()
        >>> cost.of(1)
        0.0
        >>> cost.learn(4, 0.002)
        >>> cost.of(3), cost.of(1), cost.of(8)
        (0.002, 0.002, 0.004)

    """

    known_s: InitVar[dict[int, float] | None] = None
    _seconds: dict[int, float] = field(default_factory=dict)

    def __post_init__(self, known_s: dict[int, float] | None) -> None:
        """Start from what is known."""
        for rows, seconds in (known_s or {}).items():
            self.learn(rows, seconds)

    def learn(self, rows: int, seconds: float) -> None:
        """What a batch of ``rows`` took just now."""
        bucket = _bucket(rows)
        known = self._seconds.get(bucket, seconds)
        self._seconds[bucket] = known + COST_SMOOTHING * (seconds - known)

    def of(self, rows: int) -> float:
        """What a batch of ``rows`` will take; 0 while nothing is known."""
        bucket = _bucket(rows)
        known = self._seconds.get(bucket)
        if known is not None:
            return known
        larger = [b for b in self._seconds if b > bucket]
        if larger:
            return self._seconds[min(larger)]
        largest = max(self._seconds, default=None)
        return 0.0 if largest is None else self._seconds[largest] * 2 ** (bucket - largest)

    def doubt(self) -> None:
        """All costs are a little lower than we think."""
        for bucket in self._seconds:
            self._seconds[bucket] *= DOUBT


@dataclass(slots=True)
class LearnedBound:
    """What a time that varies stays below nearly always: its mean and four times its mean deviation.

    Example:
        >>> bound = LearnedBound()
        >>> bound.seconds
        0.0
        >>> bound.learn(0.008)
        >>> bound.seconds
        0.024
        >>> for _ in range(100):
        ...     bound.learn(0.008)
        >>> round(bound.seconds, 3)
        0.008

    """

    _mean_s: float | None = None
    _deviation_s: float = 0.0

    def learn(self, seconds: float) -> None:
        """What it was just now."""
        if self._mean_s is None:
            self._mean_s, self._deviation_s = seconds, seconds / 2
            return
        self._deviation_s += DEVIATION_SMOOTHING * (abs(seconds - self._mean_s) - self._deviation_s)
        self._mean_s += MEAN_SMOOTHING * (seconds - self._mean_s)

    @property
    def mean_s(self) -> float:
        """The mean; 0 while nothing is known."""
        return self._mean_s or 0.0

    @property
    def likely_s(self) -> float:
        """The mean and one mean deviation."""
        return self.mean_s + self._deviation_s

    @property
    def seconds(self) -> float:
        """The bound; 0 while nothing is known."""
        return self.mean_s + DEVIATIONS * self._deviation_s


@dataclass(slots=True)
class _Waiting:
    segment: Hashable
    rows: int
    arrival_s: float
    deadlines_s: NDArray[np.float64] | None
    deadline_s: float
    taken: int = 0

    def left_s(self) -> NDArray[np.float64]:
        """Deadlines of the rows that were not taken yet."""
        if self.deadlines_s is None:
            return np.full(self.rows - self.taken, math.inf)
        return self.deadlines_s[self.taken :]


@dataclass(slots=True)
class MicroBatcher:
    """Collects rows and says when to run them.

    Attributes:
        max_batch_size: rows of a micro-batch at most.
        window_s: how long a row may wait for company while the device could take it.
        run: seconds on the device, by rows.
        prepare: seconds from firing to the device (features), by rows.
        cycle: seconds from one batch to the next while rows wait, by rows; the device is not always what takes longest.
        beyond: seconds from when the device should have been done until the brokers had the answers.

    Example:
        >>> batcher = MicroBatcher(max_batch_size=4, window_s=0.005)
        >>> batcher.add("a", rows=3, now_s=0.0)
        >>> batcher.fire_reason(now_s=0.0, device_free_s=9.0) is None
        True
        >>> batcher.fire_reason(now_s=0.0, device_free_s=0.0).name
        'IDLE'
        >>> batcher.add("b", rows=3, now_s=0.001)
        >>> batcher.fire_reason(now_s=0.001, device_free_s=9.0).name
        'FULL'
        >>> batcher.take(now_s=0.001, device_free_s=9.0).slices
        [Slice(segment='a', start=0, end=3), Slice(segment='b', start=0, end=1)]
        >>> batcher.waiting_rows
        2

    """

    max_batch_size: int
    window_s: float
    run: LearnedCost = field(default_factory=LearnedCost)
    prepare: LearnedCost = field(default_factory=LearnedCost)
    cycle: LearnedCost = field(default_factory=LearnedCost)
    beyond: LearnedBound = field(default_factory=LearnedBound)
    waiting_rows: int = 0
    hold: LearnedHold = field(init=False)
    _waiting: deque[_Waiting] = field(default_factory=deque)
    _held_since_s: float = -math.inf
    _left_behind: tuple[float, int] | None = None

    def __post_init__(self) -> None:
        """The hold learns from the same run times."""
        self.hold = LearnedHold(self.window_s, self.run.of)

    def set_model(self, run: LearnedCost, *, max_batch_size: int) -> None:
        """Another model answers from now on: what it costs, and the most rows that it takes at once."""
        self.run, self.max_batch_size = run, max_batch_size
        self.hold = LearnedHold(self.window_s, run.of)

    def add(
        self,
        segment: Hashable,
        *,
        rows: int,
        now_s: float,
        deadlines_s: NDArray[np.float64] | None = None,
        device_free_s: float = math.inf,
    ) -> None:
        """Rows that arrived now; a segment without rows still fires, alone or with others.

        Args:
            segment: handed back by ``take``.
            rows: >= 0.
            now_s: monotonic seconds.
            deadlines_s: deadline of each row, infinity where there is none; None: no row has one.
            device_free_s: when the device will be free; ``now_s`` or earlier: it is.

        """
        if not self._waiting and now_s >= device_free_s:
            self._held_since_s = now_s
            self.hold.begin(now_s, rows=rows)
        else:
            self.hold.note(now_s, rows=rows)
        earliest_s = math.inf if deadlines_s is None or not rows else float(deadlines_s.min())
        self._waiting.append(_Waiting(segment, rows, now_s, deadlines_s, earliest_s))
        self.waiting_rows += rows

    def fire_reason(self, *, now_s: float, device_free_s: float) -> FireReason | None:
        """Why to fire now, or None.

        Args:
            now_s: monotonic seconds.
            device_free_s: when the device will be free; ``now_s`` or earlier: it is.

        """
        if not self._waiting:
            return None
        if self.waiting_rows >= self.max_batch_size:
            return FireReason.FULL
        if now_s < device_free_s - self.prepare.of(self.waiting_rows):
            return None
        if now_s >= self._latest_start_s():
            return FireReason.DEADLINE
        if now_s >= self._waiting[0].arrival_s + self.window_s:
            return FireReason.WINDOW
        return None if now_s < self._held_since_s + self.hold.seconds else FireReason.IDLE

    def wake_at_s(self, *, now_s: float, device_free_s: float) -> float:
        """When to ask again if nothing else happens; infinity when nothing waits."""
        if not self._waiting:
            return math.inf
        ready_s = device_free_s - self.prepare.of(self.waiting_rows)
        if now_s < ready_s:
            return ready_s
        held_s = self._held_since_s + self.hold.seconds
        return min(self._waiting[0].arrival_s + self.window_s, self._latest_start_s(), held_s)

    def take(self, *, now_s: float, device_free_s: float, max_rows: int | None = None) -> Taken:
        """The oldest rows in order of arrival: at most ``max_batch_size`` that can still be answered in time.

        Args:
            now_s: monotonic seconds.
            device_free_s: when the device will be free; ``now_s`` or earlier: it is.
            max_rows: at most so many, late ones included; None: no such limit.

        Rows that cannot come along and take no place, since they will not go to the device: behind a backlog of them
        the device would otherwise get batches of nothing.
        """
        if self._left_behind is not None:
            since_s, rows_before = self._left_behind
            self.cycle.learn(rows_before, now_s - since_s)
        limit = self._limit(now_s, device_free_s)
        planned_s = self._planned_s(min(limit, self.waiting_rows), now_s, device_free_s)
        in_time_s = self._in_time_s(limit, planned_s)
        if max_rows is not None:
            limit = min(limit, max_rows)
        room, extra = limit, 0 if max_rows is not None else MAX_LATE_BATCHES * self.max_batch_size
        slices: list[Slice] = []
        while self._waiting:
            first = self._waiting[0]
            rows, alive = _fitting(first, room, extra, in_time_s)
            if first.rows and not rows:
                break
            slices.append(Slice(first.segment, first.taken, first.taken + rows))
            first.taken += rows
            room -= alive
            extra -= rows - alive
            self.waiting_rows -= rows
            if first.taken == first.rows:
                self._waiting.popleft()
        self._held_since_s = -math.inf
        taken = limit - room
        self._left_behind = (now_s, taken) if taken and self.waiting_rows else None
        return Taken(slices, planned_s, in_time_s)

    def give_back(self) -> list[Slice]:
        """All rows that wait, and none waits any more."""
        self._left_behind = None
        slices = [Slice(w.segment, w.taken, w.rows) for w in self._waiting]
        self._waiting.clear()
        self.waiting_rows = 0
        self._held_since_s = -math.inf
        return slices

    def _planned_s(self, rows: int, now_s: float, device_free_s: float) -> float:
        """When the device should be done with a batch of ``rows`` that fires now."""
        return max(now_s + self.prepare.of(rows), device_free_s) + self.run.of(rows)

    def _latest_start_s(self) -> float:
        """When a batch of what waits must fire to meet the earliest deadline on a free device."""
        earliest_s = min(w.deadline_s for w in self._waiting)
        rows = min(self.waiting_rows, self.max_batch_size)
        return earliest_s - self.prepare.of(rows) - self.run.of(rows) - self.beyond.seconds

    def _limit(self, now_s: float, device_free_s: float) -> int:
        """How many rows may go to the device: all that fit unless their deadlines want less."""
        full = min(self.waiting_rows, self.max_batch_size)
        if not full:
            return self.max_batch_size
        if not self._is_tight(self._planned_s(full, now_s, device_free_s)):
            return self.max_batch_size
        deadlines_s = self._deadlines_s()
        sizes = [1 << power for power in range(_bucket(full))] + [full]
        rates: list[float] = []
        for rows in sizes:
            in_time_s = self._planned_s(rows, now_s, device_free_s) + self.beyond.mean_s
            alive = min(int(np.count_nonzero(deadlines_s > in_time_s)), rows)
            rates.append(alive / self._step_s(alive) if alive else 0.0)
        best = max(rates)
        if not best:
            if (deadlines_s > now_s + self.prepare.of(1) + self.beyond.mean_s).any():
                self.run.doubt()
            return self.max_batch_size
        good = [rows for rows, rate in zip(sizes, rates, strict=True) if rate >= NEARLY_BEST * best]
        patience_s = float(np.median(np.clip(deadlines_s - now_s, 0.0, FAR_S))) * PATIENCE
        patient = [rows for rows in good if self.run.of(rows) <= patience_s]
        return max(patient or good[:1])

    def _in_time_s(self, limit: int, planned_s: float) -> float:
        """Up to which deadline rows are left out.

        Up to ``planned_s`` in any case. When the rows behind this batch would be late, those with the least time are
        left out, as many as it takes to let the others be in time: of a queue that is too long the front goes.
        """
        if self.waiting_rows <= limit or not self._is_tight(
            planned_s + self.waiting_rows / limit * self._step_s(limit)
        ):
            return planned_s
        deadlines_s = self._deadlines_s()
        possible = np.sort(deadlines_s[deadlines_s > planned_s])
        behind = np.arange(limit, len(possible))
        if not behind.size:
            return planned_s
        left_s = possible[limit:] - planned_s - self.beyond.likely_s
        places = limit * (left_s / self._step_s(limit) + 1)  # that are served until then
        surplus = float((behind - places).max())
        if surplus <= 0:  # minus infinity when none of them has a deadline
            return planned_s
        first_kept_s = possible[min(math.ceil(surplus), len(possible) - 1)]
        return max(planned_s, float(np.nextafter(first_kept_s, -math.inf)))  # rows of one deadline stay together

    def _step_s(self, rows: int) -> float:
        """What a batch of ``rows`` keeps the next one waiting."""
        return max(self.run.of(rows), self.cycle.of(rows), MIN_RUN_S)

    def _is_tight(self, planned_s: float) -> bool:
        """Whether a row might miss its deadline in a batch that the device is done with at ``planned_s``."""
        in_time_s = planned_s + self.beyond.seconds
        return any(w.deadline_s <= in_time_s for w in self._waiting)

    def _deadlines_s(self) -> NDArray[np.float64]:
        return np.concatenate([w.left_s() for w in self._waiting])


def _fitting(waiting: _Waiting, room: int, extra: int, in_time_s: float) -> tuple[int, int]:
    """How many of a segment's next rows fit, and how many of these can be answered in time."""
    left = waiting.rows - waiting.taken
    if waiting.deadlines_s is None or waiting.deadline_s > in_time_s:
        rows = min(left, room)
        return rows, rows
    alive = np.cumsum(waiting.deadlines_s[waiting.taken :] > in_time_s)
    late = np.arange(1, left + 1) - alive
    rows = int(np.count_nonzero((alive <= room) & (late <= extra)))
    return rows, int(alive[rows - 1]) if rows else 0


def _bucket(rows: int) -> int:
    return max(rows - 1, 0).bit_length()
