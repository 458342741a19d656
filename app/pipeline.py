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
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from app.answers import Timings
from app.errors import DeliveryError
from app.intake import Segment, decode_slices, offsets_left
from app.microbatch import MicroBatch, divide, expire, form, gather
from app.requests import NO_DEADLINE, deadlines_ms
from schemas.records import FireReason, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from app.batcher import MicroBatcher
    from app.delivery import Delivery
    from app.lanes import Lane, Lanes
    from app.ledger import Ledger
    from app.metrics import Metrics
    from app.models.live import LiveModel
    from app.models.live_table import LiveTable
    from app.outboxes import OutputTopics
    from app.poison_circuit import PoisonCircuit
    from app.recent import RecentAnswers
    from app.requests import RequestDecoder
    from schemas.records import RecordBatch

log = logging.getLogger(__name__)

COMPUTE_QUEUE = 1
"""Micro-batches formed ahead of the device: one, so that further rows wait in the batcher, where they find company."""
EMIT_QUEUE = 2
SWITCH_TIMEOUT_S = 30.0
"""How long ``switch`` waits for the rows that came before it; while the poison circuit holds they may never leave."""


@dataclass(slots=True)
class Fired:
    """What fired together, and its rows by live model."""

    whole: MicroBatch
    parted: list[MicroBatch]


