"""Reading a whole topic, and its records as columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.wire import schema_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from schemas.columnar import Decoded
    from schemas.registry import SchemaBook

POLL_MS = 200


class UnreadableRecord(Exception):
    """A record on an output topic cannot be decoded; the service wrote it, so this is a bug of the service."""


def decode_all(book: SchemaBook, values: list[bytes], topic: str) -> Decoded:
    """Columns of values that all have one schema.

    Raises:
        UnreadableRecord: schema ids differ or are unknown, or a value does not decode.

    """
    ids = np.unique(schema_ids(values)).tolist()
    decoder = book.decoder(ids[0]) if len(ids) == 1 else None
    if decoder is None:
        msg = f"{topic}: records with schema ids {ids}, one known id was expected"
        raise UnreadableRecord(msg)
    decoded = decoder.decode(values)
    if decoded.errors:
        row, reason = next(iter(decoded.errors.items()))
        msg = f"{topic}: {len(decoded.errors)} records do not decode; the first one: {reason} ({values[row][:40]!r})"
        raise UnreadableRecord(msg)
    return decoded


async def whole_topic(bootstrap_servers: str, topic: str) -> AsyncIterator[list[bytes]]:
    """All values that a topic holds now, fetch by fetch."""
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        ends = await consumer.end_offsets(partitions)
        left = {p for p in partitions if ends[p] > (await consumer.position(p))}
        while left:
            fetched = await consumer.getmany(timeout_ms=POLL_MS)
            yield [record.value for records in fetched.values() for record in records]
            left = {p for p in left if ends[p] > (await consumer.position(p))}
    finally:
        await consumer.stop()
