"""Commits what the ledger allows, and ends a worker that makes no progress.

Faust's own acknowledgement is switched off (``acks=False``): it commits past unanswered offsets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.ledger import Ledger, Partition
    from app.metrics import Metrics
    from app.settings import DeliverySettings

log = logging.getLogger(__name__)


class Stalled(RuntimeError):
    """Work waits and nothing was committed for too long; only a restart can help."""


class Committer:
    """Commits the ledger's contiguous answered prefixes every ``commit_interval_ms``, on revoke and at drain.

    Args:
        commit_offsets: commits offsets of its consumer group; False when the group has moved on.
        ledger: the only source of what may be committed.
        settings: interval and watchdog.
        metrics: counts commits.
        on_failure: called when the watchdog gives up, or after an unexpected error.
        crash_reason: why a part that must never end has ended; None: all run.
        is_held: whether work waits on purpose; then waiting is no stall.
        now_s: monotonic seconds.

    """

    def __init__(  # noqa: PLR0913 - the composition root hands over every part once, by name
        self,
        commit_offsets: Callable[[dict[Partition, int]], Awaitable[bool]],
        ledger: Ledger,
        settings: DeliverySettings,
        metrics: Metrics,
        *,
        on_failure: Callable[[BaseException], None],
        crash_reason: Callable[[], BaseException | None],
        is_held: Callable[[], bool] = lambda: False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._settings, self._metrics = ledger, settings, metrics
        self._commit_offsets = commit_offsets
        self._on_failure, self._crash_reason = on_failure, crash_reason
        self._is_held, self._now_s = is_held, now_s
        self._progress_s = now_s()
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Commit for ever, and watch; a task of the worker."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._commit_for_ever())
            tasks.create_task(self._watch_for_ever())

    async def _commit_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.commit_interval_ms / 1000)
            try:
                await self.commit()
            except KafkaError as exc:  # a broker restarts: a commit may be repeated; the watchdog sees a long outage
                log.warning("commit failed (%r); trying again", exc)
            except Exception as exc:  # noqa: BLE001 - crash-only: a committer that is gone would be a silent stall
                self._on_failure(exc)

    async def _watch_for_ever(self) -> None:
        """Beside the commits: one that never comes back must be seen too."""
        while True:
            await asyncio.sleep(self._settings.commit_interval_ms / 1000)
            self._watch()

    async def commit(self) -> None:
        """Commit what is answered now; nothing happens when the group has moved on."""
        async with self._lock:
            offsets = self._ledger.committable()
            if not offsets:
                return
            started_s = self._now_s()
            if await self._commit_offsets(offsets):
                self._ledger.commit(offsets)
                self._progress_s = self._now_s()
                self._metrics.count("commits")
                self._metrics.observe_us("commit_duration", int((self._progress_s - started_s) * 1e6))
            else:
                log.warning("commit of %s refused: the group has moved on", offsets)

    def stalled_s(self) -> float:
        """Seconds since the last commit; 0 when nothing is to be answered or committed, or it waits on purpose."""
        is_waiting = any(self._ledger.in_flight().values()) or self._ledger.committable()
        if self._is_held() or not is_waiting:
            self._progress_s = self._now_s()
        return self._now_s() - self._progress_s

    def _watch(self) -> None:
        reason = self._crash_reason()
        if reason is not None:
            self._on_failure(reason)
        stalled_s = self.stalled_s()
        if stalled_s > 2 * self._settings.stall_after_s:
            waiting = f"in flight {self._ledger.in_flight()}, answered up to {self._ledger.committable()}"
            self._on_failure(Stalled(f"nothing was committed for {stalled_s:.0f} s: {waiting}"))
