"""Kafka batches (format v2) made byte by byte: also those that no client library would write."""

from __future__ import annotations

import gzip
import time
from typing import TYPE_CHECKING

from aiokafka.codec import lz4_encode, snappy_encode, zstd_encode
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c

from app.record_reader import HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    RawHeaders = Sequence[tuple[bytes, bytes | None]]

COMPRESS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: gzip.compress,
    2: snappy_encode,
    3: lz4_encode,
    4: zstd_encode,
}
CHECKED_FROM = 21
"""First byte that the checksum covers."""
FIRST_MS = int(time.time() * 1000)
"""Of batches that name no time: now, for a broker deletes what is older than its retention."""


def varint(value: int) -> bytes:
    r"""Zigzag, seven bits a byte; of 64 bits.

    Example:
        >>> varint(-1), varint(64), len(varint(-(2**63)))
        (b'\x01', b'\x80\x01', 10)

    """
    left = ((value << 1) ^ (value >> 63)) & (2**64 - 1)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


def sized(data: bytes | None) -> bytes:
    """Length and bytes; -1 stands for none."""
    return varint(-1) if data is None else varint(len(data)) + data


def record(
    value: bytes | None, *, key: bytes | None = None, headers: RawHeaders = (), place: int = 0, later_ms: int = 0
) -> bytes:
    """One record, with its length before it."""
    named = b"".join(sized(name) + sized(content) for name, content in headers)
    body = b"\0" + varint(later_ms) + varint(place) + sized(key) + sized(value) + varint(len(headers)) + named
    return sized(body)


def batch(  # noqa: PLR0913 - each is a field of the header that somebody wants to lie about
    records: Sequence[bytes],
    *,
    base: int = 0,
    codec: int = 0,
    count: int | None = None,
    last_delta: int | None = None,
    first_ms: int = FIRST_MS,
    max_ms: int = FIRST_MS,
    flags: int = 0,
    body: bytes | None = None,
) -> bytes:
    """A batch of records, its checksum right.

    Args:
        records: as ``record`` makes them.
        base: first offset.
        codec: of ``COMPRESS``; another needs a ``body``.
        count: as the header claims; the truth when None.
        last_delta: as the header claims; the truth when None.
        first_ms: first timestamp.
        max_ms: largest timestamp.
        flags: further bits of the attributes.
        body: instead of the compressed records.

    """
    count = len(records) if count is None else count
    last_delta = len(records) - 1 if last_delta is None else last_delta
    packed = COMPRESS[codec](b"".join(records)) if body is None else body
    head = HEADER.pack(
        base, HEADER.size - 12 + len(packed), -1, 2, 0, codec | flags, last_delta, first_ms, max_ms, -1, -1, -1, count
    )
    whole = bytearray(head + packed)
    whole[17:21] = calc_crc32c(bytes(whole[CHECKED_FROM:])).to_bytes(4, "big")
    return bytes(whole)


class ReadyBatch(BatchBuilder):
    """Finished bytes that a producer sends as they are."""

    def __init__(self, raw: bytes, count: int) -> None:
        self._buffer = raw
        self._closed = True
        self._relative_offset = count
