"""From a record batch to checked request columns.

A value that cannot be decoded becomes a dead letter; a decodable request that does not fit the model becomes INVALID.
Several schema versions may share a batch: each id is resolved once into a plan, and the rows are put back in order.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from app.models.live_table import Refusal
from app.record_reader import DamagedBatch, damaged
from app.request_features import Decoded, Fault, FeatureReader, null_text, value_type
from schemas.columns import Column, NumberColumn, TextColumn, concat
from schemas.records import RecordBatch, Status
from schemas.wire import HEADER_BYTES, NOT_FRAMED, schema_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from app.models.live_table import LiveTable
    from schemas.columnar import Decoder
    from schemas.records import Headers
    from schemas.registry import SchemaBook

T = TypeVar("T")

NO_DEADLINE = np.iinfo(np.int64).max
DEADLINE_HEADER = "x-deadline-unix-ms"
VERSION_HEADER = "x-model-version"
LABEL_HEADER = "x-model-label"


class Share(NamedTuple):
    """The requests that one live model answers.

    Attributes:
        model: it.
        rows: shape (m,), increasing, their places among the requests.
        features: its request features by name, canonical types, m rows each.

    """

    model: Any
    rows: NDArray[np.int64]
    features: dict[str, Column]

    def cut(self, start: int, end: int) -> Share:
        """Those of requests ``start .. end - 1``, counted from there."""
        low, high = np.searchsorted(self.rows, (start, end)).tolist()
        mine = slice(low, high)
        return Share(self.model, self.rows[mine] - start, {n: c.take(mine) for n, c in self.features.items()})


@dataclass(slots=True)
class Requests:
    """The decodable requests of one record batch, in offset order, and its dead letters.

    Attributes:
        batch: the raw records.
        rows: shape (n,), place of each request in the batch.
        request_id: n ids.
        entity_id: n ids.
        event_time_us: shape (n,), UTC micros.
        shares: the requests by the model that answers them; each request is in one.
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
    shares: list[Share]
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
    """How the records of a schema are read."""

    decoder: Decoder
    types: dict[str, str]


@dataclass(slots=True)
class _Pins:
    """What headers say: version and label by row."""

    version: dict[int, bytes] = field(default_factory=dict)
    label: dict[int, bytes] = field(default_factory=dict)


class _SchemasWanted(Exception):
    def __init__(self, schema_ids: set[int]) -> None:
        super().__init__(sorted(schema_ids))
        self.schema_ids = schema_ids


