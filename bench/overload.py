"""Twice the capacity for a minute: goodput, lag, memory, and whether every request got its answer.

The model is large enough that generator and reader, which share the cores with the worker, cost little beside it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import httpx
import numpy as np

from bench.contenders import OURS, Running, measure, wait_until_ready
from bench.load import Generator
from bench.reader import Reader
from bench.stack import PARTITIONS, Bench, Ends, fresh_topics
from bench.workload import make_bundle, preload
from schemas.columnar import Decoder
from schemas.records import Status
from schemas.registry import load_schema
from schemas.topic_names import SCORES
from schemas.wire import HEADER_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.columns import EnumColumn
    from schemas.records import RecordBatch

LARGE = "bench_large"
HIDDEN = (256,) * 16
MAX_BUCKET = 64
"""Some ms of one core, small beside the deadline; the weights fit a cache, or all that runs beside slows down."""
DEADLINE_MS = 100
SECONDS = 60.0
SWEEP_SECONDS = 8.0
WARM_S = 4.0
"""At the start of a phase, not counted: the broker compiles its code, the worker learns its costs."""
SWEEP = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
CAPACITY_REQUESTS = 20_000


@dataclass
class Watch:
    """What a reader of ``scores`` saw.

    Attributes:
        statuses: answers by status.
        in_time: OK and there before the deadline, of those after the warm-up.
        lag_s: age of each fetched record's request at arrival, largest of each second.
        rss_mb: of the worker, once a second.
    """

    statuses: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Status), np.int64))
    in_time: int = 0
    answered: int = 0
    lag_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


async def run(bench: Bench) -> dict[str, Any]:
    """Goodput over rate up to what an undisturbed worker gets through, then twice the rate of the best goodput.

    The worker shares its cores with generator, broker and reader, so what it gets through beside them is less.
    """
    bundle = make_bundle(bench.repository, name=LARGE, hidden=HIDDEN, max_bucket=MAX_BUCKET)
    requests = 2000 if bench.is_quick else CAPACITY_REQUESTS
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, requests, PARTITIONS)
    async with Ends(bench) as ends:
        capacity = 500.0 if bench.is_quick else (await measure(bench, ends, OURS, LARGE, requests)).requests_per_s
    print(f"  capacity {capacity:,.0f}/s", flush=True)
    sweep = {}
    for share in (0.8,) if bench.is_quick else SWEEP:
        sweep[f"{share:.0%}"] = await _phase(bench, capacity * share, 2.0 if bench.is_quick else SWEEP_SECONDS)
        print(f"  {share:.0%} {sweep[f'{share:.0%}']}", flush=True)
    peak = max(row["goodput_per_s"] for row in sweep.values())
    over = await _phase(bench, max(2 * peak, 200), 3.0 if bench.is_quick else SECONDS)
    share = over["goodput_per_s"] / max(peak, 1)
    print(f"  200% {over}\n  goodput {share:.0%} of the peak", flush=True)
    return {
        "capacity_per_s": round(capacity),
        "deadline_ms": DEADLINE_MS,
        "hidden": HIDDEN,
        "sweep": sweep,
        "overload": over,
        "peak_goodput_per_s": peak,
        "goodput_share_of_peak": round(share, 3),
    }


async def _phase(bench: Bench, rate: float, seconds: float) -> dict[str, Any]:
    await fresh_topics(bench)
    async with Reader(bench, SCORES, from_end=True) as reader:
        with Running(bench, OURS, LARGE) as running:
            url = await wait_until_ready(running, bench)
            warm_s = 0.5 if bench.is_quick else WARM_S
            generator = Generator(bench, LARGE, rate=rate, seconds=seconds + warm_s, seed=2, deadline_ms=DEADLINE_MS)
            start_s = generator.start()
            try:
                watch = await _watch(reader, generator.due_s, start_s, warm_s, running)
            finally:
                generator.stop()
            figures = await _figures(url)
    on_device = figures["batches"]["rows"]
    scored = int(watch.statuses[Status.OK] + watch.statuses[Status.DEGRADED])
    return {
        "rate_per_s": round(rate),
        "sent": len(generator.due_s),
        "answered": watch.answered,
        "statuses": {s.name: int(watch.statuses[s]) for s in Status if watch.statuses[s]},
        "goodput_per_s": round(watch.in_time / seconds),
        "in_time_share": round(watch.in_time / int(np.count_nonzero(generator.due_s >= warm_s)), 3),
        "scored_rows": scored,
        "device_rows": on_device,
        "expired_after_device": int(figures["counters"].get("expired_after_device", 0)),
        "mean_batch_rows": figures["batches"]["mean_rows"],
        "fire_reasons": {name: count for name, count in figures["fire_reasons"].items() if count},
        "stage_p50_us": {name: stage["p50_us"] for name, stage in figures["stages"].items()},
        "lag_largest_s": round(max(watch.lag_s, default=0.0), 3),
        "lag_last_s": round(watch.lag_s[-1], 3),
        "rss_mb": [round(x) for x in watch.rss_mb[:: max(1, len(watch.rss_mb) // 6)]],
    }


async def _figures(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{url}/stats")).json()
    figures: dict[str, Any] = document["workers"][document["worker"]]["stats"]
    return figures


async def _watch(reader: Reader, due_s: NDArray[np.float64], start_s: float, warm_s: float, running: Running) -> Watch:
    watch, decoder = Watch(), Decoder(load_schema(_schemas(), "score"))
    next_s, worst_s, deadline_s = start_s, 0.0, start_s + float(due_s[-1]) + 120
    while watch.answered < len(due_s):
        for batch in await reader.fetch(0.5):
            worst_s = max(worst_s, _count(watch, decoder, batch, reader, due_s, start_s, warm_s))
        now_s = time.monotonic()
        if now_s >= next_s:
            watch.rss_mb.append(running.rss_mb())
            watch.lag_s.append(worst_s)
            next_s, worst_s = now_s + 1.0, 0.0
        if now_s > deadline_s:
            break
        await asyncio.sleep(0)
    return watch


def _count(
    watch: Watch,
    decoder: Decoder,
    batch: RecordBatch,
    reader: Reader,
    due_s: NDArray[np.float64],
    start_s: float,
    warm_s: float,
) -> float:
    """Add a batch; returns the age of its oldest request."""
    index = (batch.offsets - reader.first[batch.partition]) * PARTITIONS + batch.partition
    age_s = batch.received_s - start_s - due_s[index]
    status = cast(
        "EnumColumn",
        decoder.decode(cast("list[bytes]", batch.values), skip_bytes=HEADER_BYTES).columns.fields["status"],
    )
    codes = np.asarray(status.codes)
    watch.statuses += np.bincount(codes, minlength=len(Status))
    watch.in_time += int(np.sum((codes == Status.OK) & (age_s <= DEADLINE_MS / 1000) & (due_s[index] >= warm_s)))
    watch.answered += len(index)
    return float(age_s.max())


def _schemas() -> Any:  # noqa: ANN401
    from bench.contenders import repository_root

    return repository_root() / "schemas"
