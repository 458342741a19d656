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

    import faust

    from app.ledger import Ledger, Partition
    from app.metrics import Metrics
    from app.settings import DeliverySettings

log = logging.getLogger(__name__)


class Stalled(RuntimeError):
    """Work is in flight and nothing was answered for too long; only a restart can help."""


class Committer:
    """Commits the ledger's contiguous answered prefixes every ``commit_interval_ms``, on revoke and at drain.

    Args:
        app: of the worker.
        commit_offsets: commits offsets of its consumer group; False when the group has moved on.
        ledger: the only source of what may be committed.
        settings: interval and watchdog.
        metrics: counts commits.
        on_failure: called when the watchdog gives up, or after an unexpected error.
        is_held: whether work waits on purpose; then waiting is no stall.

    """

    def __init__(  # noqa: PLR0913 - the composition root hands over every part once, by name
        self,
        app: faust.App,
        commit_offsets: Callable[[dict[Partition, int]], Awaitable[bool]],
        ledger: Ledger,
        settings: DeliverySettings,
        metrics: Metrics,
        *,
        on_failure: Callable[[BaseException], None],
        is_held: Callable[[], bool] = lambda: False,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._ledger, self._settings, self._metrics = app, ledger, settings, metrics
        self._commit_offsets = commit_offsets
        self._on_failure, self._is_held, self._now_s = on_failure, is_held, now_s
        self._progress_s = now_s()
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Commit for ever; a task of the worker."""
        while True:
            await asyncio.sleep(self._settings.commit_interval_ms / 1000)
            try:
                await self.commit()
            except KafkaError as exc:  # a broker restarts: a commit may be repeated; the watchdog sees a long outage
                log.warning("commit failed (%r); trying again", exc)
            except Exception as exc:  # noqa: BLE001 - crash-only: a committer that is gone would be a silent stall
                self._on_failure(exc)
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
        """Seconds since work was last seen to progress; 0 when none is in flight, or when it waits on purpose."""
        if self._is_held() or not any(self._ledger.in_flight().values()):
            self._progress_s = self._now_s()
        return self._now_s() - self._progress_s

    def _watch(self) -> None:
        if self._app.crash_reason is not None:  # Faust would stop half of itself and stay
            self._on_failure(self._app.crash_reason)
        stalled_s = self.stalled_s()
        if stalled_s > 2 * self._settings.stall_after_s:
            self._on_failure(Stalled(f"nothing answered for {stalled_s:.0f} s while {self._ledger.in_flight()} wait"))
