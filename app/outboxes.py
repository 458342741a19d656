"""From encoded answers to what is sent for each part of a micro-batch: answers, evidence, dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from app.dead_letters import attempt_of
from app.requests import own_headers
from schemas.deadletter import dead_letter_headers
from schemas.records import Status
from schemas.wire import source_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.microbatch import MicroBatch, Part
    from app.request_features import Fault
    from schemas.records import RecordBatch


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

    def outboxes(self, batch: MicroBatch, scores: list[bytes], predictions: list[bytes]) -> list[list[Outbox]]:
        """For each part of the batch its records by topic, in offset order.

        Args:
            batch: the whole, of all models.
            scores: an answer for each request.
            predictions: the evidence of the live ones.

        """
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
                    Outbox(self.scores, partition, keys[start:end], scores[start:end], headers),
                    Outbox(self.predictions, partition, scored_keys, predictions[low:high], scored_headers),
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
        return Outbox(self.dead_letters, raw.partition, [raw.keys[i] for i in places], values, headers)


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