class RequestDecoder:
    """Decodes requests, finds the live model that answers each, and checks them for it.

    Args:
        book: resolves schema ids.
        table: the live models; set before the first call, and replaced between two calls.
        max_request_bytes: a larger value is a dead letter.

    """

    def __init__(self, book: SchemaBook, table: LiveTable[Any] | None = None, *, max_request_bytes: int) -> None:
        self._book = book
        self._readers: dict[int, FeatureReader] = {}
        if table is not None:
            self.table = table
        self._max_request_bytes = max_request_bytes
        self._plans: dict[int, _Plan | Fault] = {}
        self._asked: frozenset[int] | None = None  # what ``with_schemas`` has fetched so far; None outside of it
        self._wanted: set[int] = set()

    @property
    def table(self) -> LiveTable[Any]:
        """The live models."""
        return self._table

    @table.setter
    def table(self, table: LiveTable[Any]) -> None:
        self._table = table
        self._readers = {id(model): FeatureReader(model.spec) for model in table.versions.values()}

    def decode(self, batch: RecordBatch) -> Requests:
        """Every record of the batch, either as a request or as a dead letter; never raises for what is in a record."""
        dead: dict[int, Fault] = {}
        ids = schema_ids(batch.values)
        if isinstance(batch, DamagedBatch):
            _mark_unreadable(batch, ids, dead)
        self._mark_oversized(batch, ids, dead)
        groups: list[Decoded] = []
        for schema_id in np.unique(ids):
            members = np.flatnonzero(ids == schema_id)
            group = self._decode_group(batch, int(schema_id), members, dead)
            if group is not None:
                groups.append(group)
        if self._wanted:
            wanted, self._wanted = self._wanted, set()
            raise _SchemasWanted(wanted)
        return self._assembled(batch, groups, dead) if groups else _no_requests(batch, dead)

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
    ) -> Decoded | None:
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
        return Decoded(members, columns, schema_id, plan.types)

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
            n in fields and not isinstance(fields[n], list) and value_type(fields[n]) == t for n, t in wanted.items()
        )
        if not fits or not isinstance(features, dict) or features.get("type") != "record":
            message = f"schema id {schema_id} is {schema.get('name')}, not a score request"
            return Fault("schema", "WrongSchema", message)
        return _Plan(decoder, {f["name"]: value_type(f["type"]) for f in features["fields"]})

    def _assembled(self, batch: RecordBatch, groups: list[Decoded], dead: dict[int, Fault]) -> Requests:
        """The requests of one or several schemas, in the order of their records."""
        order = None
        if len(groups) > 1:
            order = np.argsort(np.concatenate([group.places for group in groups]), kind="stable")

        def merged(name: str) -> Column:
            columns = [group.columns.fields[name] for group in groups]
            return columns[0] if order is None else concat(columns).take(order)

        request_id, entity_id, event_time = merged("request_id"), merged("entity_id"), merged("event_time")
        assert isinstance(request_id, TextColumn) and isinstance(entity_id, TextColumn)  # noqa: PT018
        assert isinstance(event_time, NumberColumn)
        rows = groups[0].places if order is None else np.concatenate([group.places for group in groups])[order]
        count = len(rows)
        requests = Requests(
            batch, rows, request_id, entity_id, event_time.values.astype(np.int64), [],
            np.zeros(count, np.int8), dead=dead, deadline_ms=np.full(count, NO_DEADLINE),
        )  # fmt: skip
        pins = _read_headers(requests) if batch.headers else _Pins()
        models, places = self._route(requests, _model_names(groups, order), pins)
        for i, model in enumerate(models):
            self._add_share(requests, groups, order, model, None if places is None else np.flatnonzero(places == i))
        _check_keys(requests)
        return requests

    def _route(
        self, requests: Requests, names: TextColumn | None, pins: _Pins
    ) -> tuple[list[Any], NDArray[np.int64] | None]:
        """The live models that are asked for, and for each request its place among them; None: one answers all."""
        table = self._table
        pinned = sorted(pins.version.keys() | pins.label.keys())
        models: list[Any] = [table.champion]
        places = np.zeros(len(requests), np.int64)
        named: list[str | None] = [None] * len(requests)
        if names is not None:
            named = names.to_list() if pinned else named
            codes = names.codes(table.names, unknown=-1)
            if names.valid is not None:
                codes[~names.valid] = table.names.index(table.default)
            for code in np.unique(codes).tolist():
                mine = np.flatnonzero(codes == code)
                if code < 0:
                    _refuse_unknown_models(requests, table, names, mine)
                else:
                    self._ask(requests, models, places, mine, (table.names[code], None, None))
        for row in pinned:
            wanted = named[row], pins.version.get(row), pins.label.get(row)
            self._ask(requests, models, places, np.array([row]), wanted)
        return models, (places if places.any() else None)

    def _ask(
        self,
        requests: Requests,
        models: list[Any],
        places: NDArray[np.int64],
        rows: NDArray[np.int64],
        wanted: tuple[str | None, bytes | None, bytes | None],
    ) -> None:
        """Give some requests the model that they want."""
        found = self._table.find(wanted[0], version=wanted[1], label=wanted[2])
        if isinstance(found, Refusal):
            for row in rows.tolist():
                requests.refuse(row, Fault("schema", *found))
            return
        if found not in models:
            models.append(found)
        places[rows] = models.index(found)

    def _add_share(
        self,
        requests: Requests,
        groups: list[Decoded],
        order: NDArray[np.int64] | None,
        model: Any,  # noqa: ANN401 - a live model of the table
        rows: NDArray[np.int64] | None,
    ) -> None:
        """Read and check the features of the requests that a model answers; ``rows`` None: all of them."""
        reader = self._readers[id(model)]
        if rows is None:
            rows = np.arange(len(requests))
        elif not len(rows):
            return
        else:
            groups, order = _those_of(groups, order, rows)
        features = reader.read(groups, order)
        _refuse_wrong_types(requests, groups, order, reader, rows)
        for mask, fault in reader.faults(features):
            for row in rows[mask].tolist() if mask.any() else ():
                requests.refuse(row, fault)
        requests.shares.append(Share(model, rows, features))


