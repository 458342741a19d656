"""Our own reader of Kafka's batches: what it reads, what it saves of a damaged one, and that no offset goes missing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inflation import CannotInflate
from app.record_reader import (
    HEADER,
    MAX_RECORD_BYTES,
    MAX_RECORDS,
    DamagedBatch,
    PlainRecord,
    damaged,
    find_batch,
    inflated_batch,
    lost_records,
    read_records,
    without_excess,
)
from bench.kafka_batches import FIRST_MS, batch, record, sized, varint
from tests.samples import record_batch


def test_a_header_name_that_is_not_utf8_stays_readable() -> None:
    """The odd bytes are written with backslashes; its value, its neighbours and null values stay as they are."""
    raw = batch([record(b"v", key=b"k", headers=[(b"a\xff", b"1"), ("ü".encode(), None)])], base=9)
    assert list(read_records(raw)) == [PlainRecord(9, FIRST_MS, b"k", b"v", [("a\\xff", b"1"), ("ü", None)])]


def test_times_come_from_the_record_or_from_the_broker() -> None:
    """With LogAppendTime the batch's largest timestamp counts, else the record's own."""
    records = [record(b"a", later_ms=5), record(b"b", place=1, later_ms=-7)]
    assert [r.timestamp for r in read_records(batch(records))] == [FIRST_MS + 5, FIRST_MS - 7]
    assert [r.timestamp for r in read_records(batch(records, flags=8, max_ms=42))] == [42, 42]


def test_reading_may_begin_inside_a_batch() -> None:
    """A committed offset inside a batch leaves out what is before it."""
    raw = batch([record(b"%d" % i, place=i) for i in range(5)], base=10)
    assert [(r.offset, r.value) for r in read_records(raw, from_offset=13)] == [(13, b"3"), (14, b"4")]


def test_compacted_offsets_keep_their_gaps() -> None:
    """Compaction takes records out of a batch; the others keep their offsets."""
    raw = batch([record(b"a", place=1), record(b"b", place=4)], base=10, last_delta=6)
    assert [(r.offset, r.problem) for r in read_records(raw)] == [(11, None), (14, None)]


DAMAGE = {
    "negative header count": sized(b"\0" + varint(0) + varint(1) + sized(b"k") + sized(b"v") + varint(-1)),
    "too many headers": sized(b"\0" + varint(0) + varint(1) + sized(b"k") + sized(b"v") + varint(10**12)),
    "key beyond the end": sized(b"\0" + varint(0) + varint(1) + varint(99)),
    "value beyond the end": sized(b"\0" + varint(0) + varint(1) + sized(b"k") + varint(2**40)),
    "bytes left over": sized(b"\0" + varint(0) + varint(1) + sized(b"k") + sized(b"v") + varint(0) + b"more"),
    "a number without an end": sized(b"\0" + b"\xff" * 12),
    "an offset of another record": sized(b"\0" + varint(0) + varint(0) + sized(b"k") + sized(b"v") + varint(0)),
    "an offset beyond the batch": sized(b"\0" + varint(0) + varint(7) + sized(b"k") + sized(b"v") + varint(0)),
    "nothing": sized(b""),
    "a negative length": varint(-5),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_record_spoils_itself_alone(case: str) -> None:
    """Its neighbours are read; it has its bytes, its place and a reason."""
    raw = batch([record(b"a"), DAMAGE[case], record(b"c", place=2)], base=100)
    first, bad, last = read_records(raw)
    assert (first.value, last.value, first.problem, last.problem) == (b"a", b"c", None, None)
    assert [first.offset, bad.offset, last.offset] == [100, 101, 102]
    assert bad.problem is not None
    assert bad.problem.startswith("its Kafka record is damaged: ")
    assert DAMAGE[case].endswith(bad.value or b"")


def test_a_length_that_leads_out_of_the_batch_loses_the_rest_but_no_offset() -> None:
    """Nobody can say where the next record begins: the first keeps all bytes, each later one names it."""
    bad = varint(10**6) + b"rest"
    raw = batch([record(b"a"), bad, b"", b""], base=50)
    a, first, second, third = read_records(raw)
    assert a.value == b"a"
    assert (first.offset, first.value) == (51, bad)
    assert "1000000 bytes are announced" in (first.problem or "")
    for follower, offset in ((second, 52), (third, 53)):
        assert (follower.offset, follower.value) == (offset, None)
        assert "the bytes are in the dead letter of offset 51" in (follower.problem or "")


def test_more_records_than_offsets_have_no_place() -> None:
    """A count that lies never leads beyond the batch's own offsets."""
    raw = batch([record(b"a"), record(b"b", place=1)], count=9, last_delta=1)
    assert [r.value for r in read_records(raw)] == [b"a", b"b"]
    assert [r.offset for r in read_records(batch([record(b"a")], count=9, last_delta=3))] == [0, 1, 2, 3]


