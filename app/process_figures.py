"""What this process holds now: figures in which a leak shows."""

from __future__ import annotations

import asyncio
from pathlib import Path


def process_figures() -> dict[str, int | None]:
    """Tasks of the event loop that asks, open files and threads of the process.

    Returns:
        Counts by name, the same names always; None where one cannot be told: no event loop asks, or the system has no
        ``/proc``.

    Example:
        >>> process_figures()["event_loop_tasks"] is None  # no event loop asks here
        True
        >>> list(process_figures())
        ['event_loop_tasks', 'open_files', 'threads']

    """
    return {
        "event_loop_tasks": _task_count(),
        "open_files": _entry_count(Path("/proc/self/fd")),
        "threads": _entry_count(Path("/proc/self/task")),
    }


def _task_count() -> int | None:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # no event loop runs in this thread
        return None


def _entry_count(folder: Path) -> int | None:
    try:
        return sum(1 for _ in folder.iterdir())
    except OSError:
        return None
