"""Drift of inputs and scores against a frozen reference: bins, population stability index, verdicts.

The edges are frozen when the reference is made, so that counts of different windows, partitions and days add up.
A feature has drifted when the change is significant (chi-square on the index, Benjamini-Hochberg over the features)
*and* large (index of at least 0.1); with too few rows the verdict is "insufficient data", never a number's noise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from monitors.windows import Layout
from schemas.columns import NumberColumn, TextColumn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from monitors.windows import WindowCounts
    from schemas.columns import Column

Kind = Literal["number", "category", "time", "flag"]
NOT_FEATURES = ("raw_score", "score", "label")
QUANTILES = np.arange(1, 10) / 10
TOP_CATEGORIES = 20
MIN_ROWS = 200
"""Below it, on either side, there is no verdict."""
MIN_INDEX = 0.1
FALSE_DISCOVERY_RATE = 0.01
SMOOTHING = 0.5
"""Added to every bin, so that an empty one bounds what it can contribute."""


@dataclass(frozen=True, slots=True)
class FeatureReference:
    """Frozen bins of one feature, and how often the reference fell in each.

    Attributes:
        name: of the feature.
        kind: number, category, time (only whether there is one: event time always moves on) or flag.
        edges: numbers: increasing; bin k holds edges[k-1] < x <= edges[k], the outer ones are open.
        top: categories with a bin of their own, most frequent first.
        rest: categories that share the bin "other".
        counts: reference rows per bin; the last bins are missing and, for numbers and categories, unseen
            (not finite; not in ``top`` or ``rest``).

    """

    name: str
    kind: Kind
    edges: tuple[float, ...] = ()
    top: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    @property
    def bins(self) -> int:
        """Number of bins."""
        return {"number": len(self.edges) + 3, "category": len(self.top) + 3, "time": 2, "flag": 3}[self.kind]

    def assign(self, column: Column | None, rows: int) -> NDArray[np.int64]:
        """Bin of each row, shape (rows,); all missing when the column is absent or of another kind."""
        if self.kind == "category":
            return self._assign_text(column, rows)
        if not isinstance(column, NumberColumn):
            return np.full(rows, self._missing, dtype=np.int64)
        values = column.values.astype(np.float64)
        missing = np.isnan(values)
        if column.valid is not None:
            missing = missing | ~column.valid
        if self.kind == "number":
            found = np.searchsorted(np.array(self.edges), values, side="left").astype(np.int64)
            found[np.isinf(values)] = self.bins - 1
        elif self.kind == "flag":
            found = (values != 0).astype(np.int64)
        else:
            found = np.zeros(rows, dtype=np.int64)
        found[missing] = self._missing
        return found

    def count(self, values: pd.Series[Any]) -> NDArray[np.int64]:
        """How many values of a frame's column fall in each bin, shape (bins,)."""
        return np.bincount(self.assign(as_column(self.kind, values), len(values)), minlength=self.bins)

    @property
    def _missing(self) -> int:
        return self.bins - (2 if self.kind in {"number", "category"} else 1)

    def _assign_text(self, column: Column | None, rows: int) -> NDArray[np.int64]:
        if not isinstance(column, TextColumn):
            return np.full(rows, self._missing, dtype=np.int64)
        codes = column.codes([*self.top, *self.rest])
        found = np.where(codes < 0, self.bins - 1, np.minimum(codes, len(self.top)))
        if column.valid is not None:
            found[~column.valid] = self._missing
        return found


