"""How long a worker took from the start of its process until it had its partitions, step by step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

STAT = Path("/proc/self/stat")
START_FIELD = 19
"""Of those behind the program's name: clock ticks from the machine's start to the process's."""


def process_age_s() -> float:
    """Seconds since this process began, before its first line of Python.

    psutil alone would be up to a second off, for on Linux it takes the machine's start in whole seconds.

    Example:
        >>> process_age_s() > 0
        True

    """
    if not STAT.exists():
        return time.time() - psutil.Process().create_time()
    ticks = int(STAT.read_text().rpartition(")")[2].split()[START_FIELD])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class StartStages:
    """Is told when a stage has ended; the next one begins there.

    Args:
        age_s: seconds since the process began.

    Attributes:
        seconds: what each stage took, in order.
        is_over: the last one has ended.

    Example:
        >>> times = iter([6.0, 8.0, 8.5])
        >>> start = StartStages(lambda: next(times))
        >>> start.ended("import")
        >>> start.ended("models", of_which={"fetch": 1.25, "map": 0.5})
        >>> start.over("join")
        >>> str(start)
        'ready 8.5 s after the process began: import 6.00, fetch 1.25, map 0.50, models 0.25, join 0.50 s'

    """

    def __init__(self, age_s: Callable[[], float] = process_age_s) -> None:
        self._age_s = age_s
        self._ended_s = 0.0
        self.seconds: dict[str, float] = {}
        self.is_over = False

    def ended(self, stage: str, *, of_which: Mapping[str, float] | None = None) -> None:
        """A stage has ended.

        Args:
            stage: its name.
            of_which: seconds of steps in it that are told by names of their own; the stage keeps the rest.

        """
        now_s = self._age_s()
        steps = dict(of_which or {})
        self.seconds |= steps
        self.seconds[stage] = max(now_s - self._ended_s - sum(steps.values()), 0.0)
        self._ended_s = now_s

    def over(self, stage: str) -> None:
        """The last stage has ended."""
        self.ended(stage)
        self.is_over = True

    def __str__(self) -> str:
        """The line for the log."""
        told = ", ".join(f"{stage} {took_s:.2f}" for stage, took_s in self.seconds.items())
        return f"ready {sum(self.seconds.values()):.1f} s after the process began: {told} s"
