"""The hot path: record batches in, acknowledged answers out, micro-batches overlapping.

``submit`` queues; then three stages run at once, each on another micro-batch:

    form      batcher fires -> records of several partitions, decoded together -> features (one round trip)
    compute   preprocess, infer, calibrate, decide: on the device's own thread
    emit      encode, hand to the producer; the ledger learns of the acknowledgement later

Every queue is bounded, and a full one stops the stage before it, up to the consumer. Micro-batches pass each stage in
the order in which they were formed, so answers leave in offset order per partition. Nothing raises out of the stages:
an unexpected error stops committing at once and ends the process (crash-only).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from app.answers import AnswerWriter, Timings
from app.compute import compute
from app.errors import DeliveryError
from app.intake import Segment, decode_slices, offsets_left
from app.microbatch import MicroBatch, expire, form
from app.requests import NO_DEADLINE, deadlines_ms
from schemas.records import FireReason, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from app.batcher import MicroBatcher
    from app.delivery import Delivery
    from app.ledger import Ledger
    from app.lookup import ViewLookup
    from app.metrics import Metrics
    from app.models.runtime import ScoringModel
    from app.poison_circuit import PoisonCircuit
    from app.recent import RecentAnswers
    from app.requests import RequestDecoder
    from schemas.records import RecordBatch

log = logging.getLogger(__name__)

COMPUTE_QUEUE = 1
"""Micro-batches formed ahead of the device: one, so that further rows wait in the batcher, where they find company."""
EMIT_QUEUE = 2
INLINE_S = 0.0003
"""A micro-batch that takes the CPU for less than this is computed on the event loop: to hand it to another thread and
back takes about as long."""


class ScoringPipeline:
    """Wires batcher, features, model, answers and ledger together.

    Args:
        decoder: records to requests.
        batcher: when to fire.
        lookup: store features.
        model: warmed up.
        writer: requests to records.
        delivery: takes the answers.
        ledger: what may be committed.
        recent: answers that the same request gets again.
        circuit: stops firing when most records cannot be decoded.
        on_hold: called with True when the circuit opens and with False when it closes.
        metrics: counted per micro-batch.
        on_failure: called once with the first unexpected error; must end the process.
        max_queued_rows: above it ``submit`` waits.
        max_in_flight_batches: micro-batches that await their acknowledgement.
        now_s: monotonic seconds.
        wall_s: unix seconds.

    """

    def __init__(  # noqa: PLR0913 - the composition root hands over every part once, by name
        self,
        *,
        decoder: RequestDecoder,
        batcher: MicroBatcher,
        lookup: ViewLookup,
        model: ScoringModel,
        writer: AnswerWriter,
        delivery: Delivery,
        ledger: Ledger,
        recent: RecentAnswers,
        circuit: PoisonCircuit,
        on_hold: Callable[[bool], None],
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
        max_queued_rows: int,
        max_in_flight_batches: int,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._decoder, self._batcher, self._lookup, self._model = decoder, batcher, lookup, model
        self._writer, self._delivery, self._metrics = writer, delivery, metrics
        self.ledger = ledger
        self.recent = recent
        self.circuit, self._on_hold = circuit, on_hold
        self._on_failure = on_failure
        self._max_queued_rows = max_queued_rows
        self._now_s, self._wall_s = now_s, wall_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._arrived, self._room, self._quiet = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._compute_queue: asyncio.Queue[MicroBatch] = asyncio.Queue(COMPUTE_QUEUE)
        self._emit_queue: asyncio.Queue[MicroBatch] = asyncio.Queue(EMIT_QUEUE)
        self._decoding = asyncio.Lock()
        self._in_flight = asyncio.Semaphore(max_in_flight_batches)
        self._acks: set[asyncio.Task[None]] = set()
        self._stages: list[asyncio.Task[None]] = []
        self._device_free_s = -math.inf
        self._unanswered = 0
        self._draining = self._is_paused = False
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Start the stages, in the running event loop."""
        self._room.set()
        self._quiet.set()
        stages = {"form": self._form(), "compute": self._compute(), "emit": self._emit()}
        self._stages = [asyncio.create_task(self._guarded(run), name=name) for name, run in stages.items()]

    async def stop(self) -> None:
        """Stop the stages; what they hold is not answered, and so not committed."""
        for task in [*self._stages, *self._acks]:
            task.cancel()
        await asyncio.gather(*self._stages, *self._acks, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def submit(self, batch: RecordBatch) -> None:
        """Take a record batch; waits while too many rows are queued.

        Raises:
            DeliveryError: the pipeline has failed; nothing more is taken.

        """
        if self.failure is not None:
            msg = f"the pipeline has stopped: {self.failure!r}"
            raise DeliveryError(msg)
        self._accept(batch)
        self._unanswered += batch.next_offset - batch.start_offset
        self._quiet.clear()
        self._batcher.add(
            Segment(batch),
            rows=len(batch),
            now_s=self._now_s(),
            deadlines_s=self._deadlines_s(batch) if batch.headers else None,
            device_free_s=self._device_free_s,
        )
        self._arrived.set()
        if self._batcher.waiting_rows >= self._max_queued_rows:
            self._room.clear()
            await self._room.wait()

    def _deadlines_s(self, batch: RecordBatch) -> NDArray[np.float64] | None:
        """Deadlines on the monotonic clock; None when no record has one."""
        deadlines = deadlines_ms(batch)
        if (deadlines == NO_DEADLINE).all():
            return None
        offset_s = self._now_s() - self._wall_s()
        return np.where(deadlines == NO_DEADLINE, math.inf, deadlines / 1000 + offset_s)

    def _accept(self, batch: RecordBatch) -> None:
        """Enter the batch into the ledger.

        Raises:
            DeliveryError: it may not fail; should it, a later batch would count as answered past this one, so the
                pipeline ends.

        """
        try:
            self.ledger.deliver((batch.topic, batch.partition), batch.start_offset, batch.next_offset)
        except Exception as exc:
            self._fail(exc)
            msg = f"the pipeline has stopped: {exc!r}"
            raise DeliveryError(msg) from exc

    async def drain(self, timeout_s: float) -> bool:
        """Fire what waits and wait until all is answered; False when the time was too short."""
        self._draining = True
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        except TimeoutError:
            return False
        finally:
            self._draining = False
        return True

    async def release(self, timeout_s: float) -> bool:
        """Give back what has not fired yet and wait until the rest is answered; False when the time was too short.

        What is given back is not committed, so whoever has the partition next reads it again: a backlog behind a slow
        model delays neither a rebalance nor a stop.
        """
        async with self._decoding:  # what is left of a segment shows once it is decoded
            for piece in self._batcher.give_back():
                self._unanswered -= offsets_left(piece)
        self._room.set()
        if not self._unanswered:
            self._quiet.set()
        return await self.drain(timeout_s)

    @property
    def queued_rows(self) -> int:
        """Rows that wait in the batcher."""
        return self._batcher.waiting_rows

    async def _guarded(self, stage: object) -> None:
        try:
            await stage  # type: ignore[misc]
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - crash-only: whatever it is, nothing may be committed after it
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        if self.failure is None:
            self.failure = exc
            log.critical("scoring stops: %r", exc, exc_info=exc)
            self._room.set()
            self._on_failure(exc)

    async def _form(self) -> None:
        while True:
            reason = await self._fire()
            now_s = self._now_s()
            allowed = self.circuit.allowance(now_s)
            async with self._decoding:
                taken = self._batcher.take(now_s=now_s, device_free_s=self._device_free_s, max_rows=allowed)
                slices = await self._decoder.with_schemas(partial(decode_slices, taken.slices, self._decoder))
            in_time_ms = int((self._wall_s() + taken.in_time_s - now_s) * 1000)
            self._judge(records=sum(map(len, taken.slices)), requests=sum(map(len, slices)))
            if self._batcher.waiting_rows < self._max_queued_rows:
                self._room.set()
            if not slices:
                continue
            batch = form(slices, reason, now_s=now_s, planned_s=taken.planned_s, in_time_ms=in_time_ms)
            self._count_consumed(batch)
            self._find_duplicates(batch)
            batch.marks_s["ingest"] = self._now_s()
            if self._lookup.is_needed and len(batch.live):
                batch.lookup = await self._lookup.fetch(batch.features, batch.event_time_us[batch.live])
                if batch.lookup.error is not None:
                    self._metrics.count("store_failures")
            batch.marks_s["features"] = self._now_s()
            self._batcher.prepare.learn(len(batch), batch.marks_s["features"] - batch.fired_s)
            await self._compute_queue.put(batch)

    async def _fire(self) -> FireReason:
        """Wait until the batcher fires; at most one micro-batch is formed ahead of the device."""
        while True:
            self._arrived.clear()
            now_s = self._now_s()
            wake_s = math.inf
            if self.circuit.allowance(now_s) == 0:
                wake_s = self.circuit.probe_at_s
            elif self._is_paused and not self._batcher.waiting_rows:
                self._pause(is_held=False)  # for the probe
            elif self._compute_queue.empty():
                reason = self._batcher.fire_reason(now_s=now_s, device_free_s=self._device_free_s)
                if reason is not None:
                    return FireReason.SHUTDOWN if self._draining and reason is FireReason.IDLE else reason
                wake_s = self._batcher.wake_at_s(now_s=now_s, device_free_s=self._device_free_s)
            try:
                async with asyncio.timeout(None if math.isinf(wake_s) else max(wake_s - now_s, 0.0)):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def _judge(self, *, records: int, requests: int) -> None:
        """Tell the circuit how many of the records that fired are requests."""
        was_holding = self.circuit.is_holding
        self.circuit.record(decodable=requests, undecodable=records - requests, now_s=self._now_s())
        self.hold()
        if self.circuit.is_holding and not was_holding:
            self._metrics.count("poison_circuit_openings")
            log.error("%s", self.circuit.problem(self._now_s()))

    def hold(self) -> None:
        """Let the consumer pause or go on as the circuit says; also after partitions were assigned."""
        if self.circuit.is_holding or self._is_paused:
            self._pause(is_held=self.circuit.is_holding)
            self._metrics.set_gauge("poison_circuit_open", self.circuit.is_holding)

    def _pause(self, *, is_held: bool) -> None:
        self._is_paused = is_held
        self._on_hold(is_held)

    async def _compute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._compute_queue.get()
            run_s = self._batcher.run.of(len(batch.live))
            expire(batch, int((self._wall_s() + run_s) * 1000))
            self._device_free_s = self._now_s() + run_s
            self._arrived.set()  # there is room for one micro-batch ahead
            if self._model.device == "cpu" and run_s < INLINE_S:
                compute(batch, self._model)
            else:
                await loop.run_in_executor(self._thread, compute, batch, self._model)
            self._device_free_s = self._now_s()
            if batch.device_rows:
                self._batcher.run.learn(batch.device_rows, batch.marks_s["postprocess"] - batch.marks_s["start"])
            self._arrived.set()  # the device is free
            await self._emit_queue.put(batch)

    async def _emit(self) -> None:
        while True:
            batch = await self._emit_queue.get()
            await self._in_flight.acquire()
            served_at_us = int(self._wall_s() * 1_000_000)
            scored = len(batch.live)
            expire(batch, served_at_us // 1000)
            if len(batch.live) < scored:
                self._metrics.count("expired_after_device", scored - len(batch.live))
            predictions = self._writer.predictions(batch, served_at_us)
            timings = self._timings(batch, self._now_s())
            scores = self._writer.scores(batch, timings, served_at_us)
            self._repeat_answers(batch, scores)
            sent = []
            for part, boxes in zip(batch.parts, self._writer.outboxes(batch, scores, predictions), strict=True):
                raw = part.requests.batch
                source = (raw.topic, raw.partition)
                futures = await self._delivery.send(source, part.first_offset, part.next_offset, boxes)
                sent.append((part, futures))
            task = asyncio.create_task(self._guarded(self._acknowledge(batch, timings, sent)))
            self._acks.add(task)
            task.add_done_callback(self._acks.discard)

    def _find_duplicates(self, batch: MicroBatch) -> None:
        if not (self.recent.is_on and len(batch)):
            return
        batch.entered, originals = self.recent.enter(batch.request_id, batch.status, now_s=self._now_s())
        if originals:
            batch.set_duplicates(originals)
            self._metrics.count("duplicates", len(batch.duplicates))

    def _repeat_answers(self, batch: MicroBatch, scores: list[bytes]) -> None:
        """Remember the answers; a duplicate's is that of its original, which is encoded by now."""
        if batch.entered is None:
            return
        self.recent.answered(batch.entered, scores, batch.status)
        for row, (original, place) in batch.duplicates.items():
            scores[row], batch.status[row] = original.answer(place), original.statuses[place]

    async def _acknowledge(self, batch: MicroBatch, timings: Timings, sent: list) -> None:  # type: ignore[type-arg]
        for part, futures in sent:
            for future in futures:
                await future
            raw = part.requests.batch
            self.ledger.answer((raw.topic, raw.partition), part.first_offset, part.next_offset)
            self._unanswered -= part.next_offset - part.first_offset
        self._in_flight.release()
        self._batcher.beyond.learn(max(self._now_s() - batch.planned_s, 0.0))
        if not self._unanswered:
            self._quiet.set()
        self._count(batch, timings)

    def _count_consumed(self, batch: MicroBatch) -> None:
        """Records count as consumed when they fire: what is given back is consumed by whoever reads it again."""
        dead = [fault for part in batch.parts for fault in part.dead.values()]
        self._metrics.count("consumed", len(batch) + len(dead))
        for fault in dead:
            self._metrics.count("undecodable", error_class=fault.error_class)

    def _count(self, batch: MicroBatch, timings: Timings) -> None:
        if not len(batch):
            return
        bucket = int(batch.predictions.bucket.max()) if batch.predictions and len(batch.live) else 0
        self._metrics.observe_batch(
            statuses=batch.status,
            stage_us=timings.stages,
            total_us=timings.total,
            rows_on_device=batch.device_rows,
            bucket=max(bucket, batch.device_rows),
            reason=batch.reason if batch.device_rows else FireReason.NONE,
            model_name=self._model.spec.name,
            model_version=str(self._model.spec.version),
        )
        copies = int(np.isin(batch.status, (Status.INVALID, Status.ERROR)).sum())
        if copies:
            self._metrics.count("dead_letter_copies", copies)

    def _timings(self, batch: MicroBatch, now_s: float) -> Timings:
        """Stages in micros, so that they add up: what no other stage claims is queueing."""
        marks = batch.marks_s
        spans = {
            "ingest": _us(marks["ingest"] - batch.fired_s),
            "features": _us(marks["features"] - marks["ingest"]),
            "preprocess": _us(marks["preprocess"] - marks["start"]),
            "inference": _us(marks["inference"] - marks["preprocess"]),
            "postprocess": _us(marks["postprocess"] - marks["inference"]),
            "emit": _us(now_s - marks["postprocess"]),
        }
        claimed = sum(spans.values())
        total = np.repeat(
            [_us(now_s - p.requests.batch.received_s) for p in batch.parts], [len(p) for p in batch.parts]
        )
        total = np.maximum(total, claimed)
        return Timings({**spans, "queue": total - claimed}, total)


def _us(span_s: float) -> int:
    return max(int(span_s * 1e6), 0)