@dataclass(frozen=True, slots=True)
class Reference:
    """What inputs and scores of one model version looked like when it was accepted.

    Attributes:
        features: one for each feature.
        score: the bins of the score.
        rows: reference rows behind the counts.

    """

    features: tuple[FeatureReference, ...]
    score: FeatureReference
    rows: int

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Reference:
        """Freeze the bins of a reference frame: one column a feature with raw values, and ``score``.

        Float and other number columns become numbers (NaN: missing), bool flags, int64 times, everything else
        categories. Categories are chosen on the even rows and counted on the odd ones: choosing and counting on the
        same rows would make every frequent category look too frequent.

        Raises:
            ValueError: there is no column ``score``, or no row.

        """
        if "score" not in frame.columns or len(frame) == 0:
            msg = "the reference has no rows or no column score; pack the bundle again with a scored reference frame"
            raise ValueError(msg)
        names = [str(name) for name in frame.columns if name not in NOT_FEATURES]
        features = tuple(freeze(name, frame[name]) for name in names)
        return cls(features, _freeze_numbers("score", frame["score"].to_numpy(dtype=np.float64)), len(frame))

    def layout(self) -> Layout:
        """Which cells window counts on this reference have."""
        digest = hashlib.sha256(self.to_json().encode()).digest()[:8]
        return Layout(self.score.bins, tuple((f.name, f.bins) for f in self.features), digest)

    def to_json(self) -> str:
        """The reference as canonical JSON."""
        return json.dumps({"rows": self.rows, "score": _to_dict(self.score),
                           "features": [_to_dict(f) for f in self.features]}, sort_keys=True)  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Reference:
        """The reference that ``to_json`` wrote."""
        tree = json.loads(text)
        return cls(tuple(_from_dict(f) for f in tree["features"]), _from_dict(tree["score"]), tree["rows"])


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one feature (or the score) has drifted in one window.

    Attributes:
        psi: population stability index, >= 0; None: insufficient data.
        p_value: probability of so large an index without drift.
        drifted: significant after correction over all features, and psi >= 0.1.
        missing_share: share of the window's rows without a value, in [0, 1].
        reason: why there is no verdict.

    """

    psi: float | None
    p_value: float | None
    drifted: bool
    missing_share: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Drift:
    """Verdicts of one window."""

    features: dict[str, Verdict]
    score: Verdict

    @property
    def drifted(self) -> list[str]:
        """Names of the drifted features."""
        return [name for name, verdict in self.features.items() if verdict.drifted]


def drift(reference: Reference, counts: WindowCounts) -> Drift:
    """Compare a window's counts with the reference.

    Args:
        reference: on whose layout the counts were made.
        counts: of one model version and window.

    Raises:
        ValueError: the counts were made on another reference.

    Cost: about 20 us a feature; once per window and snapshot.
    """
    if counts.layout != reference.layout():
        msg = "the counts were made on another reference; compare them with that one"
        raise ValueError(msg)
    cells = counts.feature_bins()
    measured = {f.name: _measure(f, cells[f.name]) for f in reference.features}
    p_values = [m.p_value for m in measured.values() if m.p_value is not None]
    adjusted = iter(stats.false_discovery_control(p_values) if p_values else ())
    verdicts = {name: m if m.p_value is None else _judge(m, float(next(adjusted))) for name, m in measured.items()}
    score = _measure(reference.score, counts.score_bins)
    return Drift(verdicts, score if score.p_value is None else _judge(score, score.p_value))


def population_stability(
    reference: Sequence[int] | NDArray[np.int64], current: Sequence[int] | NDArray[np.int64]
) -> tuple[float, float]:
    """Population stability index and its p-value.

    Args:
        reference: counts per bin, shape (k,), sum > 0.
        current: counts per bin, shape (k,), same bins.

    Returns:
        The index, sum of (c - r) ln(c / r) over shares smoothed by +0.5 a bin (bins empty on both sides left out), and
        the chi-square probability of index / (1/n + 1/m) with one degree less than bins.

    Raises:
        ValueError: shapes differ, or either histogram is empty.

    Example:
        >>> index, p = population_stability([500, 500], [600, 400])
        >>> round(index, 4), p < 1e-4
        (0.0405, True)

    """
    r, c = np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64)
    if r.shape != c.shape or r.sum() <= 0 or c.sum() <= 0:
        msg = f"two histograms of the same bins with rows are needed, got {r.shape} and {c.shape}"
        raise ValueError(msg)
    used = (r + c) > 0
    n, m, bins = r.sum(), c.sum(), int(used.sum())
    rs = (r[used] + SMOOTHING) / (n + SMOOTHING * bins)
    cs = (c[used] + SMOOTHING) / (m + SMOOTHING * bins)
    index = float(((cs - rs) * np.log(cs / rs)).sum())
    if bins == 1:
        return 0.0, 1.0
    return index, float(stats.chi2.sf(index / (1 / n + 1 / m), bins - 1))


def confirmed(history: Sequence[bool], *, of: int = 3, need: int = 2) -> bool:
    """Whether drift holds in at least ``need`` of the last ``of`` windows: one odd window raises no alarm.

    Example:
        >>> confirmed([True, False, True]), confirmed([True, False, False, True])
        (True, False)

    """
    return sum(history[-of:]) >= need


def _measure(feature: FeatureReference, cells: NDArray[np.int64]) -> Verdict:
    rows, reference_rows = int(cells.sum()), sum(feature.counts)
    missing = int(cells[feature._missing]) / rows if rows else 0.0  # noqa: SLF001 - same module
    if min(rows, reference_rows) < MIN_ROWS:
        have = f"n={rows}" if rows < MIN_ROWS else f"reference n={reference_rows}"
        reason = f"insufficient data ({have}, need {MIN_ROWS})"
        return Verdict(None, None, drifted=False, missing_share=missing, reason=reason)
    index, p_value = population_stability(feature.counts, cells)
    return Verdict(index, p_value, drifted=False, missing_share=missing)


def _judge(measured: Verdict, adjusted: float) -> Verdict:
    large = measured.psi is not None and measured.psi >= MIN_INDEX
    return Verdict(measured.psi, measured.p_value, large and adjusted < FALSE_DISCOVERY_RATE, measured.missing_share)


def freeze(name: str, values: pd.Series[Any]) -> FeatureReference:
    """Freeze the bins of one reference column; see ``Reference.from_frame`` for the kinds."""
    kind = kind_of(values)
    column = as_column(kind, values)
    if isinstance(column, TextColumn):
        return _freeze_categories(name, column.to_list())
    if kind == "number":
        return _freeze_numbers(name, column.values)
    return _counted(FeatureReference(name, kind), column)


def kind_of(values: pd.Series[Any]) -> Kind:
    """Kind of feature that a frame's column holds, by its type."""
    if pd.api.types.is_bool_dtype(values.dtype):
        return "flag"
    if pd.api.types.is_float_dtype(values.dtype):
        return "number"
    if pd.api.types.is_integer_dtype(values.dtype):
        return "time"
    present = values.dropna()
    return "flag" if len(present) and all(isinstance(v, bool) for v in present) else "category"


