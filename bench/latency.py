"""Latency at shares of capacity, open loop, beside a raw echo of the same broker; no coordinated omission.

Answers leave in offset order per partition, so the k-th record on a partition of ``scores`` answers the k-th request of
it; a latency is from the moment at which the request was due to the moment at which a consumer had the answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.contenders import OURS, Kind, Running, measure, wait_until_ready
from bench.load import Generator
from bench.reader import Reader
from bench.stack import PARTITIONS, Bench, Ends, fresh_topics
from bench.workload import MODEL, make_bundle, preload
from schemas.topic_names import SCORES

if TYPE_CHECKING:
    from numpy.typing import NDArray

ECHO = Kind("raw echo", "bench.peers.echo", "aiokafka", 1)
SECONDS = 10.0
WARM_S = 2.0
CAPACITY_REQUESTS = 400_000
LIGHT_RATES = {"light, 100/s": 100.0, "1,000/s": 1000.0}
SHARES = (0.1, 0.5, 0.8)


async def run(bench: Bench) -> dict[str, Any]:
    """Quantiles of both, and their difference, at each rate."""
    bundle = make_bundle(bench.repository)
    requests = 4000 if bench.is_quick else CAPACITY_REQUESTS
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, requests, PARTITIONS)
    async with Ends(bench) as ends:
        capacity = (await measure(bench, ends, OURS, MODEL, requests)).requests_per_s
    print(f"  capacity {capacity:,.0f}/s", flush=True)
    rates = LIGHT_RATES | {f"{share:.0%}": capacity * share for share in SHARES}
    if bench.is_quick:
        rates = {"light, 100/s": 200.0}
    table = {}
    for name, rate in rates.items():
        row: dict[str, Any] = {"rate_per_s": round(rate)}
        for kind in (ECHO, OURS):
            row[kind.name] = quantiles(await latencies(bench, kind, rate))
        row["added_p50_ms"] = round(row[OURS.name]["p50_ms"] - row[ECHO.name]["p50_ms"], 2)
        row["added_p99_ms"] = round(row[OURS.name]["p99_ms"] - row[ECHO.name]["p99_ms"], 2)
        print(f"  {name:6} {row}", flush=True)
        table[name] = row
    return {"capacity_per_s": round(capacity), "seconds": SECONDS, "window_ms": 5, "rates": table}


async def latencies(
    bench: Bench, kind: Kind, rate: float, *, env: dict[str, str] | None = None, isolation: str = "read_uncommitted"
) -> NDArray[np.float64]:
    """Seconds of all requests after the warm-up."""
    await fresh_topics(bench)
    seconds = 3.0 if bench.is_quick else SECONDS + WARM_S
    async with Reader(bench, SCORES, from_end=True, isolation=isolation) as reader:
        with Running(bench, kind, MODEL, env=env) as running:
            await wait_until_ready(running, bench)
            generator = Generator(bench, MODEL, rate=rate, seconds=seconds, seed=1)
            start_s = generator.start()
            try:
                waits = await follow(reader, generator.due_s, start_s)
            finally:
                generator.stop()
    return waits[generator.due_s > (0.5 if bench.is_quick else WARM_S)]


async def follow(reader: Reader, due_s: NDArray[np.float64], start_s: float) -> NDArray[np.float64]:
    """Seconds from when each request was due until its answer was there."""
    waits, seen = np.full(len(due_s), np.nan), [0] * PARTITIONS
    missing, deadline_s = len(due_s), start_s + float(due_s[-1]) + 60
    while missing:
        for batch in await reader.fetch(1.0):
            count = seen[batch.partition]  # not the offset: the markers of transactions take some of these
            seen[batch.partition] += len(batch)
            index = np.arange(count, count + len(batch)) * PARTITIONS + batch.partition
            waits[index] = batch.received_s - start_s - due_s[index]
            missing -= len(index)
        if time.monotonic() > deadline_s:
            msg = f"{missing} answers are missing a minute after the last request"
            raise TimeoutError(msg)
    return waits


def quantiles(waits_s: NDArray[np.float64]) -> dict[str, float]:
    """Of seconds, in milliseconds."""
    shares = (0.5, 0.95, 0.99, 0.999)
    found = np.quantile(waits_s, shares) * 1000
    return {
        f"p{str(share * 100).rstrip('0').rstrip('.')}_ms": round(float(q), 2)
        for share, q in zip(shares, found, strict=True)
    }
