"""Realistic ``/stats`` documents of two scoring workers and a monitor, for looking at the page."""

from __future__ import annotations

from typing import Any

import numpy as np

from app.metrics import STAGES, Metrics
from app.settings import BudgetSettings
from schemas.records import FireReason

FEATURES = (
    *(
        "distance",
        "scheduled_departure",
        "carrier",
        "route",
        "origin_wind_kn",
        "origin_visibility_mi",
        "origin_precip_in",
    ),
    *(
        "origin_delay_1h",
        "carrier_delay_2h",
        "carrier_delay_7d",
        "route_delay_14d",
        "plane_last_delay",
        "plane_idle_min",
    ),
)
MONTHS = ("2013-03", "2013-04", "2013-05", "2013-06", "2013-07", "2013-08")
DAY_US = 86_400_000_000
STAGE_MEANS_US = {
    "ingest": 1_900,
    "queue": 2_600,
    "features": 900,
    "preprocess": 240,
    "inference": 1_450,
    "postprocess": 60,
    "emit": 2_700,
}


def scoring_document(*, seed: int, seconds: int = 150, batches_a_second: int = 6) -> dict[str, Any]:
    """Figures of a scoring worker after some minutes of traffic, made by the real ``Metrics``."""
    rng = np.random.default_rng(seed)
    clock = [0.0]
    metrics = Metrics(BudgetSettings(), now_s=lambda: clock[0])
    for second in range(seconds):
        for _ in range(batches_a_second):
            _observe(metrics, rng, slow=3.0 if second % 50 > 44 else 1.0)
        clock[0] += 1.0
    metrics.count("consumed", metrics.terminal + 190)
    metrics.count("undecodable", 3, reason="unknown_schema")
    metrics.count("dead_letters", 9, topic="score-requests.dlq")
    metrics.count("feature_missing", 412, view="plane_delays")
    metrics.count("commits", seconds * 10)
    metrics.set_gauge("consumer_lag_records", 57, topic="score-requests", partition="0")
    return metrics.snapshot()


def _observe(metrics: Metrics, rng: np.random.Generator, *, slow: float) -> None:
    row_count = int(min(rng.lognormal(4.3, 0.9), 512)) + 1
    stage_us: dict[str, Any] = {
        stage: (rng.lognormal(np.log(STAGE_MEANS_US[stage] * slow), 0.6, row_count)).astype(np.int64)
        for stage in STAGES
    }
    statuses = rng.choice(6, row_count, p=[0.968, 0.024, 0.002, 0.004, 0.0015, 0.0005]).astype(np.int8)
    metrics.observe_batch(
        statuses=statuses,
        stage_us=stage_us,
        total_us=np.sum(list(stage_us.values()), axis=0),
        rows_on_device=row_count,
        bucket=1 << max(row_count - 1, 1).bit_length(),
        reason=FireReason(int(rng.choice(6, p=[0.18, 0.02, 0.55, 0.24, 0.005, 0.005]))),
        model_name="flight_delays",
        model_version="1",
    )


