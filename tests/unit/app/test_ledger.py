"""The ledger against a model that remembers every single offset."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.ledger import Ledger

TP = ("score-requests", 0)
OTHER = ("score-requests", 1)


@dataclass
class _Naive:
    """One partition, offset by offset."""

    start: int = -1
    end: int = -1
    answered: set[int] = field(default_factory=set)
    committed: int = -1

    def prefix(self) -> int:
        """The end of the contiguous answered prefix."""
        at = self.start
        while at in self.answered:
            at += 1
        return at


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_committable_is_the_end_of_the_answered_prefix(data: st.DataObject) -> None:
    """Whatever is delivered, answered, committed and revoked, only the contiguous answered prefix may be committed."""
    ledger, naive, waiting = Ledger(), _Naive(), []
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["deliver", "answer", "answer", "answer", "commit", "revoke"]))
        if action == "deliver":
            start = naive.end + data.draw(st.integers(0, 3)) if naive.start >= 0 else data.draw(st.integers(0, 9))
            end = start + data.draw(st.integers(1, 6))
            ledger.deliver(TP, start, end)
            if naive.start < 0:
                naive.start = naive.committed = start
            else:
                naive.answered |= set(range(naive.end, start))
            naive.end = end
            cut = data.draw(st.integers(start, end))
            waiting += [(a, b) for a, b in ((start, cut), (cut, end)) if a < b]
        elif action == "answer" and waiting:
            begin, stop = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            ledger.answer(TP, begin, stop)
            naive.answered |= set(range(begin, stop))
        elif action == "commit":
            ledger.commit(ledger.committable())
            naive.committed = naive.prefix()
        elif action == "revoke":
            ledger.revoke({TP})
            naive, waiting = _Naive(), []
        expected = naive.prefix() if naive.start >= 0 else -1
        assert ledger.committable() == ({TP: expected} if expected > naive.committed else {})
        in_flight = set(range(naive.start, naive.end)) - naive.answered if naive.start >= 0 else set()
        assert ledger.in_flight().get(TP, 0) == len(in_flight)


def _worked() -> Ledger:
    """5 .. 20 delivered; 5 .. 8 and 10 .. 12 answered; 7 committed."""
    ledger = Ledger()
    ledger.deliver(TP, 5, 20)
    ledger.deliver(OTHER, 0, 4)
    ledger.answer(TP, 10, 12)
    ledger.answer(TP, 5, 8)
    ledger.answer(OTHER, 0, 2)
    ledger.commit({TP: 7})
    return ledger


@pytest.mark.parametrize(
    ("step", "arguments"),
    [
        pytest.param("deliver", (TP, 20, 20), id="deliver nothing"),
        pytest.param("deliver", (TP, 19, 25), id="deliver again"),
        pytest.param("answer", (TP, 5, 6), id="answer what is answered"),
        pytest.param("answer", (TP, 11, 13), id="overlap on the left"),
        pytest.param("answer", (TP, 9, 11), id="overlap on the right"),
        pytest.param("answer", (TP, 9, 15), id="answer around an answer"),
        pytest.param("answer", (TP, 10, 12), id="answer twice"),
        pytest.param("answer", (TP, 18, 21), id="answer what was never delivered"),
        pytest.param("answer", (TP, 14, 14), id="answer nothing"),
        pytest.param("commit", ({TP: 9},), id="commit past an unanswered record"),
        pytest.param("commit", ({TP: 6},), id="commit backwards"),
        pytest.param("commit", ({OTHER: 2, TP: 9},), id="commit one that may and one that may not"),
    ],
)
def test_a_refused_step_changes_nothing(step: str, arguments: tuple[object, ...]) -> None:
    """A step that breaks the rules raises and leaves every account as it was."""
    ledger = _worked()
    before = copy.deepcopy(ledger._accounts)
    with pytest.raises(ValueError, match=r"score-requests"):
        getattr(ledger, step)(*arguments)
    assert ledger._accounts == before


def test_a_gap_in_the_log_counts_as_answered() -> None:
    """Offsets that the log no longer holds never stop the prefix."""
    ledger = Ledger()
    ledger.deliver(TP, 0, 2)
    ledger.deliver(TP, 7, 9)
    ledger.answer(TP, 7, 9)
    assert ledger.committable() == {}
    ledger.answer(TP, 0, 2)
    assert ledger.committable() == {TP: 9}


def test_answers_to_a_partition_that_is_gone_are_ignored() -> None:
    """After a revocation the partition may come back from its committed offset, and old answers mean nothing."""
    ledger = Ledger()
    ledger.deliver(TP, 0, 4)
    ledger.revoke()
    ledger.answer(TP, 0, 4)
    ledger.commit({TP: 4})
    assert (ledger.committable(), ledger.in_flight()) == ({}, {})
    ledger.deliver(TP, 0, 4)
    assert ledger.committable() == {}
    assert ledger.in_flight() == {TP: 4}


def test_revoking_one_partition_keeps_the_others() -> None:
    """Only the partitions that are named are forgotten."""
    ledger = _worked()
    ledger.revoke({TP, ("score-requests", 9)})
    assert ledger.committable() == {OTHER: 2}
