"""From a record batch to checked request columns.

A value that cannot be decoded becomes a dead letter; a decodable request that does not fit the model becomes INVALID.
Several schema versions may share a batch: each id is resolved once into a plan, and the rows are put back in order.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from app.record_reader import DamagedBatch, damaged
from schemas.columns import Column, EnumColumn, NumberColumn, RecordColumn, TextColumn, concat
from schemas.records import RecordBatch, Status
from schemas.wire import HEADER_BYTES, NOT_FRAMED, schema_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from app.models.spec import Feature, ModelSpec
    from schemas.columnar import Decoder
    from schemas.records import Headers
    from schemas.registry import SchemaBook

T = TypeVar("T")

NO_DEADLINE = np.iinfo(np.int64).max
DEADLINE_HEADER = "x-deadline-unix-ms"
VERSION_HEADER = "x-model-version"
LABEL_HEADER = "x-model-label"
TEXTS = {"category"}
OTHER_TIMES = {f"{stem}-{unit}" for stem in ("timestamp", "local-timestamp") for unit in ("millis", "nanos")} | {
    "local-timestamp-micros"
}
"""Read as UTC micros, these would be wrong by a factor or by an offset."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a record is a dead letter, or a request INVALID or ERROR."""

    stage: str
    error_class: str
    message: str


