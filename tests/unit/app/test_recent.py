"""The same request again, against a dictionary that remembers everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app.recent as recent_module
from app.recent import Original, RecentAnswers
from schemas.columns import TextColumn
from schemas.records import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.fixture(params=[0, 8], ids=["by arrays", "one by one"], autouse=True)
def few_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small micro-batches take either way."""
    monkeypatch.setattr("app.recent.FEW_ROWS", request.param)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=9))
def test_both_ways_know_an_id_by_the_same_hash(ids: list[bytes]) -> None:
    """So that an id entered in a large micro-batch is found in a small one."""
    column = TextColumn.from_values(ids, binary=True)
    assert recent_module._hashes(column).tolist() == [recent_module._hash(raw) for raw in ids]


def _enter(recent: RecentAnswers, ids: list[str], now_s: float = 0.0, status: Status = Status.OK) -> dict[int, bytes]:
    """Enter, answer with the id and the batch's time, and return the answers of those that came before."""
    batch, originals = recent.enter(TextColumn.from_values(ids), _good(len(ids)), now_s=now_s)
    answers = [f"{name}@{now_s}".encode() for name in ids]
    recent.answered(batch, answers, np.full(len(ids), status, np.int8))
    for row, original in originals.items():
        answers[row] = original.batch.answer(original.row)
    return {row: answers[row] for row in originals}


def _good(count: int) -> NDArray[np.int8]:
    return np.full(count, Status.OK, np.int8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6), min_size=1, max_size=12))
def test_every_request_after_the_first_gets_the_first_answer(batches: list[list[str]]) -> None:
    """Within a micro-batch and across them, as long as all are remembered and no two ids share a place."""
    recent, first = RecentAnswers(remembered=50_000, max_age_s=600.0), {}
    for number, ids in enumerate(batches):
        again = _enter(recent, ids, float(number))
        for row, name in enumerate(ids):
            expected = first.setdefault(name, f"{name}@{float(number)}".encode())
            is_first = name not in ids[:row] and expected == f"{name}@{float(number)}".encode()
            assert again.get(row) == (None if is_first else expected), (number, row, name)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=0, max_size=90), min_size=1, max_size=60))
def test_no_request_is_taken_for_another(ids: list[str]) -> None:
    """In a table so small that places are shared, with ids of any length, a hit has the same id."""
    recent, seen = RecentAnswers(remembered=8, max_age_s=600.0), []
    for number, name in enumerate(ids):
        _, originals = recent.enter(TextColumn.from_values([name]), _good(1), now_s=float(number))
        for original in originals.values():
            assert original.batch.ids.to_list() == [name]
            assert name in seen
        seen.append(name)


def test_an_id_is_found_whatever_comes_with_it() -> None:
    """The hash of an id does not depend on how long the others of its batch are."""
    recent = RecentAnswers(remembered=1000, max_age_s=600.0)
    _enter(recent, ["short", "a" * 60])
    assert set(_enter(recent, ["short"], 1.0)) == {0}
    assert set(_enter(recent, ["x", "a" * 60], 2.0)) == {1}


@pytest.mark.parametrize("status", [Status.ERROR, Status.EXPIRED, Status.INVALID])
def test_an_answer_without_a_score_is_not_repeated(status: Status) -> None:
    """Who tries again after an error or too late wants to be scored."""
    recent = RecentAnswers(remembered=1000, max_age_s=600.0)
    _enter(recent, ["a"], status=status)
    assert not _enter(recent, ["a"], 1.0)
    assert _enter(recent, ["a"], 2.0), "the second one is scored, and is remembered"


def test_old_answers_and_too_many_are_forgotten() -> None:
    """By age, and by number, oldest first."""
    recent = RecentAnswers(remembered=4, max_age_s=10.0)
    _enter(recent, ["a", "b"], 0.0)
    _enter(recent, ["c", "d"], 5.0)
    assert _enter(recent, ["c"], 5.0), "a and b made room for it"
    assert recent.rows <= 4
    assert not _enter(recent, ["a"], 6.0)
    assert not _enter(recent, ["d"], 16.0)


def test_a_request_under_way_is_an_original() -> None:
    """The answer of the first is not there yet, but the second knows whose it will be."""
    recent = RecentAnswers(remembered=100, max_age_s=10.0)
    first, _ = recent.enter(TextColumn.from_values(["a"]), _good(1), now_s=0.0)
    _, originals = recent.enter(TextColumn.from_values(["a"]), _good(1), now_s=0.1)
    assert originals == {0: Original(first, 0)}


def test_nothing_is_remembered_of_partitions_that_are_gone() -> None:
    """After ``clear`` every id is new."""
    recent = RecentAnswers(remembered=100, max_age_s=10.0)
    _enter(recent, ["a"])
    recent.clear()
    assert not _enter(recent, ["a"])
    assert recent.rows == 1


def test_nearly_all_of_the_last_are_found() -> None:
    """Of as many as are remembered at most one in two hundred is forgotten early."""
    recent = RecentAnswers(remembered=20_000, max_age_s=600.0)
    ids = [f"request-{i:08d}" for i in range(40_000)]
    for start in range(0, len(ids), 500):
        assert not _enter(recent, ids[start : start + 500])
    found = 0
    for start in range(22_000, 30_000, 100):
        found += len(recent.enter(TextColumn.from_values(ids[start : start + 100]), _good(100), now_s=0.0)[1])
    assert found > 0.995 * 8_000
