# ruff: noqa: INP001 - a folder of its own, because the interpreter finds this module by its name alone
"""Loaded by the interpreter before anything else when its folder is on PYTHONPATH: the wall clock follows a file.

``CHAOS_CLOCK_FILE`` names a file of eight bytes, a little-endian double: seconds to add to the wall clock. It is
mapped into memory, so a step is seen by the very next call. Monotonic clocks stay as they are, as when an
administrator sets a machine's time.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path


def step_clock(path: Path) -> None:
    """Replace ``time.time`` and ``time.time_ns``."""
    with path.open("rb") as file:
        offset = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    true_time, true_time_ns = time.time, time.time_ns

    def offset_s() -> float:
        return float(struct.unpack("<d", offset[:8])[0])

    def stepped_time() -> float:
        return true_time() + offset_s()

    def stepped_time_ns() -> int:
        return true_time_ns() + int(offset_s() * 1e9)

    time.time, time.time_ns = stepped_time, stepped_time_ns


if os.environ.get("CHAOS_CLOCK_FILE"):
    step_clock(Path(os.environ["CHAOS_CLOCK_FILE"]))