@dataclass(slots=True)
class Requests:
    """The decodable requests of one record batch, in offset order, and its dead letters.

    Attributes:
        batch: the raw records.
        rows: shape (n,), place of each request in the batch.
        request_id: n ids.
        entity_id: n ids.
        event_time_us: shape (n,), UTC micros.
        features: request features by name, canonical types, n rows each.
        status: shape (n,), int8 of ``Status``: OK or INVALID.
        faults: request row to why it is not OK.
        dead: batch row to why it is a dead letter.
        deadline_ms: shape (n,), unix ms; ``NO_DEADLINE`` where there is none.

    """

    batch: RecordBatch
    rows: NDArray[np.int64]
    request_id: TextColumn
    entity_id: TextColumn
    event_time_us: NDArray[np.int64]
    features: dict[str, Column]
    status: NDArray[np.int8]
    faults: dict[int, Fault] = field(default_factory=dict)
    dead: dict[int, Fault] = field(default_factory=dict)
    deadline_ms: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Number of decodable requests."""
        return len(self.rows)

    def __hash__(self) -> int:
        """By identity: a segment is one fetch, never equal to another."""
        return id(self)

    def __eq__(self, other: object) -> bool:
        """By identity."""
        return self is other

    def refuse(self, row: int, fault: Fault, status: Status = Status.INVALID) -> None:
        """Give a request its status; the first fault counts."""
        if self.status[row] == Status.OK:
            self.status[row] = status
            self.faults[row] = fault


@dataclass(frozen=True, slots=True)
class _Plan:
    decoder: Decoder
    error: Fault | None


class _SchemasWanted(Exception):
    def __init__(self, schema_ids: set[int]) -> None:
        super().__init__(sorted(schema_ids))
        self.schema_ids = schema_ids


class RequestDecoder:
    """Decodes and checks requests for one model.

    Args:
        book: resolves schema ids.
        spec: the model's signature.
        max_request_bytes: a larger value is a dead letter.

    """

    def __init__(self, book: SchemaBook, spec: ModelSpec, *, max_request_bytes: int) -> None:
        self._book = book
        self._spec = spec
        self._features = [f for f in spec.features if f.source == "request"]
        self._max_request_bytes = max_request_bytes
        self._plans: dict[int, _Plan | Fault] = {}
        self._asked: frozenset[int] | None = None  # what ``with_schemas`` has fetched so far; None outside of it
        self._wanted: set[int] = set()

    def decode(self, batch: RecordBatch) -> Requests:
        """Every record of the batch, either as a request or as a dead letter; never raises for what is in a record."""
        dead: dict[int, Fault] = {}
        ids = schema_ids(batch.values)
        if isinstance(batch, DamagedBatch):
            _mark_unreadable(batch, ids, dead)
        self._mark_oversized(batch, ids, dead)
        groups: list[tuple[NDArray[np.int64], RecordColumn, dict[str, Column] | Fault]] = []
        for schema_id in np.unique(ids):
            members = np.flatnonzero(ids == schema_id)
            group = self._decode_group(batch, int(schema_id), members, dead)
            if group is not None:
                groups.append(group)
        if self._wanted:
            wanted, self._wanted = self._wanted, set()
            raise _SchemasWanted(wanted)
        if not groups:
            return self._assembled(batch, np.zeros(0, np.int64), [], dead)
        order = np.argsort(np.concatenate([rows for rows, _, _ in groups]), kind="stable")
        return self._assembled(batch, order, groups, dead)

    def decode_together(self, batches: Sequence[RecordBatch]) -> list[Requests]:
        """The same as decoding one after the other, at about the price of one.

        A walk over columns costs as much for one row as for a thousand, and at moderate load a fetch brings a row or
        two for each partition.
        """
        if len(batches) == 1:
            return [self.decode(batches[0])]
        whole = self.decode(_merged(batches))
        edges = np.cumsum([0, *(len(batch) for batch in batches)])
        rows = np.searchsorted(whole.rows, edges).tolist()
        starts = edges.tolist()
        return [_cut(whole, batches[i], starts[i], rows[i], rows[i + 1]) for i in range(len(batches))]

    async def with_schemas(self, decode: Callable[[], T]) -> T:
        """What ``decode`` returns, with every schema that it needs fetched first if it can be; never blocks the loop.

        Costs nothing while all ids are known: that one is not shows only when its records are decoded.

        Args:
            decode: calls ``decode`` or ``decode_together`` of this decoder; it may be called again.

        """
        asked: frozenset[int] = frozenset()
        while True:
            self._asked = asked
            try:
                return decode()
            except _SchemasWanted as wanted:
                await self._book.fetch(wanted.schema_ids)
                asked |= wanted.schema_ids  # each is known now, or a dead letter
            finally:
                self._asked = None

    def _mark_oversized(self, batch: RecordBatch, ids: NDArray[np.int64], dead: dict[int, Fault]) -> None:
        sizes = [0 if value is None else len(value) for value in batch.values]
        if max(sizes) <= self._max_request_bytes:
            return
        for row, size in enumerate(sizes):
            if size > self._max_request_bytes:
                ids[row] = NOT_FRAMED
                message = f"{size} bytes; at most {self._max_request_bytes} (SLUICE_DELIVERY__MAX_REQUEST_BYTES)"
                dead.setdefault(row, Fault("decode", "OversizedRecord", message))

    def _decode_group(
        self, batch: RecordBatch, schema_id: int, members: NDArray[np.int64], dead: dict[int, Fault]
    ) -> tuple[NDArray[np.int64], RecordColumn, dict[str, Column] | Fault] | None:
        if schema_id == NOT_FRAMED:
            _not_framed(batch, members, dead)
            return None
        plan = self._plan(schema_id)
        if isinstance(plan, Fault):
            dead.update(dict.fromkeys(members.tolist(), plan))
            return None
        whole = len(members) == len(batch.values)
        values = batch.values if whole else [batch.values[i] for i in members.tolist()]
        decoded = plan.decoder.decode(values, skip_bytes=HEADER_BYTES)  # type: ignore[arg-type]
        columns = decoded.columns
        if decoded.errors:
            for row, reason in decoded.errors.items():
                dead[int(members[row])] = Fault("decode", "UndecodableRecord", reason)
            good = np.setdiff1d(np.arange(len(members)), np.fromiter(decoded.errors, np.int64))
            if not len(good):
                return None
            members, columns = members[good], columns.take(good)
        return members, columns, plan.error or self._canonical(columns)

    def _plan(self, schema_id: int) -> _Plan | Fault:
        plan = self._plans.get(schema_id)
        if plan is None:
            plan = self._new_plan(schema_id)
            is_final = not (isinstance(plan, Fault) and plan.error_class == "UnknownSchema")
            if is_final and len(self._plans) < 4096:
                self._plans[schema_id] = plan
        return plan

    def _new_plan(self, schema_id: int) -> _Plan | Fault:
        may_ask = self._asked is None
        if self._asked is not None and schema_id not in self._asked and self._book.is_askable(schema_id):
            self._wanted.add(schema_id)
        schema = self._book.schema(schema_id, may_ask=may_ask)
        decoder = self._book.decoder(schema_id, may_ask=may_ask)
        if schema is None:
            message = (
                f"schema id {schema_id} is unknown, or the registry does not answer; register the schema, or put its "
                ".avsc into the schema folder, then replay the dead letters"
            )
            return Fault("schema", "UnknownSchema", message)
        if decoder is None:
            return Fault("schema", "RefusedSchema", f"schema id {schema_id} is recursive or has items without bytes")
        fields = {f["name"]: f["type"] for f in schema.get("fields", [])}
        wanted = {"request_id": "string", "entity_id": "string", "event_time": "long"}
        features = fields.get("features")
        fits = all(
            n in fields and not isinstance(fields[n], list) and _value_type(fields[n]) == t for n, t in wanted.items()
        )
        if not fits or not isinstance(features, dict) or features.get("type") != "record":
            message = f"schema id {schema_id} is {schema.get('name')}, not a score request"
            return Fault("schema", "WrongSchema", message)
        return _Plan(decoder, self._type_fault(features))

    def _type_fault(self, features: dict[str, object]) -> Fault | None:
        given = {f["name"]: _value_type(f["type"]) for f in features["fields"]}  # type: ignore[attr-defined]
        for feature in self._features:
            found = given.get(feature.name)
            if found is not None and found not in _accepted(feature):
                message = f"feature {feature.name}: {found} in the schema, the model wants {feature.type}"
                return Fault("schema", "WrongType", message)
        return None

    def _canonical(self, columns: RecordColumn) -> dict[str, Column]:
        given = columns.fields["features"]
        assert isinstance(given, RecordColumn)
        return {f.name: _canonical_column(f, given.fields.get(f.name), columns.count) for f in self._features}

    def _assembled(
        self,
        batch: RecordBatch,
        order: NDArray[np.int64],
        groups: list[tuple[NDArray[np.int64], RecordColumn, dict[str, Column] | Fault]],
        dead: dict[int, Fault],
    ) -> Requests:
        count = len(order)
        whole = len(groups) == 1

        def merged(columns: Sequence[Column]) -> Column:
            return columns[0] if whole else concat(columns).take(order)

        if not groups:
            empty = TextColumn.from_values([])
            none = np.zeros(0, np.int64)
            return Requests(batch, none, empty, empty, none, {}, np.zeros(0, np.int8), dead=dead, deadline_ms=none)
        rows = np.concatenate([r for r, _, _ in groups])[order]
        faults = [f if isinstance(f, Fault) else None for _, _, f in groups]
        absent = {f.name: f for f in self._features}
        features = {
            name: merged([
                _canonical_column(feature, None, len(r)) if isinstance(cols, Fault) else cols[name]
                for r, _, cols in groups
            ])
            for name, feature in absent.items()
        }  # fmt: skip
        request_id = merged([c.fields["request_id"] for _, c, _ in groups])
        entity_id = merged([c.fields["entity_id"] for _, c, _ in groups])
        event_time = merged([c.fields["event_time"] for _, c, _ in groups])
        assert isinstance(request_id, TextColumn) and isinstance(entity_id, TextColumn)  # noqa: PT018
        assert isinstance(event_time, NumberColumn)
        requests = Requests(
            batch, rows, request_id, entity_id, event_time.values.astype(np.int64), features,
            np.zeros(count, np.int8), dead=dead, deadline_ms=np.full(count, NO_DEADLINE),
        )  # fmt: skip
        origin = np.concatenate([np.full(len(r), i) for i, (r, _, _) in enumerate(groups)])[order]
        for i, fault in enumerate(faults):
            if fault is not None:
                for row in np.flatnonzero(origin == i).tolist():
                    requests.refuse(row, fault)
        models = [c.fields.get("model") for _, c, _ in groups]
        self._check_model(
            requests, merged([_model_column(m, len(r)) for m, (r, _, _) in zip(models, groups, strict=True)])
        )
        self._check_keys(requests)
        self._check_features(requests)
        if batch.headers:
            self._read_headers(requests)
        return requests

    def _check_model(self, requests: Requests, model: Column) -> None:
        assert isinstance(model, TextColumn)
        if model.valid is not None and not model.valid.any():
            return
        other = model.codes((self._spec.name,), unknown=-1) < 0
        if model.valid is not None:
            other &= model.valid
        message = f"another model than {self._spec.name} is asked for, and it is not live here"
        for row in np.flatnonzero(other).tolist():
            requests.refuse(row, Fault("schema", "UnknownModel", message))

    def _check_keys(self, requests: Requests) -> None:
        batch = requests.batch
        keys = batch.keys if len(requests) == len(batch) else [batch.keys[i] for i in requests.rows.tolist()]
        entities = requests.entity_id.to_bytes_list()
        if keys != entities:  # one comparison in C for the usual case
            fault = Fault("schema", "KeyMismatch", "the record's key is not its entity_id; produce with key=entity_id")
            for row, (key, entity) in enumerate(zip(keys, entities, strict=True)):
                if key != entity:
                    requests.refuse(row, fault)
        nameless = Fault("schema", "EmptyRequestId", "request_id is empty; an outcome could never be joined to it")
        for row in np.flatnonzero(requests.request_id.lengths == 0).tolist():
            requests.refuse(row, nameless)

    def _check_features(self, requests: Requests) -> None:
        for feature in self._features:
            column = requests.features[feature.name]
            valid = column.valid if isinstance(column, NumberColumn | TextColumn) else None
            if feature.required and valid is not None:
                fault = Fault("schema", "MissingFeature", f"feature {feature.name} is required and null or absent")
                for row in np.flatnonzero(~valid).tolist():
                    requests.refuse(row, fault)
            if isinstance(column, NumberColumn) and column.values.dtype.kind == "f":
                odd = ~np.isfinite(column.values)
                if valid is not None:
                    odd &= valid
                fault = Fault(
                    "schema", "NotFinite", f"feature {feature.name} is NaN or infinite; send null for unknown"
                )
                for row in np.flatnonzero(odd).tolist():
                    requests.refuse(row, fault)

    def _read_headers(self, requests: Requests) -> None:
        version = str(self._spec.version).encode()
        for row, place in enumerate(requests.rows.tolist()):
            for name, value in requests.batch.headers[place]:
                if name == DEADLINE_HEADER:
                    _read_deadline(requests, row, value)
                elif name == VERSION_HEADER and value != version:
                    message = f"version pinned by {VERSION_HEADER} is not live; live is {self._spec.version}"
                    requests.refuse(row, Fault("schema", "UnknownVersion", message))
                elif name == LABEL_HEADER and value != b"champion":
                    message = f"label pinned by {LABEL_HEADER} is not live; live is champion"
                    requests.refuse(row, Fault("schema", "UnknownLabel", message))


def deadlines_ms(batch: RecordBatch) -> NDArray[np.int64]:
    """Deadline of each record, as far as its header can be read; ``NO_DEADLINE`` where there is none."""
    deadlines = np.full(len(batch), NO_DEADLINE)
    for row, headers in enumerate(batch.headers):
        for name, value in headers:
            if name == DEADLINE_HEADER:
                with contextlib.suppress(ValueError, OverflowError):  # the decoder will say INVALID
                    deadlines[row] = int(value or b"")
    return deadlines


def _merged(batches: Sequence[RecordBatch]) -> RecordBatch:
    """One batch of the records of several; its offsets are places, since several partitions share it."""
    count = sum(len(batch) for batch in batches)
    headers: list[Headers] = []
    if any(batch.headers for batch in batches):
        headers = [h for batch in batches for h in (batch.headers or [()] * len(batch))]
    merged = RecordBatch(
        topic=batches[0].topic,
        partition=-1,
        start_offset=0,
        next_offset=count,
        offsets=np.arange(count),
        timestamps_ms=np.concatenate([batch.timestamps_ms for batch in batches]),
        keys=[key for batch in batches for key in batch.keys],
        values=[value for batch in batches for value in batch.values],
        headers=headers,
    )
    starts = accumulate((len(batch) for batch in batches), initial=0)
    return damaged(merged, {
        start + row: reason
        for start, batch in zip(starts, batches, strict=False)
        if isinstance(batch, DamagedBatch)
        for row, reason in batch.unreadable.items()
    })  # fmt: skip


def _cut(whole: Requests, batch: RecordBatch, base: int, start: int, end: int) -> Requests:
    """Requests ``start .. end - 1`` of ``whole``; they came in ``batch``, whose first record is its ``base``."""
    rows = slice(start, end)
    return Requests(
        batch=batch,
        rows=whole.rows[rows] - base,
        request_id=whole.request_id.take(rows),
        entity_id=whole.entity_id.take(rows),
        event_time_us=whole.event_time_us[rows],
        features={name: column.take(rows) for name, column in whole.features.items()},
        status=whole.status[rows].copy(),
        faults={row - start: fault for row, fault in whole.faults.items() if start <= row < end},
        dead={place - base: fault for place, fault in whole.dead.items() if base <= place < base + len(batch)},
        deadline_ms=whole.deadline_ms[rows],
    )


def own_headers(headers: Headers) -> Headers:
    """The headers that an answer hands on: trace context and request id."""
    return tuple(h for h in headers if h[0] in {"traceparent", "tracestate", "x-request-id"})


def _mark_unreadable(batch: DamagedBatch, ids: NDArray[np.int64], dead: dict[int, Fault]) -> None:
    for row, reason in batch.unreadable.items():
        ids[row] = NOT_FRAMED
        dead[row] = Fault("decode", "UnreadableRecord", reason)


def _not_framed(batch: RecordBatch, members: NDArray[np.int64], dead: dict[int, Fault]) -> None:
    for row in members.tolist():
        value = batch.values[row]
        if row in dead:
            continue
        if not value:
            dead[row] = Fault(
                "decode", "EmptyRecord", "the value is empty; a request is a Confluent-framed Avro record"
            )
        else:
            message = "the value does not start with a zero byte and a schema id (Confluent frame)"
            dead[row] = Fault("decode", "NotFramed", message)


def _read_deadline(requests: Requests, row: int, value: bytes | None) -> None:
    try:
        requests.deadline_ms[row] = int(value or b"")
    except (ValueError, OverflowError):
        message = f"header {DEADLINE_HEADER} is no integer of milliseconds"
        requests.refuse(row, Fault("schema", "BadDeadline", message))


def _value_type(avro_type: object) -> str:
    """Type of a field, null left out; a time in another unit than micros is named by that unit."""
    if isinstance(avro_type, list):
        inner = [t for t in avro_type if t != "null"]
        return _value_type(inner[0]) if len(inner) == 1 else "union"
    if isinstance(avro_type, dict):
        unit = avro_type.get("logicalType")
        return str(unit if unit in OTHER_TIMES else avro_type["type"])
    return str(avro_type)


def _accepted(feature: Feature) -> set[str]:
    return {
        "number": {"int", "long", "float", "double"} | OTHER_TIMES,
        "category": {"string", "enum"},
        "time": {"long"},
        "flag": {"boolean"},
    }[feature.type]


def _canonical_column(feature: Feature, column: Column | None, count: int) -> Column:
    if column is None:
        gone = np.zeros(count, bool)
        if feature.type in TEXTS:
            return TextColumn(np.zeros(0, np.uint8), np.zeros(count, np.int64), np.zeros(count, np.int64), gone)
        return NumberColumn(np.zeros(count, _dtype(feature)), gone)
    if isinstance(column, EnumColumn):
        text = TextColumn.from_codes(column.codes, column.symbols)
        return TextColumn(text.data, text.starts, text.lengths, column.valid)
    if isinstance(column, NumberColumn):
        return NumberColumn(column.values.astype(_dtype(feature), copy=False), column.valid)
    return column


def _dtype(feature: Feature) -> type[np.generic]:
    return {"time": np.int64, "flag": np.bool_}.get(feature.type, np.float64)


def _model_column(column: Column | None, count: int) -> TextColumn:
    if isinstance(column, TextColumn):
        return column
    zeros = np.zeros(count, np.int64)
    return TextColumn(np.zeros(0, np.uint8), zeros, zeros, np.zeros(count, bool))