class ScoringPipeline:
    """Wires batcher, features, model, answers and ledger together.

    Args:
        decoder: records to requests; knows the live models.
        batcher: when to fire.
        output: names of the topics.
        delivery: takes the answers.
        ledger: what may be committed.
        recent: answers that the same request gets again.
        circuit: stops firing when most records cannot be decoded.
        on_hold: called with True when the circuit opens and with False when it closes.
        metrics: counted per micro-batch.
        on_failure: called once with the first unexpected error; must end the process.
        lanes: where micro-batches compute.
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
        output: OutputTopics,
        delivery: Delivery,
        ledger: Ledger,
        recent: RecentAnswers,
        circuit: PoisonCircuit,
        on_hold: Callable[[bool], None],
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
        lanes: Lanes,
        max_queued_rows: int,
        max_in_flight_batches: int,
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._decoder, self._batcher, self._output = decoder, batcher, output
        self._delivery, self._metrics = delivery, metrics
        self.ledger = ledger
        self.recent = recent
        self.circuit, self._on_hold = circuit, on_hold
        self._on_failure, self._lanes = on_failure, lanes
        self._max_batch_size = batcher.max_batch_size  # before any model bounds it
        self._max_queued_rows = max_queued_rows
        self._now_s, self._wall_s = now_s, wall_s
        self._arrived, self._room, self._quiet = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._compute_queue: asyncio.Queue[Fired] = asyncio.Queue(COMPUTE_QUEUE)
        self._emit_queue: asyncio.Queue[tuple[Fired, asyncio.Task[None] | None]] = asyncio.Queue(EMIT_QUEUE)
        self._decoding = asyncio.Lock()
        self._in_flight = asyncio.Semaphore(max_in_flight_batches)
        self._acks: set[asyncio.Task[None]] = set()
        self._stages: list[asyncio.Task[None]] = []
        self._unanswered = 0
        self._taken = self._emitted = 0  # offsets, without those that were given back
        self._progress = asyncio.Event()  # towards the end of a switch
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
        self._lanes.close()

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
        self._taken += batch.next_offset - batch.start_offset
        self._quiet.clear()
        self._batcher.add(
            Segment(batch),
            rows=len(batch),
            now_s=self._now_s(),
            deadlines_s=self._deadlines_s(batch) if batch.headers else None,
            device_free_s=self._lanes.free_s,
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
            given_back = sum(map(offsets_left, self._batcher.give_back()))
            self._unanswered -= given_back
            self._taken -= given_back
        self._room.set()
        self._progress.set()
        self._note_quiet()
        return await self.drain(timeout_s)

    async def switch(self, table: LiveTable[LiveModel]) -> bool:
        """Let another table answer from the next decoded record on; returns when no answer by the old one can come.

        Micro-batches that are under way keep the models that they were formed with. They leave in the order of arrival,
        but each partition's brokers acknowledge at their own pace: newer answers may be acknowledged before older ones.

        Returns:
            False when rows from before still wait after ``SWITCH_TIMEOUT_S``, or the pipeline has failed: the old
            models must stay loaded.

        """
        champion = table.champion
        self._decoder.table = table
        largest = min(self._max_batch_size, champion.spec.buckets[-1])
        self._batcher.set_model(champion.cost, max_batch_size=largest)
        before = self._taken
        try:
            async with asyncio.timeout(SWITCH_TIMEOUT_S):
                while self._emitted < min(before, self._taken) and self.failure is None:
                    self._progress.clear()
                    await self._progress.wait()
                if self._acks:
                    await asyncio.wait(set(self._acks))
        except TimeoutError:
            log.warning("rows from before a switch of models still wait after %.0f s", SWITCH_TIMEOUT_S)
            return False
        return self.failure is None

    def _note_quiet(self) -> None:
        if not self._unanswered:
            self._quiet.set()

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
            self._progress.set()
            self._on_failure(exc)

    async def _form(self) -> None:
        while True:
            reason = await self._fire()
            now_s = self._now_s()
            allowed = self.circuit.allowance(now_s)
            async with self._decoding:
                taken = self._batcher.take(now_s=now_s, device_free_s=self._lanes.free_s, max_rows=allowed)
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
            fired = Fired(batch, divide(batch))
            ingested_s = self._now_s()
            await self._look_up(fired)
            looked_up_s = self._now_s()
            for piece in fired.parted:
                piece.marks_s |= {"ingest": ingested_s, "features": looked_up_s}
            self._batcher.prepare.learn(len(batch), looked_up_s - batch.fired_s)
            await self._compute_queue.put(fired)

    async def _look_up(self, fired: Fired) -> None:
        """Store features of all models, side by side."""
        needy = [piece for piece in fired.parted if piece.model.lookup.is_needed and len(piece.live)]
        if not needy:
            return
        found = await asyncio.gather(
            *(p.model.lookup.fetch(p.features, p.event_time_us[p.live]) for p in needy)
        )  # fmt: skip
        for piece, lookup in zip(needy, found, strict=True):
            piece.lookup = lookup
            if lookup.error is not None:
                self._metrics.count("store_failures")

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
                reason = self._batcher.fire_reason(now_s=now_s, device_free_s=self._lanes.free_s)
                if reason is not None:
                    return FireReason.SHUTDOWN if self._draining and reason is FireReason.IDLE else reason
                wake_s = self._batcher.wake_at_s(now_s=now_s, device_free_s=self._lanes.free_s)
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
        while True:
            fired = await self._compute_queue.get()
            lane = await self._lanes.acquire()
            run_s = sum(piece.model.cost.of(len(piece.live)) for piece in fired.parted)
            in_time_ms = int((self._wall_s() + run_s) * 1000)
            for piece in fired.parted:
                expire(piece, in_time_ms)
            lane.free_s = self._now_s() + run_s
            self._arrived.set()  # there is room for one micro-batch ahead
            if len(self._lanes) == 1:
                await self._run(fired, lane, run_s)
                await self._emit_queue.put((fired, None))
            else:
                await self._emit_queue.put((fired, asyncio.create_task(self._run(fired, lane, run_s), name="lane")))

    async def _run(self, fired: Fired, lane: Lane, run_s: float) -> None:
        for piece in fired.parted:
            await self._lanes.compute(piece, lane, run_s)
            if piece.device_rows:
                piece.model.cost.learn(piece.device_rows, piece.marks_s["postprocess"] - piece.marks_s["start"])
        lane.free_s = self._now_s()
        lane.idle.set()
        self._arrived.set()  # the device is free

    async def _emit(self) -> None:
        while True:
            fired, running = await self._emit_queue.get()
            if running is not None:
                await running
            await self._in_flight.acquire()
            batch = fired.whole
            served_at_us = int(self._wall_s() * 1_000_000)
            scores, predictions, timings = self._encode(fired, served_at_us)
            self._repeat_answers(batch, scores)
            sent = []
            for part, boxes in zip(batch.parts, self._output.outboxes(batch, scores, predictions), strict=True):
                raw = part.requests.batch
                source = (raw.topic, raw.partition)
                futures = await self._delivery.send(source, part.first_offset, part.next_offset, boxes)
                sent.append((part, futures))
                self._emitted += part.next_offset - part.first_offset
            task = asyncio.create_task(self._guarded(self._acknowledge(fired, timings, sent)))
            self._acks.add(task)
            task.add_done_callback(self._acks.discard)
            self._progress.set()

    def _encode(self, fired: Fired, served_at_us: int) -> tuple[list[bytes], list[bytes], list[Timings]]:
        """Answers of all requests and evidence of the live ones, in order, and the timings of each model's rows."""
        encoded: list[tuple[list[bytes], list[bytes]]] = []
        timings: list[Timings] = []
        total_us = self._total_us(fired.whole)
        for piece in fired.parted:
            scored = len(piece.live)
            expire(piece, served_at_us // 1000)
            if len(piece.live) < scored:
                self._metrics.count("expired_after_device", scored - len(piece.live))
            writer = piece.model.writer
            predictions = writer.predictions(piece, served_at_us)
            timings.append(self._timings(piece, total_us))
            encoded.append((writer.scores(piece, timings[-1], served_at_us), predictions))
        gather(fired.whole, fired.parted)
        return (*_interleaved(fired, encoded), timings)

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

    async def _acknowledge(self, fired: Fired, timings: list[Timings], sent: list) -> None:  # type: ignore[type-arg]
        for part, futures in sent:
            for future in futures:
                await future
            raw = part.requests.batch
            self.ledger.answer((raw.topic, raw.partition), part.first_offset, part.next_offset)
            self._unanswered -= part.next_offset - part.first_offset
        self._in_flight.release()
        self._batcher.beyond.learn(max(self._now_s() - fired.whole.planned_s, 0.0))
        self._note_quiet()
        for piece, of_piece in zip(fired.parted, timings, strict=True):
            self._count(piece, of_piece)

    def _count_consumed(self, batch: MicroBatch) -> None:
        """Records count as consumed when they fire: what is given back is consumed by whoever reads it again."""
        dead = [fault for part in batch.parts for fault in part.dead.values()]
        self._metrics.count("consumed", len(batch) + len(dead))
        for fault in dead:
            self._metrics.count("undecodable", error_class=fault.error_class)

    def _count(self, batch: MicroBatch, timings: Timings) -> None:
        if not len(batch):
            return
        model = batch.model
        model.requests += len(batch)
        model.last_used_s = batch.fired_s
        bucket = int(batch.predictions.bucket.max()) if batch.predictions and len(batch.live) else 0
        self._metrics.observe_batch(
            statuses=batch.status,
            stage_us=timings.stages,
            total_us=timings.total,
            rows_on_device=batch.device_rows,
            bucket=max(bucket, batch.device_rows),
            reason=batch.reason if batch.device_rows else FireReason.NONE,
            model_name=model.spec.name,
            model_version=str(model.spec.version),
        )
        copies = int(np.isin(batch.status, (Status.INVALID, Status.ERROR)).sum())
        if copies:
            self._metrics.count("dead_letter_copies", copies)

    def _total_us(self, batch: MicroBatch) -> NDArray[np.int64]:
        """Micros of each row since it was fetched."""
        now_s = self._now_s()
        return np.repeat([_us(now_s - p.requests.batch.received_s) for p in batch.parts], [len(p) for p in batch.parts])

    def _timings(self, batch: MicroBatch, total_us: NDArray[np.int64]) -> Timings:
        """Stages in micros, so that they add up: what no other stage claims is queueing.

        Args:
            batch: of one model.
            total_us: of each row of the whole.

        """
        marks = batch.marks_s
        spans = {
            "ingest": _us(marks["ingest"] - batch.fired_s),
            "features": _us(marks["features"] - marks["ingest"]),
            "preprocess": _us(marks["preprocess"] - marks["start"]),
            "inference": _us(marks["inference"] - marks["preprocess"]),
            "postprocess": _us(marks["postprocess"] - marks["inference"]),
            "emit": _us(self._now_s() - marks["postprocess"]),
        }
        claimed = sum(spans.values())
        total = np.maximum(total_us if batch.rows is None else total_us[batch.rows], claimed)
        return Timings({**spans, "queue": total - claimed}, total)


def _interleaved(fired: Fired, encoded: list[tuple[list[bytes], list[bytes]]]) -> tuple[list[bytes], list[bytes]]:
    """Answers and evidence in the order of the requests, whatever model they are of."""
    if len(encoded) <= 1:
        return encoded[0] if encoded else ([], [])
    scores = [b""] * len(fired.whole)
    predictions: dict[int, bytes] = {}
    for piece, (answers, evidence) in zip(fired.parted, encoded, strict=True):
        assert piece.rows is not None
        for row, answer in zip(piece.rows.tolist(), answers, strict=True):
            scores[row] = answer
        predictions |= zip(piece.rows[piece.live].tolist(), evidence, strict=True)
    return scores, [predictions[row] for row in fired.whole.live.tolist()]


def _us(span_s: float) -> int:
    return max(int(span_s * 1e6), 0)