def _those_of(
    groups: Sequence[Decoded], order: NDArray[np.int64] | None, rows: NDArray[np.int64]
) -> tuple[list[Decoded], NDArray[np.int64] | None]:
    """The same for some requests; ``rows`` are increasing."""
    places = rows if order is None else order[rows]  # in the groups one after the other
    kept, start, edges = [], 0, []
    for group in groups:
        end = start + len(group.places)
        mine = np.sort(places[(places >= start) & (places < end)]) - start
        if len(mine):
            kept.append(group._replace(places=group.places[mine], columns=group.columns.take(mine)))
            edges.append(mine + start)
        start = end
    if len(kept) == 1:
        return kept, None
    return kept, np.searchsorted(np.concatenate(edges), places)


def _refuse_wrong_types(
    requests: Requests,
    groups: Sequence[Decoded],
    order: NDArray[np.int64] | None,
    reader: FeatureReader,
    rows: NDArray[np.int64],
) -> None:
    faults = [reader.type_fault(group.schema_id, group.types) for group in groups]
    if not any(faults):
        return
    origin = np.repeat(np.arange(len(groups)), [len(group.places) for group in groups])
    for row, i in zip(rows.tolist(), (origin if order is None else origin[order]).tolist(), strict=True):
        fault = faults[i]
        if fault is not None:
            requests.refuse(row, fault)


def _model_names(groups: Sequence[Decoded], order: NDArray[np.int64] | None) -> TextColumn | None:
    """The models that requests name; None when none does."""
    columns = [group.columns.fields.get("model") for group in groups]
    texts = [
        column if isinstance(column, TextColumn) else null_text(len(group.places))
        for column, group in zip(columns, groups, strict=True)
    ]
    if not any(text.valid is None or text.valid.any() for text in texts):
        return None
    if order is None:
        return texts[0]
    merged = concat(texts).take(order)
    assert isinstance(merged, TextColumn)
    return merged


def _refuse_unknown_models(
    requests: Requests, table: LiveTable[Any], names: TextColumn, rows: NDArray[np.int64]
) -> None:
    for row, name in zip(rows.tolist(), names.take(rows).to_list(), strict=True):
        refusal = table.find(name)
        assert isinstance(refusal, Refusal)
        requests.refuse(row, Fault("schema", *refusal))


def _no_requests(batch: RecordBatch, dead: dict[int, Fault]) -> Requests:
    none, empty = np.zeros(0, np.int64), TextColumn.from_values([])
    return Requests(batch, none, empty, empty, none, [], np.zeros(0, np.int8), dead=dead, deadline_ms=none)


def _check_keys(requests: Requests) -> None:
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


def _read_headers(requests: Requests) -> _Pins:
    pins = _Pins()
    for row, place in enumerate(requests.rows.tolist()):
        for name, value in requests.batch.headers[place]:
            if name == DEADLINE_HEADER:
                _read_deadline(requests, row, value)
            elif name == VERSION_HEADER:
                pins.version[row] = value or b""
            elif name == LABEL_HEADER:
                pins.label[row] = value or b""
    return pins


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
        shares=[share for share in (s.cut(start, end) for s in whole.shares) if len(share.rows)],
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
