"""Reading dead letters, choosing among them, and what a replay of one sends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dead_letters import DeadLetter, DeadLetterError, Selection, attempt_of, parse_place, parse_time, replay_headers
from schemas.deadletter import PREFIX, dead_letter_headers
from schemas.records import Headers, RecordBatch

NAMES = st.text(max_size=8) | st.sampled_from(["x-attempt", "x-src", "x-replay-of", "traceparent", PREFIX + "topic"])
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=12)), max_size=6).map(tuple)
HOUR_MS = 3_600_000


def failed(own: Headers, message: str = "it is cut") -> Headers:
    """The headers that a worker gives the dead letter of a record with these."""
    batch = RecordBatch("score-requests", 3, 17, 18, np.array([17]), np.array([5]), [b"k"], [b"v"], [own])
    marks = dead_letter_headers(batch, 0, stage="decode", error_class="TruncatedRecord", message=message)
    return (*marks, ("x-src", b"score-requests:3:17:0"))


def letter(headers: Headers, *, offset: int = 4, partition: int = 3, timestamp_ms: int = 1000) -> DeadLetter:
    """A dead letter with these headers."""
    return DeadLetter("score-requests.dlq", partition, offset, timestamp_ms, b"k", b"v", headers)


def test_facts_are_those_of_the_worker() -> None:
    """What the worker wrote into the headers is read from them again."""
    found = letter(failed((("traceparent", b"00-1"),)))
    assert found.source == ("score-requests", 3, 17)
    assert (found.stage, found.error_class, found.message) == ("decode", "TruncatedRecord", "it is cut")
    assert (found.attempt, found.place, found.facts["timestamp"]) == (0, "3:4", "5")


@given(own=HEADERS)
def test_own_headers_survive_any_number_of_failures(own: Headers) -> None:
    """A replay sends what the producer sent, in order; only our attempt and origin are new, and never twice."""
    first = letter(failed(own))
    assert first.own_headers == own
    sent = replay_headers(first)
    kept = tuple(h for h in own if h[0] not in {"x-attempt", "x-replay-of"})
    assert sent[:-2] == kept
    assert sent[-1] == ("x-replay-of", b"score-requests.dlq:3:4")
    assert attempt_of(sent) == attempt_of(own) + 1
    second = replay_headers(letter(failed(sent), offset=9))
    assert second == (*kept, ("x-attempt", b"%d" % (attempt_of(own) + 2)), ("x-replay-of", b"score-requests.dlq:3:9"))


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"9" * 5000, "\u0663".encode(), b"1\n"])
def test_an_attempt_that_is_no_number_counts_as_none(value: bytes) -> None:
    """The header comes from outside; whatever it holds, a replay goes on."""
    assert attempt_of((("x-attempt", value),)) == 0


def test_a_record_of_a_stranger() -> None:
    """Without our marks there is no source, and all headers are the record's own."""
    found = letter((("a", b"1"),))
    assert (found.source, found.stage, found.error_class, found.message) == (None, "unknown", "unknown", "")
    assert found.own_headers == (("a", b"1"),)


@pytest.mark.parametrize(("name", "value"), [("partition", b"-1"), ("offset", b"x"), ("topic", b"")])
def test_a_source_that_makes_no_sense_is_none(name: str, value: bytes) -> None:
    """A replay must never guess where to send."""
    headers = [(n, value if n == PREFIX + name else v) for n, v in failed(())]
    assert letter(tuple(headers)).source is None


def test_messages_cannot_steer_a_terminal() -> None:
    """Control characters of a message are shown, not obeyed."""
    assert letter(failed((), "a\x1b[2J\nb\u202e")).message == "a\\x1b[2J\\nb\\u202e"


@pytest.mark.parametrize(("value", "is_overdue"), [(b"999", True), (b"1001", False), (b"soon", False), (b"", False)])
def test_a_deadline_that_has_passed_is_noticed(value: bytes, *, is_overdue: bool) -> None:
    """Such a request would be answered EXPIRED; the header can be left out."""
    found = letter(failed((("x-deadline-unix-ms", value),)))
    assert found.is_overdue(1000) == is_overdue
    assert [name for name, _ in replay_headers(found, with_deadline=False)] == ["x-attempt", "x-replay-of"]


@pytest.mark.parametrize(
    ("selection", "is_wanted"),
    [
        (Selection(), True),
        (Selection(stage="decode", error_class="TruncatedRecord", partition=3), True),
        (Selection(stage="join"), False),
        (Selection(error_class="NotFramed"), False),
        (Selection(partition=2), False),
        (Selection(since_ms=1000, until_ms=1001), True),
        (Selection(since_ms=1001), False),
        (Selection(until_ms=1000), False),
        (Selection(places=frozenset({(3, 4)})), True),
        (Selection(places=frozenset({(3, 5), (4, 4)})), False),
    ],
)
def test_all_filters_must_fit(selection: Selection, *, is_wanted: bool) -> None:
    """A dead letter is wanted when no filter speaks against it; since counts, until does not."""
    assert selection.takes(letter(failed(()))) == is_wanted


@given(st.frozensets(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=4), st.integers(0, 2))
def test_the_span_holds_every_wanted_offset(places: frozenset[tuple[int, int]], partition: int) -> None:
    """Reading the span alone misses nothing that a whole reading would find."""
    selection = Selection(places=places)
    start, end = selection.span(partition, 5, 25)
    found = [o for o in range(5, 25) if selection.takes(letter((), partition=partition, offset=o))]
    assert [o for o in found if start <= o < end] == found


@pytest.mark.parametrize("text", ["", "1", "1:", ":1", "-1:2", "a:b", "1:2:3", "1:" + "9" * 30, " 1:2"])
def test_bad_places_are_refused(text: str) -> None:
    """The message shows how a place is written."""
    with pytest.raises(DeadLetterError, match=r"write PARTITION:OFFSET .* e\.g\. 0:17"):
        parse_place(text)


def test_times() -> None:
    """Spans count back from now, ISO times stand for themselves, in UTC where they name no zone."""
    assert parse_time("1h", 10 * HOUR_MS) == 9 * HOUR_MS
    assert parse_time("99d", 10) == 0
    assert parse_time("1970-01-02", 0) == 24 * HOUR_MS
    assert parse_time("1970-01-01T02:00:00+02:00", 0) == 0
    assert parse_time("1970-01-01T00:00:00.250Z", 0) == 250


@pytest.mark.parametrize("text", ["", "yesterday", "1w", "1.5h", "-1h", "1969-12-31", "2026-13-01", "99999999999s"])
def test_bad_times_are_refused(text: str) -> None:
    """The message shows both ways to write a time."""
    with pytest.raises(DeadLetterError, match="write a span before now"):
        parse_time(text, 0)
