"""The frame and the source mark."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.wire import HEADER_BYTES, NOT_FRAMED, frame_header, parse_source_mark, schema_ids, source_mark


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8), st.binary(max_size=9))
def test_ids_are_read_as_they_were_written(ids: list[int], body: bytes) -> None:
    """A framed value gives back its id, whatever follows the frame."""
    assert schema_ids([frame_header(schema_id) + body for schema_id in ids]).tolist() == ids


@pytest.mark.parametrize(
    "value",
    [None, b"", b"\0", b"\0\0\0\0", b"\1\0\0\0\7x", b'{"a": 1}', b"\0\x80\0\0\0x", b"\0\xff\xff\xff\xff"],
    ids=["tombstone", "empty", "magic", "short", "other magic", "JSON", "2**31", "2**32 - 1"],
)
def test_what_is_no_frame_says_so_and_leaves_its_neighbours(value: bytes | None) -> None:
    """A value without a whole frame is NOT_FRAMED; the values around it keep their ids."""
    assert schema_ids([frame_header(5), value, frame_header(6)]).tolist() == [5, NOT_FRAMED, 6]


def test_no_values_have_no_ids() -> None:
    """An empty list gives an empty array."""
    assert schema_ids([]).tolist() == []


@pytest.mark.parametrize("schema_id", [-1, 2**31])
def test_an_id_out_of_range_is_refused(schema_id: int) -> None:
    """Ids are what fits a Java int and is not negative."""
    with pytest.raises(ValueError, match=str(schema_id)):
        frame_header(schema_id)


def test_the_frame_is_what_confluent_writes() -> None:
    """Zero byte, then the id in network order."""
    assert frame_header(0x01020304) == b"\0\1\2\3\4"
    assert len(frame_header(0)) == HEADER_BYTES


@given(
    st.text(alphabet="abcXYZ019._-:", min_size=1, max_size=20),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 99),
)
def test_a_source_mark_is_read_as_it_was_written(topic: str, partition: int, offset: int, attempt: int) -> None:
    """Even a colon in the topic's name (which Kafka forbids) does not confuse the reader."""
    assert parse_source_mark(source_mark(topic, partition, offset, attempt)) == (topic, partition, offset, attempt)


@pytest.mark.parametrize("mark", [b"", b"score-requests", b"t:1:2", b"t:1:2:x", b"t::2:0", b"\xff:1:2:0"])
def test_what_is_no_source_mark_is_refused(mark: bytes) -> None:
    """A foreign header of the same name is named as such instead of giving numbers."""
    with pytest.raises(ValueError, match=r".+"):
        parse_source_mark(mark)
