"""The verdict itself: it must see what is lost, doubled, out of order, untrue, or committed too early."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.outcome_verdict import MonitorEvidence, judge_monitors
from chaos.verdict import Answer, Commit, Evidence, judge

ROWS = 6


def score(offset: int, at: int) -> Answer:
    """The answer to a request of partition 0."""
    return Answer((0, offset), 0, at, request_id=f"r{offset}", status="OK", score=offset / 10)


def evidence(*sources: int) -> Evidence:
    """Six requests, the fourth of them undecodable, and the answers in some order."""
    requests = {(0, n): None if n == 3 else f"r{n}" for n in range(ROWS)}
    answers = [score(source, at) for at, source in enumerate(sources or (0, 1, 2, 4, 5))]
    return Evidence(
        requests=requests,
        acknowledged=frozenset(requests),
        scores=answers,
        predictions=[replace(each, status="") for each in answers],
        dead_letters=[Answer((0, 3), 0, 0)],
        commits=[Commit({0: ROWS}, {0: len(answers)})],
        bit_equal=len(answers),
    )


def test_a_clean_run_keeps_every_promise() -> None:
    """Each request answered once, in order, the undecodable one a dead letter, everything committed."""
    for mode in ("at_least_once", "exactly_once"):
        assert judge(evidence(), mode).problems == []  # type: ignore[arg-type]


def test_a_lost_answer_is_seen() -> None:
    """A request without a record on scores is lost, although everything was committed."""
    found = judge(evidence(0, 1, 2, 5), "at_least_once")
    assert found.figures["scores"]["lost"] == 1
    assert "every request has its record on scores: broken 1 times, first by (0, 4)" in found.problems


def test_redelivery_is_allowed_at_least_once_and_seen_exactly_once() -> None:
    """Two answers that stand there twice are dropped by their mark; exactly once does not allow them."""
    found = judge(evidence(0, 1, 2, 1, 2, 4, 5), "at_least_once")
    assert found.problems == []
    assert (found.figures["scores"]["doubled"], found.figures["scores"]["doubled_by_mark"]) == (2, 0)
    assert (
        "scores has each request once: broken 2 times, first by (0, 1), (0, 2)"
        in judge(evidence(0, 1, 2, 1, 2, 4, 5), "exactly_once").problems
    )


def test_an_answer_that_comes_too_late_for_the_mark_is_seen() -> None:
    """An answer behind a later one would be dropped as redelivered by a reader: that is a loss."""
    found = judge(evidence(0, 2, 1, 4, 5), "at_least_once")
    assert found.figures["scores"]["out_of_order"] == 1
    assert any("follows the order" in problem for problem in found.problems)


def test_a_commit_ahead_of_its_answer_is_seen() -> None:
    """The group had committed three offsets when only two answers stood on the topic."""
    early = replace(evidence(), commits=[Commit({0: 3}, {0: 2}), Commit({0: ROWS}, {0: 5})])
    assert judge(early, "at_least_once").problems == [
        "no offset is committed before its answer is there: broken 1 times, first by 0@2"
    ]


def test_evidence_of_a_later_attempt_is_excused_at_least_once_alone() -> None:
    """The first attempt wrote the answer and died, the second wrote both with other rows of the store."""
    again = evidence(0, 1, 2, 1, 4, 5)
    second = replace(again.scores[3], score=9.0)
    predictions = [replace(each, status="", offset=n) for n, each in enumerate(evidence().scores)]
    predictions[1] = replace(predictions[1], score=9.0)
    parted = replace(
        again, scores=[*again.scores[:3], second, *again.scores[4:]], predictions=predictions, bit_equal=5,
    )  # fmt: skip
    found = judge(parted, "at_least_once")
    assert (found.problems, found.figures["of_two_attempts"]) == ([], 1)
    assert any("have the same score" in problem for problem in judge(parted, "exactly_once").problems)


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"commits": [Commit({0: 5}, {0: 5})]}, "in the end everything is committed"),
        ({"bit_equal": 4}, "bit by bit"),
        ({"dead_letters": []}, "every undecodable record is a dead letter"),
        ({"dead_letters": [Answer((0, 3), 0, 0), Answer((0, 1), 0, 1)]}, "nothing else is a dead letter"),
        ({"acknowledged": frozenset({(0, 99)})}, "every acknowledged request is on the topic"),
        ({"scores": [replace(score(n, n), partition=1) for n in (0, 1, 2, 4, 5)]}, "its request's partition"),
        ({"scores": [replace(score(n, n), request_id="x") for n in (0, 1, 2, 4, 5)]}, "names its request"),
        ({"scores": [replace(score(n, n), score=9.0) for n in (0, 1, 2, 4, 5)]}, "have the same score"),
    ],
)
def test_every_other_promise_can_be_broken(change: dict[str, object], promise: str) -> None:
    """One thing is wrong, and the verdict names it."""
    problems = judge(replace(evidence(), **change), "at_least_once").problems  # type: ignore[arg-type]
    assert [promise in problem for problem in problems].count(True) == 1, problems


def test_the_monitors_verdict_counts_by_mark() -> None:
    """A repeated mark is harmless, the same pair under two marks is not, nor is a closing that comes twice."""
    closing = ("m", 1, 0, "WINDOW_CLOSED", True, "0,1")
    clean = MonitorEvidence(
        expected=frozenset({"r1", "r2"}),
        labelled=[(b"a", "r1"), (b"b", "r2"), (b"b", "r2")],
        closings=[closing],
        dead_letters=0,
        counters={"joined": 2},
    )
    assert judge_monitors(clean).problems == []
    for change in (
        {"labelled": [(b"a", "r1"), (b"b", "r2"), (b"c", "r2")]},
        {"labelled": [(b"a", "r1")]},
        {"closings": [closing, closing]},
        {"counters": {"joined": 1}},
        {"dead_letters": 1},
    ):
        assert len(judge_monitors(replace(clean, **change)).problems) == 1  # type: ignore[arg-type]
