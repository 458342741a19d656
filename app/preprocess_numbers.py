"""Numbers and flags to columns of the network: imputed, clipped, logged, standardised, or put into buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.columns import Column, NumberColumn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from app.models.spec import Feature


class ScaledNumbers:
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


class Buckets:
    """A number as the index of the bucket that it falls into; 0 has the missing ones.

    Index 1 is below the first edge, i + 1 from edge i - 1 (included) to edge i, and the last from the last edge on.

    Attributes:
        size: number of buckets, ``len(edges) + 2``.

    """

    def __init__(self, feature: Feature) -> None:
        assert feature.bucketise is not None, feature.name
        self._edges = np.array(feature.bucketise.edges)
        self.size = self._edges.size + 2
        self._missing = 0
        if feature.default is not None:
            self._missing = 1 + int(np.searchsorted(self._edges, impute_value(feature), side="right"))

    def indices(self, column: Column) -> NDArray[np.int64]:
        """For each of n rows its bucket, int64 (n,).

        Example:
            >>> from app.models.spec import Bucketise, Feature
            >>> buckets = Buckets(Feature(name="age", bucketise=Bucketise(edges=(18.0, 65.0))))
            >>> buckets.indices(NumberColumn(np.array([-1.0, 17.9, 18.0, 70.0, np.nan]))).tolist()
            [1, 1, 2, 3, 0]

        """
        assert isinstance(column, NumberColumn)
        found = np.searchsorted(self._edges, column.values, side="right") + 1
        missing = np.isnan(column.values)
        if column.valid is not None:
            missing |= ~column.valid
        return np.where(missing, self._missing, found)


def impute_value(feature: Feature) -> float:
    """What a missing number becomes: the declared default, else the mean it is standardised by, else 0."""
    if isinstance(feature.default, (int, float)):
        return float(feature.default)
    if feature.standardise is None:
        return 0.0
    mean = feature.standardise.mean
    return float(np.expm1(mean)) if feature.log1p else mean


def _upright(values: Iterable[float]) -> NDArray[np.float64]:
    return np.array(list(values), dtype=np.float64)[:, None]
