"""The worker's figures: counted per micro-batch, read as JSON and as Prometheus families."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import MAX_LABEL_SETS, STAGES, Metrics
from app.settings import BudgetSettings
from schemas.records import FireReason, Status

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """A clock that stands still until it is told to move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        """The present, monotonic seconds."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The clock of the metrics under test."""
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    """Metrics with the default budget."""
    return Metrics(BudgetSettings(), now_s=clock)


def observe(metrics: Metrics, row_count: int = 4, total_us: int = 9_000, **changes: Any) -> None:  # noqa: ANN401 - any argument
    """One micro-batch of OK answers; ``changes`` replace arguments."""
    arguments: dict[str, Any] = {
        "statuses": np.zeros(row_count, dtype=np.int8),
        "stage_us": dict.fromkeys(STAGES, 1_000),
        "total_us": np.full(row_count, total_us),
        "rows_on_device": row_count,
        "bucket": 8,
        "reason": FireReason.WINDOW,
        "model_name": "flight_delays",
        "model_version": "1",
    }
    metrics.observe_batch(**(arguments | changes))


def families(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of a scrape, by name and labels, as Prometheus' own parser reads them."""
    registry = CollectorRegistry()
    registry.register(metrics.collector())
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_new_worker_has_a_snapshot_without_numbers(metrics: Metrics) -> None:
    """Before the first request nothing is invented: counts are zero, quantiles are null."""
    snapshot = metrics.snapshot()
    assert snapshot["total"]["p99_us"] is None
    assert snapshot["rates"] == {"1": 0.0, "10": 0.0, "60": 0.0}
    assert snapshot["series"]["rate"] == []
    assert snapshot["batches"]["mean_rows"] is None


def test_conservation_adds_up(metrics: Metrics) -> None:
    """Consumed is answers by status plus undecodable plus what is still in flight."""
    metrics.count("consumed", 20)
    metrics.count("undecodable", 2)
    every_status = np.array([0, 0, 1, 2, 3, 4, 5], dtype=np.int8)
    observe(metrics, 7, statuses=every_status)
    snapshot = metrics.snapshot()
    assert snapshot["conservation"] == {"consumed": 20, "terminal": 7, "undecodable": 2, "in_flight": 11}
    assert snapshot["statuses"] == {"OK": 2, "DEGRADED": 1, "INVALID": 1, "EXPIRED": 1, "SHED": 1, "ERROR": 1}
    assert sum(snapshot["statuses"].values()) == snapshot["conservation"]["terminal"]


def test_shadow_rows_are_no_answers(metrics: Metrics) -> None:
    """A shadow's predictions count for its model and never for the conservation or the latency."""
    observe(metrics, 4)
    observe(metrics, 4, role="shadow", model_version="2", total_us=10**7)
    snapshot = metrics.snapshot()
    assert snapshot["conservation"]["terminal"] == 4
    assert snapshot["statuses"]["OK"] == 4
    assert snapshot["total"]["count"] == 4
    assert [model["statuses"]["OK"] for model in snapshot["models"]] == [4, 4]


def test_rates_count_whole_seconds(metrics: Metrics, clock: Clock) -> None:
    """Rates cover the last 1, 10 and 60 closed seconds, and the uptime while it is shorter."""
    for _ in range(20):
        observe(metrics, 10)
        clock.now_s += 1.0
    assert metrics.snapshot()["rates"] == {"1": 10.0, "10": 10.0, "60": 10.0}
    clock.now_s += 10.0
    assert metrics.snapshot()["rates"] == {"1": 0.0, "10": 0.0, "60": pytest.approx(200 / 30, abs=1e-3)}


def test_the_series_holds_one_point_a_second(metrics: Metrics, clock: Clock) -> None:
    """Each point has the answers and the latency of its own second; an idle second has null latency."""
    observe(metrics, 5, total_us=2_000)
    clock.now_s += 1.0
    observe(metrics, 3, total_us=80_000)
    clock.now_s += 2.0
    series = metrics.snapshot()["series"]
    assert series["rate"] == [5, 3, 0]
    assert series["p50_us"][0] == pytest.approx(2_000, rel=0.05)
    assert series["p99_us"][1] == pytest.approx(80_000, rel=0.05)
    assert series["p99_us"][2] is None


def test_the_series_is_bounded_and_survives_a_long_pause(metrics: Metrics, clock: Clock) -> None:
    """After an hour of silence there are 120 empty points, and the counts are still there."""
    observe(metrics, 5)
    clock.now_s += 3600.0
    snapshot = metrics.snapshot()
    assert snapshot["series"]["rate"] == [0] * 120
    assert snapshot["statuses"]["OK"] == 5


def test_stage_quantiles_forget_what_is_old(metrics: Metrics, clock: Clock) -> None:
    """The quantiles look back 60 s; those of the lifetime keep everything."""
    observe(metrics, 50, stage_us={"inference": 50_000})
    clock.now_s += 100.0
    observe(metrics, 50, stage_us={"inference": 1_000})
    stage = metrics.snapshot()["stages"]["inference"]
    assert stage["p99_us"] == pytest.approx(1_000, rel=0.05)
    assert stage["lifetime"]["p99_us"] == pytest.approx(50_000, rel=0.05)


def test_what_exceeds_the_budget_is_counted(metrics: Metrics) -> None:
    """A row above its stage's share counts; exactly the share does not."""
    observe(metrics, 3, stage_us={"queue": np.array([5_000, 5_001, 90_000]), "inference": 20_001}, total_us=100_001)
    snapshot = metrics.snapshot()
    assert snapshot["stages"]["queue"]["exceeded"] == 2
    assert snapshot["stages"]["inference"]["exceeded"] == 3
    assert snapshot["total"]["exceeded"] == 3
    assert snapshot["total"]["budget_ms"] == 100.0


def test_rows_that_never_passed_a_stage_are_left_out(metrics: Metrics) -> None:
    """A negative duration says that the row was answered before that stage."""
    observe(metrics, 3, stage_us={"inference": np.array([-1, 400, -1]), "emit": -1})
    stages = metrics.snapshot()["stages"]
    assert stages["inference"]["count"] == 1
    assert stages["emit"]["count"] == 0


def test_batches_without_a_device_do_not_count_as_executions(metrics: Metrics) -> None:
    """Answers that never reached a device fire nothing and leave the batch sizes alone."""
    observe(metrics, 6, bucket=8)
    observe(metrics, 2, rows_on_device=0, bucket=0, reason=FireReason.NONE)
    snapshot = metrics.snapshot()
    assert snapshot["batches"] | {"sizes": None} == {
        "executions": 1,
        "rows": 6,
        "padding_rows": 2,
        "mean_rows": 6.0,
        "sizes": None,
        "buckets": {"8": 1},
    }
    assert snapshot["batches"]["sizes"]["8"] == 1
    assert snapshot["fire_reasons"]["WINDOW"] == 1
    assert snapshot["fire_reasons"]["NONE"] == 0


def test_an_empty_batch_is_no_event(metrics: Metrics) -> None:
    """Zero rows change no count."""
    before = metrics.snapshot()
    observe(metrics, 0, rows_on_device=0, reason=FireReason.NONE)
    after = metrics.snapshot()
    assert after["statuses"] == before["statuses"]
    assert after["stages"] == before["stages"]


def test_an_unknown_stage_is_refused(metrics: Metrics) -> None:
    """A misspelt stage is an error that names the right ones."""
    with pytest.raises(ValueError, match="the stages are ingest, queue"):
        observe(metrics, 1, stage_us={"infer": 1})


@pytest.mark.parametrize(
    "call",
    [
        lambda metrics: metrics.count("Dead-Letters"),
        lambda metrics: metrics.count("requests"),
        lambda metrics: metrics.count("consumed", -1),
        lambda metrics: (metrics.count("shed_rows"), metrics.set_gauge("shed_rows", 1)),
    ],
)
def test_names_that_would_break_a_scrape_are_refused(metrics: Metrics, call: Callable[[Metrics], None]) -> None:
    """Malformed or taken names and negative counts raise when they are used, not when Prometheus comes."""
    with pytest.raises(ValueError, match=r"metric name|cannot go down"):
        call(metrics)


def test_labels_are_bounded(metrics: Metrics) -> None:
    """A label that never repeats cannot grow the memory: further values are added up as ``other``."""
    for number in range(MAX_LABEL_SETS + 100):
        metrics.count("feature_missing", view=f"v{number}")
    counters = metrics.snapshot()["counters"]
    assert len(counters) == MAX_LABEL_SETS + 1
    assert counters["feature_missing{view=other}"] == 100


def test_gauges_of_a_revoked_partition_vanish(metrics: Metrics) -> None:
    """Clearing by some labels removes exactly the series that carry them."""
    for topic, partition in (("score-requests", "0"), ("score-requests", "1"), ("outcomes", "1")):
        metrics.set_gauge("consumer_lag_records", 7, topic=topic, partition=partition)
    metrics.clear_gauge("consumer_lag_records", partition="1")
    assert metrics.snapshot()["gauges"] == {"consumer_lag_records{partition=0,topic=score-requests}": 7.0}


def test_a_snapshot_is_plain_json(metrics: Metrics, clock: Clock) -> None:
    """No numpy number and no NaN reaches ``/stats``."""
    observe(metrics)
    metrics.count("commits")
    metrics.set_gauge("pending_requests", np.int64(3))
    metrics.observe_us("commit_duration", np.array([700, 900]))
    clock.now_s += 3
    assert json.loads(json.dumps(metrics.snapshot(), allow_nan=False)) == metrics.snapshot()


def test_prometheus_reads_what_was_counted(metrics: Metrics) -> None:
    """The families carry the names of the convention, base units and exact cumulative buckets."""
    observe(metrics, 3, statuses=np.array([0, 1, 1], dtype=np.int8), total_us=100_000)
    metrics.count("undecodable", 2, reason="frame")
    metrics.observe_us("commit_duration", 1_500, mode="at_least_once")
    samples = families(metrics)
    model = (("model_name", "flight_delays"), ("model_version", "1"), ("role", "primary"))
    assert samples["sluice_requests_total", (("code", "degraded"), *model)] == 2
    assert samples["sluice_request_duration_seconds_bucket", (("le", "0.1"),)] == 3
    assert samples["sluice_request_duration_seconds_bucket", (("le", "0.075"),)] == 0
    assert samples["sluice_request_duration_seconds_sum", ()] == pytest.approx(0.3)
    assert samples["sluice_stage_duration_seconds_count", (("stage", "emit"),)] == 3
    assert samples["sluice_stage_budget_seconds", (("stage", "inference"),)] == 0.02
    assert samples["sluice_batch_size_bucket", (("le", "4"),)] == 1
    assert samples["sluice_batch_padding_rows_total", ()] == 5
    assert samples["sluice_batch_fires_total", (("reason", "window"),)] == 1
    assert samples["sluice_undecodable_total", (("reason", "frame"),)] == 2
    assert samples["sluice_commit_duration_seconds_count", (("mode", "at_least_once"),)] == 1


def test_series_of_one_name_may_carry_different_labels(metrics: Metrics) -> None:
    """A label that a series lacks is empty, which Prometheus reads as absent."""
    metrics.count("dead_letters", 1)
    metrics.count("dead_letters", 4, topic="outcomes.dlq")
    samples = families(metrics)
    assert samples["sluice_dead_letters_total", (("topic", ""),)] == 1
    assert samples["sluice_dead_letters_total", (("topic", "outcomes.dlq"),)] == 4


def test_json_and_prometheus_agree(metrics: Metrics) -> None:
    """Both views read the same arrays: their counts are equal for random traffic."""
    rng = np.random.default_rng(7)
    for _ in range(50):
        row_count = int(rng.integers(1, 40))
        observe(
            metrics,
            row_count,
            statuses=rng.integers(0, len(Status), row_count).astype(np.int8),
            stage_us={"queue": rng.integers(0, 20_000, row_count), "emit": int(rng.integers(0, 9_000))},
            reason=FireReason(int(rng.integers(0, 6))),
            bucket=64,
        )
    snapshot, samples = metrics.snapshot(), families(metrics)
    model = (("model_name", "flight_delays"), ("model_version", "1"), ("role", "primary"))
    for status in Status:
        assert (
            samples["sluice_requests_total", (("code", status.name.lower()), *model)]
            == (snapshot["statuses"][status.name])
        )
    for stage in STAGES:
        assert samples["sluice_stage_duration_seconds_count", (("stage", stage),)] == snapshot["stages"][stage]["count"]
    assert samples["sluice_inferences_total", ()] == snapshot["batches"]["rows"]
