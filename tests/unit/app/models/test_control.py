"""Wishes about models: each record changes exactly what it names, and nonsense changes nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.models.control import (
    MAX_VERSION,
    MAX_WISHES,
    ControlError,
    ControlState,
    Kind,
    Target,
    Wish,
    encode,
    of_calibration,
    of_label,
    of_version,
    parse_target,
    parse_wish,
)

LOADED, UNLOADED = Wish(1), Wish(0)

targets = st.one_of(
    st.builds(of_version, st.sampled_from(["a", "b_2"]), st.integers(1, 4)),
    st.builds(of_label, st.sampled_from(["a", "b_2"]), st.sampled_from(["champion", "stable"])),
    st.builds(of_calibration, st.sampled_from(["a", "b_2"]), st.integers(1, 4)),
)


def value_of(target: Target, value: int) -> bytes:
    """The record's value that wishes 1 or 2 of a target, loaded or not for a version."""
    return encode(target, Wish(value % 2 if target.kind is Kind.VERSION else value))[1]


def folded(*records: tuple[bytes, bytes | None]) -> ControlState:
    """The state after some records."""
    state = ControlState.empty()
    for offset, (key, value) in enumerate(records):
        state = state.apply(key, value, offset)
    return state


def test_wishes_of_each_kind_are_kept_apart() -> None:
    """Version, label and calibration of two models do not mix."""
    state = folded(
        encode(of_version("delays", 1), LOADED),
        encode(of_version("delays", 2), UNLOADED),
        encode(of_label("delays", "champion"), Wish(1)),
        encode(of_calibration("delays", 1), Wish(7)),
        encode(of_version("other", 1), UNLOADED),
    )
    assert state.wanted("delays") == {1: True, 2: False}
    assert state.labels("delays") == {"champion": 1}
    assert state.calibrations("delays") == {1: 7}
    assert (state.wanted("other"), state.labels("other"), state.calibrations("other")) == ({1: False}, {}, {})
    assert (state.models(), state.offset, state.problem) == (("delays", "other"), 5, None)
    assert state.wanted("nobody") == {}


def test_the_last_record_of_a_key_counts() -> None:
    """A later wish replaces the earlier one, as compaction would leave it."""
    state = folded(encode(of_version("delays", 1), LOADED), encode(of_version("delays", 1), UNLOADED))
    assert state.wanted("delays") == {1: False}


def test_a_tombstone_takes_a_wish_back() -> None:
    """Afterwards nobody decided, and the model is forgotten; one for a wish that is not there does nothing."""
    target = of_label("delays", "champion")
    state = folded(encode(target, Wish(3)), (target.key, None), (of_version("delays", 1).key, None))
    assert (state.labels("delays"), state.models(), state.offset, state.problem) == ({}, (), 3, None)


def test_an_earlier_state_is_never_changed() -> None:
    """What somebody holds stays as it was when later records come."""
    before = folded(encode(of_version("delays", 1), LOADED))
    before.apply(*encode(of_version("delays", 1), UNLOADED), offset=1)
    assert (before.wanted("delays"), before.offset) == ({1: True}, 1)


def test_compaction_leaves_gaps_between_offsets() -> None:
    """The offset is that of the record, plus one, however many were removed before it."""
    assert ControlState.empty().apply(*encode(of_version("delays", 1), LOADED), offset=41).offset == 42


@pytest.mark.parametrize(
    "key",
    [None, b"", b"delays", b"delays/version/", b"delays/version/0", b"delays/version/2147483648", b"delays/version/x",
     b"Delays/version/1", b"delays/label/Champion", b"delays/label/1st", b"delays/labels/champion",
     b"../version/1", b"delays/version/1/2", b"\xff/version/1", b"delays/version/1\n", b"a" * 65 + b"/version/1"],
)  # fmt: skip
def test_a_key_of_another_shape_is_skipped(key: bytes | None) -> None:
    """It changes nothing, the offset goes on, and the reason is there to be logged."""
    state = folded(encode(of_version("delays", 1), LOADED)).apply(key, b'{"wanted": "loaded"}', 1)
    assert (state.wanted("delays"), state.models(), state.offset) == ({1: True}, ("delays",), 2)
    assert state.problem