def test_a_batch_that_cannot_be_read_at_all_ends_in_one_record_an_offset() -> None:
    """The first has the whole batch as its value; reading may begin anywhere in it."""
    raw = batch([b"", b"", b""], base=7, codec=6, body=b"??")
    first, second, third = lost_records(raw, "codec 6 is unknown")
    assert (first.offset, first.value) == (7, raw)
    assert (first.problem or "").startswith("codec 6 is unknown; ")
    assert [(r.offset, r.value) for r in (second, third)] == [(8, None), (9, None)]
    assert [r.offset for r in lost_records(raw, "x", from_offset=9)] == [9]


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_an_inflated_batch_is_the_same_batch(codec: int) -> None:
    """Header and records as if it had never been compressed."""
    records = [record(b"%d" % i, place=i) for i in range(4)]
    inflated = inflated_batch(batch(records, base=3, codec=codec))
    assert inflated[:17] == batch(records, base=3)[:17]
    assert list(read_records(inflated)) == list(read_records(batch(records, base=3)))


def test_bombs_are_refused() -> None:
    """Too many bytes, or so many records that their objects would fill the memory."""
    with pytest.raises(CannotInflate, match="more than 1000 bytes"):
        inflated_batch(batch([record(bytes(2000))], codec=1), limit_bytes=1000)
    many = batch([record(b"")], codec=1, count=MAX_RECORDS + 1)
    with pytest.raises(CannotInflate, match=f"{MAX_RECORDS + 1} records; at most {MAX_RECORDS}, send smaller batches"):
        inflated_batch(many)


def test_a_record_too_large_for_any_topic_is_cut() -> None:
    """It could only be sent compressed, and no dead-letter topic takes it whole: what is kept fits, and says so."""
    for huge in (
        PlainRecord(1, 5, b"k", bytes(2**22), [("h", b"x")]),
        PlainRecord(1, 5, bytes(2**21), b"v", []),
        PlainRecord(1, 5, b"k", b"v", [("h", bytes(2**21))]),
        PlainRecord(1, 5, None, None, [("n" * 2**21, None)]),
    ):
        cut = without_excess(huge)
        size = len(cut.key or b"") + len(cut.value or b"") + sum(len(n) + len(v or b"") for n, v in cut.headers)
        assert size <= MAX_RECORD_BYTES
        assert (cut.offset, cut.timestamp) == (1, 5)
        assert (huge.value or b"").startswith(cut.value or b"")
        assert "the whole record is at its offset of the source topic" in (cut.problem or "")
    fits = PlainRecord(1, 5, b"k", bytes(2**20), [])
    assert without_excess(fits) is fits


def test_a_batch_is_found_among_others() -> None:
    """By its first offset; what is not there is said to be not there."""
    batches = [batch([record(b"%d" % base)], base=base) for base in (3, 4, 9)]
    raw, place = b"".join(batches), 0
    for one, base in zip(batches, (3, 4, 9), strict=True):
        assert slice(*find_batch(raw, base)) == slice(*find_batch(raw, base, place))
        place, end = find_batch(raw, base, place)
        assert raw[place:end] == one
    for base, start in ((5, 0), (3, place)):
        with pytest.raises(ValueError, match=f"no batch at offset {base}"):
            find_batch(raw, base, start)


def test_damage_is_marked_in_the_record_batch() -> None:
    """A batch without damage stays what it is; else the same values with the places of the damage."""
    sound = record_batch([b"a", b"b"], [b"k", b"k"])
    assert damaged(sound, {}) is sound
    marked = damaged(sound, {1: "why"})
    assert isinstance(marked, DamagedBatch)
    assert (marked.values, marked.unreadable) == (sound.values, {1: "why"})


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_every_offset_comes_out_once_whatever_the_bytes(seed: int, count: int) -> None:
    """Any bytes behind the header: offsets increase, stay inside the batch, and none is missing."""
    chance = random.Random(seed)
    records = [record(b"value %d" % i, key=b"k", headers=[(b"h", b"x")], place=i) for i in range(count)]
    raw = bytearray(batch(records, base=20))
    for _ in range(chance.randint(1, 5)):
        raw[chance.randrange(HEADER.size, len(raw))] = chance.randrange(256)
    cut = chance.choice([len(raw), chance.randrange(HEADER.size, len(raw) + 1)])
    assert [r.offset for r in read_records(bytes(raw[:cut]))] == list(range(20, 20 + count))
