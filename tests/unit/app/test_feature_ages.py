"""Ages of features fall into the bucket that their bound closes."""

from __future__ import annotations

import numpy as np

from app.feature_ages import AGE_BOUNDS_S, FeatureAges


def test_a_bound_belongs_to_its_own_bucket() -> None:
    """Each bound, and a millisecond more: one row in each bucket but the first, which has two."""
    ages = FeatureAges()
    exact = np.array(AGE_BOUNDS_S) * 1000
    ages.add(np.concatenate([[0], exact, exact + 1]))
    assert ages.counts.tolist() == [2, *[2] * (len(AGE_BOUNDS_S) - 1), 1]
    assert ages.sum_ms == 2 * int(exact.sum()) + len(exact)


def test_no_rows_add_nothing() -> None:
    """A micro-batch whose keys are all unknown has no ages."""
    ages = FeatureAges()
    ages.add(np.array([], np.int64))
    assert (int(ages.counts.sum()), ages.sum_ms) == (0, 0)
