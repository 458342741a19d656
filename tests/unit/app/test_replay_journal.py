"""The replay journal: what was replayed survives kills, torn lines, other topics and topics made anew."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dead_letters import DeadLetter, DeadLetterError
from app.replay_journal import Parcel, ReplayedOffsets, ReplayJournal, Run

if TYPE_CHECKING:
    from pathlib import Path

TOPIC = "score-requests.dlq"


def parcel(*offsets: int, partition: int = 0, newest_ms: int = 100) -> Parcel:
    """Dead letters that are sent together."""
    return Parcel(partition, offsets, newest_ms, "score-requests", partition, 55)


def letter(offset: int, *, partition: int = 0, timestamp_ms: int = 100) -> DeadLetter:
    """A dead letter of that place and time."""
    return DeadLetter(TOPIC, partition, offset, timestamp_ms, None, b"", ())


def journal(folder: Path, *, cluster: str = "c1", topic: str = TOPIC) -> ReplayJournal:
    """The journal in a folder."""
    return ReplayJournal(folder / "new" / "journal.jsonl", cluster, topic)


def test_what_was_sent_is_known_afterwards(tmp_path: Path) -> None:
    """A later process knows which offsets were sent, and no others."""
    with journal(tmp_path) as first:
        for state in ("sending", "sent"):
            first.record(state, parcel(3, 4, 9))
        assert first.has(letter(4))
    with journal(tmp_path) as second:
        assert [o for o in range(12) if second.has(letter(o))] == [3, 4, 9]
        assert not second.has(letter(4, partition=1))
        assert second.in_doubt() == []


def test_another_cluster_and_another_topic_know_nothing_of_it(tmp_path: Path) -> None:
    """One file serves all topics and clusters."""
    with journal(tmp_path) as first:
        first.record("sent", parcel(3))
    for other in (journal(tmp_path, cluster="c2"), journal(tmp_path, topic="outcomes.dlq")):
        with other:
            assert not other.has(letter(3))


def test_a_parcel_that_was_not_confirmed_is_in_doubt(tmp_path: Path) -> None:
    """Until it is known of each of its letters whether it arrived; then those that did not are free to be sent."""
    with journal(tmp_path) as first:
        first.record("sending", parcel(1, 2, 3))
    with journal(tmp_path) as second:
        assert second.in_doubt() == [parcel(1, 2, 3)]
        second.record("sent", parcel(1, 2))
        assert second.in_doubt() == [parcel(3)]
    with journal(tmp_path) as third:
        assert third.in_doubt() == [parcel(3)]
        third.record("not sent", parcel(3))
    with journal(tmp_path) as fourth:
        assert fourth.in_doubt() == []
        assert [fourth.has(letter(o)) for o in (1, 2, 3)] == [True, True, False]


def test_a_torn_line_is_as_if_it_had_not_been_written(tmp_path: Path) -> None:
    """Wherever the power went, the journal opens: the parcel is unknown, in doubt or sent, and nothing in between."""
    with journal(tmp_path) as first:
        first.record("sending", parcel(1, 2))
        first.record("sent", parcel(1, 2))
    whole = first.path.read_bytes()
    first_end = whole.index(b"\n") + 1
    for size in range(len(whole)):
        first.path.write_bytes(whole[:size])
        with journal(tmp_path) as torn:
            assert torn.in_doubt() == ([parcel(1, 2)] if size >= first_end else [])
            assert not torn.has(letter(1))
            torn.record("sent", parcel(7))
        with journal(tmp_path) as later:
            assert later.has(letter(7))


@pytest.mark.parametrize("line", ["{", "7", "[]", "{}", '{"cluster": "c1", "topic": "score-requests.dlq"}'])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, line: str) -> None:
    """It names file and line, and leaves the file alone."""
    path = tmp_path / "notes"
    path.write_text(f"{line}\n")
    with pytest.raises(DeadLetterError, match=re.escape(f"{path}: line 1 ")), ReplayJournal(path, "c1", TOPIC):
        pass
    assert path.read_text() == f"{line}\n"


def test_two_replays_do_not_share_a_journal(tmp_path: Path) -> None:
    """The second is told to wait; after the first it may."""
    with journal(tmp_path), pytest.raises(DeadLetterError, match="another replay is using"), journal(tmp_path):
        pass
    with journal(tmp_path) as later:
        later.record("sent", parcel(1))


def test_a_journal_that_cannot_be_made(tmp_path: Path) -> None:
    """The message says why."""
    (tmp_path / "new").write_text("a file where the folder should be")
    with pytest.raises(DeadLetterError, match="cannot be opened"), journal(tmp_path):
        pass


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10), st.integers(0, 50)), max_size=12))
def test_runs_are_like_a_dictionary(given_runs: list[tuple[int, int, int]]) -> None:
    """Disjoint runs hold what a plain dictionary of offsets would: the last one to cover an offset decides."""
    replayed, model = ReplayedOffsets(), dict[int, int]()
    for first, length, newest_ms in given_runs:
        replayed.add(Run(first, first + length, newest_ms))
        model |= dict.fromkeys(range(first, first + length + 1), newest_ms)
    for offset in range(45):
        for timestamp_ms in (0, 25, 50):
            assert replayed.holds(offset, timestamp_ms) == (timestamp_ms <= model.get(offset, -1))
