"""How long the first row of a quiet spell should wait for company; pure, learned from what came after earlier ones.

A row that finds the device idle and nobody waiting starts an episode. Whatever was decided, the arrivals of the next
``window_s`` are noted, and when it is over each candidate hold is charged with what it would have cost all those rows:
the wait for the first batch, and for those that would have missed it the run of that batch and of the next. The
candidate with the lowest average serves the next episode. After bursts the hold grows to about their length; when rows
come one by one it is zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CANDIDATE_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Holds to choose from, as shares of the window."""
SMOOTHING = 0.1
"""Weight of the newest episode; about the last twenty count."""
WORTH = 0.95
"""A hold must cost less than this share of not holding: doubt is decided in favour of answering at once."""
MAX_ARRIVALS = 256
"""Noted of one episode; more rows than that fill a batch in any case."""


@dataclass(slots=True)
class LearnedHold:
    """The hold for the next quiet spell.

    Attributes:
        window_s: no hold is longer.
        run_s: seconds that a batch of some rows takes on the device.

    Example:
        >>> hold = LearnedHold(window_s=0.004, run_s=lambda rows: 0.01)
        >>> for start in (0.0, 1.0, 2.0):
        ...     hold.begin(start, rows=1)
        ...     for i in range(8):
        ...         hold.note(start + 0.0001 * i, rows=1)
        >>> hold.begin(3.0, rows=1)
        >>> hold.seconds
        0.001

    """

    window_s: float
    run_s: Callable[[int], float]
    seconds: float = 0.0
    _started_s: float | None = None
    _arrivals: list[tuple[float, int]] = field(default_factory=list)
    _costs: list[float] = field(default_factory=list)

    def begin(self, now_s: float, *, rows: int) -> None:
        """A row found the device idle and nobody waiting."""
        self.finish(now_s)
        if self._started_s is None:
            self._started_s = now_s
            self._arrivals = [(0.0, rows)]

    def note(self, now_s: float, *, rows: int) -> None:
        """Rows arrived."""
        self.finish(now_s)
        if self._started_s is not None and len(self._arrivals) < MAX_ARRIVALS:
            self._arrivals.append((now_s - self._started_s, rows))

    def finish(self, now_s: float) -> None:
        """End the episode if its window is over, and learn from it."""
        if self._started_s is None or now_s < self._started_s + self.window_s:
            return
        self._started_s = None
        charged = [self._charge(share * self.window_s) for share in CANDIDATE_SHARES]
        if not self._costs:
            self._costs = charged
        self._costs = [old + SMOOTHING * (new - old) for old, new in zip(self._costs, charged, strict=True)]
        best = min(range(len(CANDIDATE_SHARES)), key=self._costs.__getitem__)
        held = self._costs[best] < WORTH * self._costs[0]
        self.seconds = CANDIDATE_SHARES[best] * self.window_s if held else 0.0

    def _charge(self, hold_s: float) -> float:
        """Row-seconds that the episode would have waited with this hold."""
        first = sum(rows for at_s, rows in self._arrivals if at_s <= hold_s)
        first_end_s = hold_s + self.run_s(first)
        second = sum(rows for at_s, rows in self._arrivals if hold_s < at_s <= first_end_s)
        second_end_s = first_end_s + self.run_s(second)
        waits = 0.0
        for at_s, rows in self._arrivals:
            if at_s <= hold_s:
                waits += rows * (first_end_s - at_s)
            elif at_s <= first_end_s:
                waits += rows * (second_end_s - at_s)
            else:
                waits += rows * self.run_s(rows)
        return waits
