"""Headers of a dead letter, after Kafka Connect's DeadLetterQueueReporter; the value stays as it came."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.records import Headers, RecordBatch

PREFIX = "__connect.errors."
MAX_MESSAGE_BYTES = 512
"""A message says what is wrong, never a value of the payload."""
CLASS_NAME = "sluice"


def dead_letter_headers(batch: RecordBatch, row: int, *, stage: str, error_class: str, message: str) -> Headers:
    """The record's own headers, then where it came from and what was wrong with it.

    Args:
        batch: that it came in.
        row: its place in the batch.
        stage: decode, schema, features, preprocess, inference, postprocess, encode or join.
        error_class: name of the fault, for example ``TruncatedRecord``.
        message: cut to 512 bytes of UTF-8.

    """
    own = batch.headers[row] if batch.headers else ()
    facts = {
        "topic": batch.topic,
        "partition": str(batch.partition),
        "offset": str(int(batch.offsets[row])),
        "timestamp": str(int(batch.timestamps_ms[row])),
        "stage": stage,
        "class.name": CLASS_NAME,
        "exception.class.name": error_class,
    }
    cut = message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode()
    return (
        *own,
        *((PREFIX + name, value.encode()) for name, value in facts.items()),
        (PREFIX + "exception.message", cut),
    )
