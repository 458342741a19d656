"""Inflates the records of a Kafka batch, never beyond a limit: 300 kB of gzip may hold 300 MB."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import cramjam
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
"""By the three lowest bits of a batch's attributes; 0 is uncompressed."""
XERIAL_MAGIC = b"\x82SNAPPY\0"
XERIAL_HEADER_BYTES = 16
GZIP_WINDOW = 31
"""zlib's way to say: a gzip header, with the largest window."""
MIB = 2**20
STEP_BYTES = MIB
"""Inflated at a time, so that a bomb is noticed before it is there."""
USUAL_RATIO = 16
NO_ROOM = "whole buffer"
"""In the message of an output that is too small; what Rust's ``write_all`` says."""


class CannotInflate(ValueError):
    """The records of a batch cannot be inflated; the message says why and what to do."""


def inflate(codec: int, data: bytes, limit_bytes: int) -> bytes:
    r"""What was compressed.

    Memory: at most ``limit_bytes`` more than the result.

    Args:
        codec: of ``CODECS``, or 0.
        data: the compressed bytes.
        limit_bytes: > 0; no more than these are ever made.

    Raises:
        CannotInflate: the codec is unknown, the data is corrupt, or it holds too much.

    Example:
        >>> import gzip
        >>> inflate(1, gzip.compress(bytes(1000)), 1000) == bytes(1000)
        True
        >>> inflate(1, gzip.compress(bytes(1001)), 1000)
        Traceback (most recent call last):
        ...
        app.inflation.CannotInflate: a gzip batch inflates to more than 1000 bytes; send smaller batches

    """
    if codec == 0:
        return data
    if codec not in CODECS:
        msg = f"compression codec {codec} is unknown; send with {', '.join(CODECS.values())} or none"
        raise CannotInflate(msg)
    name = CODECS[codec]
    try:
        return _READERS[name](data, limit_bytes)
    except _TooLarge:
        size = f"{limit_bytes // MIB} MiB" if limit_bytes % MIB == 0 else f"{limit_bytes} bytes"
        msg = f"a {name} batch inflates to more than {size}; send smaller batches"
        raise CannotInflate(msg) from None
    except Exception as exc:
        msg = f"a {name} batch is corrupt ({exc}); look for a broken producer or disk"
        raise CannotInflate(msg) from exc


class _TooLarge(Exception):
    pass


def _gzip(data: bytes, limit_bytes: int) -> bytes:
    whole = bytearray()
    while data.rstrip(b"\0"):
        member = zlib.decompressobj(GZIP_WINDOW)
        while not member.eof:
            step = member.decompress(data, STEP_BYTES)
            data = member.unconsumed_tail
            if member.eof and not whole and not member.unused_data and len(step) <= limit_bytes:
                return step  # as nearly always: no copy
            if not step and not data and not member.eof:
                msg = "it ends too early"
                raise ValueError(msg)
            whole += step
            if len(whole) > limit_bytes:
                raise _TooLarge
        data = member.unused_data
    return bytes(whole)


def _snappy(data: bytes, limit_bytes: int) -> bytes:
    blocks = list(_xerial_blocks(data)) if data.startswith(XERIAL_MAGIC) else [data]
    if sum(cramjam.snappy.decompress_raw_len(block) for block in blocks) > limit_bytes:
        raise _TooLarge
    return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)


def _xerial_blocks(data: bytes) -> Iterator[bytes]:
    place = XERIAL_HEADER_BYTES
    while place < len(data):
        start = place + 4
        place = start + int.from_bytes(data[start - 4 : start], "big")
        if place > len(data):
            msg = "it ends too early"
            raise ValueError(msg)
        yield data[start:place]


def _lz4(data: bytes, limit_bytes: int) -> bytes:
    return _into(cramjam.lz4.decompress_into, data, limit_bytes)


def _zstd(data: bytes, limit_bytes: int) -> bytes:
    return _into(cramjam.zstd.decompress_into, data, limit_bytes)


def _into(decompress_into: Callable[[bytes, Any], int], data: bytes, limit_bytes: int) -> bytes:
    # Most batches fit the first room, which is cheap; the second takes memory only for the pages that are written.
    for room_bytes in (min(limit_bytes, USUAL_RATIO * len(data)), limit_bytes):
        room = np.empty(room_bytes, np.uint8)
        try:
            return room[: decompress_into(data, room)].tobytes()
        except cramjam.DecompressionError as exc:
            if NO_ROOM not in str(exc):
                raise
    raise _TooLarge


_READERS: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _gzip, "snappy": _snappy, "lz4": _lz4, "zstd": _zstd}
