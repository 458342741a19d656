"""What exactly_once costs: throughput of both modes in turn, and latency at light load for a read_committed reader."""

from __future__ import annotations

import statistics
from typing import Any

from bench.contenders import OURS, measure
from bench.latency import latencies, quantiles
from bench.stack import PARTITIONS, Bench, Ends, fresh_topics
from bench.workload import MODEL, make_bundle, preload

MODES = ("at_least_once", "exactly_once")
REQUESTS = 400_000
ROUNDS = 5
LATENCY_ROUNDS = 3
LIGHT_RATE = 100.0
WARM_RATE = 400.0
"""Of a first round that does not count: a broker's transactions take three times as long until its JVM has compiled
what they run, which one with users did long ago."""


async def run(bench: Bench) -> dict[str, Any]:
    """Both modes, interleaved; medians."""
    requests, rounds = (4000, 1) if bench.is_quick else (REQUESTS, ROUNDS)
    bundle = make_bundle(bench.repository)
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, requests, PARTITIONS)
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
    async with Ends(bench) as ends:
        for number in range(rounds):
            for mode in MODES if number % 2 == 0 else reversed(MODES):
                sample = await measure(bench, ends, OURS, MODEL, requests, env=_environment(mode))
                rates[mode].append(sample.requests_per_s)
                cpu[mode].append(sample.cpu_us)
                print(f"  {mode:14} {sample.requests_per_s:10,.0f}/s {sample.cpu_us:8.2f} us", flush=True)
    light = await _light(bench)
    return {
        "requests": requests,
        "rounds": rounds,
        "requests_per_s": {mode: round(statistics.median(rates[mode])) for mode in MODES},
        "cpu_us": {mode: round(statistics.median(cpu[mode]), 2) for mode in MODES},
        "throughput_share": round(
            statistics.median(b / a for a, b in zip(rates[MODES[0]], rates[MODES[1]], strict=True)), 3
        ),
        "light_rate_per_s": LIGHT_RATE,
        "light": light,
        "light_added_p50_ms": round(light[MODES[1]]["p50_ms"] - light[MODES[0]]["p50_ms"], 2),
        "light_added_p99_ms": round(light[MODES[1]]["p99_ms"] - light[MODES[0]]["p99_ms"], 2),
    }


async def _light(bench: Bench) -> dict[str, dict[str, float]]:
    """Quantiles of each mode at light load: of each the median over the rounds."""
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for mode in () if bench.is_quick else MODES:
        await latencies(bench, OURS, WARM_RATE, env=_environment(mode), isolation="read_committed")
    for _ in range(1 if bench.is_quick else LATENCY_ROUNDS):
        for mode in MODES:
            waits = await latencies(bench, OURS, LIGHT_RATE, env=_environment(mode), isolation="read_committed")
            found[mode].append(quantiles(waits))
            print(f"  {mode:14} {found[mode][-1]}", flush=True)
    return {
        mode: {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
        for mode, rows in found.items()
    }


def _environment(mode: str) -> dict[str, str]:
    return {"SLUICE_DELIVERY__MODE": mode}
