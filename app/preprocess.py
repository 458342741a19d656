"""From feature columns to the network's inputs by name, vectorised over the batch; the same code trains and serves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.preprocess_categories import HashedCategory, Vocabulary
from app.preprocess_numbers import Buckets, ScaledNumbers
from app.preprocess_text import TokenizedText
from app.preprocess_times import cyclic_width, fill_cyclic
from schemas.columns import Column, NumberColumn, TextColumn

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from app.models.spec import Feature, ModelSpec
    from app.preprocess_categories import CategoryIndex

Inputs: TypeAlias = dict[str, NDArray[Any]]
"""The network's keyword arguments, all of n rows: always ``numbers`` float32 (n, k) and ``codes`` int64 (n, c), and for
each text feature ``<feature>_ids`` and ``<feature>_mask``, int64 (n, max_tokens). k or c may be 0."""


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

    Raises:
        BundleError: a tokenizer file is missing or unfit.

    Example:
        >>> from app.models.spec import Architecture, Feature, ModelSpec
        >>> size = Feature(name="size", default=2.0)
        >>> colour = Feature(name="colour", type="category", vocabulary=("red", "blue"))
        >>> spec = ModelSpec(
        ...     name="demo", version=1, architecture=Architecture(name="tabular_mlp"), features=(size, colour)
        ... )
        >>> columns = {
        ...     "size": NumberColumn(np.array([7.0, np.nan])),
        ...     "colour": TextColumn.from_values(["blue", "green"]),
        ... }
        >>> {name: values.tolist() for name, values in Preprocessor(spec).transform(columns).items()}
        {'numbers': [[7.0], [2.0]], 'codes': [[2], [0]]}

    """

    def __init__(self, spec: ModelSpec, folder: Path | None = None) -> None:
        self._declared = spec.features
        self._inputs = [feature.name for feature in spec.features if feature.model_input]
        self._times: list[tuple[Feature, slice]] = []
        self._one_hot: list[tuple[str, CategoryIndex, slice]] = []
        self._coded: list[tuple[str, CategoryIndex]] = []
        self._texts: dict[str, TokenizedText] = {}
        scaled: list[tuple[Feature, int]] = []
        at = 0
        for feature in spec.features:
            if not feature.model_input:
                continue
            if feature.type == "text":
                self._texts[feature.name] = TokenizedText(feature, folder)
            elif feature.type == "time":
                place = slice(at, at + cyclic_width(feature))
                self._times.append((feature, place))
                at = place.stop
            elif (index := _index_of(feature)) is None:
                scaled.append((feature, at))
                at += 1 + feature.missing_indicator
            elif feature.is_one_hot:
                place = slice(at, at + index.size)
                self._one_hot.append((feature.name, index, place))
                at = place.stop
            else:
                self._coded.append((feature.name, index))
        self._scaled = ScaledNumbers(scaled) if scaled else None
        shapes = {name: TextShape(text.max_tokens, text.vocabulary_size) for name, text in self._texts.items()}
        self.layout = InputLayout(at, tuple(index.size for _, index in self._coded), shapes)

    def transform(self, features: dict[str, Column]) -> Inputs:
        """The network's inputs.

        Args:
            features: for each model input a column of n rows; nulls are allowed.

        Returns:
            ``numbers`` float32 (n, layout.number_width), ``codes`` int64 (n, len(layout.code_sizes)), 0 for unknown or
            missing, and for each text ``<feature>_ids`` and ``<feature>_mask``, int64 (n, max_tokens).

        """
        count = len(features[self._inputs[0]])
        numbers = np.empty((count, self.layout.number_width), dtype=np.float32)
        if self._scaled is not None:
            self._scaled.fill(numbers, features)
        for feature, place in self._times:
            fill_cyclic(numbers[:, place], feature, features[feature.name])
        for name, index, place in self._one_hot:
            numbers[:, place] = 0.0
            numbers[np.arange(count), place.start + index.indices(features[name])] = 1.0
        codes = np.empty((count, len(self._coded)), dtype=np.int64)
        for i, (name, index) in enumerate(self._coded):
            codes[:, i] = index.indices(features[name])
        inputs: Inputs = {"numbers": numbers, "codes": codes}
        for name, text in self._texts.items():
            inputs[f"{name}_ids"], inputs[f"{name}_mask"] = text.ids_and_mask(features[name])
        return inputs

    def from_frame(self, frame: pd.DataFrame) -> dict[str, Column]:
        """Columns from a frame with one column a feature (times as int64 micros, categories and texts as str or None).

        Features that the frame lacks are left out.
        """
        return {f.name: _column_of(f, frame) for f in self._declared if f.name in frame.columns}


def _index_of(feature: Feature) -> CategoryIndex | None:
    """How the feature becomes an index, None for one that stays a number."""
    if feature.bucketise is not None:
        return Buckets(feature)
    if feature.type != "category":
        return None
    return Vocabulary(feature) if feature.hash_buckets is None else HashedCategory(feature)


def _column_of(feature: Feature, frame: pd.DataFrame) -> Column:
    series = frame[feature.name]
    missing = series.isna().to_numpy()
    if feature.type in {"category", "text"}:
        return TextColumn.from_values([None if gone else str(v) for v, gone in zip(series, missing, strict=True)])
    dtype = {"time": np.int64, "flag": np.bool_}.get(feature.type, np.float64)
    filled = series.to_numpy(dtype=dtype, na_value=dtype())
    return NumberColumn(filled, valid=~missing if missing.any() else None)
