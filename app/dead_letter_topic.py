"""Where the wanted records of a dead-letter topic are, and reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.dead_letters import DeadLetter, DeadLetterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.dead_letters import Selection
    from app.topic_reader import TopicReader


@dataclass(frozen=True, slots=True)
class Range:
    """What is read of one partition, ``start`` <= offset < ``end``."""

    topic: str
    partition: int
    start: int
    end: int


async def find_ranges(reader: TopicReader, topic: str, partitions: int, selection: Selection) -> list[Range]:
    """Where the wanted dead letters can be, up to the end of this moment.

    Args:
        reader: connected.
        topic: the dead-letter topic.
        partitions: how many it has.
        selection: of dead letters.

    Raises:
        DeadLetterError: the selection names a partition that the topic lacks.

    """
    named = {partition for partition, _ in selection.places}
    if selection.partition is not None:
        named.add(selection.partition)
    if named and max(named) >= partitions:
        msg = f"{topic} has no partition {max(named)}; its partitions are 0 to {partitions - 1}"
        raise DeadLetterError(msg)
    ranges = []
    for partition in range(partitions):
        start, end = selection.span(partition, *await reader.bounds(topic, partition))
        if selection.since_ms is not None and start < end:
            start = max(start, await reader.first_since(topic, partition, selection.since_ms, end))
        ranges.append(Range(topic, partition, start, end))
    return ranges


async def read_letters(reader: TopicReader, ranges: list[Range]) -> AsyncIterator[DeadLetter]:
    """All dead letters of the ranges, partition by partition, in order."""
    for span in ranges:
        async for records in reader.read(span.topic, span.partition, span.start, span.end):
            for r in records:
                headers = tuple((name, value or b"") for name, value in r.headers)
                yield DeadLetter(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, headers)
