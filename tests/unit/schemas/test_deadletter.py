"""Headers of a dead letter."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.deadletter import MAX_MESSAGE_BYTES, PREFIX, dead_letter_headers
from schemas.records import Headers, RecordBatch


def _batch(headers: list[Headers]) -> RecordBatch:
    stamps = np.array([1_700_000_000_000, 1_700_000_000_001])
    return RecordBatch("score-requests", 3, 40, 47, np.array([40, 46]), stamps, [None, b"k"], [b"", b"v"], headers)


def _headers(batch: RecordBatch, message: str = "the value ends too early") -> Headers:
    return dead_letter_headers(batch, 1, stage="decode", error_class="UndecodableRecord", message=message)


def test_headers_follow_kafka_connect() -> None:
    """Where the record came from and what was wrong, under the names that Connect's reporter uses."""
    assert dict(_headers(_batch([]))) == {
        "__connect.errors.topic": b"score-requests",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"46",
        "__connect.errors.timestamp": b"1700000000001",
        "__connect.errors.stage": b"decode",
        "__connect.errors.class.name": b"sluice",
        "__connect.errors.exception.class.name": b"UndecodableRecord",
        "__connect.errors.exception.message": b"the value ends too early",
    }


def test_the_records_own_headers_come_first_untouched() -> None:
    """Repeated names, empty values and an earlier trip through a dead-letter queue survive."""
    own: Headers = (("a", b"1"), ("a", b"2"), ("", b""), (PREFIX + "topic", b"older"))
    headers = _headers(_batch([(("other", b"row"),), own]))
    assert headers[: len(own)] == own
    assert all(name.startswith(PREFIX) for name, _ in headers[len(own) :])


@pytest.mark.parametrize("character", ["x", "é", "€", "\N{GRINNING FACE}"])
def test_a_long_message_is_cut_between_characters(character: str) -> None:
    """At most 512 bytes, and valid UTF-8 still."""
    cut = dict(_headers(_batch([]), character * 600))[PREFIX + "exception.message"]
    assert MAX_MESSAGE_BYTES - 3 <= len(cut) <= MAX_MESSAGE_BYTES
    assert set(cut.decode()) == {character}
