"""Reads the Kafka batches (format v2) that aiokafka's C reader gives up on, record by record.

A batch is never given up as a whole while a part of it can be read, and every offset comes out once: as a record, or
as a damaged one, with the bytes that there are and the reason.

    batch    61 bytes of header, then the records, perhaps compressed together
    record   length, attributes, timestamp delta, offset delta, key, value, header count, headers
    header   length and bytes of the name, length and bytes of the value; all lengths are zigzag varints
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from app.inflation import CannotInflate, inflate
from schemas.records import RecordBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, crc, attributes, last offset delta, first and largest timestamp, producer
id and epoch, base sequence, record count."""
LENGTH_PLACE, ATTRIBUTES_PLACE = 8, 21
LOG_OVERHEAD = 12
"""Bytes of base offset and length; the length counts what follows."""
CODEC_BITS, APPEND_TIME_BIT = 0x07, 0x08
MAX_VARINT_BYTES = 10

MAX_INFLATED_BYTES = 64 * 2**20
"""Of one batch. Kafka bounds a batch only as it is sent, compressed."""
MAX_RECORDS = 2**18
"""Of one compressed batch: an object a record, so a batch of nothing but empty records would fill the memory too."""
MAX_RECORD_BYTES = 2**20 + 2**16
"""Key, value and headers of one record: what a topic of requests takes uncompressed, and a dead-letter topic holds."""
SMALL_BYTES = 2**15
"""Of key and of headers that a cut record keeps."""


@dataclass(frozen=True, slots=True)
class DamagedBatch(RecordBatch):
    """A record batch of which some records could not be read.

    Attributes:
        unreadable: place of the record to why; its value is what bytes there are, and None where there are none.

    """

    unreadable: dict[int, str] = field(default_factory=dict)


def damaged(batch: RecordBatch, unreadable: dict[int, str]) -> RecordBatch:
    """The batch, with the places of what could not be read and why; itself when there are none."""
    if not unreadable:
        return batch
    return DamagedBatch(**{f.name: getattr(batch, f.name) for f in fields(RecordBatch)}, unreadable=unreadable)


