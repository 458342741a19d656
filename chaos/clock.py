"""The wall clock that workers see: true time, and a step that a scenario sets."""

from __future__ import annotations

import struct
from pathlib import Path

SHIM = Path(__file__).parent / "stepped_clock"
"""Folder of the module that a worker's interpreter loads first."""


class SteppedClock:
    """Steps the wall clock of the processes that were started with its environment.

    Args:
        folder: where the file is kept that they follow.

    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "clock"
        self.step_to(0.0)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that follows the clock."""
        return {"CHAOS_CLOCK_FILE": str(self._path), "PYTHONPATH": str(SHIM)}

    def step_to(self, offset_s: float) -> None:
        """Let the wall clock be ``offset_s`` seconds ahead of true time from now on; negative: behind."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.write(struct.pack("<d", offset_s))
