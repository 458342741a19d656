"""The figures of ``app.metrics`` as Prometheus families, built when somebody scrapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from app.feature_ages import AGE_BOUNDS_S
from app.histograms import BATCH_BOUNDS, LATENCY_BOUNDS_S, cumulative_at_bounds
from app.process_figures import process_figures
from schemas.records import FireReason, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from prometheus_client.metrics_core import Metric

    from app.metrics import Labels, Metrics

PREFIX = "sluice"
HELP = {
    "event_loop_tasks": "Tasks of the event loop; they grow when something is started and never ends.",
    "open_files": "Files, sockets and pipes that the process has open.",
    "threads": "Threads of the process, those of native libraries among them.",
    "consumed": "Records of score-requests that went into a micro-batch.",
    "monitored": "Records that the monitor took in, by topic.",
    "drift_score": "Population stability index of an input in the newest window, against the model's reference.",
    "poison_circuit_open": "1 while nothing is consumed because most records cannot be decoded.",
    "poison_circuit_openings": "Times that the poison circuit opened.",
    "expired_after_device": "Requests whose deadline passed while they were on the device; answered EXPIRED.",
    "duplicates": "Requests that came again and got the answer of the first.",
    "undecodable": "Values that are not a request; each is one dead letter.",
    "dead_letters": "Records written to a dead letter topic, the uncounted copies of INVALID and ERROR among them.",
    "feature_rows": "Requests by view and what they got of it: a fresh, stale or missing row, or the model's default.",
    "feature_corrupt": "Requests whose row in the store has another length or version; each counts as missing too.",
    "feature_last_known": "Requests that got a last known row, as the store could not be asked; each counts as stale.",
    "feature_store_up": "1 when the feature store answered the latest micro-batch that needed it, else 0.",
    "last_known_entries": "Rows held for when the feature store cannot be asked.",
    "last_known_bytes": "Memory that those rows take, about.",
    "store_failures": "Micro-batches that the feature store did not answer in time, or was not asked for.",
    "dead_letter_copies": "Copies of INVALID and ERROR requests on the dead letter topic; not counted as answers.",
    "rebalances": "Times that the group handed out its partitions anew.",
    "transactions": "Transactions that were committed, outputs and offsets in one.",
    "transaction_commit_duration": "Duration of the commit of a transaction, its offsets included.",
    "commits": "Offset commits that the broker accepted.",
    "consumer_lag_records": "Records between the end of the partition and the next one to answer.",
    "in_flight_batches": "Micro-batches between firing and acknowledgement.",
    "pending_requests": "Requests that wait for a micro-batch.",
    "overload_level": "Step of the overload ladder, 0 is none.",
    "commit_duration": "Duration of an offset commit.",
    "feature_lookup_duration": "Duration of one round trip to the feature store that was answered.",
}
"""What the names mean that callers count; a name that is not here says so."""


class MetricsCollector(Collector):
    """Reads one ``Metrics`` at every scrape; cost about 1 ms, independent of traffic."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """All families, each exactly once."""
        yield from _latency_families(self._metrics)
        yield from _budget_families(self._metrics)
        yield from _batch_families(self._metrics)
        yield _request_family(self._metrics)
        yield _feature_age_family(self._metrics)
        yield from _process_families()
        yield from _named_families(self._metrics)


def _latency_families(metrics: Metrics) -> Iterator[Metric]:
    stages = HistogramMetricFamily(
        f"{PREFIX}_stage_duration_seconds", "Time of a request in one stage.", labels=["stage"]
    )
    names = [name for name in metrics.budget_us if name != "total"]
    for index, name in enumerate(names):
        stages.add_metric([name], _duration_buckets(metrics.bins[index]), int(metrics.sums_us[index]) / 1e6)
    yield stages
    total = HistogramMetricFamily(
        f"{PREFIX}_request_duration_seconds", "From the arrival of a request to the acknowledgement of its answer."
    )
    total.add_metric([], _duration_buckets(metrics.bins[-1]), int(metrics.sums_us[-1]) / 1e6)
    yield total


def _budget_families(metrics: Metrics) -> Iterator[Metric]:
    budget = GaugeMetricFamily(
        f"{PREFIX}_stage_budget_seconds", "Share of the latency budget of a stage, and the total.", labels=["stage"]
    )
    exceeded = CounterMetricFamily(
        f"{PREFIX}_stage_budget_exceeded", "Requests that stayed longer in a stage than its share.", labels=["stage"]
    )
    for (name, budget_us), count in zip(metrics.budget_us.items(), metrics.exceeded.tolist(), strict=True):
        budget.add_metric([name], budget_us / 1e6)
        exceeded.add_metric([name], count)
    yield budget
    yield exceeded


def _batch_families(metrics: Metrics) -> Iterator[Metric]:
    yield CounterMetricFamily(f"{PREFIX}_inferences", "Rows predicted on a device.", value=metrics.device_rows)
    yield CounterMetricFamily(f"{PREFIX}_batch_executions", "Micro-batches run on a device.", value=metrics.executions)
    yield CounterMetricFamily(
        f"{PREFIX}_batch_padding_rows",
        "Rows added to fill micro-batches up to their bucket.",
        value=metrics.padding_rows,
    )
    fires = CounterMetricFamily(f"{PREFIX}_batch_fires", "Why micro-batches fired.", labels=["reason"])
    for reason in FireReason:
        fires.add_metric([reason.name.lower()], int(metrics.fires[reason]))
    yield fires
    sizes = HistogramMetricFamily(f"{PREFIX}_batch_size", "Rows of a micro-batch on the device, before padding.")
    running, buckets = 0, []
    for bound, count in zip([*map(str, BATCH_BOUNDS), "+Inf"], metrics.batch_sizes.tolist(), strict=True):
        running += count
        buckets.append((bound, running))
    sizes.add_metric([], buckets, metrics.device_rows)
    yield sizes


def _request_family(metrics: Metrics) -> Metric:
    labels = ["model_name", "model_version", "role", "code"]
    family = CounterMetricFamily(f"{PREFIX}_requests", "Answers by model and status.", labels=labels)
    for tally in metrics.tallies.values():
        for status in Status:
            values = [tally.model_name, tally.model_version, tally.role, status.name.lower()]
            family.add_metric(values, int(tally.statuses[status]))
    return family


def _feature_age_family(metrics: Metrics) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}_feature_age_seconds",
        "Age of a view's row when it was used: from its event time to the request's, last known rows included.",
        labels=["view"],
    )
    for view, ages in metrics.feature_ages.items():
        bounds = [*map(str, AGE_BOUNDS_S), "+Inf"]
        family.add_metric([view], list(zip(bounds, ages.counts.cumsum().tolist(), strict=True)), ages.sum_ms / 1000)
    return family


def _process_families() -> Iterator[Metric]:
    for name, value in process_figures().items():
        gauge = GaugeMetricFamily(f"{PREFIX}_{name}", HELP[name], labels=())
        if value is not None:
            gauge.add_metric([], value)
        yield gauge


def _named_families(metrics: Metrics) -> Iterator[Metric]:
    for name, counts in metrics.counters.items():
        labels = _label_names(counts)
        counter = CounterMetricFamily(f"{PREFIX}_{name}", HELP.get(name, "Counted by the worker."), labels=labels)
        for key, count in counts.items():
            counter.add_metric(_label_values(labels, key), count)
        yield counter
    for name, values in metrics.gauges.items():
        labels = _label_names(values)
        gauge = GaugeMetricFamily(f"{PREFIX}_{name}", HELP.get(name, "Set by the worker."), labels=labels)
        for key, value in values.items():
            gauge.add_metric(_label_values(labels, key), value)
        yield gauge
    for name, durations in metrics.durations.items():
        labels = _label_names(durations)
        title = HELP.get(name, "Measured by the worker.")
        histogram = HistogramMetricFamily(f"{PREFIX}_{name}_seconds", title, labels=labels)
        for key, (bins, sum_us) in durations.items():
            histogram.add_metric(_label_values(labels, key), _duration_buckets(bins), sum_us[0] / 1e6)
        yield histogram


def _duration_buckets(bins: NDArray[np.int64]) -> list[tuple[str, float]]:
    counts = [*cumulative_at_bounds(bins), int(bins.sum())]
    return list(zip([*map(str, LATENCY_BOUNDS_S), "+Inf"], counts, strict=True))


def _label_names(series: Iterable[Labels]) -> list[str]:
    return sorted({name for key in series for name, _ in key})


def _label_values(names: list[str], key: Labels) -> list[str]:
    values: Mapping[str, str] = dict(key)
    return [values.get(name, "") for name in names]
