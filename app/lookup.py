"""Which store rows a micro-batch needs, and what came back: one round trip for all views of all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.errors import FeatureStoreError
from app.features import ViewCodec
from schemas.columns import Column, NumberColumn, TextColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.features import FeatureStore
    from app.models.spec import FeatureView, ModelSpec

FRESH, STALE, DEFAULT, MISSING = (ord(letter) for letter in "fsdm")
"""Letters of ``feature_status``: fresh, stale, default (no store), missing (null, or a key without a row)."""
NEVER = -1
"""Age of a feature that was not had."""


@dataclass(frozen=True, slots=True)
class ViewRows:
    """One view for n requests.

    Attributes:
        table: structured, shape (n,), with the view's columns.
        letters: shape (n,), uint8, status of all columns of the view.
        age_ms: shape (n,), int64, at the request's event time, never negative; ``NEVER``.

    """

    table: NDArray[np.void]
    letters: NDArray[np.uint8]
    age_ms: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lookup:
    """What the store gave for n requests.

    Attributes:
        views: by name.
        error: why the store could not be had, else None.

    """

    views: dict[str, ViewRows]
    error: str | None = None

    def take(self, kept: NDArray[np.int64]) -> Lookup:
        """The same for some of the requests."""
        views = {n: ViewRows(v.table[kept], v.letters[kept], v.age_ms[kept]) for n, v in self.views.items()}
        return Lookup(views, self.error)


class ViewLookup:
    """Fetches all views of a model.

    Args:
        spec: declares the views.
        store: answers; not asked when the model has no views.

    """

    def __init__(self, spec: ModelSpec, store: FeatureStore) -> None:
        self._codecs = [ViewCodec(view) for view in spec.views]
        self._store = store

    @property
    def is_needed(self) -> bool:
        """Whether the model has views at all."""
        return bool(self._codecs)

    async def fetch(self, features: dict[str, Column], event_time_us: NDArray[np.int64]) -> Lookup:
        """All views for n requests; without a store every row gets letter ``d`` and no values; never raises for it.

        Args:
            features: request features, n rows each.
            event_time_us: shape (n,).

        """
        count = len(event_time_us)
        wanted = [_row_keys(codec, features, count) for codec in self._codecs]
        unique = list(dict.fromkeys(key for keys in wanted for key in keys if key is not None))
        try:
            values = dict(zip(unique, await self._store.fetch(unique), strict=True)) if unique else {}
            views = {
                codec.view.name: _view_rows(codec, keys, values, event_time_us)
                for codec, keys in zip(self._codecs, wanted, strict=True)
            }
        except FeatureStoreError as exc:
            return Lookup({codec.view.name: _no_rows(codec, count) for codec in self._codecs}, str(exc))
        return Lookup(views)


def store_column(lookup: Lookup, view: str, column: str) -> NumberColumn:
    """A store feature as a column; NaN and missing rows are null."""
    values = lookup.views[view].table[column]
    if values.dtype.kind == "i":
        gone = values == np.iinfo(np.int64).min
        return NumberColumn(np.where(gone, 0, values).astype(np.float64), ~gone if gone.any() else None)
    numbers = values.astype(np.float64)
    gone = ~np.isfinite(numbers)
    return NumberColumn(np.where(gone, 0.0, numbers), ~gone) if gone.any() else NumberColumn(numbers)


def _row_keys(codec: ViewCodec, features: dict[str, Column], count: int) -> list[str | None]:
    parts = [_key_texts(features[name]) for name in codec.view.key]
    prefix = codec.prefix
    if len(parts) == 1:
        return [None if part is None else prefix + part for part in parts[0]]
    return [None if None in row else codec.key(row) for row in zip(*parts, strict=True)] if count else []


def _key_texts(column: Column) -> list[str | None]:
    if isinstance(column, TextColumn):
        return column.to_list()
    assert isinstance(column, NumberColumn)
    texts: list[str | None] = [str(int(v)) if v == int(v) else repr(v) for v in column.values.tolist()]
    if column.valid is not None:
        texts = [text if ok else None for text, ok in zip(texts, column.valid.tolist(), strict=True)]
    return texts


def _view_rows(
    codec: ViewCodec, keys: list[str | None], values: dict[str, bytes | None], event_time_us: NDArray[np.int64]
) -> ViewRows:
    unique = list(dict.fromkeys(keys))
    place = {key: i for i, key in enumerate(unique)}
    table = codec.unpack([None if key is None else values[key] for key in unique])
    table = table[np.fromiter((place[key] for key in keys), np.int64, len(keys))]
    had = table["event_ms"] > 0
    age_ms = np.where(had, np.maximum(event_time_us // 1000 - table["event_ms"].astype(np.int64), 0), NEVER)
    letters = np.where(had, FRESH, MISSING).astype(np.uint8)
    limit = codec.view.stale_after_s
    if limit is not None:
        letters[had & (age_ms > limit * 1000)] = STALE
    return ViewRows(table, letters, age_ms)


def _no_rows(codec: ViewCodec, count: int) -> ViewRows:
    table = np.repeat(codec.unpack([None]), count)
    return ViewRows(table, np.full(count, DEFAULT, np.uint8), np.full(count, NEVER, np.int64))


def degraded_reasons(views: tuple[FeatureView, ...], lookup: Lookup) -> tuple[NDArray[np.int64], list[str]]:
    """For each request an index into the returned texts: which views were not fresh.

    Returns:
        Codes, shape (n,); and the texts, comma-separated ``view:stale`` or ``view:default``; text 0 is empty.

    """
    count = len(next(iter(lookup.views.values())).letters) if lookup.views else 0
    state = np.zeros(count, np.int64)
    for view in views:
        letters = lookup.views[view.name].letters
        state = state * 3 + (letters == STALE) + 2 * (letters == DEFAULT)
    found, codes = np.unique(state, return_inverse=True)
    texts = [_state_text(views, int(value)) for value in found]
    if texts and texts[0]:
        return codes + 1, ["", *texts]
    return codes, texts or [""]


def _state_text(views: tuple[FeatureView, ...], state: int) -> str:
    parts = []
    for view in reversed(views):
        state, digit = divmod(state, 3)
        if digit:
            parts.append(f"{view.name}:{'stale' if digit == 1 else 'default'}")
    return ",".join(reversed(parts))
