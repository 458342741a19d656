"""Which store rows a micro-batch needs, and what came back: one round trip for all views of all rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from app.errors import FeatureStoreError
from app.features import ViewCodec
from app.last_known import LastKnown
from app.settings import RedisSettings
from schemas.columns import Column, NumberColumn, TextColumn

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from app.features import FeatureStore
    from app.metrics import Metrics
    from app.models.spec import FeatureView, ModelSpec

FRESH, STALE, DEFAULT, MISSING = (ord(letter) for letter in "fsdm")
"""Letters of ``feature_status``.

Fresh; stale: older than its view allows, or last known while the store cannot be asked; default: neither to be had;
missing: null in the request's key, or the store has no such row, or none that can be read.
"""
STATUS_NAMES = {FRESH: "fresh", STALE: "stale", DEFAULT: "default", MISSING: "missing"}
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
    """Fetches all views of a model; rows that were read lately answer for a store that cannot be asked.

    Args:
        spec: declares the views.
        store: answers; not asked when the model has no views.
        last_known: holds those rows; none: with the defaults of the settings.
        metrics: none: nothing is counted.
        now_s: monotonic seconds.

    """

    def __init__(
        self,
        spec: ModelSpec,
        store: FeatureStore,
        *,
        last_known: LastKnown | None = None,
        metrics: Metrics | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._codecs = [ViewCodec(view) for view in spec.views]
        self._store = store
        self._last_known = last_known or last_known_of(RedisSettings())
        self._metrics = metrics
        self._now_s = now_s

    @property
    def is_needed(self) -> bool:
        """Whether the model has views at all."""
        return bool(self._codecs)

    async def fetch(self, features: dict[str, Column], event_time_us: NDArray[np.int64]) -> Lookup:
        """All views for n requests; never raises for the store.

        A row that the store does not have, or that is not in the view's layout, is missing (``m``). When the store
        cannot be asked, a row that it gave lately is stale (``s``), and every other is left to the model's default
        (``d``); where the key is null it is missing all the same.

        Args:
            features: request features, n rows each.
            event_time_us: shape (n,).

        """
        wanted = [_row_keys(codec, features, len(event_time_us)) for codec in self._codecs]
        unique = list(dict.fromkeys(key for keys in wanted for key in keys if key is not None))
        started_s = self._now_s()
        values: dict[str, bytes]
        error = None
        try:
            fetched = await self._store.fetch(unique) if unique else []
        except FeatureStoreError as exc:
            error = str(exc)
            values = self._last_known.recall(unique, now_s=self._now_s())
        else:
            values = _found(unique, fetched)
        asked_s = self._now_s() - started_s
        views: dict[str, ViewRows] = {}
        corrupt: dict[str, NDArray[np.bool_]] = {}
        for codec, keys in zip(self._codecs, wanted, strict=True):
            name = codec.view.name
            views[name], corrupt[name] = _view_rows(codec, keys, values, event_time_us, is_recalled=error is not None)
        if error is None:
            self._hold(unique, values, wanted, corrupt)
        lookup = Lookup(views, error)
        if self._metrics is not None:
            count_features(self._metrics, lookup, corrupt)
            if unique:
                self._count_round_trip(self._metrics, asked_s, is_answered=error is None)
        return lookup

    def _count_round_trip(self, metrics: Metrics, asked_s: float, *, is_answered: bool) -> None:
        if is_answered:
            metrics.observe_us("feature_lookup_duration", int(asked_s * 1e6))
        metrics.set_gauge("feature_store_up", is_answered)
        metrics.set_gauge("last_known_entries", self._last_known.entries)
        metrics.set_gauge("last_known_bytes", self._last_known.size_bytes)

    def _hold(
        self,
        unique: list[str],
        values: dict[str, bytes],
        wanted: list[list[str | None]],
        corrupt: dict[str, NDArray[np.bool_]],
    ) -> None:
        """Keep what can be read for when the store cannot be asked, and forget what it has no more."""
        if len(values) < len(unique):
            self._last_known.forget(key for key in unique if key not in values)
        bad: set[str | None] = set()
        for keys, rows in zip(wanted, corrupt.values(), strict=True):
            if rows.any():
                bad.update(keys[row] for row in np.flatnonzero(rows).tolist())
        self._last_known.keep({k: v for k, v in values.items() if k not in bad} if bad else values, now_s=self._now_s())


def last_known_of(settings: RedisSettings) -> LastKnown:
    """Room for last known rows, as large as the settings say."""
    return LastKnown(
        entries_max=settings.last_known_entries,
        bytes_max=settings.last_known_bytes,
        age_max_s=settings.last_known_max_age_s,
    )


def count_features(metrics: Metrics, lookup: Lookup, corrupt: dict[str, NDArray[np.bool_]]) -> None:
    """Count what a micro-batch was given: rows and ages of each view."""
    for name, rows in lookup.views.items():
        counts = np.bincount(rows.letters, minlength=128)
        for letter, status in STATUS_NAMES.items():
            if counts[letter]:
                metrics.count("feature_rows", int(counts[letter]), view=name, status=status)
        bad = int(np.count_nonzero(corrupt[name]))
        if bad:
            metrics.count("feature_corrupt", bad, view=name)
        if lookup.error is not None and counts[STALE]:
            metrics.count("feature_last_known", int(counts[STALE]), view=name)
        metrics.observe_feature_ages(name, rows.age_ms[rows.age_ms != NEVER])


def _found(keys: list[str], values: list[bytes | None]) -> dict[str, bytes]:
    """What the store has, by key."""
    if None in values:
        return {key: value for key, value in zip(keys, values, strict=True) if value is not None}
    return dict(zip(keys, cast("list[bytes]", values), strict=True))


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
    codec: ViewCodec,
    keys: list[str | None],
    values: dict[str, bytes],
    event_time_us: NDArray[np.int64],
    *,
    is_recalled: bool,
) -> tuple[ViewRows, NDArray[np.bool_]]:
    """The view for n requests, and for which of them the store has a value that is no row of the view, shape (n,)."""
    unique = list(dict.fromkeys(keys))
    place = {key: i for i, key in enumerate(unique)}
    given = [None if key is None else values.get(key) for key in unique]
    rows = codec.unpack(given)
    index = np.fromiter((place[key] for key in keys), np.int64, len(keys))
    table = rows[index]
    had = table["event_ms"] > 0
    age_ms = np.where(had, np.maximum(event_time_us // 1000 - table["event_ms"].astype(np.int64), 0), NEVER)
    letters = np.where(had, STALE if is_recalled else FRESH, DEFAULT if is_recalled else MISSING).astype(np.uint8)
    if is_recalled and None in place:
        letters[index == place[None]] = MISSING
    limit = codec.view.stale_after_s
    if limit is not None:
        letters[had & (age_ms > limit * 1000)] = STALE
    if np.count_nonzero(rows["event_ms"]) == len(given) - given.count(None):
        return ViewRows(table, letters, age_ms), np.zeros(len(keys), np.bool_)
    return ViewRows(table, letters, age_ms), np.array([value is not None for value in given])[index] & ~had


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
