"""What narrow numbers cost and give: score error, speed and memory of bf16 and fp16 beside fp32, by device.

Runs of the precisions are interleaved; a figure is the median of a bucket's runs. CUDA rows say so when there is none.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from app.calibration import Calibration
from app.models.architectures import build
from app.models.bundle import open_bundle
from app.models.compute_threads import set_compute_threads
from app.models.loading import DTYPES
from app.models.packing import pack_bundle
from app.models.precision import scores_error
from app.models.runtime import ScoringModel
from app.models.spec import Architecture, Feature, ModelSpec, Standardise
from bench.workload import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

    from app.preprocess import Inputs
    from bench.stack import Bench

HIDDEN = {"small": (64, 32), "large": (2048, 2048)}
DEVICES = ("cpu", "cuda")
BUCKETS = (1, 32, 512)
ROWS = 4096
RUNS = {1: 300, 32: 200, 512: 30}


async def run(bench: Bench) -> dict[str, Any]:
    """A row for each network, device and precision."""
    set_compute_threads(1)
    rows: list[dict[str, Any]] = []
    for size, hidden in HIDDEN.items():
        folders = {precision: _pack(bench.repository, size, hidden, precision) for precision in DTYPES}
        for device in DEVICES:
            rows += _rows(size, device, folders, is_quick=bench.is_quick)
    for row in rows:
        print(f"  {row}", flush=True)
    return {"rows": rows, "error_rows": ROWS, "threads": 1}


def _pack(repository: Path, size: str, hidden: tuple[int, ...], precision: str) -> Path:
    """The same weights for each precision."""
    spec = ModelSpec(
        name=f"bench_{size}_{precision}",
        version=1,
        architecture=Architecture(name="tabular_mlp", arguments={"hidden": list(hidden)}),
        features=tuple(Feature(name=f"f{i}", standardise=Standardise(mean=0, scale=1)) for i in range(FEATURES)),
        buckets=BUCKETS,
        precision=precision,  # type: ignore[arg-type] # one of its values
    )
    torch.manual_seed(0)
    return pack_bundle(repository, spec, build(spec), Calibration())


def _rows(size: str, device: str, folders: dict[str, Path], *, is_quick: bool) -> list[dict[str, Any]]:
    if device == "cuda" and not torch.cuda.is_available():
        return [{"network": size, "device": device, "precision": precision, "is_run": False} for precision in folders]
    models = {precision: ScoringModel(open_bundle(folder), device) for precision, folder in folders.items()}
    for model in models.values():
        model.warm_up()
    inputs = _inputs(ROWS)
    runs = dict.fromkeys(BUCKETS, 3) if is_quick else RUNS
    speed = {bucket: _interleaved_us(models, _inputs(bucket), runs[bucket]) for bucket in BUCKETS}
    return [
        {
            "network": size,
            "device": device,
            "precision": precision,
            "is_run": True,
            "score_error": scores_error(models["fp32"], model, inputs),
            "memory_mb": round(model.memory_bytes / 1e6, 2),
            "is_mapped": model.is_mapped,
            "us_by_bucket": {str(bucket): speed[bucket][precision] for bucket in BUCKETS},
        }
        for precision, model in models.items()
    ]


def _interleaved_us(models: dict[str, ScoringModel], inputs: Inputs, runs: int) -> dict[str, float]:
    """Median microseconds of a batch, by precision."""
    took: dict[str, list[float]] = {precision: [] for precision in models}
    for _ in range(runs):
        for precision, model in models.items():
            started_s = time.perf_counter()
            model.predict(inputs)
            took[precision].append(time.perf_counter() - started_s)
    return {precision: round(statistics.median(values) * 1e6, 1) for precision, values in took.items()}


def _inputs(rows: int) -> Inputs:
    numbers = np.random.default_rng(rows).normal(size=(rows, FEATURES)).astype(np.float32)
    return {"numbers": numbers, "codes": np.zeros((rows, 0), np.int64)}
