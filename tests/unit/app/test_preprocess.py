"""Features to network inputs, against values worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models.spec import Feature, Standardise
from app.preprocess import Preprocessor, impute_value
from schemas.columns import Column, NumberColumn, TextColumn
from tests.samples import sample_spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


def _preprocessor(*features: Feature) -> Preprocessor:
    return Preprocessor(sample_spec(features=features, views=()))


def _numbers(feature: Feature, values: list[Any], valid: list[bool] | None = None) -> list[list[float]]:
    dtype = {"time": np.int64, "flag": np.bool_}.get(feature.type, np.float64)
    column = NumberColumn(np.array(values, dtype), None if valid is None else np.array(valid))
    numbers, _ = _preprocessor(feature).transform({feature.name: column})
    assert numbers.dtype == np.float32
    rows: list[list[float]] = numbers.tolist()
    return rows


def test_a_number_is_clipped_logged_and_standardised_in_this_order() -> None:
    """First the range, then log1p (below zero counts as zero), then mean and scale."""
    feature = Feature(name="x", range=(-5.0, 99.0), log1p=True, standardise=Standardise(mean=1.0, scale=2.0))
    expected = [(math.log1p(x) - 1) / 2 for x in (99, 0, 7)]
    assert np.array(_numbers(feature, [1e6, -7.0, 7.0])).ravel() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (Feature(name="x"), 0.0),
        (Feature(name="x", default=4.0), 4.0),
        (Feature(name="x", default=4.0, standardise=Standardise(mean=2.0, scale=4.0)), 0.5),
        (Feature(name="x", standardise=Standardise(mean=2.0, scale=4.0)), 0.0),
        (Feature(name="x", log1p=True, standardise=Standardise(mean=2.0, scale=4.0)), 0.0),
        (Feature(name="x", type="flag", default=True), 1.0),
    ],
)
def test_a_missing_number_becomes_its_default_or_the_mean(feature: Feature, expected: float) -> None:
    """A null and a NaN are the same; without a default they land where the average does."""
    assert _numbers(feature, [0.0], [False])[0][0] == pytest.approx(expected, abs=1e-6)
    if feature.type == "number":
        assert _numbers(feature, [math.nan])[0][0] == pytest.approx(expected, abs=1e-6)


def test_what_is_imputed_is_in_the_features_own_unit() -> None:
    """The mean of a logged feature is a logarithm; evidence and drift need the number itself."""
    logged = Feature(name="x", log1p=True, standardise=Standardise(mean=2.0, scale=1.0))
    assert impute_value(logged) == pytest.approx(math.expm1(2.0))


def test_a_missing_indicator_stands_beside_its_value() -> None:
    """One more column, 1 where there was none, 0 elsewhere, also when nothing is missing."""
    feature = Feature(name="x", missing_indicator=True)
    assert _numbers(feature, [3.0, 0.0, math.nan], [True, False, True]) == [[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    assert _numbers(feature, [3.0]) == [[3.0, 0.0]]


def test_a_time_becomes_a_point_on_a_circle_for_each_part() -> None:
    """Sine and cosine of hour and weekday in local time; 1970-01-01 was a Thursday."""
    feature = Feature(name="t", type="time", parts=("hour_of_day", "day_of_week"), utc_offset_minutes=-300)
    six_utc = _numbers(feature, [11 * HOUR_US])[0]  # 6:00 on Thursday, local
    angle = 2 * math.pi * 3 / 7
    assert six_utc == pytest.approx([1.0, 0.0, math.sin(angle), math.cos(angle)], abs=1e-6)
    before_midnight = _numbers(feature, [4 * HOUR_US])[0]  # 23:00 on Wednesday, local: before the epoch
    angle = 2 * math.pi * 2 / 7
    assert before_midnight[2:] == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


def test_the_day_of_the_year_counts_from_the_first_of_january() -> None:
    """A leap year's last day is day 365, counted from 0."""
    feature = Feature(name="t", type="time", parts=("day_of_year",))
    start_of_2012_us = int(pd.Timestamp("2012-01-01").value // 1000)
    rows = _numbers(feature, [start_of_2012_us, start_of_2012_us + 365 * DAY_US])
    angle = 2 * math.pi * 365 / 365.2425
    assert rows[0] == pytest.approx([0.0, 1.0], abs=1e-6)
    assert rows[1] == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


def test_a_missing_time_is_the_centre_of_its_circle() -> None:
    """No hour is as far from all hours as from any other."""
    feature = Feature(name="t", type="time", parts=("hour_of_day",), missing_indicator=True)
    assert _numbers(feature, [5, 5], [True, False])[1] == [0.0, 0.0, 1.0]


def test_categories_become_codes_and_the_unknown_is_zero() -> None:
    """Known values count from 1; unknown values and nulls without default share 0; a null may have a default."""
    plain = Feature(name="c", type="category", vocabulary=("a", "b"))
    defaulted = Feature(name="d", type="category", vocabulary=("a", "b"), default="b")
    column = TextColumn.from_values(["b", None, "a", "z", ""])
    preprocessor = _preprocessor(plain, defaulted)
    numbers, codes = preprocessor.transform({"c": column, "d": column})
    assert codes.tolist() == [[2, 2], [0, 2], [1, 1], [0, 0], [0, 0]]
    assert preprocessor.code_sizes == [3, 3]
    assert numbers.shape == (5, 0)


def test_features_that_only_make_keys_are_left_out() -> None:
    """``model_input: false`` costs the network nothing."""
    key = Feature(name="k", type="category", model_input=False)
    numbers, codes = _preprocessor(Feature(name="x"), key).transform({"x": NumberColumn(np.array([1.5]))})
    assert (numbers.tolist(), codes.shape) == ([[1.5]], (1, 0))


def test_a_huge_number_overflows_quietly() -> None:
    """It becomes infinite, its row an ERROR later on; no warning fills the log."""
    assert _numbers(Feature(name="x"), [1e300, 1.0]) == [[math.inf], [1.0]]


_floats = st.one_of(st.none(), st.floats(-1e6, 1e6))
_rows = st.fixed_dictionaries(
    {
        "departure": st.one_of(st.none(), st.integers(0, 2 * 10**15)),
        "distance": _floats,
        "carrier": st.sampled_from(["AA", "B6", "ZZ", "", None]),
        "tailnum": st.sampled_from(["N1", None]),
        "gate": _floats,
        "night": st.sampled_from([True, False, None]),
        "delay": _floats,
        "gust": _floats,
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_rows, min_size=1, max_size=6))
def test_training_and_serving_give_the_same_bits(rows: list[dict[str, Any]]) -> None:
    """The columns of a frame and the columns of decoded requests make equal inputs, and rows do not see each other."""
    spec = sample_spec()
    preprocessor = Preprocessor(spec)
    served = _served({f.name: [row[f.name] for row in rows] for f in spec.features}, spec)
    numbers, codes = preprocessor.transform(served)
    frame = pd.DataFrame({f.name: pd.Series([row[f.name] for row in rows], dtype=object) for f in spec.features})
    trained = preprocessor.transform(preprocessor.from_frame(frame))
    assert np.array_equal(trained[0], numbers)
    assert np.array_equal(trained[1], codes)
    for i in range(len(rows)):
        alone = preprocessor.transform({name: column.take(np.array([i])) for name, column in served.items()})
        assert np.array_equal(alone[0][0], numbers[i])
    assert numbers.shape == (len(rows), preprocessor.number_width)


def _served(values: dict[str, list[Any]], spec: Any) -> dict[str, Column]:  # noqa: ANN401 - a ModelSpec
    columns: dict[str, Column] = {}
    for feature in spec.features:
        given_values = values[feature.name]
        if feature.type == "category":
            columns[feature.name] = TextColumn.from_values(given_values)
            continue
        dtype = {"time": np.int64, "flag": np.bool_}.get(feature.type, np.float64)
        filled: NDArray[Any] = np.array([0 if v is None else v for v in given_values]).astype(dtype)
        valid = np.array([v is not None for v in given_values])
        columns[feature.name] = NumberColumn(filled, None if valid.all() else valid)
    return columns


@pytest.mark.parametrize("dtype", ["float64", "object", "Int64", "boolean"])
def test_frames_may_hold_what_pandas_holds(dtype: str) -> None:
    """NaN, None and pd.NA are missing, in numbers and flags alike."""
    kind = "flag" if dtype == "boolean" else "number"
    feature = Feature(name="x", type=kind, missing_indicator=True)
    preprocessor = _preprocessor(feature)
    frame = pd.DataFrame({"x": pd.Series([True if kind == "flag" else 1, None], dtype=dtype)})
    numbers, _ = preprocessor.transform(preprocessor.from_frame(frame))
    assert numbers.tolist() == [[1.0, 0.0], [0.0, 1.0]]
