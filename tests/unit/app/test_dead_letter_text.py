"""Dead letters as text and as JSON."""

from __future__ import annotations

import base64
import json

import numpy as np

from app.dead_letter_text import details_lines, hex_dump, iso_time, letter_details, letter_json, letter_line
from app.dead_letters import DeadLetter
from schemas.deadletter import dead_letter_headers
from schemas.records import Headers, RecordBatch
from tests.samples import framed, request, sample_request_schema

SCHEMA = sample_request_schema()
WHOLE = framed(SCHEMA, 7, request(1))


def letter(value: bytes | None, *, key: bytes | None = b"e-1", message: str = "cut", own: Headers = ()) -> DeadLetter:
    """A dead letter with this value."""
    batch = RecordBatch("score-requests", 3, 17, 18, np.array([17]), np.array([5]), [key], [value], [own])
    headers = dead_letter_headers(batch, 0, stage="decode", error_class="TruncatedRecord", message=message)
    return DeadLetter("score-requests.dlq", 3, 4, 1_362_000_000_123, key, value, headers)


def known(schema_id: int) -> dict[str, object] | None:
    """The only schema."""
    return SCHEMA if schema_id == 7 else None


def test_a_line_is_one_line_and_short() -> None:
    """Whatever the message holds, the line stays a line that fits."""
    line = letter_line(letter(b"", message="x\ny" * 500))
    assert line.startswith("3:4        2013-02-27T21:20:00.123Z  score-requests 3:17  decode  TruncatedRecord  x\\ny")
    assert "\n" not in line
    assert len(line) < 200
    assert line.endswith("…")


def test_the_attempt_is_named_when_there_was_one() -> None:
    """A record that fails again is recognised at a glance."""
    assert letter_line(letter(b"", own=(("x-attempt", b"2"),))).endswith("(attempt 2)")


def test_json_has_the_same_facts() -> None:
    """A program gets source, stage, class, message and attempt by name."""
    found = letter_json(letter(b"abc"))
    assert found["source"] == {"topic": "score-requests", "partition": 3, "offset": 17}
    assert (found["place"], found["stage"], found["attempt"], found["value_bytes"]) == ("3:4", "decode", 0, 3)


def test_details_of_a_cut_record() -> None:
    """The fields before the cut, and where and why it stopped."""
    text = "\n".join(details_lines(letter(WHOLE[:20]), known))
    assert "field        request_id = r-1" in text
    assert "schema       id 7, " in text
    assert "stopped      at byte 14, in field event_time: truncated" in text


def test_details_of_other_values() -> None:
    """Without a frame, with an unknown schema, without a value, with a refused schema: each is said."""
    recursive = {"type": "record", "name": "R", "fields": [{"name": "r", "type": ["null", "R"]}]}
    assert "schema       none: the value does not start" in "\n".join(details_lines(letter(b"{}"), known))
    assert "id 8, unknown here; set SCHEMA_REGISTRY_URL" in "\n".join(details_lines(letter(b"\0\0\0\0\x08"), known))
    assert "none (a tombstone)" in "\n".join(details_lines(letter(None), known))
    assert "R, refused: " in "\n".join(details_lines(letter(WHOLE), lambda _: recursive))


def test_details_as_json_hold_the_bytes() -> None:
    """JSON of everything, bytes included, even of numbers that JSON does not have."""
    value = framed(SCHEMA, 7, request(1, distance=float("nan")))
    found = json.loads(json.dumps(letter_details(letter(value, own=(("h", b"\xff\x1b"),)), known), allow_nan=False))
    assert base64.b64decode(found["value_base64"]) == value
    assert found["record"]["fields"]["features.distance"] == "nan"
    assert found["headers"][0] == ["h", "\\xff\x1b"]
    assert found["key"] == "e-1"


def test_nothing_in_the_text_steers_a_terminal() -> None:
    """Keys, headers and fields come from outside; their control characters are shown, not obeyed."""
    hostile = letter(framed(SCHEMA, 7, request(1, request_id="\x1b[2J")), key=b"\x1b]0;", own=(("\x07", b"\x1b"),))
    assert all(line.isprintable() for line in details_lines(hostile, known))


def test_a_long_value_is_dumped_in_part() -> None:
    """512 bytes, and what else there is; every row of 16."""
    lines = hex_dump(bytes(range(256)) * 4)
    assert len(lines) == 33
    assert lines[0].startswith("000000  00 01 02")
    assert lines[2].endswith("| !\"#$%&'()*+,-./|")
    assert lines[-1] == "... 512 more bytes; --raw FILE writes all"


def test_times_beyond_the_calendar() -> None:
    """A record's timestamp may be anything; it is shown as a number then."""
    assert iso_time(2**62) == f"{2**62} ms"
    assert iso_time(-1) == "1969-12-31T23:59:59.999Z"
