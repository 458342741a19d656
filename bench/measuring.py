"""What all measuring costs: stage times in every score, histograms and counters; on and off in turn, from memory."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from app.answers import STAGES, Timings
from app.models.runtime import ScoringModel
from app.pipeline import ScoringPipeline
from bench.in_memory import MemorySink, make_pipeline, record_batches
from bench.in_memory import run as feed
from bench.workload import make_bundle, make_requests

if TYPE_CHECKING:
    from app.microbatch import MicroBatch
    from bench.stack import Bench

PAIRS = 20
ROWS = 200_000
FETCH_ROWS = 4096


class Unmeasured(ScoringPipeline):
    """The pipeline without a clock reading, a stage time or a counter of its own."""

    def _timings(self, batch: MicroBatch, now_s: float) -> Timings:  # noqa: ARG002 - the signature of what it replaces
        return Timings(dict.fromkeys(STAGES, 0), np.zeros(len(batch), np.int64))

    def _count(self, batch: MicroBatch, timings: Timings) -> None:
        """Nothing."""

    def _count_consumed(self, batch: MicroBatch) -> None:
        """Nothing."""


async def run(bench: Bench) -> dict[str, Any]:
    """CPU microseconds a request of pairs of runs; the median of the pairs' ratios."""
    pairs, rows = (2, 4096) if bench.is_quick else (PAIRS, ROWS)
    bundle = make_bundle(bench.repository)
    model = ScoringModel(bundle)
    keys, values = make_requests(bundle, 0, rows)
    kinds: dict[str, type[ScoringPipeline]] = {"on": ScoringPipeline, "off": Unmeasured}
    cpu_us: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(pairs + 1):
        for name in kinds if number % 2 == 0 else reversed(kinds):
            pipeline = make_pipeline(bundle, MemorySink(), max_batch_size=2048, model=model, kind=kinds[name])
            _, cpu_s = await feed(pipeline, record_batches(keys, values, size=FETCH_ROWS, partitions=4))
            if number:  # the first pair warms up
                cpu_us[name].append(cpu_s * 1e6 / rows)
    cost = statistics.median(on / off for on, off in zip(cpu_us["on"], cpu_us["off"], strict=True)) - 1
    print(f"  on {statistics.median(cpu_us['on']):.3f} us, off {statistics.median(cpu_us['off']):.3f} us: {cost:.2%}")
    return {
        "pairs": pairs,
        "rows": rows,
        "cpu_us_on": round(statistics.median(cpu_us["on"]), 3),
        "cpu_us_off": round(statistics.median(cpu_us["off"]), 3),
        "cost_share": round(cost, 4),
    }
