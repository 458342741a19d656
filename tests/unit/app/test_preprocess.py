"""Features to network inputs, against values worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models.spec import Bucketise, Feature, Standardise
from app.preprocess import InputLayout, Preprocessor
from app.preprocess_numbers import impute_value
from schemas.columns import Column, NumberColumn, TextColumn
from tests.samples import sample_spec

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _preprocessor(*features: Feature) -> Preprocessor:
    return Preprocessor(sample_spec(features=features, views=()))


def _numbers(feature: Feature, values: list[Any], valid: list[bool] | None = None) -> list[list[float]]:
    dtype = {"time": np.int64, "flag": np.bool_}.get(feature.type, np.float64)
    column = NumberColumn(np.array(values, dtype), None if valid is None else np.array(valid))
    numbers = _preprocessor(feature).transform({feature.name: column})["numbers"]
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


def test_features_that_only_make_keys_are_left_out() -> None:
    """``model_input: false`` costs the network nothing."""
    key = Feature(name="k", type="category", model_input=False)
    inputs = _preprocessor(Feature(name="x"), key).transform({"x": NumberColumn(np.array([1.5]))})
    assert (inputs["numbers"].tolist(), inputs["codes"].shape) == ([[1.5]], (1, 0))


def test_a_huge_number_overflows_quietly() -> None:
    """It becomes infinite, its row an ERROR later on; no warning fills the log."""
    assert _numbers(Feature(name="x"), [1e300, 1.0]) == [[math.inf], [1.0]]


OLD_BITS = bytes.fromhex(
    "e8d5123ff3b351bfe094793f87dc63be64fb7f3fc64b42bc00000000dc68e0bfb8e1c2bf000000000000803f00000000"
    "0000000000000000000000000000000000000000000000000000803f00000000000000000000803f0000803f0000803f"
    "ea4677bfee83843ee094793f87dc63be0f16afbc08f17f3f00000000003c9c46c2bf1b40000000000000000000000000"
    "ea4677bfee83843e000000000000803f3a1b573fa2cc0a3f00000000226c00c09224e9c0000000000000803f00000000"
)
"""What the transform gave before it knew buckets, hashes and texts: 4 rows of 12 numbers, float32."""


def test_what_old_bundles_declare_gives_the_bits_of_old() -> None:
    """Scores on record can be replayed: for every kind of feature that there was, the network's inputs are the same."""
    parts = ("hour_of_day", "day_of_week", "day_of_year")
    preprocessor = _preprocessor(
        Feature(name="departure", type="time", parts=parts, utc_offset_minutes=-300, missing_indicator=True),
        Feature(name="distance", standardise=Standardise(mean=1000.0, scale=500.0)),
        Feature(name="carrier", type="category", vocabulary=("AA", "B6", "UA"), default="B6"),
        Feature(
            name="fare",
            range=(0.0, 900.0),
            log1p=True,
            standardise=Standardise(mean=5.1, scale=0.7),
            missing_indicator=True,
        ),
        Feature(name="night", type="flag", missing_indicator=True, default=True),
    )
    valid = np.array([True, False, True, True])
    inputs = preprocessor.transform(
        {
            "departure": NumberColumn(np.array([1_365_000_000_000_000, 0, -1, 951_782_400_000_000]), valid),
            "distance": NumberColumn(np.array([123.4, np.nan, 1e7, -3.3])),
            "carrier": TextColumn.from_values(["UA", None, "ZZ", "AA"]),
            "fare": NumberColumn(np.array([55.5, 0.0, 1e5, -2.0]), valid),
            "night": NumberColumn(np.array([True, False, False, True]), valid),
        }
    )
    assert inputs["numbers"].tobytes() == OLD_BITS
    assert inputs["codes"].tolist() == [[3], [2], [0], [1]]


def test_one_hot_features_stand_among_the_numbers_in_their_order() -> None:
    """Columns follow the signature; what is an index for an embedding goes to the codes, in the same order."""
    preprocessor = _preprocessor(
        Feature(name="a", bucketise=Bucketise(edges=(0.0,))),
        Feature(name="b"),
        Feature(name="c", type="category", vocabulary=("x",), encode="one_hot"),
        Feature(name="d", bucketise=Bucketise(edges=(0.0, 1.0), encode="embedding")),
        Feature(name="e", type="category", vocabulary=("x", "y")),
    )
    assert preprocessor.layout == InputLayout(3 + 1 + 2, (4, 3))
    inputs = preprocessor.transform(
        {
            "a": NumberColumn(np.array([-1.0, np.nan])),
            "b": NumberColumn(np.array([7.0, 8.0])),
            "c": TextColumn.from_values(["x", "q"]),
            "d": NumberColumn(np.array([0.5, 3.0])),
            "e": TextColumn.from_values(["y", None]),
        }
    )
    assert inputs["numbers"].tolist() == [[0, 1, 0, 7, 0, 1], [1, 0, 0, 8, 1, 0]]
    assert inputs["codes"].tolist() == [[2, 2], [3, 0]]


def test_no_rows_make_empty_inputs() -> None:
    """A frame without rows has inputs of the declared widths, whatever the features."""
    preprocessor = _preprocessor(
        Feature(name="a", standardise=Standardise(mean=1.0, scale=2.0), missing_indicator=True),
        Feature(name="b", bucketise=Bucketise(edges=(0.0,))),
        Feature(name="c", type="category", hash_buckets=8, encode="one_hot"),
        Feature(name="d", type="category", vocabulary=("x",)),
        Feature(name="t", type="time", parts=("hour_of_day",)),
    )
    frame = pd.DataFrame({"a": [], "b": [], "c": [], "d": [], "t": []})
    inputs = preprocessor.transform(preprocessor.from_frame(frame))
    assert {name: values.shape for name, values in inputs.items()} == {
        "numbers": (0, 2 + 3 + 9 + 2),
        "codes": (0, 1),
    }


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
    inputs = preprocessor.transform(served)
    frame = pd.DataFrame({f.name: pd.Series([row[f.name] for row in rows], dtype=object) for f in spec.features})
    trained = preprocessor.transform(preprocessor.from_frame(frame))
    assert list(trained) == list(inputs) == ["numbers", "codes"]
    assert all(np.array_equal(trained[name], inputs[name]) for name in inputs)
    for i in range(len(rows)):
        alone = preprocessor.transform({name: column.take(np.array([i])) for name, column in served.items()})
        assert all(np.array_equal(alone[name][0], inputs[name][i]) for name in inputs)
    assert inputs["numbers"].shape == (len(rows), preprocessor.layout.number_width)


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
    inputs = preprocessor.transform(preprocessor.from_frame(frame))
    assert inputs["numbers"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
