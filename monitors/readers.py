"""Record batches of the prediction log and of the outcomes, as what the join needs; every bad row with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from monitors.join import Outcome
from schemas.columnar import Decoder, SchemaNotSupported
from schemas.wire import schema_ids

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from monitors.prediction_plans import PredictionPlan, PredictionPlans
    from schemas.columns import RecordColumn
    from schemas.records import RecordBatch
    from schemas.registry import SchemaBook

LATEST_US = 7_258_118_400_000_000
"""2200-01-01; a time after it, or before 1970, is a fault of the producer and would overflow sums of times."""


@runtime_checkable
class Damaged(Protocol):
    """A record batch of which some records could not be read.

    Attributes:
        unreadable: place of the record to why; its value is what bytes there are.

    """

    unreadable: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class PredictionGroup:
    """Good predictions of one schema.

    Attributes:
        plan: of the schema.
        rows: their places among the good rows of the batch, shape (k,), increasing.
        columns: k decoded records.

    """

    plan: PredictionPlan
    rows: NDArray[np.int64]
    columns: RecordColumn


@dataclass(frozen=True, slots=True)
class PredictionRows:
    """The good predictions of a batch, n rows in the order of their offsets.

    Attributes:
        request_ids: n ids.
        event_us: event times, shape (n,).
        served_us: when they were scored, shape (n,).
        values: n raw values.
        groups: the same rows by schema.
        bad_count: rows that could not be read.

    """

    request_ids: list[bytes]
    event_us: NDArray[np.int64]
    served_us: NDArray[np.int64]
    values: list[bytes]
    groups: list[PredictionGroup]
    bad_count: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that goes to the dead letters.

    Attributes:
        row: its place in the batch.
        stage: decode or join.
        error_class: name of the fault.
        message: what is wrong.

    """

    row: int
    stage: str
    error_class: str
    message: str


@dataclass(frozen=True, slots=True)
class OutcomeRows:
    """The outcomes of a batch: n good ones in the order of their offsets, and the faults.

    Attributes:
        request_ids: n ids.
        outcomes: n outcomes.
        clock_us: highest outcome time, held down to the records' own timestamps; -1: no good row.
        faults: in the order of their rows.

    """

    request_ids: list[bytes]
    outcomes: list[Outcome]
    clock_us: int
    faults: list[Fault]


class OutcomeReader:
    """Reads outcomes of any compatible schema.

    Args:
        book: knows the schemas of the writers; nobody is asked for one that it does not have.
        reader_schema: ``outcome.avsc``.
        lateness_us: how far an outcome time may lie after its record's timestamp before it is not believed.

    """

    def __init__(self, book: SchemaBook, reader_schema: dict[str, Any], lateness_us: int) -> None:
        self._book = book
        self._reader_schema = reader_schema
        self._lateness_us = lateness_us
        self._decoders: dict[int, Decoder | None] = {}

    def read(self, batch: RecordBatch, from_offset: int) -> OutcomeRows:
        """The outcomes at ``from_offset`` and later."""
        outcomes: dict[int, tuple[bytes, Outcome]] = {}
        unreadable = _unreadable(batch, from_offset)
        faults = [Fault(row, "decode", "UnreadableRecord", reason) for row, reason in unreadable.items()]
        for schema_id, rows in _by_schema(batch, from_offset, unreadable):
            decoder = self._decoder(schema_id)
            if decoder is None:
                faults += [_undecodable(batch, row, schema_id) for row in rows]
            else:
                self._read_group(batch, rows, decoder, outcomes, faults)
        order = sorted(outcomes)
        found = [outcomes[row][1] for row in order]
        clock = max((min(o.time_us, int(batch.timestamps_ms[row]) * 1000 + self._lateness_us)
                     for row, o in zip(order, found, strict=True)), default=-1)  # fmt: skip
        return OutcomeRows([outcomes[row][0] for row in order], found, clock, sorted(faults, key=lambda f: f.row))

    def _read_group(
        self,
        batch: RecordBatch,
        rows: list[int],
        decoder: Decoder,
        outcomes: dict[int, tuple[bytes, Outcome]],
        faults: list[Fault],
    ) -> None:
        decoded = decoder.decode([batch.values[row] or b"" for row in rows])
        fields: dict[str, Any] = dict(decoded.columns.fields)
        columns = zip(
            rows, fields["request_id"].to_bytes_list(), fields["entity_id"].to_bytes_list(),
            fields["label"].values.tolist(), fields["outcome_time"].values.tolist(),
            fields["revision"].values.tolist(), fields["retracted"].values.tolist(),
            batch.offsets[rows].tolist(), strict=True,
        )  # fmt: skip
        for at, (row, request_id, entity_id, label, time_us, revision, retracted, offset) in enumerate(columns):
            if at in decoded.errors:
                faults.append(Fault(row, "decode", "MalformedRecord", decoded.errors[at]))
            elif batch.keys[row] != entity_id:
                faults.append(Fault(row, "join", "KeyMismatch", "the record's key is not its entity_id"))
            elif label - label != 0 or revision < 0 or not 0 <= time_us < LATEST_US or not request_id:
                reason = "label must be finite, revision >= 0, request_id not empty, outcome_time in 1970..2199"
                faults.append(Fault(row, "join", "OutOfRange", reason))
            else:
                outcomes[row] = request_id, Outcome(offset, time_us, label, revision, retracted)

    def _decoder(self, schema_id: int) -> Decoder | None:
        if schema_id not in self._decoders:
            schema = self._book.schema(schema_id, may_ask=False)
            if schema is None:
                return None
            try:
                self._decoders[schema_id] = Decoder(schema, self._reader_schema)
            except SchemaNotSupported:
                self._decoders[schema_id] = None
        return self._decoders[schema_id]


