"""Requests at a steady rate, whatever becomes of the brokers; what was acknowledged is remembered."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaProducer

from schemas import topic_names

if TYPE_CHECKING:
    from chaos.workload import Numbered, Workload

TICK_S = 0.02
SEND_TIMEOUT_S = 120.0
"""Longer than any outage here: a send that is never answered would be neither in the topic nor out of it."""


class Load:
    """Sends numbered requests, and their outcomes if asked to.

    Args:
        bootstrap_servers: of the brokers themselves.
        workload: makes the records.
        rate: requests a second.
        has_outcomes: whether each request gets an outcome.

    Attributes:
        acknowledged: place of each request that the broker has, to the request; place is (partition, offset).
        outcome_places: likewise for outcomes, to the number of the request.

    """

    def __init__(self, bootstrap_servers: str, workload: Workload, rate: float, *, has_outcomes: bool) -> None:
        self.acknowledged: dict[tuple[int, int], Numbered] = {}
        self.outcome_places: dict[tuple[int, int], int] = {}
        self.failures: list[str] = []
        self._workload, self._rate, self._has_outcomes = workload, rate, has_outcomes
        self._next = 0
        self._waiting: set[asyncio.Task[None]] = set()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            enable_idempotence=True,
            linger_ms=5,
            request_timeout_ms=int(SEND_TIMEOUT_S * 1000),
        )

    async def run(self) -> None:
        """Send until cancelled; a task of the world."""
        started_s, sent = time.monotonic(), 0
        while True:
            await asyncio.sleep(TICK_S)
            due = int((time.monotonic() - started_s) * self._rate) - sent
            if due > 0:
                # After a pause, of ours or the broker's, the rest comes later: no burst of a size nobody asked for.
                batch = min(due, int(self._rate))
                await self.send(batch)
                sent += due

    async def send(self, count: int) -> None:
        """Send the next requests; returns when they are handed to the producer."""
        requests = self._workload.requests(self._next, count)
        self._next += count
        for request in requests:
            sent = await self._producer.send(
                topic_names.REQUESTS, request.value, request.key, partition=request.partition
            )
            self._remember(sent, request)
            if self._has_outcomes and not request.is_poison:
                value = self._workload.outcome(request.number)
                sent = await self._producer.send(topic_names.OUTCOMES, value, request.key, partition=request.partition)
                self._remember_outcome(sent, request.number)

    async def finish(self) -> None:
        """Wait until everything that was sent is acknowledged or has failed."""
        while self._waiting:
            await asyncio.wait(self._waiting)

    def _remember(self, sent: asyncio.Future[object], request: Numbered) -> None:
        async def note() -> None:
            try:
                done = await sent
            except Exception as exc:  # noqa: BLE001 - whatever it was, the verdict must hear of it
                self.failures.append(f"request {request.number}: {exc!r}")
                return
            self.acknowledged[done.partition, done.offset] = request  # type: ignore[attr-defined]

        self._track(asyncio.create_task(note()))

    def _remember_outcome(self, sent: asyncio.Future[object], number: int) -> None:
        async def note() -> None:
            try:
                done = await sent
            except Exception as exc:  # noqa: BLE001 - as above
                self.failures.append(f"outcome {number}: {exc!r}")
                return
            self.outcome_places[done.partition, done.offset] = number  # type: ignore[attr-defined]

        self._track(asyncio.create_task(note()))

    def _track(self, task: asyncio.Task[None]) -> None:
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._producer.stop()
