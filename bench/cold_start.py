"""Start of a worker to its first score, by stage, for bundles of 1 MB, 100 MB and 1 GB.

Requests lie in the topic before the worker starts. Its stages are those that it prints and shows in ``/stats``; the
time from before the process was made to the moment at which a consumer has the first answer is measured outside.
Only the weights are dropped from the page cache for a cold start: Python and its libraries are warm in both.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from bench.contenders import OURS, START_TIMEOUT_S, Running
from bench.reader import Reader
from bench.sized_bundles import MODEL, evict, make_sized_bundle, warm, weights_mb
from bench.stack import PARTITIONS, Bench, fresh_topics
from bench.workload import preload
from schemas.topic_names import SCORES

if TYPE_CHECKING:
    from app.models.bundle import Bundle

REQUESTS = 64


@dataclass(frozen=True, slots=True)
class Size:
    """A bundle to start with.

    Attributes:
        name: as the table calls it.
        version: of the bundle.
        megabytes: of its weights.
        repetitions: starts with each state of the cache.

    """

    name: str
    version: int
    megabytes: int
    repetitions: int


SIZES = (Size("1 MB", 1, 1, 3), Size("100 MB", 2, 100, 3), Size("1 GB", 3, 1000, 2))
QUICK = (Size("1 MB", 1, 1, 1),)


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        first_score_s: from before the process was made to the first answer.
        stages: what the worker says of it, seconds; the last one is what is left.

    """

    first_score_s: float
    stages: dict[str, float]


async def run(bench: Bench) -> dict[str, Any]:
    """Medians of each size and state of the cache."""
    table: dict[str, Any] = {}
    for size in QUICK if bench.is_quick else SIZES:
        bundle = await asyncio.to_thread(make_sized_bundle, bench.repository, size.version, size.megabytes)
        if not table and not bench.is_quick:  # one that compiles Python's modules, and does not count
            await with_requests(bench, bundle)
            await measured_start(bench, size.version)
        starts: dict[str, list[Start]] = {"cold": [], "warm": []}
        shares: dict[str, float] = {}
        for _ in range(size.repetitions):
            for cache, found in starts.items():
                await with_requests(bench, bundle)
                shares[cache] = (evict if cache == "cold" else warm)(bundle.folder)
                found.append(await measured_start(bench, size.version))
                print(f"  {size.name}, {cache}: {found[-1]}", flush=True)
        table[size.name] = {
            "weights_mb": weights_mb(bundle.folder),
            "cached_before": shares,
            **{cache: summary(found) for cache, found in starts.items()},
        }
    return {"sizes": table}


async def with_requests(bench: Bench, bundle: Bundle) -> None:
    """Fresh topics with a few requests, which nobody has answered yet."""
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, REQUESTS, PARTITIONS)


async def measured_start(bench: Bench, version: int, *, env: dict[str, str] | None = None) -> Start:
    """Start a worker that serves one version; it is killed once its first answer is there."""
    serve = {**compiled_python(bench), "SLUICE_MODELS__SERVE": f"{MODEL}@{version}", **(env or {})}
    async with Reader(bench, SCORES, from_end=True) as reader:
        began_s = time.monotonic()
        with Running(bench, OURS, MODEL, env=serve) as running:
            first_score_s = await _first_answer_s(reader, running) - began_s
            stages = await start_stages(running.url)
    return Start(first_score_s, stages | {"first score": max(first_score_s - sum(stages.values()), 0.0)})


def compiled_python(bench: Bench) -> dict[str, str]:
    """Environment in which Python keeps what it compiles, in a folder of the run's own.

    Installed software is compiled; where ``PYTHONDONTWRITEBYTECODE`` is set (containers), every import would compile.
    """
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(bench.folder / "pycache")}


async def _first_answer_s(reader: Reader, running: Running) -> float:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        running.check()
        for batch in await reader.fetch(0.2):
            return batch.received_s
    msg = f"no answer within {START_TIMEOUT_S:.0f} s"
    raise TimeoutError(msg)


async def start_stages(url: str) -> dict[str, float]:
    """Seconds by stage, as the worker's page has them."""
    async with httpx.AsyncClient(timeout=30) as client:
        document = (await client.get(url + "/stats")).json()
    stages: dict[str, float] = document["workers"][document["worker"]]["stats"]["start_s"]
    return stages


def summary(starts: list[Start]) -> dict[str, Any]:
    """Medians over some starts, and every start."""
    stages = {stage: [start.stages[stage] for start in starts] for stage in starts[0].stages}
    totals = [start.first_score_s for start in starts]
    return {
        "first_score_s": round(statistics.median(totals), 2),
        "stages_s": {stage: round(statistics.median(values), 3) for stage, values in stages.items()},
        "runs": [{"first_score_s": round(s.first_score_s, 3), "stages_s": s.stages} for s in starts],
    }
