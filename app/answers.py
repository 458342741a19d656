"""From a computed micro-batch to encoded answers and evidence of one model."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from app.lookup import FRESH, MISSING, NEVER, degraded_reasons
from app.postprocess import Scored
from schemas.columnar import Encoder
from schemas.columns import Column, Constant, EnumColumn, ListColumn, NumberColumn, RecordColumn, TextColumn
from schemas.generate import prediction_schema
from schemas.records import FireReason, Status
from schemas.wire import frame_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.lookup import Lookup
    from app.microbatch import MicroBatch
    from app.models.bundle import Bundle
    from app.request_features import Fault

STAGES = ("ingest", "queue", "features", "preprocess", "inference", "postprocess", "emit")
INT32_MAX = 2**31 - 1
STATUSES = tuple(s.name for s in Status)
REASONS = tuple(r.name for r in FireReason)
NOTHING = Scored(np.zeros(0), np.zeros(0), np.zeros((0, 1)), np.zeros(0, np.int64), (), np.zeros(0))
"""What was scored where nothing was."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Microseconds of each stage; ``total`` is their sum.

    Attributes:
        stages: by name, never negative: shape (n,), int64, or one integer where it is the same for all rows.
        total: shape (n,), int64.

    """

    stages: dict[str, NDArray[np.int64] | int]
    total: NDArray[np.int64]


class AnswerWriter:
    """Encodes answers of one bundle.

    Args:
        bundle: whose answers.
        score_schema: the parsed ``score.avsc``.
        score_id: its schema id.
        prediction_id: schema id of the bundle's prediction record.

    """

    def __init__(
        self,
        bundle: Bundle,
        score_schema: dict[str, Any],
        *,
        score_id: int,
        prediction_id: int,
    ) -> None:
        self._bundle = bundle
        self._spec = bundle.spec
        self._scores = Encoder(score_schema)
        self._predictions = Encoder(prediction_schema(bundle.spec.name, bundle.spec.fields()))
        self._score_prefix = frame_header(score_id)
        self._prediction_prefix = frame_header(prediction_id)

    def of_bundle(self, bundle: Bundle) -> AnswerWriter:
        """The same for another opening of the bundle, with another calibration."""
        other = copy(self)
        other._bundle = bundle  # noqa: SLF001 - a copy of our own
        return other

    def predictions(self, batch: MicroBatch, served_at_us: int) -> list[bytes]:
        """Encoded evidence of the live rows, in order."""
        if batch.predictions is None or not len(batch.live):
            return []
        return self._predictions.encode(self._evidence(batch, served_at_us), prefix=self._prediction_prefix)

    def scores(self, batch: MicroBatch, timings: Timings, served_at_us: int) -> list[bytes]:
        """Encoded answers of all rows, in order; sets DEGRADED where a view was not fresh."""
        if not len(batch):
            return []
        return self._scores.encode(self._answers(batch, timings, served_at_us), prefix=self._score_prefix)

    def _answers(self, batch: MicroBatch, timings: Timings, served_at_us: int) -> RecordColumn:
        count, live, spec = len(batch), batch.live, self._spec
        degraded = _degraded(batch, spec.views)
        scored = np.zeros(count, bool)
        found = batch.predictions.scored if batch.predictions is not None else NOTHING
        if batch.predictions is not None:
            scored[live] = True
        decision = _scatter(found.decision, live, count) if batch.predictions is not None else np.full(count, -1)
        outputs = found.outputs
        on_device = np.where(scored, batch.device_rows, 0).astype(np.int32)
        fired = np.where(scored, int(batch.reason), int(FireReason.NONE)).astype(np.int32)
        stages = {f"{s}_us": _micros(timings.stages[s], count) for s in STAGES}
        stages["total_us"] = _micros(timings.total, count)
        fields: dict[str, Column] = {
            "request_id": batch.request_id,
            "entity_id": batch.entity_id,
            "status": EnumColumn(batch.status.astype(np.int32), STATUSES),
            "outputs": ListColumn(
                np.concatenate([[0], np.cumsum(scored)]) * outputs.shape[1], NumberColumn(outputs.ravel())
            ),
            "score": _spread_numbers(found.score, scored, live),
            "decision": _decisions(decision, found.decision_labels, scored),
            "threshold": _spread_thresholds(found.threshold, scored, live),
            "model_name": Constant(spec.name, count),
            "model_version": Constant(spec.version, count),
            "experiment_id": Constant(None, count),
            "arm": Constant(None, count),
            "degraded": _spread_lists(degraded, live, count),
            "reason": _reasons(batch.faults, count),
            "event_time": NumberColumn(batch.event_time_us),
            "served_at": Constant(served_at_us, count),
            "timings": RecordColumn(stages, count),
            "batch_rows": NumberColumn(on_device),
            "fire_reason": EnumColumn(fired, REASONS),
        }
        return RecordColumn(fields, count)

    def _evidence(self, batch: MicroBatch, served_at_us: int) -> RecordColumn:
        assert batch.predictions is not None
        predictions, live, spec, count = batch.predictions, batch.live, self._spec, len(batch.live)
        whole = count == len(batch)
        rows: Any = slice(None) if whole else live
        used = {f.name: batch.features[f.name] for f in spec.features}
        scored = predictions.scored
        labels = ("", *scored.decision_labels)  # "": no decision
        letters, ages = self._provenance(batch.lookup, used, count)
        fields: dict[str, Column] = {
            "request_id": batch.request_id.take(rows),
            "entity_id": batch.entity_id.take(rows),
            "features": RecordColumn(used, count),
            "feature_status": letters,
            "feature_age_ms": ages,
            "raw_score": NumberColumn(scored.raw),
            "score": NumberColumn(scored.score),
            "outputs": ListColumn(
                np.arange(count + 1) * scored.outputs.shape[1],
                NumberColumn(scored.outputs.ravel()),
            ),
            "decision": TextColumn.from_codes(scored.decision + 1, labels),
            "threshold": _even(scored.threshold),
            "model_name": Constant(spec.name, count),
            "model_version": Constant(spec.version, count),
            "artifact_sha256": Constant(self._bundle.sha256, count),
            "preprocess_sha256": Constant(self._bundle.preprocess_sha256, count),
            "calibration_sha256": Constant(self._bundle.calibration_sha256, count),
            "batch_bucket": NumberColumn(predictions.bucket),
            "assignment_bucket": Constant(None, count),
            "device": Constant(predictions.device, count),
            "experiment_id": Constant(None, count),
            "arm": Constant(None, count),
            "rollout_epoch": Constant(None, count),
            "shadow_scores": Constant({}, count),
            "degraded": _degraded(batch, spec.views),
            "event_time": NumberColumn(batch.event_time_us[rows]),
            "served_at": Constant(served_at_us, count),
        }
        return RecordColumn(fields, count)

    def _provenance(self, lookup: Lookup | None, used: dict[str, Column], count: int) -> tuple[Column, Column]:
        """``feature_status`` and ``feature_age_ms`` of the live rows."""
        features = self._spec.features
        letters = np.full((count, len(features)), FRESH, np.uint8)
        ages = []
        for i, feature in enumerate(features):
            if feature.source == "store" and lookup is not None:
                view = lookup.views[feature.view or ""]
                letters[:, i] = view.letters
                ages.append(view.age_ms)
            valid = getattr(used[feature.name], "valid", None)
            if valid is not None:
                letters[(letters[:, i] == FRESH) & ~valid, i] = MISSING
        width = len(features)
        starts = np.arange(count, dtype=np.int64) * width
        text = TextColumn(letters.ravel(), starts, np.full(count, width, np.int64))
        if not ages:
            return text, Constant([], count)
        table = np.clip(np.column_stack(ages), NEVER, INT32_MAX).astype(np.int32)
        return text, ListColumn(np.arange(count + 1) * table.shape[1], NumberColumn(table.ravel()))


def _degraded(batch: MicroBatch, views: Sequence[Any]) -> Column:
    """``degraded`` of the live rows; their status follows it."""
    count = len(batch.live)
    if batch.lookup is None or not views:
        return Constant([], count)
    codes, texts = degraded_reasons(tuple(views), batch.lookup)
    if len(texts) == 1:
        return Constant([], count)
    batch.status[batch.live] = np.where(codes > 0, Status.DEGRADED, Status.OK)
    lists = [text.split(",") if text else [] for text in texts]
    sizes = np.array([len(words) for words in lists])[codes]
    words = [word for code in codes.tolist() for word in lists[code]]
    return ListColumn(np.concatenate([[0], np.cumsum(sizes)]), TextColumn.from_values(words))


def _spread_lists(column: Column, live: NDArray[np.int64], count: int) -> Column:
    if isinstance(column, Constant):
        return Constant([], count)
    assert isinstance(column, ListColumn)
    sizes = _scatter(np.diff(column.offsets), live, count)
    return ListColumn(np.concatenate([[0], np.cumsum(sizes)]), column.items)


def _scatter(values: NDArray[Any], live: NDArray[np.int64], count: int) -> NDArray[Any]:
    if len(live) == count:
        return values
    spread = np.zeros(count, values.dtype)
    spread[live] = values
    return spread


def _reasons(faults: dict[int, Fault], count: int) -> Column:
    if not faults:
        return Constant(None, count)
    texts: list[str | None] = [None] * count
    for row, fault in faults.items():
        texts[row] = f"{fault.error_class}: {fault.message}"
    return TextColumn.from_values(texts)


def _spread_numbers(values: NDArray[np.float64], scored: NDArray[np.bool_], live: NDArray[np.int64]) -> Column:
    """The values of the live rows, null for the others."""
    if len(live) == len(scored) == len(values):
        return NumberColumn(values)
    spread = np.zeros(len(scored))
    if len(values):
        spread[live] = values
    return NumberColumn(spread, scored)


def _spread_thresholds(values: NDArray[np.float64], scored: NDArray[np.bool_], live: NDArray[np.int64]) -> Column:
    """Null for rows without a threshold."""
    even = _even(values)
    if isinstance(even, Constant) and len(live) == len(scored) == len(values):
        return Constant(None if np.isnan(values[0]) else even.value, len(values))
    spread = np.full(len(scored), np.nan)
    if len(values):
        spread[live] = values
    return NumberColumn(spread, ~np.isnan(spread))


def _even(values: NDArray[np.float64]) -> Column:
    """A constant where all values are the same, as is usual: cheaper to write."""
    if len(values) and (values == values[0]).all():
        return Constant(float(values[0]), len(values))
    return NumberColumn(values)


def _decisions(codes: NDArray[np.int64], labels: tuple[str, ...], scored: NDArray[np.bool_]) -> Column:
    """The decisions as text; null where there is none."""
    valid = scored & (codes >= 0)
    text = TextColumn.from_codes(np.maximum(codes, 0), labels or ("",))
    return TextColumn(text.data, text.starts, text.lengths, None if valid.all() else valid)


def _micros(values_us: NDArray[np.int64] | int, count: int) -> Column:
    if isinstance(values_us, int):
        return Constant(min(values_us, INT32_MAX), count)
    return NumberColumn(np.minimum(values_us, INT32_MAX).astype(np.int32))
