"""The pipeline fed from memory, without a broker: what decoding, batching, model and encoding cost by themselves."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agents import topics
from app.batcher import MicroBatcher
from app.delivery import AtLeastOnce
from app.lanes import Lanes
from app.ledger import Ledger
from app.metrics import Metrics
from app.models.live_loader import LiveLoader
from app.models.live_table import LiveTable
from app.outboxes import OutputTopics
from app.pipeline import ScoringPipeline
from app.poison_circuit import PoisonCircuit
from app.recent import RecentAnswers
from app.requests import RequestDecoder
from app.settings import Settings
from schemas.records import RecordBatch
from schemas.registry import SchemaBook

if TYPE_CHECKING:
    from app.errors import DeviceLost
    from app.models.bundle import Bundle
    from app.models.live import LiveModel
    from app.models.runtime import ScoringModel
    from schemas.records import Headers


class MemorySink:
    """Takes the place of the producer: counts records and acknowledges at once."""

    def __init__(self) -> None:
        self.records: dict[str, int] = {}
        self.bytes = 0

    async def send(
        self,
        topic: str,
        partition: int,  # noqa: ARG002 - the producer's signature
        keys: list[bytes | None],  # noqa: ARG002
        values: list[bytes],
        headers: list[Headers] | None = None,  # noqa: ARG002
    ) -> asyncio.Future[None]:
        """Count."""
        self.records[topic] = self.records.get(topic, 0) + len(values)
        self.bytes += sum(map(len, values))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


class NoStore:
    """A store for models without views."""

    async def fetch(self, keys: list[str]) -> list[bytes | None]:
        """Nothing is there."""
        return [None] * len(keys)

    async def close(self) -> None:
        """Nothing to close."""


def record_batches(keys: list[bytes], values: list[bytes], *, size: int, partitions: int) -> list[RecordBatch]:
    """Requests as the transport would hand them over."""
    batches = []
    offsets = [0] * partitions
    for i, start in enumerate(range(0, len(values), size)):
        chunk = values[start : start + size]
        p, first = i % partitions, offsets[i % partitions]
        offsets[p] = first + len(chunk)
        batches.append(
            RecordBatch(
                topics.REQUESTS, p, first, offsets[p], np.arange(first, offsets[p]), np.zeros(len(chunk), np.int64),
                list(keys[start : start + size]), list(chunk), received_s=time.monotonic(),
            )
        )  # fmt: skip
    return batches


def make_pipeline(
    bundle: Bundle,
    sink: MemorySink,
    *,
    max_batch_size: int = 512,
    model: ScoringModel | None = None,
    kind: type[ScoringPipeline] = ScoringPipeline,
) -> ScoringPipeline:
    """A pipeline that ends in ``sink``."""
    settings = Settings(schemas={"folder": Path("schemas")})
    book = SchemaBook(settings.schemas.folder)
    metrics = Metrics(settings.budget, now_s=time.monotonic)
    loader = LiveLoader(settings, book, NoStore(), metrics)
    live = loader.map(bundle)
    if model is not None:
        live.scorers = (model,)
    loader.warm(live, None)
    largest = min(max_batch_size, bundle.spec.buckets[-1])

    def fail(error: BaseException) -> None:
        raise SystemExit(repr(error))

    async def stop(_live: LiveModel, lost: DeviceLost) -> None:
        raise lost

    return kind(
        decoder=RequestDecoder(book, LiveTable.of([live]), max_request_bytes=2**20),
        batcher=MicroBatcher(max_batch_size=largest, window_s=0.005, run=live.cost),
        lanes=Lanes(1, on_device_lost=stop),
        output=OutputTopics(topics.SCORES, topics.PREDICTIONS, topics.REQUESTS_DLQ),
        delivery=AtLeastOnce(sink),  # type: ignore[arg-type]
        ledger=Ledger(),
        recent=RecentAnswers(remembered=0, max_age_s=1.0),
        circuit=PoisonCircuit(share=1.0),
        on_hold=lambda _: None,
        metrics=metrics,
        on_failure=fail,
        max_queued_rows=32_768,
        max_in_flight_batches=16,
    )


async def run(pipeline: ScoringPipeline, batches: list[RecordBatch]) -> tuple[float, float]:
    """Feed all batches; returns wall and CPU seconds."""
    pipeline.start()
    wall_s, cpu_s = time.monotonic(), time.process_time()
    for batch in batches:
        await pipeline.submit(batch)
    if not await pipeline.drain(600):
        msg = "the pipeline did not finish"
        raise TimeoutError(msg)
    spent = time.monotonic() - wall_s, time.process_time() - cpu_s
    await pipeline.stop()
    return spent
