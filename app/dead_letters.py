"""Dead letters: where each came from, what was wrong with it, which are wanted, and what a replay of one sends.

Pure: records and the current time come in as values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from app.errors import SluiceError
from schemas.deadletter import PREFIX

if TYPE_CHECKING:
    from schemas.records import Headers

ATTEMPT_HEADER = "x-attempt"
"""How often a record was replayed; a record that nobody replayed has none."""
ORIGIN_HEADER = "x-replay-of"
"""The dead letter that a replayed record was, ``topic:partition:offset``; by it an interrupted replay finds its own."""
DEADLINE_HEADER = "x-deadline-unix-ms"
UNKNOWN = "unknown"
UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class DeadLetterError(SluiceError):
    """A dead letter cannot be listed, shown or replayed as asked; the message says why and what to do."""


@dataclass(frozen=True)
class DeadLetter:
    """One record of a dead-letter topic.

    Attributes:
        topic: the dead-letter topic.
        partition: of that topic.
        offset: in that partition.
        timestamp_ms: when it became a dead letter, unix ms.
        key: as the producer sent it.
        value: the bytes of the record that failed, untouched.
        headers: all of them: the record's own, then those that name the fault.

    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def place(self) -> str:
        """``partition:offset``, as the commands take it."""
        return f"{self.partition}:{self.offset}"

    @cached_property
    def own_headers(self) -> Headers:
        """What the producer sent: all before the last mark of ours, so that no header of the producer's gets lost."""
        return self.headers[: self._mark]

    @cached_property
    def facts(self) -> dict[str, str]:
        """The ``__connect.errors.*`` headers of the last failure, without their prefix; control characters escaped."""
        marks = self.headers[self._mark :]
        return {
            name.removeprefix(PREFIX): printable((value or b"").decode("utf-8", "backslashreplace"))
            for name, value in marks
            if name.startswith(PREFIX)
        }

    @property
    def stage(self) -> str:
        """Where it failed, for example ``decode``."""
        return self.facts.get("stage", UNKNOWN)

    @property
    def error_class(self) -> str:
        """Name of the fault, for example ``TruncatedRecord``."""
        return self.facts.get("exception.class.name", UNKNOWN)

    @property
    def message(self) -> str:
        """What was wrong, in words."""
        return self.facts.get("exception.message", "")

    @cached_property
    def source(self) -> tuple[str, int, int] | None:
        """Topic, partition and offset of the record that failed; None when no header says so."""
        topic, partition, offset = (self.facts.get(name, "") for name in ("topic", "partition", "offset"))
        if topic and _is_number(partition) and _is_number(offset):
            return topic, int(partition), int(offset)
        return None

    @property
    def attempt(self) -> int:
        """How often the record had been replayed when it failed."""
        return attempt_of(self.own_headers)

    def is_overdue(self, now_ms: int) -> bool:
        """Whether it has a deadline, and that has passed: a replay would be answered EXPIRED."""
        deadline = dict(self.own_headers).get(DEADLINE_HEADER) or b""
        return re.fullmatch(rb"\d{1,18}", deadline) is not None and int(deadline) < now_ms

    @cached_property
    def _mark(self) -> int:
        names = [name for name, _ in self.headers]
        return len(names) - 1 - names[::-1].index(PREFIX + "topic") if PREFIX + "topic" in names else len(names)


def attempt_of(headers: Headers) -> int:
    """The attempt that a record's headers name, 0 <= attempt < 10**9; 0 when none does, or not as a number.

    Example:
        >>> attempt_of((("x-attempt", b"2"),)), attempt_of(()), attempt_of((("x-attempt", b"two"),))
        (2, 0, 0)

    """
    for name, value in reversed(headers):
        if name == ATTEMPT_HEADER:
            return int(value) if re.fullmatch(rb"\d{1,9}", value or b"") else 0
    return 0


