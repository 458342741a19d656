"""Columns: take, concatenate, look up and turn into Python values."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.avro_plan import Value, parse
from schemas.avro_scalar import column_of
from schemas.byte_ranges import copy_ranges, not_utf8, pack, starts_of
from schemas.columns import (
    Column,
    Constant,
    EnumColumn,
    ListColumn,
    NumberColumn,
    ObjectColumn,
    RecordColumn,
    TextColumn,
    concat,
    rows_not_utf8,
    spread,
    to_python,
)

SCHEMA = {
    "type": "record",
    "name": "R",
    "fields": [
        {"name": "n", "type": ["null", "double"]},
        {"name": "s", "type": ["null", "string"]},
        {"name": "b", "type": "bytes"},
        {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
        {"name": "l", "type": ["null", {"type": "array", "items": "string"}]},
        {"name": "m", "type": {"type": "map", "values": "int"}},
        {
            "name": "r",
            "type": ["null", {"type": "record", "name": "N", "fields": [{"name": "x", "type": "boolean"}]}],
        },
        {"name": "u", "type": ["null", "int", "string"]},
    ],
}
ROWS: list[dict[str, Any]] = [
    {"n": 1.5, "s": "é", "b": b"\xff", "e": "A", "l": ["a", "b"], "m": {"k": 1}, "r": {"x": True}, "u": 1},
    {"n": None, "s": None, "b": b"", "e": "B", "l": None, "m": {}, "r": None, "u": "x"},
    {"n": -2.0, "s": "", "b": b"yy", "e": "A", "l": [], "m": {"a": 2, "b": 3}, "r": {"x": False}, "u": None},
    {"n": 0.0, "s": "long " * 30, "b": b"z", "e": "B", "l": ["c"], "m": {"": -1}, "r": None, "u": 7},
]


def column() -> RecordColumn:
    """A column of every type, with nulls."""
    made = column_of(parse(json.dumps(SCHEMA)), ROWS)
    assert isinstance(made, RecordColumn)
    return made


TAKES: list[Any] = [
    slice(1, 3),
    slice(None),
    slice(3, 1),
    slice(None, None, 2),
    slice(None, None, -1),
    np.array([3, 0, 0]),
    np.array([], dtype=np.int64),
    np.array([True, False, True, False]),
    np.array([-1, -2]),
]


@pytest.mark.parametrize("indices", TAKES, ids=str)
def test_take_is_numpy_s_indexing(indices: Value) -> None:
    """Every column type takes rows as a numpy array would, again after a slice."""
    expected = np.array(ROWS, dtype=object)[indices].tolist()
    taken = column().take(indices)
    assert (to_python(taken), len(taken)) == (expected, len(expected))
    assert to_python(column().take(slice(1, None)).take(np.array([2, 1]))) == [ROWS[3], ROWS[2]]


def test_slices_are_views() -> None:
    """A slice copies no values."""
    whole = column()
    for name, part in whole.take(slice(1, 3)).fields.items():
        before = whole.fields[name]
        if isinstance(part, NumberColumn):
            assert isinstance(before, NumberColumn)
            assert np.shares_memory(part.values, before.values)
        if isinstance(part, TextColumn):
            assert isinstance(before, TextColumn)
            assert part.data is before.data
        if isinstance(part, ListColumn):
            assert isinstance(before, ListColumn)
            assert part.items is before.items


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=6))
def test_concat_undoes_slicing(cuts: list[int]) -> None:
    """Cut anywhere, in any number of pieces, and put together, the rows are the same."""
    edges = [0, *sorted(cuts), 4]
    parts = [column().take(slice(a, b)) for a, b in itertools.pairwise(edges)]
    assert to_python(concat(parts)) == ROWS
    shared = column()
    assert to_python(concat([shared.take(slice(a, b)) for a, b in itertools.pairwise(edges)])) == ROWS


def test_concat_packs_large_buffers() -> None:
    """Short strings cut from large buffers do not drag the buffers along."""
    parts = [TextColumn.from_values(["x" * 100_000, f"k{k}"]).take(slice(1, 2)) for k in range(3)]
    whole = concat(parts)
    assert isinstance(whole, TextColumn)
    assert whole.to_list() == ["k0", "k1", "k2"]
    assert whole.data.size < 1000


@pytest.mark.parametrize("size", [10, 3000])
def test_concat_of_records_joins_shared_buffers_once(size: int) -> None:
    """Text columns that share a buffer share the joined one, unless the buffers dwarf the rows; the text is right."""
    names = [f"t{k}" for k in range(12)]

    def batch(tag: str) -> RecordColumn:
        pool = TextColumn.from_values([f"{tag}{name}" for name in names] + ["x" * size * 100])
        return RecordColumn({name: pool.take(slice(k, k + 1)) for k, name in enumerate(names)}, 1)

    joined = concat([batch("a"), batch("b"), batch("c")])
    assert to_python(joined) == [{name: f"{tag}{name}" for name in names} for tag in "abc"]
    assert isinstance(joined, RecordColumn)
    buffers = {id(part.data) for part in joined.fields.values() if isinstance(part, TextColumn)}
    assert len(buffers) == (1 if size == 10 else len(names))


def test_concat_of_enums_joins_the_symbols() -> None:
    """Codes of different vocabularies are translated."""
    joined = concat([EnumColumn(np.array([0, 1]), ("A", "B")), EnumColumn(np.array([0, 1]), ("B", "C"))])
    assert to_python(joined) == ["A", "B", "B", "C"]


def test_concat_of_constants() -> None:
    """Equal constants stay one, different ones become objects; True is not 1."""
    assert len(concat([Constant(1, 2), Constant(1, 3)])) == 5
    assert isinstance(concat([Constant(1, 2), Constant(1, 3)]), Constant)
    mixed = concat([Constant(1, 1), Constant(True, 1)])
    assert isinstance(mixed, ObjectColumn)
    assert to_python(mixed) == [1, True]


REFUSED: list[list[Column]] = [
    [],
    [NumberColumn(np.array([1])), Constant(1, 1)],
    [NumberColumn(np.array([1])), NumberColumn(np.array([True]))],
    [RecordColumn({"a": Constant(1, 1)}, 1), RecordColumn({"b": Constant(1, 1)}, 1)],
]


@pytest.mark.parametrize("columns", REFUSED, ids=["none", "types", "booleans", "fields"])
def test_concat_refuses_what_does_not_match(columns: list[Column]) -> None:
    """Columns that have no common type are a ValueError."""
    with pytest.raises(ValueError, match="concatenate"):
        concat(columns)


def test_spread_leaves_blanks() -> None:
    """Rows that are not named are zero, empty or null."""
    wide = to_python(spread(column().take(slice(0, 2)), np.array([1, 3]), 5))
    assert [wide[1], wide[3]] == ROWS[:2]
    blank: dict[str, Any] = {"n": None, "s": None, "b": b"", "e": "A", "l": None, "m": {}, "r": None, "u": None}
    assert wide[0] == wide[2] == wide[4] == blank
    assert to_python(spread(Constant(3, 1), np.array([0]), 2)) == [3, 3]


WORDS = st.binary(max_size=4) | st.binary(min_size=7, max_size=9) | st.binary(min_size=14, max_size=20)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=30), st.data())
def test_codes_are_a_dictionary_lookup(vocabulary: list[bytes], others: list[bytes], data: st.DataObject) -> None:
    """Codes are the first index in the vocabulary, whatever the lengths, padding bytes and nulls."""
    pool = [*vocabulary, *others, *(word + b"\0" for word in vocabulary), None]
    values = data.draw(st.lists(st.sampled_from(pool), max_size=30))
    column = TextColumn.from_values(values)
    expected = [vocabulary.index(value) if value in vocabulary else -7 for value in values]
    assert column.codes(vocabulary, unknown=-7).tolist() == expected


def test_codes_of_text() -> None:
    """Vocabularies may be text; an empty vocabulary knows nothing."""
    column = TextColumn.from_values(["zürich", "", "x" * 40])
    assert column.codes(["x" * 40, "", "zürich"]).tolist() == [2, 1, 0]
    assert column.codes([]).tolist() == [-1, -1, -1]
    assert column.take(slice(0, 0)).codes(["a"]).tolist() == []


def test_texts_from_codes_and_constants() -> None:
    """A vocabulary's entry at each code; negative is null; beyond it is an error."""
    assert TextColumn.from_codes(np.array([1, -3, 0]), [b"a", "é"]).to_bytes_list() == ["é".encode(), None, b"a"]
    assert TextColumn.from_codes(np.array([], dtype=np.int64), []).to_list() == []
    assert TextColumn.constant("é", 3).to_list() == ["é"] * 3
    with pytest.raises(IndexError, match="code 2"):
        TextColumn.from_codes(np.array([2]), ["a", "b"])


