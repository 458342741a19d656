"""How far a replay is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from rich.console import Console

    from .replay import Progress

LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.2


class ProgressLine:
    """Shows a replay's progress; a context manager.

    Args:
        console: where to.

    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_s = 0.0
        self._bar = Bar(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("Replay", total=None, rate="")

    def update(self, progress: Progress) -> None:
        """Shows a tick, if the last one shown is some time ago."""
        now_s = time.monotonic()
        is_last = progress.answered_count == progress.flight_count
        every_s = BAR_EVERY_S if self._console.is_terminal else LINE_EVERY_S
        if now_s - self._shown_s < every_s and not is_last:
            return
        self._shown_s = now_s
        day = pd.Timestamp(progress.event_us, unit="us").strftime("%d %b")
        rate = f"{progress.answered_count / max(progress.elapsed_s, 1e-3):,.0f} flights/s"
        if self._console.is_terminal:
            self._bar.update(
                self._task, description=f"Replay {day}", total=progress.flight_count,
                completed=progress.answered_count, rate=rate,
            )  # fmt: skip
        else:
            count = f"{progress.answered_count:,} of {progress.flight_count:,} flights"
            self._console.print(f"Replay: {day} 2013, {count}, {rate}", highlight=False)

    def __enter__(self) -> Self:
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._bar.stop()