def replay_headers(letter: DeadLetter, *, with_deadline: bool = True) -> Headers:
    """The record's own headers, the attempt one higher, and the dead letter that it was.

    Args:
        letter: what is sent again.
        with_deadline: False leaves the producer's deadline out.

    Example:
        >>> failed = (("trace", b"t"), ("__connect.errors.topic", b"r"), ("x-src", b"r:0:7:0"))
        >>> replay_headers(DeadLetter("score-requests.dlq", 0, 3, 0, None, b"", failed))
        (('trace', b't'), ('x-attempt', b'1'), ('x-replay-of', b'score-requests.dlq:0:3'))

    """
    dropped = {ATTEMPT_HEADER, ORIGIN_HEADER} | (set() if with_deadline else {DEADLINE_HEADER})
    kept = tuple(header for header in letter.own_headers if header[0] not in dropped)
    origin = f"{letter.topic}:{letter.place}".encode()
    return (*kept, (ATTEMPT_HEADER, b"%d" % (letter.attempt + 1)), (ORIGIN_HEADER, origin))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are wanted; what is None or empty does not matter.

    Attributes:
        stage: where they failed.
        error_class: name of the fault.
        since_ms: the earliest time at which they became dead letters, unix ms.
        until_ms: that time's end, exclusive.
        partition: of the dead-letter topic.
        places: partitions and offsets of single ones.

    """

    stage: str | None = None
    error_class: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    partition: int | None = None
    places: frozenset[tuple[int, int]] = field(default_factory=frozenset)

    def takes(self, letter: DeadLetter) -> bool:
        """Whether it is wanted."""
        return (
            (self.stage is None or letter.stage == self.stage)
            and (self.error_class is None or letter.error_class == self.error_class)
            and (self.since_ms is None or letter.timestamp_ms >= self.since_ms)
            and (self.until_ms is None or letter.timestamp_ms < self.until_ms)
            and (self.partition is None or letter.partition == self.partition)
            and (not self.places or (letter.partition, letter.offset) in self.places)
        )

    def span(self, partition: int, start: int, end: int) -> tuple[int, int]:
        """The offsets of a partition that can hold a wanted one, within ``start`` .. ``end`` (exclusive).

        Example:
            >>> Selection(places=frozenset({(0, 4), (0, 9)})).span(0, 5, 100)
            (5, 10)
            >>> Selection(partition=1).span(0, 5, 100)
            (5, 5)

        """
        if self.partition not in {None, partition}:
            return start, start
        if not self.places:
            return start, end
        offsets = [offset for place, offset in self.places if place == partition]
        if not offsets:
            return start, start
        return max(start, min(offsets)), min(end, max(offsets) + 1)


def parse_place(text: str) -> tuple[int, int]:
    """Partition and offset of ``PARTITION:OFFSET``.

    Raises:
        DeadLetterError: it is something else.

    Example:
        >>> parse_place("0:17")
        (0, 17)

    """
    match = re.fullmatch(r"(\d{1,9}):(\d{1,18})", text, re.ASCII)
    if match is None:
        msg = f"{text!r} is no place of a dead letter; write PARTITION:OFFSET as `sluice dlq list` prints it, e.g. 0:17"
        raise DeadLetterError(msg)
    return int(match[1]), int(match[2])


def parse_time(text: str, now_ms: int) -> int:
    """Unix ms of a time, or of a span before now.

    Args:
        text: a span (``90s``, ``15m``, ``1h``, ``7d``) or an ISO 8601 time; without a zone it is UTC.
        now_ms: the current time, unix ms.

    Raises:
        DeadLetterError: it is neither, or lies before 1970.

    Example:
        >>> parse_time("15m", 1_000_000), parse_time("1970-01-01T00:00:01", 0), parse_time("1970-01-01T01:00+01:00", 0)
        (100000, 1000, 0)

    """
    span = re.fullmatch(r"(\d{1,9})([smhd])", text, re.ASCII)
    if span is not None:
        return max(0, now_ms - int(span[1]) * UNIT_MS[span[2]])
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        found_ms = int(moment.timestamp() * 1000)
    except (ValueError, OverflowError):
        found_ms = -1
    if found_ms < 0:
        msg = (
            f"{text!r} is no time; write a span before now (90s, 15m, 1h, 7d) or an ISO time "
            "from 1970 on (2026-03-01T12:00:00Z)"
        )
        raise DeadLetterError(msg)
    return found_ms


def counted(count: int) -> str:
    """The number with its noun.

    Example:
        >>> counted(1), counted(1200)
        ('1 dead letter', '1,200 dead letters')

    """
    return f"{count:,} dead letter{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    r"""The text with everything escaped that a terminal would obey.

    Example:
        >>> printable("a\x1b[2Jb\n")
        'a\\x1b[2Jb\\n'

    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d{1,18}", text, re.ASCII) is not None
