"""The pipeline fed from memory, and the same model fed ready-made batches by a bare loop.

Needs no broker. On CUDA when there is one, else on the CPU.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from app.models.devices import choose_device
from app.models.runtime import ScoringModel
from bench.in_memory import MemorySink, make_pipeline, record_batches
from bench.in_memory import run as feed
from bench.workload import make_bundle, make_requests

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.bundle import Bundle
    from app.preprocess import Inputs
    from bench.stack import Bench

MODELS = {"small": (64, 32), "large": (2048, 2048)}
ROWS = {"small": 200_000, "large": 40_000}
CUDA_ROWS = {"small": 400_000, "large": 400_000}
FETCH_ROWS = 4096
ROUNDS = 3


class TimedModel(ScoringModel):
    """Counts the seconds in which it predicts, copies to and from the device included."""

    busy_s = 0.0

    def predict(self, inputs: Inputs) -> tuple[NDArray[np.float32], int]:
        """As the model does."""
        started_s = time.monotonic()
        found = super().predict(inputs)
        self.busy_s += time.monotonic() - started_s
        return found


async def run(bench: Bench) -> dict[str, Any]:
    """Both ways for a small and a large model, interleaved."""
    torch.set_num_threads(1)
    device = choose_device("auto")
    batch = 512 if device == "cpu" else 4096
    table = {}
    for size, hidden in MODELS.items():
        bundle = make_bundle(bench.repository, name=f"bench_{size}", hidden=hidden, max_bucket=batch)
        rows = 2048 if bench.is_quick else (ROWS if device == "cpu" else CUDA_ROWS)[size]
        table[size] = await _compare(bundle, device, batch, rows, 1 if bench.is_quick else ROUNDS)
        print(f"  {size:6} {table[size]}", flush=True)
    name = torch.cuda.get_device_name() if device != "cpu" else "cpu, one thread"
    return {"device": name, "batch": batch, "hidden": {k: list(v) for k, v in MODELS.items()}, "models": table}


async def _compare(bundle: Bundle, device: str, batch: int, rows: int, rounds: int) -> dict[str, Any]:
    model = TimedModel(bundle, device)
    model.warm_up()
    keys, values = make_requests(bundle, 0, rows)
    numbers = np.random.default_rng(0).normal(size=(batch, model.preprocessor.layout.number_width)).astype(np.float32)
    piped, bare, busy, cpu = [], [], [], []
    for _ in range(rounds):
        bare.append(_bare(model, numbers, rows))
        model.busy_s = 0.0
        pipeline = make_pipeline(bundle, MemorySink(), max_batch_size=batch, model=model)
        wall_s, cpu_s = await feed(pipeline, record_batches(keys, values, size=FETCH_ROWS, partitions=4))
        piped.append(rows / wall_s)
        busy.append(model.busy_s / wall_s)
        cpu.append(cpu_s * 1e6 / rows)
    return {
        "rows": rows,
        "pipeline_per_s": round(statistics.median(piped)),
        "bare_loop_per_s": round(statistics.median(bare)),
        "share_of_bare_loop": round(statistics.median(piped) / statistics.median(bare), 3),
        "device_busy_share": round(statistics.median(busy), 3),
        "cpu_us": round(statistics.median(cpu), 2),
    }


def _bare(model: ScoringModel, numbers: NDArray[np.float32], rows: int) -> float:
    """Rows a second through the model alone, in full batches."""
    inputs = {"numbers": numbers, "codes": np.zeros((len(numbers), 0), np.int64)}
    started_s = time.monotonic()
    for _ in range(max(rows // len(numbers), 1)):
        model.predict(inputs)
    return max(rows // len(numbers), 1) * len(numbers) / (time.monotonic() - started_s)
