"""Memory of one worker over millions of requests: is it flat, and how large is it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.contenders import OURS, Running
from bench.stack import PARTITIONS, Bench, Ends, fresh_topics
from bench.workload import MODEL, make_bundle, preload
from schemas.topic_names import SCORES

POINTS = 20
TIMEOUT_S = 900.0


async def run(bench: Bench, *, requests: int) -> dict[str, Any]:
    """Resident set at equal steps of the way; the topic is filled before the worker starts."""
    requests = 8000 if bench.is_quick else requests
    bundle = make_bundle(bench.repository)
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, requests, PARTITIONS)
    points: list[tuple[int, float]] = []
    started_s = time.monotonic()
    async with Ends(bench) as ends:
        with Running(bench, OURS, MODEL) as running:
            while not points or points[-1][0] < requests:
                running.check()
                answers, rss_mb = await ends.of(SCORES), running.rss_mb()
                if answers >= requests * (len(points) + 1) / POINTS or answers >= requests:
                    points.append((answers, round(rss_mb, 1)))
                if time.monotonic() - started_s > TIMEOUT_S:
                    msg = f"{answers} of {requests} answers after {TIMEOUT_S:.0f} s"
                    raise TimeoutError(msg)
                await asyncio.sleep(0.05)
    sizes = [rss_mb for _, rss_mb in points]
    early = sizes[len(sizes) // 4]
    print(f"  {requests:,}: {early:.0f} MB after a quarter, {sizes[-1]:.0f} MB at the end, {max(sizes):.0f} MB at most")
    return {
        "requests": requests,
        "after_a_quarter_mb": early,
        "end_mb": sizes[-1],
        "largest_mb": max(sizes),
        "points": points,
    }
