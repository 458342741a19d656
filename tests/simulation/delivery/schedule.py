"""Simulated time: what happens next, and every random choice; one seed, one run."""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Schedule:
    """Events in the order of their ticks; events of one tick in the order in which they were planned.

    Args:
        seed: decides every choice.
        is_traced: keep a line for everything worth telling.

    Example:
        >>> schedule = Schedule(7)
        >>> said = []
        >>> schedule.after(2, said.append, "second")
        >>> schedule.after(1, said.append, "first")
        >>> while schedule.step():
        ...     pass
        >>> said, schedule.now
        (['first', 'second'], 2)

    """

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.rng = random.Random(seed)
        self.random = self.rng.random
        self.now = 0
        self.steps = 0
        self.lines: list[str] | None = [] if is_traced else None
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0

    def after(self, ticks: int, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 - the call's own
        """Call in so many ticks; 0 is later in this tick."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now + ticks, self._planned, call, arguments))

    def step(self) -> bool:
        """The next event; False when there is none."""
        if not self._heap:
            return False
        self.now, _, call, arguments = heapq.heappop(self._heap)
        self.steps += 1
        call(*arguments)
        return True

    def some(self, most: int) -> int:
        """1 .. ``most``."""
        return 1 + int(self.random() * most)

    def note(self, *words: object) -> None:
        """A line of the trace; costs nothing when nobody reads it."""
        if self.lines is not None:
            self.lines.append(f"{self.now:5d}  " + " ".join(map(str, words)))
