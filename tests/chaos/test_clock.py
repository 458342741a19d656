"""The stepped clock moves a process's wall clock, and nothing else of it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from chaos.clock import SteppedClock

if TYPE_CHECKING:
    from pathlib import Path

CHILD = """
import sys, time
for _ in sys.stdin:
    print(time.time(), time.time_ns() / 1e9, time.monotonic(), flush=True)
"""


def test_a_step_is_seen_by_the_next_call(tmp_path: Path) -> None:
    """time.time and time.time_ns jump by the hour that was set; the monotonic clock goes on."""
    clock = SteppedClock(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], env={**os.environ, **clock.environment}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None

        def look() -> list[float]:
            child.stdin.write("\n")
            child.stdin.flush()
            return [float(word) for word in child.stdout.readline().split()]

        before = look()
        clock.step_to(3600.0)
        after = look()
        child.stdin.close()
    steps = [round((late - early) / 3600) for early, late in zip(before, after, strict=True)]
    assert steps == [1, 1, 0]
