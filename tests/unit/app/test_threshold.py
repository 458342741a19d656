"""Thresholds against trying every one of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.threshold import best_threshold_for_cost, best_threshold_for_f1

ROWS = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=12)
COSTS = st.integers(-3, 9).map(float)


def _columns(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in rows]), np.array([float(label) for _, label in rows])


def _f1(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    decided = scores >= threshold
    return float(2 * (decided * labels).sum() / (decided.sum() + labels.sum()))


@given(ROWS)
def test_no_cut_has_a_better_f1(rows: list[tuple[float, bool]]) -> None:
    """Every score as a threshold, with equal scores among them; the F1 returned is that of the cut."""
    scores, labels = _columns(rows)
    threshold, f1 = best_threshold_for_f1(scores, labels)
    assert f1 == pytest.approx(_f1(scores, labels, threshold))
    assert f1 == pytest.approx(max(_f1(scores, labels, cut) for cut in np.unique(scores)))


def _cost(scores: np.ndarray, labels: np.ndarray, threshold: float, costs: tuple[float, float, float, float]) -> float:
    fp, fn, tp, tn = costs
    decided = scores >= threshold
    paid = np.where(decided, np.where(labels == 1, tp, fp), np.where(labels == 1, fn, tn))
    return float(paid.mean())


@given(ROWS, st.tuples(COSTS, COSTS, COSTS, COSTS))
def test_no_cut_costs_less(rows: list[tuple[float, bool]], costs: tuple[float, float, float, float]) -> None:
    """Every score as a threshold, and one above all of them; gains too; the cost returned is that of the cut."""
    scores, labels = _columns(rows)
    fp, fn, tp, tn = costs
    threshold, cost = best_threshold_for_cost(
        scores, labels, false_positive=fp, false_negative=fn, true_positive=tp, true_negative=tn
    )
    assert cost == pytest.approx(_cost(scores, labels, threshold, costs))
    tried = [_cost(scores, labels, cut, costs) for cut in (*np.unique(scores), 2.0)]
    assert cost == pytest.approx(min(tried))


def test_never_to_act_may_be_cheapest() -> None:
    """The threshold is above every score, and no farther than it must be."""
    threshold, cost = best_threshold_for_cost(
        np.array([0.2, 0.7]), np.array([0.0, 0.0]), false_positive=1.0, false_negative=1.0
    )
    assert threshold == np.nextafter(0.7, 1.0)
    assert cost == 0.0


def test_true_probabilities_are_cut_where_theory_says() -> None:
    """With calibrated scores the best cut is fp / (fp + fn), whatever the scores' distribution (Elkan 2001)."""
    generator = np.random.default_rng(6)
    scores = generator.beta(2, 3, size=200_000)
    labels = (generator.uniform(size=scores.size) < scores).astype(np.float64)
    threshold, _ = best_threshold_for_cost(scores, labels, false_positive=1.0, false_negative=4.0)
    assert threshold == pytest.approx(0.2, abs=0.02)


BAD = [([], []), ([0.1], []), ([0.1, np.nan], [0, 1]), ([0.1, np.inf], [0, 1]), ([0.1], [0.5]), ([0.1], [np.nan])]


@pytest.mark.parametrize(("scores", "labels"), BAD)
def test_what_cannot_be_cut_is_refused(scores: list[float], labels: list[float]) -> None:
    """An empty or odd sample raises instead of giving a threshold of no meaning."""
    columns = np.array(scores, np.float64), np.array(labels, np.float64)
    with pytest.raises(ValueError, match="threshold: "):
        best_threshold_for_f1(*columns)
    with pytest.raises(ValueError, match="threshold: "):
        best_threshold_for_cost(*columns, false_positive=1.0, false_negative=1.0)


@pytest.mark.parametrize("place", range(4))
def test_a_cost_must_be_a_number(place: int) -> None:
    """NaN and infinity are refused in each of the four cells."""
    names = ("false_positive", "false_negative", "true_positive", "true_negative")
    for odd in (np.nan, np.inf):
        costs = dict(zip(names, itertools.repeat(1.0))) | {names[place]: odd}
        with pytest.raises(ValueError, match="every cost"):
            best_threshold_for_cost(np.array([0.1]), np.array([1.0]), **costs)