@dataclass(frozen=True, slots=True)
class PlainRecord:
    """A record with the attributes of aiokafka's.

    Attributes:
        offset: its own.
        timestamp: unix ms, -1 where there is none.
        key: None where there is none.
        value: None is a tombstone.
        headers: names that are not UTF-8 with a backslash for each odd byte.
        problem: why it could not be read; None for a sound one.

    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Head:
    base_offset: int
    attributes: int
    last_delta: int
    first_timestamp: int
    max_timestamp: int
    count: int


def find_batch(raw: bytes, base_offset: int, place: int = 0) -> tuple[int, int]:
    """Where the batch that begins at an offset lies in a fetch of several: its first byte, and the first behind it.

    Args:
        raw: the fetch.
        base_offset: the batch's first offset.
        place: where to begin to look, the first byte of a batch.

    Raises:
        ValueError: there is none from there on.

    """
    while place + LOG_OVERHEAD <= len(raw):
        found, length = struct.unpack_from(">qi", raw, place)
        end = place + LOG_OVERHEAD + length
        if found == base_offset:
            return place, end
        if length < 0:
            break
        place = end
    msg = f"no batch at offset {base_offset}"
    raise ValueError(msg)


def inflated_batch(batch: bytes, *, limit_bytes: int = MAX_INFLATED_BYTES) -> bytes:
    """The same batch, uncompressed; its checksum is left as it was and does not fit any more.

    Raises:
        CannotInflate: the message says why and what to do.

    """
    head = _head(batch)
    if not head.attributes & CODEC_BITS:
        return batch
    if head.count > MAX_RECORDS:
        msg = f"a compressed batch of {head.count} records; at most {MAX_RECORDS}, send smaller batches"
        raise CannotInflate(msg)
    body = inflate(head.attributes & CODEC_BITS, batch[HEADER.size :], limit_bytes)
    opening = bytearray(batch[: HEADER.size])
    struct.pack_into(">i", opening, LENGTH_PLACE, HEADER.size - LOG_OVERHEAD + len(body))
    struct.pack_into(">h", opening, ATTRIBUTES_PLACE, head.attributes & ~CODEC_BITS)
    return bytes(opening) + body


def read_records(batch: bytes, *, from_offset: int = 0) -> Iterator[PlainRecord]:
    """The records of an uncompressed batch from an offset on, in order; never raises for what is in them.

    Args:
        batch: whole, with its header.
        from_offset: earlier records are left out.

    Cost: about 3 us a record.

    """
    head = _head(batch)
    last = head.base_offset + head.last_delta
    place, expected = HEADER.size, head.base_offset
    for number in range(head.count):
        if expected > last:
            return  # more records than offsets: they have no place in the partition
        try:
            body, end = _sized(batch, place)
        except ValueError as exc:
            why = f"record {number} of its batch: {exc}"
            yield from _lost(head, expected, head.count - number, batch[place:], why, from_offset)
            return
        # Each later record needs an offset too: so a record that lies cannot take one away.
        record = _record(head, body or b"", expected, max(expected, last - (head.count - number - 1)))
        place, expected = end, record.offset + 1
        if record.offset >= from_offset:
            yield record


def lost_records(batch: bytes, reason: str, *, from_offset: int = 0) -> Iterator[PlainRecord]:
    """A damaged record for each of a batch that cannot be read at all; the first has the batch as its value.

    Args:
        batch: whole, with its header.
        reason: why, and what to do.
        from_offset: earlier records are left out.

    """
    head = _head(batch)
    yield from _lost(head, head.base_offset, max(head.count, 1), batch, reason, from_offset)


def without_excess(record: Any) -> Any:  # noqa: ANN401 - a record of ours or of aiokafka
    """The record itself, or when it is larger than any uncompressed one could be, a damaged one that fits a topic.

    Example:
        >>> huge = without_excess(PlainRecord(7, 0, b"k", bytes(2**21), []))
        >>> huge.key, len(huge.value), huge.problem.partition(";")[0]
        (b'k', 1048576, '2097153 bytes inflated')

    """
    in_headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    in_key = len(record.key or b"")
    size = in_key + len(record.value or b"") + in_headers
    if size <= MAX_RECORD_BYTES:
        return record
    reason = (
        f"{size} bytes inflated; at most {MAX_RECORD_BYTES}, send smaller records; the value is the beginning, "
        "the whole record is at its offset of the source topic"
    )
    stamp = -1 if record.timestamp is None else record.timestamp
    key = record.key if in_key <= SMALL_BYTES else None
    headers = list(record.headers) if in_headers <= SMALL_BYTES else []
    value = None if record.value is None else record.value[: MAX_RECORD_BYTES - 2 * SMALL_BYTES]
    return PlainRecord(record.offset, stamp, key, value, headers, getattr(record, "problem", None) or reason)


def _head(batch: bytes) -> _Head:
    base, _, _, _, _, attributes, last_delta, first_ms, max_ms, _, _, _, count = HEADER.unpack_from(batch)
    return _Head(base, attributes, last_delta, first_ms, max_ms, count)


def _lost(
    head: _Head, first: int, count: int, bytes_left: bytes, reason: str, from_offset: int
) -> Iterator[PlainRecord]:
    end = min(first + count, head.base_offset + head.last_delta + 1)
    kept = bytes_left[:MAX_RECORD_BYTES]
    if first >= from_offset and first < end:
        yield PlainRecord(first, head.first_timestamp, None, kept, [], f"{reason}; the value is all that is left of it")
    follower = f"{reason}; the bytes are in the dead letter of offset {first}"
    for offset in range(max(first + 1, from_offset), end):
        yield PlainRecord(offset, head.first_timestamp, None, None, [], follower)


def _record(head: _Head, body: bytes, expected: int, last: int) -> PlainRecord:
    try:
        _, place = _varint(body, 0)  # attributes: none are defined
        later_ms, place = _varint(body, place)
        delta, place = _varint(body, place)
        offset = head.base_offset + delta
        if not expected <= offset <= last:
            msg = f"its offset is {offset}, not within {expected} .. {last}"
            raise ValueError(msg)  # noqa: TRY301 - one place where a record becomes a damaged one
        key, place = _sized(body, place)
        value, place = _sized(body, place)
        headers, place = _headers(body, place)
        if place != len(body):
            msg = f"{len(body) - place} bytes after its end"
            raise ValueError(msg)  # noqa: TRY301 - as above
    except ValueError as exc:
        reason = f"its Kafka record is damaged: {exc}; the value is the record as it came, look for a broken producer"
        return PlainRecord(expected, head.first_timestamp, None, body[:MAX_RECORD_BYTES], [], reason)
    timestamp = head.max_timestamp if head.attributes & APPEND_TIME_BIT else head.first_timestamp + later_ms
    return PlainRecord(offset, timestamp, key, value, headers)


def _headers(body: bytes, place: int) -> tuple[list[tuple[str, bytes | None]], int]:
    count, place = _varint(body, place)
    if not 0 <= count <= len(body):
        msg = f"{count} headers"
        raise ValueError(msg)
    headers = []
    for _ in range(count):
        name, place = _sized(body, place)
        value, place = _sized(body, place)
        headers.append(((name or b"").decode(errors="backslashreplace"), value))
    return headers, place


def _sized(body: bytes, place: int) -> tuple[bytes | None, int]:
    length, start = _varint(body, place)
    if length < 0:
        return None, start
    end = start + length
    if end > len(body):
        msg = f"{length} bytes are announced, {len(body) - start} are left"
        raise ValueError(msg)
    return body[start:end], end


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[place : place + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), place + i + 1
    msg = "a number does not end"
    raise ValueError(msg)
