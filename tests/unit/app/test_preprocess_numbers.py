"""Numbers to buckets; scaling is tested with the whole transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models.spec import Bucketise, Feature
from app.preprocess_numbers import Buckets
from schemas.columns import NumberColumn


def _buckets(edges: tuple[float, ...], default: float | None = None) -> Buckets:
    return Buckets(Feature(name="x", bucketise=Bucketise(edges=edges), default=default))


@given(
    st.sets(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=12),
)
def test_a_bucket_counts_the_edges_at_or_below(edges: set[float], values: list[float]) -> None:
    """An edge belongs to the bucket above it; infinities fall into the outermost."""
    buckets = _buckets(tuple(sorted(edges)))
    expected = [1 + sum(edge <= value for edge in edges) for value in values]
    assert buckets.indices(NumberColumn(np.array(values))).tolist() == expected
    assert max(expected) < buckets.size


def test_the_missing_have_a_bucket_of_their_own() -> None:
    """Null and NaN are index 0; with a default they fall where it does, and zero is a number like others."""
    column = NumberColumn(np.array([0.0, math.nan, 5.0]), np.array([True, True, False]))
    assert _buckets((-1.0, 1.0)).indices(column).tolist() == [2, 0, 0]
    assert _buckets((-1.0, 1.0), default=9.0).indices(column).tolist() == [2, 3, 3]
    assert column.values[2] == pytest.approx(5.0), "what is under a null stays as it was"


def test_whole_numbers_fall_into_buckets_too() -> None:
    """Columns of integers, as request schemas may have them."""
    assert _buckets((2.0,)).indices(NumberColumn(np.array([1, 2, 3]))).tolist() == [1, 2, 2]
