"""The verdict on the scoring workers, from what stands on the topics: every request, every answer, every commit.

Pure: records in, findings out.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from chaos.scenario import Mode

Place: TypeAlias = tuple[int, int]
"""Partition and offset of a request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One record that answers a request.

    Attributes:
        source: place of the request, from ``x-src``.
        partition: where the answer stands.
        offset: where the answer stands.
        request_id: that it names; empty on a dead letter.
        status: of a score; empty otherwise.
        score: None when there is none.
        sent_ms: when its producer sent it, Unix time.

    """

    source: Place
    partition: int
    offset: int
    request_id: str = ""
    status: str = ""
    score: float | None = None
    sent_ms: int = 0


@dataclass(frozen=True, slots=True)
class Commit:
    """What a group had committed at some moment, and where the answers ended just after.

    Attributes:
        committed: partition to the group's offset.
        score_ends: partition to the end of ``scores``, asked for after ``committed``.

    """

    committed: Mapping[int, int]
    score_ends: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the verdict is reached from.

    Attributes:
        requests: place of every record on ``score-requests`` to its request id; None: it cannot be decoded.
        acknowledged: places that the load generator was told.
        scores: all committed records of ``scores``, partition by partition, in order.
        predictions: likewise of ``predictions-log``.
        dead_letters: likewise of ``score-requests.dlq``.
        commits: looks at the group, in order.
        bit_equal: prediction records whose scores the offline model gives too, bit by bit.

    """

    requests: Mapping[Place, str | None]
    acknowledged: frozenset[Place]
    scores: Sequence[Answer]
    predictions: Sequence[Answer]
    dead_letters: Sequence[Answer]
    commits: Sequence[Commit] = ()
    bit_equal: int = 0


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        figures: counts by name.
        problems: broken promises, one sentence each; none: the promises were kept.

    """

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def require(self, promise: str, broken: Iterable[object]) -> None:
        """Note how many broke a promise, with the first of them."""
        found = list(broken)
        if found:
            shown = ", ".join(map(str, found[:3]))
            self.problems.append(f"{promise}: broken {len(found)} times, first by {shown}")


def without_redelivered(answers: Sequence[Answer]) -> list[Answer]:
    """What a reader keeps that drops everything at or below the last source offset of a partition.

    Example:
        >>> kept = without_redelivered([Answer((0, n), 0, at) for at, n in enumerate([0, 1, 0, 1, 2])])
        >>> [answer.offset for answer in kept]
        [0, 1, 4]

    """
    last: dict[int, int] = {}
    kept = []
    for answer in answers:
        partition, offset = answer.source
        if offset > last.get(partition, -1):
            last[partition] = offset
            kept.append(answer)
    return kept


def repeated_spans_s(answers: Sequence[Answer]) -> list[float]:
    """For each redelivery that repeated answers, the seconds of work that it repeated.

    That is from the first to the last of the answers that were there already: what a worker had answered and not
    committed when it ended. When several workers ended one after another without a commit, the spans of each are added
    up, without the time in which nobody had the partition.

    Example:
        >>> first = [Answer((0, n), 0, n, sent_ms=1000 + 10 * n) for n in range(4)]
        >>> again = [Answer((0, n), 0, n + 3, sent_ms=9000 + 10 * n) for n in range(1, 6)]
        >>> repeated_spans_s([*first, *again])
        [0.02]
        >>> third = [Answer((0, n), 0, n + 9, sent_ms=20000) for n in range(2, 7)]
        >>> repeated_spans_s([*first, *again, *third])
        [0.02, 0.02]

    """
    spans: list[float] = []
    for partition in sorted({answer.source[0] for answer in answers}):
        sent: dict[int, tuple[int, int]] = {}  # offset: number of the delivery that answered it first, and when
        repeated: list[int] = []
        delivery, last = 0, -1
        for answer in (each for each in answers if each.source[0] == partition):
            offset = answer.source[1]
            if offset <= last:
                spans += _span_s(repeated, sent)
                delivery, repeated = delivery + 1, []
            if offset in sent:
                repeated.append(offset)
            sent.setdefault(offset, (delivery, answer.sent_ms))
            last = offset
        spans += _span_s(repeated, sent)
    return spans


def _span_s(repeated: list[int], sent: Mapping[int, tuple[int, int]]) -> list[float]:
    """Nothing when nothing was repeated."""
    of_delivery: dict[int, list[int]] = {}
    for offset in repeated:
        delivery, sent_ms = sent[offset]
        of_delivery.setdefault(delivery, []).append(sent_ms)
    return [sum(times[-1] - times[0] for times in of_delivery.values()) / 1000] if repeated else []


def judge(evidence: Evidence, mode: Mode) -> Verdict:
    """Hold the evidence against what the delivery mode promises."""
    verdict = Verdict()
    poison = {place for place, request_id in evidence.requests.items() if request_id is None}
    decodable = evidence.requests.keys() - poison
    figures = verdict.figures
    figures["requests"], figures["poison"] = len(evidence.requests), len(poison)
    verdict.require("every acknowledged request is on the topic", evidence.acknowledged - evidence.requests.keys())
    scores = _judge_topic(verdict, "scores", evidence.scores, decodable, mode)
    scored = {place for place, answer in scores.items() if answer.status in {"OK", "DEGRADED"}}
    predictions = _judge_topic(verdict, "predictions-log", evidence.predictions, scored, mode)
    figures["repeated_work"] = _repeated_work(repeated_spans_s(evidence.scores))
    figures["statuses"] = dict(Counter(answer.status for answer in scores.values()))
    _judge_values(verdict, evidence, scores)
    _judge_pairs(verdict, evidence, scores, predictions, mode)
    _judge_dead_letters(verdict, evidence, poison, scores, mode)
    _judge_commits(verdict, evidence)
    return verdict


def _repeated_work(spans_s: list[float]) -> dict[str, float]:
    """At least once: no more than one commit interval, unless commits could not get through."""
    return {
        "times": len(spans_s),
        "median_s": round(statistics.median(spans_s), 3) if spans_s else 0.0,
        "longest_s": round(max(spans_s, default=0.0), 3),
    }


def _judge_topic(
    verdict: Verdict, topic: str, answers: Sequence[Answer], wanted: set[Place], mode: Mode
) -> dict[Place, Answer]:
    """Completeness, order and repetition of one topic; returns what a reader keeps, by request."""
    kept = {answer.source: answer for answer in without_redelivered(answers)}
    present = {answer.source for answer in answers}
    verdict.figures[topic] = {
        "records": len(answers),
        "lost": len(wanted - present),
        "doubled": len(answers) - len(present),
        "doubled_by_mark": len(without_redelivered(answers)) - len(kept),
        "out_of_order": len(present - kept.keys()),
    }
    verdict.require(f"every request has its record on {topic}", sorted(wanted - present))
    verdict.require(f"{topic} follows the order of its partition", sorted(present - kept.keys()))
    verdict.require(f"nothing stands on {topic} that nobody asked for", sorted(present - wanted))
    astray = (answer.source for answer in answers if answer.partition != answer.source[0])
    verdict.require(f"a record on {topic} is in its request's partition", astray)
    if mode == "exactly_once":
        seen = Counter(answer.source for answer in answers)
        verdict.require(f"{topic} has each request once", [place for place, count in seen.items() if count > 1])
    return kept


def _judge_values(verdict: Verdict, evidence: Evidence, scores: dict[Place, Answer]) -> None:
    verdict.figures["bit_equal"] = evidence.bit_equal
    differing = len(evidence.predictions) - evidence.bit_equal
    verdict.require("a logged score is what the model gives offline, bit by bit", range(differing))
    wrong_id = (p for p, a in scores.items() if p in evidence.requests and a.request_id != evidence.requests[p])
    verdict.require("an answer names its request", wrong_id)


def _judge_pairs(
    verdict: Verdict, evidence: Evidence, scores: dict[Place, Answer], predictions: dict[Place, Answer], mode: Mode
) -> None:
    """An answer and its evidence have the same score.

    A worker that is killed after an answer and before its evidence leaves the evidence to its successor, for which the
    store may have had other rows. At least once cannot exclude that; such a pair is counted, and excused only when
    each attempt that wrote both wrote the same to both.
    """
    parted = [p for p, a in predictions.items() if p in scores and a.score != scores[p].score]
    written: dict[Place, tuple[set[float | None], set[float | None]]] = {place: (set(), set()) for place in parted}
    for topic, answers in enumerate((evidence.scores, evidence.predictions)):
        for answer in answers:
            if answer.source in written:
                written[answer.source][topic].add(answer.score)
    across = {place for place, (answered, logged) in written.items() if answered & logged}
    verdict.figures["of_two_attempts"] = len(across)
    excused = across if mode == "at_least_once" else set()
    verdict.require("an answer and its evidence have the same score", [p for p in parted if p not in excused])


def _judge_dead_letters(
    verdict: Verdict, evidence: Evidence, poison: set[Place], scores: dict[Place, Answer], mode: Mode
) -> None:
    """Conservation: a score or one dead letter; a dead letter beside a score is the copy of an ERROR or INVALID."""
    letters = Counter(letter.source for letter in evidence.dead_letters)
    figures = {"records": letters.total(), "doubled": letters.total() - len(letters)}
    verdict.figures["dead_letters"] = figures
    verdict.require("every undecodable record is a dead letter", sorted(poison - letters.keys()))
    copied = {place for place, answer in scores.items() if answer.status in {"ERROR", "INVALID"}}
    verdict.require("nothing else is a dead letter", sorted(letters.keys() - poison - copied))
    if mode == "exactly_once":
        verdict.require("a dead letter is there once", [place for place, count in letters.items() if count > 1])


def _judge_commits(verdict: Verdict, evidence: Evidence) -> None:
    """Nothing was committed before its answer stood on the topic; and at the end everything is committed."""
    answered_at: dict[Place, int] = {}
    for answer in evidence.scores:
        answered_at.setdefault(answer.source, answer.offset)
    ahead: list[str] = []
    checked: dict[int, int] = {}
    for commit in evidence.commits:
        for partition, committed in commit.committed.items():
            ahead += [
                f"{partition}@{offset}"
                for offset in range(checked.get(partition, 0), committed)
                if evidence.requests.get((partition, offset)) is not None
                and answered_at.get((partition, offset), 2**62) >= commit.score_ends.get(partition, 0)
            ]
            checked[partition] = max(committed, checked.get(partition, 0))
    verdict.figures["looks_at_commits"] = len(evidence.commits)
    verdict.require("no offset is committed before its answer is there", ahead)
    ends = Counter(partition for partition, _ in evidence.requests)
    behind = [f"{p}: {checked.get(p, 0)} of {end}" for p, end in sorted(ends.items()) if checked.get(p, 0) < end]
    if evidence.commits:
        verdict.require("in the end everything is committed", behind)
