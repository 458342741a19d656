"""Lanes: as many micro-batches compute at once as the default model has instances, each on a thread of its own."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.compute import compute
from app.errors import DeviceLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.microbatch import MicroBatch
    from app.models.live import LiveModel

INLINE_S = 0.0003
"""A micro-batch that takes the CPU for less than this is computed on the event loop: to hand it to another thread and
back takes about as long."""


@dataclass(slots=True)
class Lane:
    """One instance's turn.

    Attributes:
        index: which instance of a model it uses.
        free_s: monotonic; when it will be free.

    """

    index: int
    thread: ThreadPoolExecutor
    free_s: float = -math.inf
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Lanes:
    """All lanes of a worker.

    Args:
        count: instances of each model.
        on_device_lost: called when an instance has lost its device; gives the model others, or raises.

    """

    def __init__(self, count: int, *, on_device_lost: Callable[[LiveModel, DeviceLost], Awaitable[None]]) -> None:
        self._lanes = [Lane(i, ThreadPoolExecutor(1, thread_name_prefix=f"compute-{i}")) for i in range(count)]
        for lane in self._lanes:
            lane.idle.set()
        self._on_device_lost = on_device_lost

    def __len__(self) -> int:
        """Number of lanes."""
        return len(self._lanes)

    @property
    def free_s(self) -> float:
        """When the first of them will be free, monotonic."""
        return self._lanes[0].free_s if len(self._lanes) == 1 else min(lane.free_s for lane in self._lanes)

    async def acquire(self) -> Lane:
        """The next lane that is free; it is busy from now on."""
        lane = min(self._lanes, key=lambda each: (not each.idle.is_set(), each.free_s))
        await lane.idle.wait()
        lane.idle.clear()
        return lane

    async def compute(self, batch: MicroBatch, lane: Lane, run_s: float) -> None:
        """Compute the rows of one model on a lane.

        Args:
            batch: of one model.
            lane: acquired.
            run_s: what the whole is expected to take; shorter than a hand-over to a thread: it runs here.

        """
        model = batch.model
        while True:
            scorer = model.scorer(lane.index)
            try:
                if scorer.device == "cpu" and run_s < INLINE_S:
                    compute(batch, model, scorer)
                else:
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(lane.thread, compute, batch, model, scorer)
            except DeviceLost as exc:
                if model.scorer(lane.index) is scorer:  # else another lane has met the same
                    await self._on_device_lost(model, exc)
                continue
            return

    def close(self) -> None:
        """Let go of the threads."""
        for lane in self._lanes:
            lane.thread.shutdown(wait=False)
