"""From a computed micro-batch to records on ``scores``, ``predictions-log`` and the dead-letter topic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from app.dead_letters import attempt_of
from app.lookup import FRESH, MISSING, NEVER, degraded_reasons
from app.requests import own_headers
from schemas.columnar import Encoder
from schemas.columns import Column, Constant, EnumColumn, ListColumn, NumberColumn, RecordColumn, TextColumn
from schemas.deadletter import dead_letter_headers
from schemas.generate import prediction_schema
from schemas.records import FireReason, Status
from schemas.wire import frame_header, source_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.lookup import Lookup
    from app.microbatch import MicroBatch, Part
    from app.models.bundle import Bundle
    from app.requests import Fault
    from schemas.records import RecordBatch

STAGES = ("ingest", "queue", "features", "preprocess", "inference", "postprocess", "emit")
INT32_MAX = 2**31 - 1
STATUSES = tuple(s.name for s in Status)
REASONS = tuple(r.name for r in FireReason)


@dataclass(frozen=True, slots=True)
class Timings:
    """Microseconds of each stage; ``total`` is their sum.

    Attributes:
        stages: by name, never negative: shape (n,), int64, or one integer where it is the same for all rows.
        total: shape (n,), int64.

    """

    stages: dict[str, NDArray[np.int64] | int]
    total: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outbox:
    """Records for one topic and partition."""

    topic: str
    partition: int
    keys: list[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True)
class OutputTopics:
    """Where answers go."""

    scores: str
    predictions: str
    dead_letters: str


class AnswerWriter:
    """Encodes answers of one bundle.

    Args:
        bundle: whose answers.
        score_schema: the parsed ``score.avsc``.
        score_id: its schema id.
        prediction_id: schema id of the bundle's prediction record.
        topics: names.
        device: as the evidence names it.

    """

    def __init__(
        self,
        bundle: Bundle,
        score_schema: dict[str, Any],
        *,
        score_id: int,
        prediction_id: int,
        topics: OutputTopics,
        device: str,
    ) -> None:
        self._bundle = bundle
        self._spec = bundle.spec
        self._scores = Encoder(score_schema)
        self._predictions = Encoder(prediction_schema(bundle.spec.name, bundle.spec.fields()))
        self._score_prefix = frame_header(score_id)
        self._prediction_prefix = frame_header(prediction_id)
        self._topics = topics
        self._device = device

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

    def outboxes(self, batch: MicroBatch, scores: list[bytes], predictions: list[bytes]) -> list[list[Outbox]]:
        """For each part of the batch its records by topic, in offset order."""
        keys = batch.entity_id.to_bytes_list()
        live = batch.live
        boxes: list[list[Outbox]] = []
        start = 0
        for part in batch.parts:
            end = start + len(part)
            headers = _answer_headers(part)
            for row in batch.duplicates:
                if start <= row < end:
                    headers[row - start].insert(-1, ("x-duplicate", b"1"))  # x-src stays the last
            low, high = np.searchsorted(live, (start, end)).tolist()
            mine = (live[low:high] - start).tolist()
            whole = high - low == end - start
            scored_keys = keys[start:end] if whole else [keys[start + i] for i in mine]
            scored_headers = headers if whole else [headers[i] for i in mine]
            partition = part.requests.batch.partition
            boxes.append(
                [
                    Outbox(self._topics.scores, partition, keys[start:end], scores[start:end], headers),
                    Outbox(self._topics.predictions, partition, scored_keys, predictions[low:high], scored_headers),
                    self._dead_letters(batch, part, start),
                ]
            )
            start = end
        return boxes

    def _dead_letters(self, batch: MicroBatch, part: Part, base: int) -> Outbox:
        """Undecodable records, and copies of INVALID and ERROR requests (those are not counted as dead letters)."""
        raw = part.requests.batch
        faults: dict[int, Fault] = dict(part.dead)
        if batch.faults:
            for row in range(len(part)):
                fault = batch.faults.get(base + row)
                if fault is not None and batch.status[base + row] in {Status.INVALID, Status.ERROR}:
                    faults[int(part.requests.rows[part.start + row])] = fault
        places = sorted(faults)
        headers = [
            (
                *dead_letter_headers(
                    raw, i, stage=faults[i].stage, error_class=faults[i].error_class, message=faults[i].message
                ),
                ("x-src", source_mark(raw.topic, raw.partition, int(raw.offsets[i]), _attempt(raw, i))),
            )
            for i in places
        ]
        values = [raw.values[i] for i in places]
        return Outbox(self._topics.dead_letters, raw.partition, [raw.keys[i] for i in places], values, headers)

    def _answers(self, batch: MicroBatch, timings: Timings, served_at_us: int) -> RecordColumn:
        count, live, spec = len(batch), batch.live, self._spec
        degraded = _degraded(batch, spec.views)
        scored = np.zeros(count, bool)
        scored[live] = batch.predictions is not None
        score = _scatter(batch.predictions.score, live, count) if batch.predictions else np.zeros(count)
        decision = _scatter(batch.predictions.decision, live, count) if batch.predictions else np.zeros(count, np.int64)
        all_scored = bool(scored.all())
        valid = None if all_scored else scored
        text = TextColumn.from_codes(decision, spec.output.labels)
        threshold: Column = Constant(spec.output.threshold, count)
        if not all_scored:
            threshold = NumberColumn(np.full(count, spec.output.threshold), valid)
        on_device = np.where(scored, batch.device_rows, 0).astype(np.int32)
        fired = np.where(scored, int(batch.reason), int(FireReason.NONE)).astype(np.int32)
        stages = {f"{s}_us": _micros(timings.stages[s], count) for s in STAGES}
        stages["total_us"] = _micros(timings.total, count)
        fields: dict[str, Column] = {
            "request_id": batch.request_id,
            "entity_id": batch.entity_id,
            "status": EnumColumn(batch.status.astype(np.int32), STATUSES),
            "outputs": ListColumn(np.concatenate([[0], np.cumsum(scored)]), NumberColumn(score[scored])),
            "score": NumberColumn(score, valid),
            "decision": TextColumn(text.data, text.starts, text.lengths, valid),
            "threshold": threshold,
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
        decision = TextColumn.from_codes(predictions.decision, spec.output.labels)
        letters, ages = self._provenance(batch.lookup, used, count)
        fields: dict[str, Column] = {
            "request_id": batch.request_id.take(rows),
            "entity_id": batch.entity_id.take(rows),
            "features": RecordColumn(used, count),
            "feature_status": letters,
            "feature_age_ms": ages,
            "raw_score": NumberColumn(predictions.raw),
            "score": NumberColumn(predictions.score),
            "outputs": ListColumn(np.arange(count + 1), NumberColumn(predictions.score)),
            "decision": decision,
            "threshold": Constant(spec.output.threshold, count),
            "model_name": Constant(spec.name, count),
            "model_version": Constant(spec.version, count),
            "artifact_sha256": Constant(self._bundle.sha256, count),
            "preprocess_sha256": Constant(self._bundle.preprocess_sha256, count),
            "calibration_sha256": Constant(self._bundle.calibration_sha256, count),
            "batch_bucket": NumberColumn(predictions.bucket),
            "assignment_bucket": Constant(None, count),
            "device": Constant(self._device, count),
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


def _answer_headers(part: Part) -> list[list[tuple[str, bytes]]]:
    """``x-src`` of each row, after the headers that are handed on; lists, because Kafka's C builder takes no tuples."""
    raw = part.requests.batch
    places = part.requests.rows[part.start : part.end]
    stem = source_mark(raw.topic, raw.partition, 0).rsplit(b":", 2)[0]
    offsets = raw.offsets[places].tolist()
    if not raw.headers:
        return [[("x-src", b"%b:%d:0" % (stem, offset))] for offset in offsets]
    return [
        [*own_headers(raw.headers[place]), ("x-src", b"%b:%d:%d" % (stem, offset, _attempt(raw, place)))]
        for place, offset in zip(places.tolist(), offsets, strict=True)
    ]


def _attempt(raw: RecordBatch, place: int) -> int:
    """How often the record was replayed from the dead letters."""
    return attempt_of(raw.headers[place]) if raw.headers else 0


def _micros(values_us: NDArray[np.int64] | int, count: int) -> Column:
    if isinstance(values_us, int):
        return Constant(min(values_us, INT32_MAX), count)
    return NumberColumn(np.minimum(values_us, INT32_MAX).astype(np.int32))