@pytest.mark.parametrize(
    ("target", "value", "reason"),
    [
        (of_version("delays", 1), b"", "JSON"),
        (of_version("delays", 1), b"\xff\xfe", "JSON"),
        (of_version("delays", 1), b"[1]", "JSON"),
        (of_version("delays", 1), b"[" * 4000, "JSON"),
        (of_version("delays", 1), b'{"wanted": "loaded"' + b" " * 5000 + b"}", "JSON"),
        (of_version("delays", 1), b'{"wanted": true}', "wanted"),
        (of_version("delays", 1), b'{"wanted": "gone"}', "wanted"),
        (of_version("delays", 1), b'{"wanted": ["loaded"]}', "wanted"),
        (of_label("delays", "champion"), b'{"version": "3"}', "version"),
        (of_label("delays", "champion"), b'{"version": true}', "version"),
        (of_label("delays", "champion"), b'{"version": 0}', "version"),
        (of_label("delays", "champion"), b'{"version": 3.0}', "version"),
        (of_calibration("delays", 1), b'{"revision": -1}', "revision"),
        (of_calibration("delays", 1), b'{"revision": NaN}', "revision"),
        (of_calibration("delays", 1), b'{"revision": 2147483648}', "revision"),
    ],
)
def test_a_value_that_says_nothing_is_skipped(target: Target, value: bytes, reason: str) -> None:
    """The wish that held before holds on, and the reason names the field."""
    before = folded(encode(target, Wish(1)))
    after = before.apply(target.key, value, 1)
    assert (after.wishes, after.offset) == (before.wishes, 2)
    assert reason in str(after.problem)


def test_a_good_record_clears_the_problem() -> None:
    """A problem belongs to one record."""
    state = ControlState.empty().apply(b"?", b"", 0)
    assert state.apply(*encode(of_version("delays", 1), LOADED), offset=1).problem is None


def test_unknown_fields_are_ignored() -> None:
    """A newer release may say more; who said it, and when, is kept if it is of the right kind."""
    target = of_version("delays", 1)
    said = {"wanted": "loaded", "at": 5, "by": "ops", "because": {"of": []}}
    assert parse_wish(target, json.dumps(said).encode()) == Wish(1, 5, "ops")
    assert parse_wish(target, b'{"wanted": "loaded", "at": "noon", "by": 7}') == Wish(1)


def test_the_number_of_wishes_is_bounded() -> None:
    """A flood of keys fills no worker's memory; known ones can still be changed and taken back."""
    wishes = {of_version("delays", i): LOADED for i in range(1, MAX_WISHES + 1)}
    full = ControlState(wishes, MAX_WISHES)
    more = full.apply(*encode(of_version("delays", MAX_WISHES + 1), LOADED), offset=MAX_WISHES)
    assert len(more.wishes) == MAX_WISHES
    assert "sluice model reset" in str(more.problem)
    assert full.apply(*encode(of_version("delays", 1), UNLOADED), offset=0).wanted("delays")[1] is False
    assert len(full.apply(of_version("delays", 1).key, None, 0).wishes) == MAX_WISHES - 1


@pytest.mark.parametrize(
    ("model", "kind", "item"),
    [("Delays", Kind.VERSION, "1"), ("delays", Kind.LABEL, "a-b"), ("delays", Kind.VERSION, "-1"),
     ("delays", Kind.CALIBRATION, str(MAX_VERSION + 1)), ("delays", Kind.VERSION, "01")],
)  # fmt: skip
def test_no_target_has_a_name_that_cannot_be_one(model: str, kind: Kind, item: str) -> None:
    """Whoever mistypes a name hears so before anything is sent."""
    with pytest.raises(ControlError):
        Target(model, kind, item)


def test_a_wish_that_nobody_could_read_is_not_written() -> None:
    """Encoding checks what reading would."""
    with pytest.raises(ControlError, match="version must be"):
        encode(of_label("delays", "champion"), Wish(0))


@given(targets, st.integers(1, 4), st.integers(0, 2**53), st.text(max_size=100))
def test_what_is_written_is_read(target: Target, value: int, at_us: int, by: str) -> None:
    """Every wish about every target survives the topic."""
    wish = Wish(min(value, 1) if target.kind is Kind.VERSION else value, at_us, by)
    key, raw = encode(target, wish)
    assert (parse_target(key), parse_wish(target, raw)) == (target, wish)


@given(st.lists(st.tuples(targets, st.sampled_from([None, 1, 2]))))
def test_a_compacted_topic_gives_the_same_state(said: list[tuple[Target, int | None]]) -> None:
    """Reading only the last record of each key, gaps and all, ends in the same wishes as reading everything."""
    records = [(target.key, None if value is None else value_of(target, value)) for target, value in said]
    last = {key: offset for offset, (key, _) in enumerate(records)}
    compacted = ControlState.empty()
    for offset, (key, value) in enumerate(records):
        if last[key] == offset:
            compacted = compacted.apply(key, value, offset)
    whole = folded(*records)
    assert (compacted.wishes, compacted.offset) == (whole.wishes, whole.offset)


@given(st.binary(max_size=40), st.binary(max_size=80))
def test_no_bytes_break_it(key: bytes, value: bytes) -> None:
    """Whatever stands on the topic, the state goes on."""
    assert ControlState.empty().apply(key, value, 7).offset == 8
