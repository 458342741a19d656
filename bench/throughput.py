"""Throughput and CPU of this service and its peers on the same work, interleaved, medians of several rounds."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from bench.contenders import KINDS, OURS, Kind, Sample, measure
from bench.stack import PARTITIONS, Bench, Ends, fresh_topics
from bench.workload import MODEL, STORE_MODEL, fill_store, make_bundle, make_store_bundle, preload

REQUESTS = 400_000
QUICK_REQUESTS = 4_000
ROUNDS = 3


async def run(bench: Bench, *, with_store: bool = False) -> dict[str, Any]:
    """All contenders that are installed; ``with_store`` adds one MGET a batch."""
    requests = QUICK_REQUESTS if bench.is_quick else REQUESTS
    model = STORE_MODEL if with_store else MODEL
    bundle = make_store_bundle(bench.repository) if with_store else make_bundle(bench.repository)
    if with_store:
        await fill_store(bench.settings(), bundle)
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, requests, PARTITIONS)
    entries = [(kind, workers) for kind, workers in _entries(with_store=with_store) if kind.is_installed]
    samples: dict[str, list[Sample]] = {}
    async with Ends(bench) as ends:
        for number in range(1 if bench.is_quick else ROUNDS):
            for kind, workers in entries if number % 2 == 0 else reversed(entries):
                wanted = max(requests // kind.slowness, 1000)
                sample = await measure(bench, ends, kind, model, wanted, workers=workers)
                name = kind.name if workers == 1 else f"{kind.name}, {workers} workers"
                samples.setdefault(name, []).append(sample)
                print(
                    f"  round {number + 1} {name:24} {sample.requests_per_s:10,.0f}/s {sample.cpu_us:8.2f} us",
                    flush=True,
                )
    return {"requests": requests, "rounds": ROUNDS, "contenders": _summary(samples)}


def _entries(*, with_store: bool) -> list[tuple[Kind, int]]:
    single = [(kind, 1) for kind in KINDS]
    return single if with_store else [*single, (OURS, 2), (KINDS[1], 2)]


def _summary(samples: dict[str, list[Sample]]) -> dict[str, Any]:
    ours = statistics.median(s.cpu_us for s in samples[OURS.name])
    table = {}
    for name, runs in samples.items():
        cpu = sorted(s.cpu_us for s in runs)
        median = statistics.median(cpu)
        table[name] = {
            "requests_per_s": round(statistics.median(s.requests_per_s for s in runs)),
            "cpu_us": round(median, 2),
            "cpu_us_low": round(cpu[0], 2),
            "cpu_us_high": round(cpu[-1], 2),
            "times_our_cpu": round(median / ours, 2),
            "rss_mb": round(max(s.rss_mb for s in runs)),
            "runs": [asdict(s) for s in runs],
        }
    return table
