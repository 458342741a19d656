"""Categories to indices: vocabularies, and hashes against published values and a plain loop."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.models.spec import Feature
from app.preprocess_categories import HASHED_BYTES, HashedCategory, Vocabulary, _fnv1a, stable_hash
from schemas.columns import TextColumn


def _plain_hash(raw: bytes) -> int:
    """FNV-1a and MurmurHash3's fmix32, byte by byte."""
    if len(raw) > HASHED_BYTES:
        raw = hashlib.sha256(raw).hexdigest().encode()
    state = 0x811C9DC5
    for byte in raw:
        state = (state ^ byte) * 0x01000193 % 2**32
    state = (state ^ state >> 16) * 0x85EBCA6B % 2**32
    state = (state ^ state >> 13) * 0xC2B2AE35 % 2**32
    return state ^ state >> 16


def test_known_values_count_from_one_and_the_unknown_is_zero() -> None:
    """Unknown values and nulls without default share 0; a null may have a default; a default that is unknown is 0."""
    column = TextColumn.from_values(["b", None, "a", "z", ""])
    plain = Feature(name="c", type="category", vocabulary=("a", "b"))
    assert Vocabulary(plain).indices(column).tolist() == [2, 0, 1, 0, 0]
    assert Vocabulary(plain).size == 3
    for default, index in (("b", 2), ("q", 0)):
        defaulted = Feature(name="d", type="category", vocabulary=("a", "b"), default=default)
        assert Vocabulary(defaulted).indices(column).tolist() == [2, index, 1, 0, 0]


@pytest.mark.parametrize(("text", "expected"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_the_hash_before_mixing_is_fnv_1a(text: str, expected: int) -> None:
    """Values of the test suite that the authors of FNV publish."""
    column = TextColumn.from_values([text])
    assert _fnv1a(column.data, column.starts, column.lengths).tolist() == [expected]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=12), st.text(min_size=100, max_size=200)), max_size=12))
def test_hashes_of_a_column_are_those_of_a_plain_loop(values: list[str | None]) -> None:
    """For all lengths, in any order, with nulls between, also when the rows are picked from a larger column."""
    column = TextColumn.from_values(values)
    expected = [None if value is None else _plain_hash(value.encode()) for value in values]
    for rows in (np.arange(len(values)), np.arange(len(values))[::-1]):
        found = stable_hash(column.take(rows)).tolist()
        assert all(want is None or have == want for have, want in zip(found, [expected[i] for i in rows], strict=True))


@pytest.mark.parametrize("length", [HASHED_BYTES - 1, HASHED_BYTES, HASHED_BYTES + 1, 100_000])
def test_long_values_differ_by_their_last_byte(length: int) -> None:
    """All bytes count, also where the digest of a value is hashed in its place."""
    values = ["x" * (length - 1) + last for last in "ab"]
    first, second = stable_hash(TextColumn.from_values(values)).tolist()
    assert (first, second) == tuple(_plain_hash(value.encode()) for value in values)
    assert first != second


def test_a_hashed_category_has_a_slot_of_its_own_for_the_missing() -> None:
    """Slots 1 .. N for values, 0 for nulls, or the slot of the default; the empty text is a value."""
    column = TextColumn.from_values(["Oslo", None, ""])
    hashed = HashedCategory(Feature(name="c", type="category", hash_buckets=1000))
    found = hashed.indices(column).tolist()
    assert found == [_plain_hash(b"Oslo") % 1000 + 1, 0, _plain_hash(b"") % 1000 + 1]
    assert hashed.size == 1001
    defaulted = HashedCategory(Feature(name="c", type="category", hash_buckets=1000, default="Oslo"))
    assert defaulted.indices(column).tolist() == [found[0], found[0], found[2]]


@pytest.mark.parametrize("buckets", [2, 64, 1000, 2**24])
def test_hashed_values_spread_evenly(buckets: int) -> None:
    """The chi-square of 20,000 numbered names in 1,000 parts of the slots is below its 0.9999 quantile."""
    column = TextColumn.from_values([f"customer-{i}" for i in range(20_000)])
    found = HashedCategory(Feature(name="c", type="category", hash_buckets=buckets)).indices(column)
    assert found.min() >= 1
    assert found.max() <= buckets
    cells = min(buckets, 1000)
    counts = np.bincount((found - 1) * cells // buckets, minlength=cells)
    expected = found.size / cells
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = cells - 1
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson-Hilferty
