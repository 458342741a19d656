"""A worker's life: connect, take partitions over, hand them over, close; driven by Faust's signals.

Nothing raises out of these steps, because Faust would log and go on half alive: an error ends the process.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from agents import topics
from agents.control import ControlFollower
from app.crash import end_process
from app.errors import SluiceError
from app.faust_app import wait_for_broker
from app.recent_reader import remember_tail
from app.transport import committed_offsets

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agents.outcomes import OutcomeMonitor
    from agents.scoring import Gate
    from agents.worker_stats import WorkerStats
    from app.committer import Committer
    from app.delivery import Delivery
    from app.faust_app import SluiceApp
    from app.features import RedisFeatureStore
    from app.ledger import Ledger
    from app.metrics import Metrics
    from app.models.manager import ModelManager
    from app.pipeline import ScoringPipeline
    from app.producer import OutputProducer
    from app.settings import Settings
    from app.start_stages import StartStages
    from schemas.registry import SchemaBook

log = logging.getLogger(__name__)

MONITOR_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What every worker is made of; the composition root puts them together."""

    app: SluiceApp
    settings: Settings
    producer: OutputProducer
    committer: Committer
    stats: WorkerStats
    ledger: Ledger
    gate: Gate
    start: StartStages


class WorkerLife(ABC):
    """What both roles do alike; a role adds its own steps."""

    def __init__(self, parts: WorkerParts) -> None:
        self.app, self.settings, self.producer = parts.app, parts.settings, parts.producer
        self.committer, self.stats, self.ledger = parts.committer, parts.stats, parts.ledger
        self.gate, self.start = parts.gate, parts.start
        self._tasks: list[asyncio.Task[None]] = []

    async def prepare(self) -> None:
        """Topics, producer, own parts, committer: all there before the worker joins its group."""
        self.start.ended("build")
        try:
            await wait_for_broker(partial(topics.ensure_topics, self.settings))
            await self.producer.start()
            self.start.ended("broker")
            await self.open()
        except (SluiceError, KafkaError, OSError) as exc:
            end_process(exc)
        self._tasks.append(asyncio.create_task(self.committer.run(), name="commit"))
        await self.stats.start()

    async def take_over(self, *_: object, **__: object) -> None:
        """Partitions are ours; called before the first record of them is fetched."""
        ticket = self.gate.begin_take_over()
        try:
            await self.assigned({tp.partition for tp in self.app.consumer.assignment()})
        except Exception as exc:  # noqa: BLE001 - crash-only
            end_process(exc)
        self.gate.end_take_over(ticket)
        if not self.start.is_over:
            self.start.over("join")
            log.info("%s", self.start)

    async def hand_over(self, *_: object, **__: object) -> None:
        """Answer and commit what is in flight, then forget it; on a rebalance and at the end."""
        self.gate.close()
        timeout_s = self.settings.delivery.drain_timeout_s
        if not await self.drain(timeout_s):
            end_process(TimeoutError(f"not drained within {timeout_s:.0f} s (SLUICE_DELIVERY__DRAIN_TIMEOUT_S)"))
        await self._in_time(self._forget())

    async def close(self, *_: object, **__: object) -> None:
        """Hand over, then let go of everything."""
        await self.hand_over()
        await self._in_time(self._let_go())

    async def _forget(self) -> None:
        await self.committer.commit()
        self.ledger.revoke()
        await self.revoked()

    async def _let_go(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.stats.stop()
        await self.shut()
        await self.producer.stop()

    async def _in_time(self, step: Coroutine[None, None, None]) -> None:
        """A step towards the end; brokers that do not answer may not hold it up for ever."""
        try:
            async with asyncio.timeout(self.settings.delivery.drain_timeout_s):
                await step
        except Exception as exc:  # noqa: BLE001 - crash-only
            end_process(exc)

    @abstractmethod
    async def open(self) -> None:
        """Start the role's own parts; the producer is there."""

    @abstractmethod
    async def assigned(self, partitions: set[int]) -> None:
        """Partitions were assigned."""

    @abstractmethod
    async def drain(self, timeout_s: float) -> bool:
        """Finish what is in flight; False when the time was too short."""

    @abstractmethod
    async def revoked(self) -> None:
        """All partitions are gone."""

    @abstractmethod
    async def shut(self) -> None:
        """Stop the role's own parts; the producer is still there."""


class ScoringLife(WorkerLife):
    """The scoring worker."""

    def __init__(
        self,
        parts: WorkerParts,
        pipeline: ScoringPipeline,
        delivery: Delivery,
        store: RedisFeatureStore,
        book: SchemaBook,
        models: ModelManager,
    ) -> None:
        super().__init__(parts)
        self._pipeline, self._delivery, self._store, self._book = pipeline, delivery, store, book
        self._models = models
        self._control = ControlFollower(parts.settings, models.control)

    async def open(self) -> None:
        """See ``WorkerLife``; returns when the models are warm, so that a new worker takes traffic at full speed."""
        control = await self._control.read_all()
        self.start.ended("control")
        await self._models.start(control)
        self.start.ended("models", of_which=self._models.load_seconds())
        self._pipeline.start()
        await self._control.start()
        self._tasks.append(asyncio.create_task(self._models.run(), name="models"))

    async def assigned(self, partitions: set[int]) -> None:
        """See ``WorkerLife``."""
        sources = [(topics.REQUESTS, partition) for partition in sorted(partitions)]
        await self._delivery.assigned(sources)
        committed = {p: offset for (_, p), offset in (await committed_offsets(self.app, sources)).items()}
        await remember_tail(self._pipeline.recent, self.settings, self._book, topics.SCORES, committed)
        self._pipeline.hold()

    async def drain(self, timeout_s: float) -> bool:
        """See ``WorkerLife``."""
        return await self._pipeline.release(timeout_s)

    async def revoked(self) -> None:
        """See ``WorkerLife``."""
        await self._delivery.revoked()
        self._pipeline.recent.clear()

    async def shut(self) -> None:
        """See ``WorkerLife``."""
        await self._control.stop()
        await self._pipeline.stop()
        self._models.close()
        await self._store.close()


class MonitorLife(WorkerLife):
    """The monitor worker."""

    def __init__(self, parts: WorkerParts, monitor: OutcomeMonitor, metrics: Metrics) -> None:
        super().__init__(parts)
        self._monitor, self._metrics = monitor, metrics
        self._owned: set[int] = set()

    async def open(self) -> None:
        """See ``WorkerLife``."""
        self._tasks.append(asyncio.create_task(self._tick(), name="monitor tick"))

    async def assigned(self, partitions: set[int]) -> None:
        """See ``WorkerLife``."""
        wanted = [(topic, p) for p in sorted(partitions) for topic in (topics.PREDICTIONS, topics.OUTCOMES)]
        await self._monitor.assigned(partitions, await committed_offsets(self.app, wanted))
        self._owned = partitions

    async def drain(self, timeout_s: float) -> bool:
        """See ``WorkerLife``; the monitor's step is short and not interrupted."""
        try:
            async with asyncio.timeout(timeout_s):
                while any(self.ledger.in_flight().values()):  # noqa: ASYNC110 - the ledger is pure and has no event
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return False
        return True

    async def revoked(self) -> None:
        """See ``WorkerLife``."""
        await self._monitor.revoked(self._owned)
        self._owned = set()

    async def shut(self) -> None:
        """See ``WorkerLife``."""
        await self._monitor.stop()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(MONITOR_TICK_S)
            try:
                await self._monitor.tick()
            except Exception as exc:  # noqa: BLE001 - crash-only
                end_process(exc)
            self._export()

    def _export(self) -> None:
        """The newest window of each model version as gauges."""
        for window in self._monitor.snapshot()["windows"]:
            labels = {"model_name": str(window["model_name"]), "model_version": str(window["model_version"])}
            for name in ("coverage", "precision", "recall", "auc", "brier", "score_psi"):
                if isinstance(window.get(name), float):
                    self._metrics.set_gauge(f"quality_{name}", window[name], **labels)
            for column, verdict in window["features"].items():
                if isinstance(verdict.get("psi"), float):
                    self._metrics.set_gauge("drift_score", verdict["psi"], **labels, kind="data", column=column)
