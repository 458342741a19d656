"""The verdict on the monitors: each outcome leaves once with its prediction, each closing is published once.

Pure: records in, findings out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaos.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Closing = tuple[str, int, int, str, bool, str]
"""Model, version, start of the window (micros), kind of the event, whether final, partitions that it covers."""


@dataclass(frozen=True, slots=True)
class MonitorEvidence:
    """Everything that the verdict is reached from.

    Attributes:
        expected: request ids that have both a prediction and an outcome.
        labelled: (mark, request id) of each record on ``labelled-predictions``.
        closings: of each record on ``monitor-events`` that speaks of a closing.
        dead_letters: records on ``outcomes.dlq``.
        counters: sums over the monitors, from ``/stats``.

    """

    expected: frozenset[str]
    labelled: Sequence[tuple[bytes, str]]
    closings: Sequence[Closing]
    dead_letters: int
    counters: Mapping[str, int]


def judge_monitors(evidence: MonitorEvidence) -> Verdict:
    """Hold the evidence against what is promised in both modes: with the mark of a record, redelivery is harmless."""
    verdict = Verdict()
    marks = dict(evidence.labelled)
    by_id = Counter(marks.values())
    verdict.figures |= {
        "expected": len(evidence.expected),
        "labelled": {"records": len(evidence.labelled), "doubled": len(evidence.labelled) - len(marks)},
        "closings": len(evidence.closings),
        "dead_letters": evidence.dead_letters,
        "counters": dict(evidence.counters),
    }
    verdict.require("every outcome leaves with its prediction", sorted(evidence.expected - by_id.keys()))
    verdict.require("nothing is labelled that has no outcome", sorted(by_id.keys() - evidence.expected))
    twice = [request_id for request_id, count in by_id.items() if count > 1]
    verdict.require("by its mark each labelled prediction is there once", twice)
    repeated = [closing for closing, count in Counter(evidence.closings).items() if count > 1]
    verdict.require("each closing is published once", repeated)
    verdict.require("no outcome is a dead letter", range(evidence.dead_letters))
    joined = evidence.counters.get("joined", 0)
    if joined != len(evidence.expected):
        verdict.problems.append(f"the stores have counted {joined} joined pairs of {len(evidence.expected)}")
    return verdict


def counters_of(figures: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sum of the counters of several monitors.

    Example:
        >>> counters_of([{"counters": {"joined": 2}}, {"counters": {"joined": 3}}])
        {'joined': 5}

    """
    total: Counter[str] = Counter()
    for each in figures:
        total.update(each["counters"])
    return dict(total)
