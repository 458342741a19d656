"""Models whose score is no probability of one thing: everything is joined and counted, and no quality is made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from monitors.calibration import calibration
from monitors.quality import METRICS, quality
from monitors.store import WindowKey
from schemas.columnar import Constant, Decoder, ListColumn, NumberColumn
from schemas.generate import FeatureField, labelled_schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import World

    from monitors.partition import PartitionMonitor, Taken
    from monitors.windows import WindowCounts
    from schemas.records import RecordBatch

    Make = Callable[..., PartitionMonitor]
    MakeBatch = Callable[..., RecordBatch]

START_US, HOUR_US = 1_362_096_000_000_000, 3_600_000_000
FEATURES = [FeatureField("age", "number", "request"), FeatureField("town", "category", "request")]
KEY = WindowKey("demo", 1, START_US)
SOFTMAX = ([0.9, 0.5, 0.4, 0.8], 3, [0.0, 1.0, 2.0, 1.0])
LABELS = ([0.9, 0.5, 0.4, 0.8], 2, [0.0, 1.0, 0.0, 1.0])
REGRESSION = ([-3.5, 0.4, 1.0, 1e300], 1, [-2.0, 0.0, 1.0, 1e300])


def play(
    monitor: PartitionMonitor, world: World, make_batch: MakeBatch, case: tuple[list[float], int, list[float]]
) -> Taken:
    """Predictions with some outputs each, then their outcomes; what the outcomes led to."""
    scores, width, labels = case
    ids = [f"r{k}" for k in range(len(scores))]
    outputs = ListColumn(np.arange(len(ids) + 1) * width, NumberColumn(np.repeat(scores, width)))
    values = world.predictions(ids, [START_US] * len(ids), scores, outputs=outputs)
    monitor.commit(monitor.take_predictions(make_batch("predictions-log", ids, values)))
    taken = monitor.take_outcomes(
        make_batch("outcomes", ids, world.outcomes(ids, labels, [START_US + HOUR_US] * len(ids)))
    )
    monitor.commit(taken)
    return taken


def counts_of(monitor: PartitionMonitor) -> WindowCounts:
    """Of the only window."""
    counts = monitor.window(KEY)
    assert counts is not None
    return counts


@pytest.mark.parametrize("case", [SOFTMAX, LABELS, REGRESSION], ids=["softmax", "labels", "regression"])
def test_everything_is_joined_and_no_quality_is_made_up(
    make_partition: Make, world: World, make_batch: MakeBatch, case: tuple[list[float], int, list[float]]
) -> None:
    """No dead letter, labels as they came on the training feed, drift of the score counted, each metric a reason."""
    monitor = make_partition()
    taken = play(monitor, world, make_batch, case)
    decoder = Decoder(labelled_schema("demo", FEATURES))
    fields: dict[str, Any] = dict(decoder.decode(taken.labelled.values).columns.fields)
    assert taken.dead.values == []
    assert fields["label"].values.tolist() == case[2]
    assert (monitor.meta.tallies["joined"], monitor.meta.tallies["undecodable_predictions"]) == (4, 0)
    counts = counts_of(monitor)
    assert counts.count("predictions") == counts.score_bins.sum() == 4
    found = quality(counts)
    assert found.values == dict.fromkeys(METRICS)
    assert "quality is not judged" in found.reasons["auc"]
    assert calibration(counts).reason == found.reasons["auc"]
    monitor.store.close()


def test_labels_that_are_taken_back_leave_nothing(make_partition: Make, world: World, make_batch: MakeBatch) -> None:
    """A retracted outcome takes out exactly what it had brought in: nothing, where nothing is judged."""
    monitor = make_partition()
    play(monitor, world, make_batch, LABELS)
    before = counts_of(monitor).cells.copy()
    back = world.outcomes(["r0"], [0.0], [START_US + HOUR_US], [1], [True])
    monitor.commit(monitor.take_outcomes(make_batch("outcomes", ["r0"], back, 4)))
    changed = counts_of(monitor).cells - before
    assert counts_of(monitor).count("retracted_outcomes") == changed.sum() == 1
    monitor.store.close()


def test_reports_get_no_labels_that_mean_something_else(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """Class 1 of a softmax is no "yes": the sampled rows of a window stay without labels."""
    monitor = make_partition()
    play(monitor, world, make_batch, SOFTMAX)
    assert {value[0] for _, value in monitor.sampled_rows(KEY)} == {255}
    monitor.store.close()


def test_a_regression_within_0_and_1_is_told_by_its_labels(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """The one label that happens to be 1 does not make a share of clicks a probability."""
    monitor = make_partition()
    play(monitor, world, make_batch, ([0.2, 0.3, 0.4, 0.9], 1, [0.25, 0.5, 0.3, 1.0]))
    assert quality(counts_of(monitor)).values == dict.fromkeys(METRICS)
    monitor.store.close()


def test_without_a_threshold_only_decisions_are_not_judged(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """Brier score and area under the curve need none; nobody is told that everything was decided positive."""
    monitor = make_partition()
    ids, labels = ["a", "b"], [0.0, 1.0]
    none = NumberColumn(np.array([np.nan, np.nan]))
    values = world.predictions(ids, [START_US] * 2, [0.25, 0.75], threshold=none, decision=Constant("", 2))
    monitor.commit(monitor.take_predictions(make_batch("predictions-log", ids, values)))
    outcomes = world.outcomes(ids, labels, [START_US] * 2)
    monitor.commit(monitor.take_outcomes(make_batch("outcomes", ids, outcomes)))
    found = quality(counts_of(monitor))
    assert (found.values["brier"], found.values["auc"], found.values["base_rate"]) == (0.0625, 1.0, 0.5)
    assert found.values["accuracy"] is None
    assert "no threshold" in found.reasons["precision"]
    monitor.store.close()
