"""Slices of fetches become micro-batches, and every offset belongs to exactly one part."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.batcher import Slice
from app.microbatch import MicroBatch, expire, form
from app.request_features import Fault
from app.requests import RequestDecoder, Requests
from schemas.columns import to_python
from schemas.records import FireReason, Headers, Status
from schemas.wire import frame_header
from tests.samples import framed, record_batch, request, sample_request_schema

Decode = Callable[..., Requests]
SCHEMA = sample_request_schema()


@pytest.fixture
def decode(decoder: RequestDecoder) -> Decode:
    """Requests of a record batch in which each letter stands for a good (g), invalid (i) or dead (d) record."""

    def decode_kinds(
        kinds: str, *, partition: int = 0, first: int = 100, step: int = 1, deadlines: str = ""
    ) -> Requests:
        schema_id = next(i for i in decoder._book.ids() if decoder._book.schema(i) == SCHEMA)
        values: list[bytes | None] = []
        keys: list[bytes | None] = []
        for place, kind in enumerate(kinds):
            record = request(first + place, **({"distance": None} if kind == "i" else {}))
            values.append(frame_header(schema_id) if kind == "d" else framed(SCHEMA, schema_id, record))
            keys.append(str(record["entity_id"]).encode())
        headers: list[Headers] = [(("x-deadline-unix-ms", d.encode()),) if d != "-" else () for d in deadlines.split()]
        return decoder.decode(record_batch(values, keys, partition=partition, first=first, step=step, headers=headers))

    return decode_kinds


def _form(*slices: Slice, now_ms: int = 0) -> MicroBatch:
    return form(slices, FireReason.FULL, now_s=5.0, planned_s=5.0, in_time_ms=now_ms)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ggid", min_size=1, max_size=14), st.integers(1, 3), st.data())
def test_parts_cover_a_fetch_exactly(decode: Decode, kinds: str, step: int, data: st.DataObject) -> None:
    """Wherever a fetch is cut, its parts' offset ranges touch, cover it whole, and hold each dead letter once."""
    requests = decode(kinds, step=step)
    count = len(requests)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(count - 1, 1)), max_size=4))) if count > 1 else []
    edges = [0, *cuts, count]
    batches = [_form(Slice(requests, a, b)) for a, b in pairwise(edges)]
    parts = [part for batch in batches for part in batch.parts]
    assert parts[0].first_offset == requests.batch.start_offset
    assert parts[-1].next_offset == requests.batch.next_offset
    assert all(a.next_offset == b.first_offset for a, b in pairwise(parts))
    assert all(part.first_offset < part.next_offset for part in parts)
    dead = [place for part in parts for place in part.dead]
    assert sorted(dead) == sorted(requests.dead) == [i for i, kind in enumerate(kinds) if kind == "d"]
    for part in parts:
        inside = requests.batch.offsets[requests.rows[part.start : part.end]].tolist()
        inside += requests.batch.offsets[list(part.dead)].tolist() if part.dead else []
        assert all(part.first_offset <= offset < part.next_offset for offset in inside)
    assert sum(map(len, batches)) == count


def test_rows_of_several_partitions_stand_one_after_the_other(decode: Decode) -> None:
    """Ids, times, status and features follow the order of the slices; only good rows are live."""
    one, other = decode("gigg"), decode("dgi", partition=2, first=7)
    batch = _form(Slice(one, 1, 4), Slice(other, 0, 2))
    assert batch.request_id.to_list() == ["r-101", "r-102", "r-103", "r-8", "r-9"]
    assert batch.status.tolist() == [Status.INVALID, Status.OK, Status.OK, Status.OK, Status.INVALID]
    assert batch.live.tolist() == [1, 2, 3]
    assert to_python(batch.features["distance"]) == [202.0, 203.0, 108.0]
    assert sorted(batch.faults) == [0, 4]
    assert {fault.error_class for fault in batch.faults.values()} == {"MissingFeature"}
    assert [(p.first_offset, p.next_offset) for p in batch.parts] == [(101, 104), (7, 10)]


def test_dead_letters_alone_make_a_batch_without_rows(decode: Decode) -> None:
    """A fetch of which nothing can be decoded is still answered: its offsets stand in a part."""
    batch = _form(Slice(decode("dd"), 0, 0))
    assert (len(batch), len(batch.live)) == (0, 0)
    assert (batch.parts[0].first_offset, batch.parts[0].next_offset, sorted(batch.parts[0].dead)) == (100, 102, [0, 1])


def test_dead_letters_beside_requests_change_nothing_for_them(decode: Decode) -> None:
    """A part without rows stands between parts with rows."""
    batch = _form(
        Slice(decode("dd", partition=1), 0, 0), Slice(decode("gg"), 0, 2), Slice(decode("d", partition=2), 0, 0)
    )
    assert batch.request_id.to_list() == ["r-100", "r-101"]
    assert [len(part) for part in batch.parts] == [0, 2, 0]
    assert batch.live.tolist() == [0, 1]


def test_requests_past_their_deadline_expire_before_they_cost_anything(decode: Decode) -> None:
    """At the deadline it is too late; a later one, or none, goes on; an INVALID request stays INVALID."""
    batch = _form(Slice(decode("gggi", deadlines="50 51 - 50"), 0, 4), now_ms=50)
    assert batch.status.tolist() == [Status.EXPIRED, Status.OK, Status.OK, Status.INVALID]
    assert batch.live.tolist() == [1, 2]
    assert batch.faults[0] == Fault("queue", "Expired", "it could not be answered before its deadline")
    assert batch.faults[3].error_class == "MissingFeature"
    expire(batch, 51)
    assert batch.status.tolist() == [Status.EXPIRED, Status.EXPIRED, Status.OK, Status.INVALID]
    assert to_python(batch.features["distance"]) == [202.0]


def test_dropping_nothing_changes_nothing(decode: Decode) -> None:
    """No row, no copy, no fault."""
    batch = _form(Slice(decode("gg"), 0, 2))
    before = batch.features
    batch.drop(np.zeros(2, bool), Status.ERROR, Fault("inference", "X", "x"))
    assert batch.features is before
    assert batch.faults == {}
