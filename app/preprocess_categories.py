"""Categories to indices: by a vocabulary with a slot for the unknown, or by a stable hash when there is none."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

from schemas.byte_ranges import words
from schemas.columns import Column, TextColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.spec import Feature

HASHED_BYTES = 128
"""Longer values are hashed by their SHA-256 instead: one of a megabyte must not cost a million steps."""
FNV_OFFSET, FNV_PRIME = np.uint32(0x811C9DC5), np.uint32(0x01000193)


class CategoryIndex(Protocol):
    """Turns a column into indices 0 .. size - 1; 0 stands for what is missing."""

    size: int

    def indices(self, column: Column) -> NDArray[np.int64]:
        """For each of n rows its index, int64 (n,)."""
        ...


class Vocabulary:
    """Known values by their place in the list, counted from 1; 0 for the unknown and the missing.

    Attributes:
        size: length of the vocabulary + 1.

    """

    def __init__(self, feature: Feature) -> None:
        self._entries = feature.vocabulary or ()
        self.size = len(self._entries) + 1
        self._missing = 0
        if isinstance(feature.default, str) and feature.default in self._entries:
            self._missing = self._entries.index(feature.default) + 1

    def indices(self, column: Column) -> NDArray[np.int64]:
        """For each of n rows its index, int64 (n,)."""
        assert isinstance(column, TextColumn)
        found = column.codes(self._entries, unknown=-1) + 1
        if column.valid is not None:
            found[~column.valid] = self._missing
        return found


class HashedCategory:
    """Any value by its hash, so that no vocabulary is needed; values may share a slot. 0 for the missing.

    Attributes:
        size: ``hash_buckets`` + 1.

    """

    def __init__(self, feature: Feature) -> None:
        assert feature.hash_buckets is not None, feature.name
        self._buckets = feature.hash_buckets
        self.size = self._buckets + 1
        self._missing = 0
        if isinstance(feature.default, str):
            self._missing = int(self.indices(TextColumn.from_values([feature.default]))[0])

    def indices(self, column: Column) -> NDArray[np.int64]:
        """For each of n rows its index, int64 (n,).

        Example:
            >>> from app.models.spec import Feature
            >>> hashed = HashedCategory(Feature(name="city", type="category", hash_buckets=1000))
            >>> hashed.indices(TextColumn.from_values(["Oslo", "Rome", "Oslo", None])).tolist()
            [848, 664, 848, 0]

        """
        assert isinstance(column, TextColumn)
        found = (stable_hash(column) % np.uint32(self._buckets)).astype(np.int64) + 1
        if column.valid is not None:
            found[~column.valid] = self._missing
        return found


def stable_hash(column: TextColumn) -> NDArray[np.uint32]:
    """32-bit FNV-1a of each value's UTF-8 bytes, mixed by MurmurHash3's finaliser; uint32 (n,), any number for nulls.

    Values of more than ``HASHED_BYTES`` bytes are replaced by the hexadecimal digits of their SHA-256, as HMAC does
    with long keys. The same on every machine and in every version: models depend on it.

    Cost: about 40 ns a value and 2 ns a byte; longer values 1 us each.

    Example:
        >>> [hex(h) for h in stable_hash(TextColumn.from_values(["", "a"])).tolist()]
        ['0xab3e7c0b', '0x1a80b1b3']

    """
    is_long = column.lengths > HASHED_BYTES
    found = _mixed(_fnv1a(column.data, column.starts, np.where(is_long, 0, column.lengths)))
    if is_long.any():
        whole = column.take(np.flatnonzero(is_long)).to_bytes_list()
        digests = [hashlib.sha256(raw or b"").hexdigest() for raw in whole]
        found[is_long] = stable_hash(TextColumn.from_values(digests))
    return found


def _fnv1a(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Byte after byte, each step over all rows that have one: rows are ordered by falling length."""
    state = np.full(starts.size, FNV_OFFSET)
    longest = int(lengths.max(initial=0))
    if not longest:
        return state
    order = np.argsort(-lengths, kind="stable")
    table = words(data, starts[order], lengths[order], -(-longest // 8)).view(np.uint8)
    having = np.searchsorted(-lengths[order], -np.arange(longest), side="left")
    for place, rows in enumerate(having.tolist()):
        state[:rows] ^= table[:rows, place]
        state[:rows] *= FNV_PRIME
    found = np.empty_like(state)
    found[order] = state
    return found


def _mixed(state: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """FNV's low bits alone are weak: a power of two of buckets would see few of the others."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ (state >> np.uint32(shift))) * np.uint32(factor)
    return state ^ (state >> np.uint32(16))