def monitor_document(*, seed: int = 3, versions: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """Figures of a monitor worker with six monthly windows per version."""
    rng = np.random.default_rng(seed)
    windows = [_window(rng, month, version) for version in versions for month in range(len(MONTHS))]
    return {
        "counters": {
            "predictions": 171_230,
            "outcomes": 165_404,
            "joined": 165_388,
            "duplicate_outcomes": 214,
            "late": 31,
            "orphans": 16,
            "parked": 102,
            "retracted": 4,
            "undecodable": 0,
        },
        "watermark_us": 15_950 * DAY_US,
        "windows": windows,
        "reports": [f"flight_delays-1-{month}.html" for month in MONTHS[:5]] + ["latest.html"],
    }


def _window(rng: np.random.Generator, month: int, version: int) -> dict[str, Any]:
    psi = {name: float(rng.gamma(1.2, 0.02) + 0.045 * month * (name.startswith("origin_v"))) for name in FEATURES}
    psi["scheduled_departure"] = 0.02 + 0.08 * month
    psi["carrier_delay_7d"] += 0.06 * (month > 2)
    drifted = [name for name, value in psi.items() if value >= 0.1]
    predictions = int(rng.integers(26_000, 30_000))
    labelled = int(predictions * (0.975 if month < len(MONTHS) - 1 else 0.41))
    return {
        "model_name": "flight_delays",
        "model_version": version,
        "label": MONTHS[month],
        "drifted": drifted,
        "window_start": (15_765 + 30 * month) * DAY_US,
        "window_end": (15_795 + 30 * month) * DAY_US,
        "final": month < len(MONTHS) - 2,
        "predictions": predictions,
        "labelled": labelled,
        "coverage": labelled / predictions,
        "precision": 0.52 + float(rng.normal(0, 0.02)),
        "recall": 0.41 + float(rng.normal(0, 0.03)) if month else None,
        "auc": 0.76 - 0.008 * month + float(rng.normal(0, 0.006)),
        "brier": 0.148 + float(rng.normal(0, 0.008)),
        "base_rate": 0.21 + 0.01 * month,
        "mean_score": 0.22,
        "calibration_z": 1.3,
        "score_psi": 0.03 * month,
        "features": {name: {"psi": value, "p_value": 0.001, "drifted": value >= 0.1} for name, value in psi.items()},
    }


def models_document(*, is_behind: bool) -> dict[str, Any]:
    """Models of a scoring worker: some serve, one failed with a long reason, one warms where the worker is behind."""
    names = (
        "name",
        "version",
        "state",
        "device",
        "memory_bytes",
        "calibration_revision",
        "requests",
        "labels",
        "reason",
    )
    fault = (
        "4/model.yaml: features.3.vocabulary: Tuple should have at least 1 item\n"
        "4/weights.safetensors: embedding.weight holds NaN or infinite numbers; train again"
    )
    rows = [
        ("flight_delays", 5, "WARMING" if is_behind else "READY", "cpu", 1_480_000, 1, 0, [], ""),
        ("flight_delays", 4, "FAILED", None, 0, None, 0, [], fault),
        ("flight_delays", 3, "READY", "cpu", 1_402_880, 2, 81_204, ["champion", "stable"], ""),
        ("flight_delays", 2, "UNLOADED", None, 0, None, 64_000, [], ""),
        ("docstrings", 1, "READY", "cpu", 9_402_880, 0, 1_204, ["champion"], "cuda:0 was lost; it goes on on cpu"),
    ]
    refused = [{"what": "label challenger of flight_delays -> 5", "reason": "version 5 is WARMING", "offset": 9}]
    return {
        "control_offset": 8 if is_behind else 9,
        "loading": "flight_delays version 5" if is_behind else None,
        "versions": [dict(zip(names, row, strict=True)) for row in rows],
        "refused": refused if is_behind else [],
    }


def stats_document(published_at_us: int) -> dict[str, Any]:
    """What ``/stats`` of the first scoring worker answers in a deployment of three."""
    documents = {"scoring-7f3a": scoring_document(seed=1), "scoring-b21c": scoring_document(seed=2, batches_a_second=5)}
    for index, stats in enumerate(documents.values()):
        stats["models"] = models_document(is_behind=index == 1)
    workers = {
        name: {
            "role": "scoring",
            "web_url": f"http://127.0.0.1:{6066 + index}",
            "published_at": published_at_us,
            "stats": stats,
        }
        for index, (name, stats) in enumerate(documents.items())
    }
    workers["monitor-09d4"] = {
        "role": "monitor",
        "web_url": "http://127.0.0.1:6068",
        "published_at": published_at_us - 5_000_000,
        "stats": monitor_document(),
    }
    return {"worker": "scoring-7f3a", "role": "scoring", "workers": workers}