def test_invalid_text_is_refused_only_when_decoded() -> None:
    """Bytes that are not text can be had as bytes, and are named by row."""
    text = TextColumn.from_values([b"\xff", "ok", None])
    assert text.to_bytes_list() == [b"\xff", b"ok", None]
    assert rows_not_utf8(text).tolist() == [0]
    with pytest.raises(UnicodeDecodeError):
        text.to_list()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.binary(max_size=70) | st.text(max_size=30).map(str.encode), max_size=20))
def test_utf8_check_agrees_with_python(values: list[bytes]) -> None:
    """A value is named exactly when Python cannot decode it."""

    def is_bad(value: bytes) -> bool:
        return value.decode(errors="replace").encode() != value

    text = TextColumn.from_values(values)
    assert not_utf8(text.data, text.starts, text.lengths).tolist() == [k for k, v in enumerate(values) if is_bad(v)]


@settings(max_examples=80, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.lists(st.tuples(st.integers(0, 399), st.integers(0, 399)), max_size=12))
def test_ranges_are_copied_exactly(data: bytes, picks: list[tuple[int, int]]) -> None:
    """Ranges of any length are copied whole, and nothing beside them is touched."""
    source = np.frombuffer(data, dtype=np.uint8)
    starts = np.array([a % len(data) for a, _ in picks], dtype=np.int64)
    lengths = np.array(
        [b % (len(data) - s + 1) for (_, b), s in zip(picks, starts.tolist(), strict=True)], dtype=np.int64
    )
    whole = b"".join(data[s : s + k] for s, k in zip(starts.tolist(), lengths.tolist(), strict=True))
    assert pack(source, starts, lengths)[: len(whole)].tobytes() == whole
    target = np.full(int((lengths + 1).sum()) + 1, 238, dtype=np.uint8)
    places = starts_of(lengths + 1)[:-1] + 1
    copy_ranges(source, starts, lengths, target, places)
    gaps = np.ones(target.size, dtype=np.bool_)
    for place, length in zip(places.tolist(), lengths.tolist(), strict=True):
        gaps[place : place + length] = False
    assert (target[gaps] == 238).all()
