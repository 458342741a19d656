"""Many byte ranges of one buffer at once: gather, copy, compare, check, all without a Python loop over short ones.

A range is ``data[start : start + length]``. The workhorse is a *window*: the buffer seen as an array of
overlapping elements of ``w`` bytes, one at every byte address, so that one fancy index moves ``w`` bytes a row
(about 4 ns a row up to 100 bytes, where a two-dimensional byte index costs 8).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]

PAD_BYTES = 64
"""Zero bytes that the makers of long-lived buffers leave at the end, so that a window never needs a copy."""

SHORT_BYTES = 64
"""Ranges up to this size are checked as machine words, longer ones one by one."""

_HIGH_BIT = np.uint64(0x8080808080808080)


def window(data: Bytes, dtype: str) -> NDArray[Any]:
    """The buffer as overlapping elements, one at every byte address.

    Args:
        data: contiguous, shape (size,), size >= the width of ``dtype``.
        dtype: for example ``"<u8"`` or ``"V12"``.

    Returns:
        A view of shape (size - width + 1,), writeable if ``data`` is.

    Example:
        >>> window(np.arange(4, dtype=np.uint8), "<u2")[np.array([0, 2])].tolist()
        [256, 770]

    """
    width = np.dtype(dtype).itemsize
    return np.ndarray((data.size - width + 1,), dtype=dtype, buffer=data, strides=(1,))


def padded(data: Bytes, reach: int) -> Bytes:
    """``data`` itself if it has at least ``reach`` bytes, else a copy filled up with zeros."""
    if data.size >= reach:
        return data
    longer = np.zeros(reach, dtype=np.uint8)
    longer[: data.size] = data
    return longer


def words(data: Bytes, starts: Ints, lengths: Ints, count: int) -> Words:
    """The first ``8 * count`` bytes of each range as little-endian words, zero beyond the range's end.

    Returns:
        Shape (n, count). Ranges longer than ``8 * count`` bytes are cut.

    Example:
        >>> text = np.frombuffer(b"abcde", dtype=np.uint8)
        >>> words(text, np.array([0, 2]), np.array([1, 3]), 1).view(np.uint8)[:, :4].tolist()
        [[97, 0, 0, 0], [99, 100, 101, 0]]

    """
    width = 8 * count
    table = _leading_words(data, starts, count)
    table &= _byte_masks(count)[np.minimum(lengths, width)].view(np.uint64).reshape(table.shape)
    return table


def _leading_words(data: Bytes, starts: Ints, count: int) -> Words:
    """As ``words``, with whatever lies behind the ranges."""
    width = 8 * count
    reach = int(starts.max(initial=0)) + width
    found = window(padded(data, reach), f"V{width}")[starts]
    return found.view(np.uint64).reshape(starts.size, count)


@lru_cache(maxsize=8)
def _byte_masks(count: int) -> NDArray[Any]:
    """Element ``k`` keeps the first ``k`` of ``8 * count`` bytes; shape (8 * count + 1,), as raw elements."""
    kept = np.tri(8 * count + 1, 8 * count, -1, dtype=np.uint8) * np.uint8(255)
    return kept.view(f"V{8 * count}").reshape(-1)


def copy_ranges(source: Bytes, starts: Ints, lengths: Ints, target: Bytes, places: Ints) -> None:
    """Copy each range to its place in ``target``, exactly, whatever its length.

    A range of ``2**k <= length < 2**(k + 1)`` bytes is two overlapping moves of ``2**k`` bytes, so neither side
    needs room behind it and no temporary exceeds the bytes moved.

    Args:
        source: the buffer read.
        starts: shape (n,), where each range begins.
        lengths: shape (n,), >= 0.
        target: the buffer written; the places must not overlap.
        places: shape (n,), where each range goes.

    """
    if not starts.size:
        return
    size_class = np.frexp(lengths.astype(np.float64))[1]
    for exponent, rows in enumerate(np.bincount(size_class)):
        if exponent == 0 or rows == 0:
            continue
        if rows == starts.size:
            _copy_class(source, starts, lengths, target, places, exponent)
        else:
            pick = np.flatnonzero(size_class == exponent)
            _copy_class(source, starts[pick], lengths[pick], target, places[pick], exponent)


def _copy_class(source: Bytes, starts: Ints, lengths: Ints, target: Bytes, places: Ints, exponent: int) -> None:
    width = 1 << (exponent - 1)
    read, write = window(source, f"V{width}"), window(target, f"V{width}")
    write[places] = read[starts]
    if width > 1:
        tail = lengths - width
        write[places + tail] = read[starts + tail]


def starts_of(lengths: Ints) -> Ints:
    """Where each range begins when they lie end to end; shape (n + 1,), the last is the total.

    Example:
        >>> starts_of(np.array([2, 0, 3])).tolist()
        [0, 2, 2, 5]

    """
    offsets = np.zeros(lengths.size + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def expand_ranges(starts: Ints, counts: Ints) -> Ints:
    """All indices ``start, start + 1, ...`` of each range, range by range; shape (counts.sum(),).

    Example:
        >>> expand_ranges(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]

    """
    before = starts_of(counts)
    return np.repeat(starts - before[:-1], counts) + np.arange(before[-1])


def pack(data: Bytes, starts: Ints, lengths: Ints) -> Bytes:
    """The ranges end to end in a fresh buffer with ``PAD_BYTES`` zeros behind; they begin at ``starts_of(lengths)``."""
    places = starts_of(lengths)
    packed = np.zeros(int(places[-1]) + PAD_BYTES, dtype=np.uint8)
    copy_ranges(data, starts, lengths, packed, places[:-1])
    return packed


def not_utf8(data: Bytes, starts: Ints, lengths: Ints) -> Ints:
    r"""Indices of the ranges that are not valid UTF-8, ascending.

    Cost: about 15 ns a range of up to 16 ASCII bytes, 50 ns up to 64; longer or non-ASCII ones 300 ns each.

    Example:
        >>> not_utf8(np.frombuffer(b"ab\xff", dtype=np.uint8), np.array([0, 1]), np.array([2, 2])).tolist()
        [1]

    """
    if not starts.size:
        return np.zeros(0, dtype=np.int64)
    longest = int(lengths.max())
    size = next((count for count in (1, 2) if longest <= 8 * count), SHORT_BYTES // 8)
    high = _leading_words(data, starts, size) & _HIGH_BIT
    if high.any():  # perhaps only behind the ranges
        high &= _byte_masks(size)[np.minimum(lengths, 8 * size)].view(np.uint64).reshape(high.shape)
    if longest <= SHORT_BYTES and not high.any():
        return np.zeros(0, dtype=np.int64)
    rows = np.flatnonzero(high.any(axis=1) | (lengths > SHORT_BYTES))
    whole = data.data
    bad = [
        row
        for row, start, length in zip(rows.tolist(), starts[rows].tolist(), lengths[rows].tolist(), strict=True)
        if not _is_utf8(whole[start : start + length])
    ]
    return np.array(bad, dtype=np.int64)


def _is_utf8(text: memoryview) -> bool:
    try:
        str(text, "utf-8")
    except UnicodeDecodeError:
        return False
    return True