def read_predictions(batch: RecordBatch, from_offset: int, plans: PredictionPlans) -> PredictionRows:
    """The predictions at ``from_offset`` and later; nobody is asked for a schema that is not known.

    Rows with an unknown schema, a score that is not finite, or times outside 1970..2199 are only counted: the scoring
    worker wrote them, so there is nobody to hand them back to.
    """
    unreadable = _unreadable(batch, from_offset)
    n, bad = len(batch), len(unreadable)
    request_ids: list[bytes] = [b""] * n
    event_us, served_us = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    is_good = np.zeros(n, dtype=np.bool_)
    groups: list[tuple[PredictionPlan, NDArray[np.int64], RecordColumn]] = []
    for schema_id, rows in _by_schema(batch, from_offset, unreadable):
        plan = plans.plan(schema_id, may_ask=False)
        if plan is None:
            bad += len(rows)
            continue
        at, columns = _good_rows(plan, np.array(rows), [batch.values[row] or b"" for row in rows])
        bad += len(rows) - len(at)
        fields: dict[str, Any] = dict(columns.fields)
        is_good[at] = True
        event_us[at], served_us[at] = fields["event_time"].values, fields["served_at"].values
        for row, request_id in zip(at.tolist(), fields["request_id"].to_bytes_list(), strict=True):
            request_ids[row] = request_id
        groups.append((plan, at, columns))
    places = np.cumsum(is_good) - 1
    good = np.flatnonzero(is_good).tolist()
    return PredictionRows(
        [request_ids[row] for row in good],
        event_us[is_good],
        served_us[is_good],
        [batch.values[row] or b"" for row in good],
        [PredictionGroup(plan, places[at], columns) for plan, at, columns in groups if len(at)],
        bad,
    )


def _good_rows(
    plan: PredictionPlan, rows: NDArray[np.int64], values: list[bytes]
) -> tuple[NDArray[np.int64], RecordColumn]:
    decoded = plan.decoder.decode(values)
    fields: dict[str, Any] = dict(decoded.columns.fields)
    times = np.stack((fields["event_time"].values, fields["served_at"].values))
    good = (times >= 0).all(axis=0) & (times < LATEST_US).all(axis=0) & np.isfinite(fields["score"].values)
    good &= (fields["model_version"].values >= 0) & (fields["request_id"].lengths > 0)
    good[list(decoded.errors)] = False
    if good.all():
        return rows, decoded.columns
    return rows[good], decoded.columns.take(np.flatnonzero(good))


def _unreadable(batch: RecordBatch, from_offset: int) -> dict[int, str]:
    """Rows from an offset on that could not be read, and why; what is left of one may look like a sound value."""
    if not isinstance(batch, Damaged):
        return {}
    return {row: reason for row, reason in batch.unreadable.items() if batch.offsets[row] >= from_offset}


def _by_schema(batch: RecordBatch, from_offset: int, without: Mapping[int, str]) -> Iterator[tuple[int, list[int]]]:
    first = int(np.searchsorted(batch.offsets, from_offset))
    ids = schema_ids(batch.values[first:])
    is_wanted = np.ones(len(ids), dtype=np.bool_)
    is_wanted[[row - first for row in without]] = False
    for schema_id in np.unique(ids[is_wanted]).tolist():
        yield schema_id, (np.flatnonzero((ids == schema_id) & is_wanted) + first).tolist()


def _undecodable(batch: RecordBatch, row: int, schema_id: int) -> Fault:
    if batch.values[row] is None:
        return Fault(row, "decode", "Tombstone", "a record without a value is no outcome")
    if schema_id < 0:
        return Fault(row, "decode", "NotFramed", "no Confluent frame: a zero byte and four bytes of schema id")
    return Fault(row, "decode", "UnknownSchema", f"schema id {schema_id} is unknown, or no outcome can be read from it")
