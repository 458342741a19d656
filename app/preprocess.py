"""From feature columns to the network's inputs by name, vectorised over the batch; the same code trains and serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.columns import Column, NumberColumn, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd

    from app.models.spec import Feature, ModelSpec

Inputs: TypeAlias = dict[str, NDArray[Any]]
"""The network's keyword arguments, all of n rows: always ``numbers`` float32 (n, k) and ``codes`` int64 (n, c), and for
each text feature ``<feature>_ids`` and ``<feature>_mask``, int64 (n, max_tokens). k or c may be 0."""

MICROS_A_DAY = 86_400_000_000
MICROS_AN_HOUR = 3_600_000_000
EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""
PERIODS = {"hour_of_day": 24.0, "day_of_week": 7.0, "day_of_year": 365.2425}


@dataclass(frozen=True, slots=True)
class TextShape:
    """What a text feature becomes.

    Attributes:
        max_tokens: columns of its ids and of its mask.
        vocabulary_size: every id is below it.

    """

    max_tokens: int
    vocabulary_size: int


@dataclass(frozen=True, slots=True)
class InputLayout:
    """Shapes of the network's inputs.

    Attributes:
        number_width: columns of ``numbers``.
        code_sizes: for each column of ``codes`` a bound that its values stay below.
        texts: text feature to the shape of its ids and mask.

    """

    number_width: int
    code_sizes: tuple[int, ...]
    texts: dict[str, TextShape] = field(default_factory=dict)


class Preprocessor:
    """The transform that ``model.yaml`` declares.

    Args:
        spec: names the features.
        folder: where the tokenizer files lie; a model without text features needs none.

    Attributes:
        layout: shapes of what ``transform`` gives.
        number_width: columns of ``numbers``.
        code_sizes: vocabulary size + 1 of each category, in order.

    """

    def __init__(self, spec: ModelSpec, folder: Path | None = None) -> None:
        del folder
        self._features = [f for f in spec.features if f.model_input]
        self._times, scaled, at = [], [], 0
        for feature in self._features:
            if feature.type == "time":
                self._times.append((feature, at))
            elif feature.type != "category":
                scaled.append((feature, at))
            at += _width(feature)
        self.number_width = at
        self._scaled = _ScaledNumbers(scaled) if scaled else None
        self._categories = [f for f in self._features if f.type == "category"]
        self._vocabularies = [tuple(f.vocabulary or ()) for f in self._categories]
        self._all = spec.features
        self.code_sizes = [len(v) + 1 for v in self._vocabularies]
        self.layout = InputLayout(self.number_width, tuple(self.code_sizes))

    def transform(self, features: dict[str, Column]) -> Inputs:
        """The network's inputs.

        Args:
            features: for each model input a column of n rows; nulls are allowed.

        Returns:
            ``numbers`` float32 (n, number_width) and ``codes`` int64 (n, len(code_sizes)), 0 for unknown or missing.

        """
        count = len(features[self._features[0].name])
        numbers = np.empty((count, self.number_width), dtype=np.float32)
        codes = np.empty((count, len(self._categories)), dtype=np.int64)
        if self._scaled is not None:
            self._scaled.fill(numbers, features)
        for feature, at in self._times:
            _fill_cyclic(numbers[:, at : at + _width(feature)], feature, features[feature.name])
        for i, (feature, vocabulary) in enumerate(zip(self._categories, self._vocabularies, strict=True)):
            column = features[feature.name]
            assert isinstance(column, TextColumn), feature.name
            codes[:, i] = column.codes(vocabulary, unknown=-1)
            if isinstance(feature.default, str) and column.valid is not None and feature.default in vocabulary:
                codes[~column.valid, i] = vocabulary.index(feature.default)
        codes += 1
        return {"numbers": numbers, "codes": codes}

    def from_frame(self, frame: pd.DataFrame) -> dict[str, Column]:
        """Columns from a frame that has one column a feature (times as int64 micros, categories as str or None)."""
        return {f.name: _column_of(f, frame) for f in self._all if f.name in frame.columns}


def _column_of(feature: Feature, frame: pd.DataFrame) -> Column:
    series = frame[feature.name]
    missing = series.isna().to_numpy()
    if feature.type == "category":
        return TextColumn.from_values([None if gone else str(v) for v, gone in zip(series, missing, strict=True)])
    dtype = {"time": np.int64, "flag": np.bool_}.get(feature.type, np.float64)
    filled = series.to_numpy(dtype=dtype, na_value=dtype())
    return NumberColumn(filled, valid=~missing if missing.any() else None)


def _width(feature: Feature) -> int:
    if feature.type == "category":
        return 0
    return (2 * len(feature.parts or ()) if feature.type == "time" else 1) + feature.missing_indicator


class _ScaledNumbers:
    """Numbers and flags: imputed, clipped, logged, standardised; all of them at once, one array operation a step.

    Args:
        features: k features, each with its place among the network's numbers.

    """

    def __init__(self, features: list[tuple[Feature, int]]) -> None:
        given = [feature for feature, _ in features]
        self._names = [feature.name for feature in given]
        self._places = np.array([at for _, at in features])
        self._indicators = [(i, at + 1) for i, (feature, at) in enumerate(features) if feature.missing_indicator]
        self._impute = _upright(impute_value(feature) for feature in given)
        ranges = [feature.range or (-np.inf, np.inf) for feature in given]
        self._low, self._high = (_upright(bound) for bound in zip(*ranges, strict=True))
        self._is_clipped = any(feature.range is not None for feature in given)
        self._logged = np.flatnonzero([feature.log1p for feature in given])
        self._mean = _upright(f.standardise.mean if f.standardise else 0.0 for f in given)
        self._scale = _upright(f.standardise.scale if f.standardise else 1.0 for f in given)

    def fill(self, into: NDArray[np.float32], features: dict[str, Column]) -> None:
        """Write the places of these features in ``into``, shape (n, width)."""
        numbers = np.empty((len(self._names), len(into)))
        for i, name in enumerate(self._names):
            column = features[name]
            assert isinstance(column, NumberColumn), name
            numbers[i] = column.values
            if column.valid is not None:
                numbers[i, ~column.valid] = np.nan
        missing = np.isnan(numbers)
        for i, place in self._indicators:
            into[:, place] = missing[i]
        if missing.any():
            numbers = np.where(missing, self._impute, numbers)
        if self._is_clipped:
            numbers = np.clip(numbers, self._low, self._high)
        if self._logged.size:
            numbers[self._logged] = np.log1p(np.maximum(numbers[self._logged], 0.0))
        with np.errstate(over="ignore"):  # beyond float32 it is infinite, and its row will be an ERROR
            into[:, self._places] = ((numbers - self._mean) / self._scale).T


def _upright(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), dtype=np.float64)[:, None]


def impute_value(feature: Feature) -> float:
    """What a missing number becomes: the declared default, else the mean it is standardised by, else 0."""
    if isinstance(feature.default, (int, float)):
        return float(feature.default)
    if feature.standardise is None:
        return 0.0
    mean = feature.standardise.mean
    return float(np.expm1(mean)) if feature.log1p else mean


def _fill_cyclic(into: NDArray[np.float32], feature: Feature, column: Column) -> None:
    assert isinstance(column, NumberColumn), feature.name
    local = column.values.astype(np.int64) + feature.utc_offset_minutes * 60_000_000
    for i, part in enumerate(feature.parts or ()):
        angle = _phase(part, local) * (2 * np.pi / PERIODS[part])
        into[:, 2 * i], into[:, 2 * i + 1] = np.sin(angle), np.cos(angle)
    missing = None if column.valid is None else ~column.valid
    if missing is not None:
        into[missing] = 0.0
    if feature.missing_indicator:
        into[:, -1] = 0.0 if missing is None else missing


def _phase(part: str, micros: NDArray[np.int64]) -> NDArray[np.float64]:
    if part == "hour_of_day":
        return (micros % MICROS_A_DAY) / MICROS_AN_HOUR
    days = micros // MICROS_A_DAY
    if part == "day_of_week":
        return ((days + EPOCH_WEEKDAY) % 7).astype(np.float64)
    stamps = days.astype("datetime64[D]")
    day_of_year: NDArray[np.float64] = (stamps - stamps.astype("datetime64[Y]")).astype(np.float64)
    return day_of_year
