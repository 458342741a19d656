"""Quality and calibration from counts, against scikit-learn and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from monitors.calibration import calibration
from monitors.quality import area_under_curve, delay_quantile_s, quality
from monitors.windows import DELAY_BINS, Layout, WindowCounts


def counts_of(scores: np.ndarray, labels: np.ndarray, *, threshold: float = 0.5) -> WindowCounts:
    """Counts of labelled predictions, each 90 s late."""
    counts = WindowCounts(Layout())
    counts.add_predictions(scores)
    counts.add_labels(scores, scores >= threshold, labels, np.full(len(scores), 90_000_000))
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_every_metric_is_that_of_scikit_learn(seed: int) -> None:
    """Precision, recall, F1, accuracy and Brier agree to 1e-9, the area under the curve to the width of a cell."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 3, 3000)
    labels = (rng.random(3000) < scores).astype(np.int64)
    decided = scores >= 0.5
    found = quality(counts_of(scores, labels)).values
    expected = {
        "precision": metrics.precision_score(labels, decided),
        "recall": metrics.recall_score(labels, decided),
        "f1": metrics.f1_score(labels, decided),
        "accuracy": metrics.accuracy_score(labels, decided),
        "brier": metrics.brier_score_loss(labels, scores),
        "base_rate": labels.mean(),
        "mean_score": scores.mean(),
        "coverage": 1.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-3)
    # Within one cell order is lost: on scores that are rounded to cells it is exact.
    cells = (scores * 1000).astype(int)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels, cells), abs=1e-12)


def test_a_metric_without_meaning_has_a_reason_instead() -> None:
    """With labels of one class there is no area under the curve, and nothing is divided by zero."""
    only_negative = quality(counts_of(np.array([0.1, 0.2]), np.array([0, 0])))
    assert only_negative.values["auc"] is None
    assert only_negative.values["precision"] is None
    assert only_negative.values["recall"] is None
    assert only_negative.values["accuracy"] == 1.0
    assert only_negative.reasons["auc"] == "labels of a single class"
    empty = quality(WindowCounts(Layout()))
    assert all(value is None for value in empty.values.values())
    assert set(empty.reasons) == set(empty.values)


def test_unlabelled_predictions_lower_the_coverage_alone() -> None:
    """Coverage is labelled over predictions; the other metrics know the labelled ones only."""
    counts = counts_of(np.array([0.9, 0.1]), np.array([1, 0]))
    before = quality(counts).values
    counts.add_predictions(np.array([0.5, 0.5]))
    after = quality(counts).values
    assert (before["coverage"], after["coverage"]) == (1.0, 0.5)
    assert {k: v for k, v in after.items() if k != "coverage"} == {k: v for k, v in before.items() if k != "coverage"}


def test_the_area_is_one_half_for_one_score() -> None:
    """Ties count half."""
    assert area_under_curve(np.array([0, 3]), np.array([0, 4])) == 0.5


def test_the_label_delay_is_the_upper_edge_of_its_bin() -> None:
    """90 s lie in the bin that ends at 128 s; without a label there is no delay."""
    assert quality(counts_of(np.array([0.9]), np.array([1]))).values["label_delay_p99_s"] == 128.0
    assert delay_quantile_s(np.zeros(DELAY_BINS, dtype=np.int64), 0.99) is None


def test_calibration_statistics_are_standard_normal_for_a_calibrated_score() -> None:
    """Over 400 windows of a calibrated score both statistics have mean 0 and variance 1, within 5 sigma."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(400):
        scores = rng.beta(1, 3, 500)
        fit = calibration(counts_of(scores, (rng.random(500) < scores).astype(np.int64)))
        found.append((fit.in_the_large_z, fit.spiegelhalter_z))
    z = np.array(found, dtype=np.float64)
    assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(400)
    assert np.abs(z.var(axis=0) - 1).max() < 5 * np.sqrt(2 / 400)


def test_a_score_that_is_too_low_and_one_that_is_too_sharp_are_told_apart() -> None:
    """A low score moves calibration in the large, an overconfident one with the right mean Spiegelhalter's test."""
    rng = np.random.default_rng(5)
    truth = rng.beta(2, 2, 4000)
    labels = (rng.random(4000) < truth).astype(np.int64)
    low = calibration(counts_of(truth * 0.8, labels))
    sharp = calibration(counts_of(np.clip(0.5 + 1.8 * (truth - 0.5), 0.0, 1.0), labels))
    assert low.in_the_large_z is not None
    assert low.in_the_large_z > 5
    assert sharp.in_the_large_z is not None
    assert abs(sharp.in_the_large_z) < 4
    assert sharp.spiegelhalter_z is not None
    assert sharp.spiegelhalter_z > 5


def test_calibration_waits_for_data() -> None:
    """A handful of rows, or rows without spread, give a reason and no statistic."""
    few = calibration(counts_of(np.array([0.5, 0.5]), np.array([0, 1])))
    assert few.in_the_large_z is None
    assert few.reason is not None
    assert "insufficient data" in few.reason
    flat = calibration(counts_of(np.full(100, 0.5), np.tile([0, 1], 50)))
    assert (flat.in_the_large_z, flat.spiegelhalter_z) == (0.0, None)