def as_column(kind: Kind, values: pd.Series[Any]) -> NumberColumn | TextColumn:
    """A frame's column as the bins take it."""
    if kind == "number":
        return NumberColumn(values.to_numpy(dtype=np.float64, na_value=np.nan))
    present = values.notna().to_numpy()
    if kind == "category":
        return TextColumn.from_values([str(v) if p else None for v, p in zip(values, present, strict=True)])
    plain = values.where(present, 0).astype(np.bool_ if kind == "flag" else np.int64)
    return NumberColumn(plain.to_numpy(), present)


def _freeze_numbers(name: str, values: NDArray[np.float64]) -> FeatureReference:
    finite = values[np.isfinite(values)]
    edges: list[float] = []
    if finite.size:
        edges = [float(e) for e in np.unique(np.quantile(finite, QUANTILES, method="inverted_cdf"))]
        if edges[0] == finite.min():
            # Ties at the minimum: without this edge values below everything ever seen would hide among them.
            edges.insert(0, float(np.nextafter(edges[0], -np.inf)))
    return _counted(FeatureReference(name, "number", edges=tuple(edges)), NumberColumn(values))


def _freeze_categories(name: str, values: list[str | None]) -> FeatureReference:
    chosen = pd.Series([v for v in values[::2] if v is not None], dtype=object).value_counts()
    ranked = sorted(chosen.items(), key=lambda item: (-int(item[1]), str(item[0])))
    names = [str(value) for value, _ in ranked]
    frozen = FeatureReference(name, "category", top=tuple(names[:TOP_CATEGORIES]), rest=tuple(names[TOP_CATEGORIES:]))
    counted = values[1::2] if len(values) > 1 else values
    return _counted(frozen, TextColumn.from_values(counted))


def _counted(feature: FeatureReference, column: Column) -> FeatureReference:
    counts = np.bincount(feature.assign(column, len(column)), minlength=feature.bins)
    return FeatureReference(feature.name, feature.kind, feature.edges, feature.top, feature.rest,
                            tuple(int(c) for c in counts))  # fmt: skip


def _to_dict(feature: FeatureReference) -> dict[str, Any]:
    return {"name": feature.name, "kind": feature.kind, "edges": list(feature.edges), "top": list(feature.top),
            "rest": list(feature.rest), "counts": list(feature.counts)}  # fmt: skip


def _from_dict(tree: Mapping[str, Any]) -> FeatureReference:
    return FeatureReference(tree["name"], tree["kind"], tuple(tree["edges"]), tuple(tree["top"]),
                            tuple(tree["rest"]), tuple(tree["counts"]))  # fmt: skip
