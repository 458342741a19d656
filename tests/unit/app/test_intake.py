"""Records of several fetches are decoded together, and come out as if each had been decoded alone."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.batcher import Slice
from app.intake import Segment, decode_slices, offsets_left
from app.microbatch import form
from app.requests import deadlines_ms
from schemas.columns import to_python
from schemas.records import FireReason
from schemas.wire import frame_header
from tests.samples import TOPIC, framed, record_batch, request, sample_request_schema

if TYPE_CHECKING:
    from app.requests import RequestDecoder, Requests
    from schemas.columns import Column
    from schemas.records import Headers, RecordBatch
    from schemas.registry import SchemaBook

SCHEMA = sample_request_schema()
KINDS = st.text(alphabet="ggidk", min_size=1, max_size=12)
SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _batch(book: SchemaBook, kinds: str, partition: int, *, headers: bool = False) -> RecordBatch:
    """Records of a partition: g good, i invalid, d dead, k good under a wrong key; every third offset is missing."""
    schema_id = book.add(TOPIC, SCHEMA)
    records = [request(1000 * partition + i, **({"distance": None} if k == "i" else {})) for i, k in enumerate(kinds)]
    values: list[bytes | None] = [
        frame_header(schema_id) if k == "d" else framed(SCHEMA, schema_id, r)
        for k, r in zip(kinds, records, strict=True)
    ]
    keys: list[bytes | None] = [
        b"?" if k == "k" else str(r["entity_id"]).encode() for k, r in zip(kinds, records, strict=True)
    ]
    given: list[Headers] = [(("x-deadline-unix-ms", b"%d" % (50 + i)),) for i in range(len(kinds))] if headers else []
    return record_batch(values, keys, partition=partition, first=100, step=3, headers=given)


def _values(features: dict[str, Column]) -> dict[str, list[object]]:
    return {name: to_python(column) for name, column in features.items()}


def _as_values(requests: Requests) -> object:
    return (
        requests.rows.tolist(), requests.request_id.to_list(), requests.entity_id.to_list(),
        requests.event_time_us.tolist(), [(s.rows.tolist(), _values(s.features)) for s in requests.shares],
        requests.status.tolist(), requests.faults, requests.dead, requests.deadline_ms.tolist(),
    )  # fmt: skip


@SETTINGS
@given(st.lists(st.tuples(KINDS, st.booleans()), min_size=1, max_size=5))
def test_together_is_the_same_as_alone(
    decoder: RequestDecoder, book: SchemaBook, fetches: list[tuple[str, bool]]
) -> None:
    """Whatever is good, invalid or dead in whichever fetch, with or without headers."""
    batches = [_batch(book, kinds, p, headers=headers) for p, (kinds, headers) in enumerate(fetches)]
    together = decoder.decode_together(batches)
    assert [r.batch for r in together] == batches
    for one, batch in zip(together, batches, strict=True):
        alone = decoder.decode(batch)
        if len(alone):
            assert _as_values(one) == _as_values(alone)
        else:
            assert (len(one), one.dead) == (0, alone.dead)


@SETTINGS
@given(st.lists(KINDS, min_size=1, max_size=3), st.data())
def test_parts_cover_every_fetch_wherever_it_is_cut(
    decoder: RequestDecoder, book: SchemaBook, fetches: list[str], data: st.DataObject
) -> None:
    """The offsets of all parts touch and cover each fetch once; every request and dead letter is in one of them."""
    segments = [Segment(_batch(book, kinds, p)) for p, kinds in enumerate(fetches)]
    pieces = []
    for segment in segments:
        count = len(segment.batch)
        cuts = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=3))) if count > 1 else []
        pieces += [Slice(segment, a, b) for a, b in pairwise([0, *cuts, count])]
    parts = []
    for group in pairwise([0, *sorted(data.draw(st.sets(st.integers(1, len(pieces)), max_size=3))), len(pieces)]):
        slices = decode_slices(pieces[slice(*group)], decoder)
        parts += form(slices, FireReason.FULL, now_s=0.0, planned_s=0.0, in_time_ms=0).parts if slices else []
    for partition, segment in enumerate(segments):
        mine = [p for p in parts if p.requests.batch.partition == partition]
        assert mine[0].first_offset == segment.batch.start_offset
        assert mine[-1].next_offset == segment.batch.next_offset
        assert all(a.next_offset == b.first_offset for a, b in pairwise(mine))
        assert sorted(place for p in mine for place in p.dead) == [
            i for i, k in enumerate(fetches[partition]) if k == "d"
        ]
        assert sum(map(len, mine)) == sum(k != "d" for k in fetches[partition])


@SETTINGS
@given(KINDS, st.data())
def test_what_is_left_is_what_no_part_has_answered(
    decoder: RequestDecoder, book: SchemaBook, kinds: str, data: st.DataObject
) -> None:
    """A fetch cut anywhere and given back from there: answered and left offsets add up to the whole."""
    segment = Segment(_batch(book, kinds, 0))
    cut = data.draw(st.integers(0, len(kinds) - 1))
    answered = 0
    if cut:
        slices = decode_slices([Slice(segment, 0, cut)], decoder)
        parts = form(slices, FireReason.FULL, now_s=0.0, planned_s=0.0, in_time_ms=0).parts if slices else []
        answered = sum(p.next_offset - p.first_offset for p in parts)
    left = offsets_left(Slice(segment, cut, len(kinds)))
    assert answered + left == segment.batch.next_offset - segment.batch.start_offset


def test_deadlines_are_read_before_decoding(book: SchemaBook) -> None:
    """One deadline a record, and none where the header is absent or no number."""
    batch = _batch(book, "gg", 0, headers=True)
    batch.headers[1] = (("x-deadline-unix-ms", b"soon"),)
    assert deadlines_ms(batch)[0] == 50
    assert deadlines_ms(batch)[1] > 2**60
