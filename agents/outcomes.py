"""The monitor of delayed outcomes: partitions of ``predictions-log`` and ``outcomes``, joined, counted and published.

Order of a step, per partition: compute, send, wait for the broker's acknowledgement, write the store, return. What a
crash between the last two repeats carries the same ``x-src``; nothing else can be repeated or lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.topics import LABELLED, MONITOR_EVENTS, OUTCOMES, OUTCOMES_DLQ, PREDICTIONS
from agents.window_closing import WindowBook
from app.connections import connection_arguments
from app.errors import SluiceError
from monitors.closing import Closing, watermark
from monitors.events import EventCodec, closing_events
from monitors.join import TALLIES, JoinRule
from monitors.partition import PartitionMonitor, PartitionTools, Taken, has_seen_predictions
from monitors.prediction_plans import PredictionPlans
from monitors.readers import OutcomeReader
from monitors.rebuild import read_ranges
from monitors.report_worker import ReportJob, ReportWorker, sample_frame
from monitors.store import PartitionStore, StoreInUse, WindowKey
from schemas.registry import load_schema
from schemas.wire import schema_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from app.producer import OutputProducer
    from app.settings import Settings
    from schemas.records import RecordBatch
    from schemas.registry import SchemaBook

logger = logging.getLogger(__name__)

THREAD_ROWS = 256
"""Larger batches are worked on and written in a thread, so that the event loop answers its heartbeats."""
OPEN_ATTEMPTS, OPEN_PAUSE_S = 100, 0.1
"""After a rebalance the worker that had the partition may need a moment to close its store."""
LEARN_EVERY_S = 5.0
MIN_REPORT_ROWS = 50
SAMPLE_FLOOR = 50


class PartitionNotOwned(SluiceError):
    """A batch of a partition that this worker does not have (any more); drop it and commit nothing for it."""


class MonitorFailed(SluiceError):
    """A step was computed but not written: memory is ahead of the store. The worker must restart."""


class OutcomeMonitor:
    """Joins the partitions that a worker owns; see ``monitors`` for the parts.

    Args:
        settings: of the worker.
        book: knows the schemas of the writers.
        producer: started; sends labelled predictions, dead letters and events.
        reference_of: path of the reference frame of a model version, or None.
        now_s: wall clock, for idleness and the time stamp of events; never for what is counted.
        learn_schemas: makes the book look for models that were added since, when a prediction's schema is unknown;
            called at most every 5 s, in a thread.

    """

    def __init__(
        self,
        settings: Settings,
        book: SchemaBook,
        producer: OutputProducer,
        reference_of: Callable[[str, int], Path | None],
        *,
        now_s: Callable[[], float] = time.time,
        learn_schemas: Callable[[], None] = lambda: None,
    ) -> None:
        monitor = settings.monitor
        self._settings = settings
        self._book = book
        self._producer = producer
        self._reference_of = reference_of
        self._now_s = now_s
        self._rule = JoinRule.of_seconds(
            monitor.window, monitor.label_horizon_s, monitor.maturity_s, monitor.allowed_lateness_s
        )
        self._learn_schemas, self._learned_s = learn_schemas, float("-inf")
        self._plans = PredictionPlans(book, LABELLED, self._learn)
        reader = OutcomeReader(book, load_schema(settings.schemas.folder, "outcome"), self._rule.lateness_us)
        rows = max(SAMPLE_FLOOR, monitor.report_sample_rows // settings.kafka.partitions)
        self._tools = PartitionTools(self._plans, reader, self._rule, reference_of, rows)
        event_schema = load_schema(settings.schemas.folder, "monitor_event")
        self._events = EventCodec(event_schema, book.add(MONITOR_EVENTS, event_schema))
        self._partitions: dict[int, PartitionMonitor] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._seen_s: dict[tuple[str, int], float] = {}
        self._watermark_us: int | None = None
        self._redelivered_count = 0
        self._failed: BaseException | None = None
        self._reports = ReportWorker(monitor.reports)
        self._report_names = self._reports.names()
        self._report_task: asyncio.Task[None] | None = None
        self._wanted_reports: dict[WindowKey, bool] = {}
        self._windows = WindowBook(self._rule)

    async def assigned(self, partitions: set[int], committed: dict[tuple[str, int], int]) -> None:
        """Open the stores of partitions, and let those that are behind the group catch up without a word.

        Args:
            partitions: newly assigned, or all.
            committed: topic and partition to the group's committed offset; absent or negative: none.

        Raises:
            StoreInUse: another process still has a store after 10 s.
            RebuildError: the topics cannot be read.

        """
        new = sorted(partitions - self._partitions.keys())
        for partition in new:
            store = await self._open(partition)
            self._partitions[partition] = PartitionMonitor(partition, store, self._tools)
            self._locks[partition] = asyncio.Lock()
            for topic in (PREDICTIONS, OUTCOMES):
                self._seen_s[topic, partition] = self._now_s()
        await self._catch_up(new, committed)

    async def revoked(self, partitions: set[int]) -> None:
        """Finish the step under way, then release the stores."""
        for partition in sorted(partitions & self._partitions.keys()):
            async with self._locks[partition]:
                self._partitions.pop(partition).store.close()
            del self._locks[partition]

    async def handle(self, batch: RecordBatch) -> None:
        """Take in a record batch; when it returns, ``batch.next_offset`` may be committed.

        Raises:
            PartitionNotOwned: nothing was done, and nothing may be committed.
            DeliveryError: an output was not acknowledged; the worker must restart.
            MonitorFailed: an earlier step failed; the worker must restart.

        """
        await self._take(batch, silent=False)

    async def tick(self) -> None:
        """About once a second: move the watermark, close windows, start reports."""
        if self._failed is not None or not self._partitions:
            return
        self._mark_idle()
        self._watermark_us = watermark(
            [(m.meta.predictions_clock_us if has_seen_predictions(m) else None, self._is_idle(PREDICTIONS, p))
             for p, m in self._partitions.items()],
            self._rule.lateness_us, self._watermark_us,
        )  # fmt: skip
        due = self._windows.due(self._partitions, self._watermark_us)
        if due:
            await self._close_windows(due)
        self._want_idle_reports()
        if self._wanted_reports and (self._report_task is None or self._report_task.done()):
            key = next(iter(self._wanted_reports))
            final = self._wanted_reports.pop(key)
            self._report_task = asyncio.create_task(self._report(key, final=final), name="report")

    async def stop(self) -> None:
        """Stop a report that is being written, and release all stores."""
        if self._report_task is not None:
            self._report_task.cancel()
            await asyncio.gather(self._report_task, return_exceptions=True)
        await self.revoked(set(self._partitions))

    def snapshot(self) -> dict[str, Any]:
        """Counters, watermark, windows and reports of this worker's partitions, ready for JSON."""
        monitors = list(self._partitions.values())
        counters = {name: sum(m.meta.tallies[name] for m in monitors) for name in TALLIES}
        return {
            "counters": {**counters, "redelivered": self._redelivered_count},
            "watermark_us": self._watermark_us,
            "partitions": sorted(self._partitions),
            "windows": self._windows.as_json(self._partitions),
            "reports": list(self._report_names),
        }

    # ------------------------------------------------------------------ one step

    async def _take(self, batch: RecordBatch, *, silent: bool) -> None:
        if self._failed is not None:
            msg = f"an earlier step failed ({self._failed!r}); the worker must restart"
            raise MonitorFailed(msg)
        lock = self._locks.get(batch.partition)
        if lock is None:
            msg = f"partition {batch.partition} of {batch.topic} is not assigned to this worker; drop the batch"
            raise PartitionNotOwned(msg)
        # Shielded: a step that has begun in its thread is finished, under its lock, even when the caller is cancelled.
        step = asyncio.create_task(self._locked_step(lock, batch, silent=silent), name=f"join {batch.partition}")
        step.add_done_callback(_mark_seen)
        await asyncio.shield(step)

    async def _locked_step(self, lock: asyncio.Lock, batch: RecordBatch, *, silent: bool) -> None:
        async with lock:
            monitor = self._partitions.get(batch.partition)
            if monitor is None:
                msg = f"partition {batch.partition} of {batch.topic} was revoked meanwhile; drop the batch"
                raise PartitionNotOwned(msg)
            self._seen_s[batch.topic, batch.partition] = self._now_s()
            self._redelivered_count += _below(batch, monitor)
            try:
                await self._look_up_schemas(batch)
                await self._step(monitor, batch, silent=silent)
            except BaseException as exc:
                self._failed = exc
                raise

    async def _look_up_schemas(self, batch: RecordBatch) -> None:
        """Ask for the schemas of a batch that are new here, beside the event loop: the registry may take seconds."""
        ids = np.unique(schema_ids(batch.values)).tolist()
        await self._book.fetch(ids)
        if batch.topic == PREDICTIONS:
            for schema_id in self._plans.missing(ids):
                await asyncio.to_thread(self._plans.plan, schema_id)

    async def _step(self, monitor: PartitionMonitor, batch: RecordBatch, *, silent: bool) -> None:
        is_large = len(batch) >= THREAD_ROWS
        if batch.topic == PREDICTIONS:
            take = partial(monitor.take_predictions, batch, silent=silent)
            taken = await asyncio.to_thread(take) if is_large else take()
        else:
            # An outcome may meet a stored prediction of a model that is gone, whose schema only the registry knows.
            taken = await asyncio.to_thread(monitor.take_outcomes, batch, silent=silent)
        await self._send(monitor.partition, taken)
        if is_large:
            await asyncio.to_thread(monitor.commit, taken)
        else:
            monitor.commit(taken)

    async def _send(self, partition: int, taken: Taken) -> None:
        sent = [
            await self._producer.send(topic, partition, records.keys, records.values, records.headers)
            for topic, records in ((LABELLED, taken.labelled), (OUTCOMES_DLQ, taken.dead))
            if records.values
        ]
        await asyncio.gather(*sent)

    def _learn(self) -> None:
        if self._now_s() - self._learned_s >= LEARN_EVERY_S:
            self._learned_s = self._now_s()
            self._learn_schemas()

    # ------------------------------------------------------------------ assignment

    async def _open(self, partition: int) -> PartitionStore:
        folder = self._settings.monitor.store / self._settings.deployment / f"partition-{partition}"
        for _ in range(OPEN_ATTEMPTS - 1):
            try:
                return PartitionStore(folder)
            except StoreInUse:
                await asyncio.sleep(OPEN_PAUSE_S)
        return PartitionStore(folder)

    async def _catch_up(self, partitions: list[int], committed: dict[tuple[str, int], int]) -> None:
        ranges = {}
        for partition in partitions:
            meta = self._partitions[partition].meta
            for topic, position in ((PREDICTIONS, meta.predictions_offset), (OUTCOMES, meta.outcomes_offset)):
                ranges[topic, partition] = (position, max(committed.get((topic, partition), 0), 0))
        behind = {tp: span for tp, span in ranges.items() if span[0] < span[1]}
        if not behind:
            return
        logger.info("stores of partitions %s are behind the group: reading %s", sorted({p for _, p in behind}), behind)
        connection = connection_arguments(self._settings.kafka)
        await read_ranges(connection, behind, lambda batch: self._take(batch, silent=True))
        await self._restore_closings({partition for _, partition in behind})

    async def _restore_closings(self, partitions: set[int]) -> None:
        """Windows that were published before the store was lost are not published again."""

        async def apply(batch: RecordBatch) -> None:
            for value in batch.values:
                event = self._events.decode(value) if value is not None else None
                if event is not None and event["kind"] == "WINDOW_CLOSED":
                    self._apply_closing(event, partitions)

        await read_ranges(connection_arguments(self._settings.kafka), {(MONITOR_EVENTS, 0): (0, 2**62)}, apply)

    def _apply_closing(self, event: dict[str, Any], partitions: set[int]) -> None:
        key = WindowKey(event["model_name"], event["model_version"], event["window_start"])
        state = Closing.FINAL if event["final"] else Closing.PROVISIONAL
        covered = {int(p) for p in event["attributes"].get("partitions", "").split(",") if p}
        for partition in partitions & covered:
            monitor = self._partitions[partition]
            if key in monitor.revisions and state > monitor.closings.get(key, Closing.OPEN):
                monitor.record_closings({key: state})

    # ------------------------------------------------------------------ closing and reports

    def _is_idle(self, topic: str, partition: int) -> bool:
        return self._now_s() - self._seen_s[topic, partition] >= self._settings.monitor.idle_partition_s

    def _mark_idle(self) -> None:
        for partition, monitor in self._partitions.items():
            monitor.outcomes_idle = self._is_idle(OUTCOMES, partition)

    async def _close_windows(self, due: dict[WindowKey, Closing]) -> None:
        async with AsyncExitStack() as locks:
            for partition in sorted(self._locks):
                await locks.enter_async_context(self._locks[partition])
            if not self._partitions or self._failed is not None:
                return
            events = []
            for key, state in due.items():
                figures = self._windows.figures(self._partitions, key)
                covered = [p for p, m in self._partitions.items() if key in m.revisions]
                if figures is not None and covered:
                    emitted_us = int(self._now_s() * 1e6)
                    events += closing_events(
                        key, figures, final=state is Closing.FINAL, partitions=covered, emitted_us=emitted_us
                    )
            keys: list[bytes | None] = [str(event["model_version"]).encode() for event in events]
            sent = await self._producer.send(MONITOR_EVENTS, 0, keys, [self._events.encode(e) for e in events])
            await sent
            for monitor in self._partitions.values():
                monitor.record_closings({k: s for k, s in due.items() if k in monitor.revisions})
        for key, state in due.items():
            self._wanted_reports[key] = state is Closing.FINAL

    def _want_idle_reports(self) -> None:
        """When the stream rests, the open window gets a report too: nothing may close it for a long time."""
        if all(self._is_idle(PREDICTIONS, partition) for partition in self._partitions):
            for key in self._windows.unreported(self._partitions):
                self._wanted_reports.setdefault(key, False)

    async def _report(self, key: WindowKey, *, final: bool) -> None:
        rows: list[bytes] = []
        async for monitor in self._each_locked():
            rows += [row for _, row in monitor.sampled_rows(key)]
        self._windows.mark_reported(self._partitions, key)
        try:
            await self._write_report(key, rows)
        except Exception:
            logger.exception("the report of %s was not written; the join goes on", key)
        if final:
            async for monitor in self._each_locked():
                monitor.drop_sample(key)

    async def _write_report(self, key: WindowKey, rows: list[bytes]) -> None:
        reference = self._reference_of(key.model_name, key.model_version)
        if reference is not None and len(rows) >= MIN_REPORT_ROWS:
            frame = await asyncio.to_thread(sample_frame, rows, self._plans)
            label = self._rule.window.label(key.start_us).replace(":", "")
            name = f"{key.model_name}-v{key.model_version}-{label}.html"
            job = ReportJob(
                name, frame, reference, self._rule.window.end(key.start_us), self._settings.monitor.report_sample_rows
            )
            if await self._reports.write(job) is not None:
                self._report_names = self._reports.names()

    async def _each_locked(self) -> AsyncIterator[PartitionMonitor]:
        """Each partition that is still ours when its turn comes, under its lock, unless a step has failed."""
        for partition in sorted(self._partitions):
            lock = self._locks.get(partition)
            if lock is None:
                continue
            async with lock:
                monitor = self._partitions.get(partition)
                if monitor is not None and self._failed is None:
                    yield monitor


def _mark_seen(step: asyncio.Task[None]) -> None:
    """The caller gets the exception raised, or was cancelled and finds it in the next step: no warning on top."""
    if not step.cancelled():
        step.exception()


def _below(batch: RecordBatch, monitor: PartitionMonitor) -> int:
    meta = monitor.meta
    position = meta.predictions_offset if batch.topic == PREDICTIONS else meta.outcomes_offset
    return int((batch.offsets < position).sum())
