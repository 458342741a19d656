"""The fine latency histograms: exact at the published bounds, within 5 % everywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.histograms import (
    BIN_COUNT,
    EDGES_US,
    LATENCY_BOUNDS_S,
    bin_counts,
    bin_of,
    cumulative_at_bounds,
    quantiles,
)

durations = st.lists(st.integers(-5, 200_000_000), min_size=1, max_size=200)


def test_edges_grow_by_at_most_five_percent() -> None:
    """Above 20 us no bin is wider than 5 % of its lower edge, below it each is 1 us wide."""
    steps = np.diff(EDGES_US)
    assert (steps > 0).all()
    assert (steps <= np.maximum(EDGES_US[:-1] * 0.05, 1)).all()


def test_every_published_bound_is_an_edge() -> None:
    """The Prometheus buckets are exact sums of fine bins."""
    assert {round(bound * 1e6) for bound in LATENCY_BOUNDS_S} <= set(EDGES_US.tolist())


@settings(max_examples=60, deadline=None)
@given(durations)
def test_vector_and_scalar_agree(values: list[int]) -> None:
    """Counting an array gives what counting its elements one by one gives."""
    one_by_one = np.bincount([bin_of(value) for value in values], minlength=BIN_COUNT)
    assert np.array_equal(bin_counts(np.array(values)), one_by_one)


@settings(max_examples=60, deadline=None)
@given(durations)
def test_cumulative_counts_are_exact(values: list[int]) -> None:
    """The count at a bound is the number of values at or below it, as Prometheus defines ``le``."""
    expected = [sum(value <= round(bound * 1e6) for value in values) for bound in LATENCY_BOUNDS_S]
    assert cumulative_at_bounds(bin_counts(np.array(values))) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(20, 90_000_000), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_quantiles_are_within_a_bin_of_the_order_statistic(values: list[int], share: float) -> None:
    """A quantile lies within 5 % of the exact order statistic."""
    exact = sorted(values)[max(int(np.ceil(share * len(values))), 1) - 1]
    (estimate,) = quantiles(bin_counts(np.array(values)), [share])
    assert estimate is not None
    assert abs(estimate - exact) <= 0.051 * exact + 1


def test_the_open_bin_answers_with_its_lower_edge() -> None:
    """A duration beyond 100 s does not turn into infinity."""
    assert quantiles(bin_counts(np.array([10**12])), [0.99]) == [100_000_000.0]
