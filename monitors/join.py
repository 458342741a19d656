"""The join of predictions and outcomes by request id, on one partition, as pure logic.

Theory of operation. An *entry* stands for one request id: either its prediction, with the highest revision applied so
far, or the outcomes that came before it, parked. A batch of either topic is joined against the entries that it touches
and yields new entries, the pairs to publish, and what each pair adds to or takes from the window of its prediction.

Every rule looks at event times and revisions alone, never at arrival, so that any interleaving of the two topics, any
batch boundaries and any redelivery end in the same pairs and the same counts:

* the first prediction of a request id counts, later ones are duplicates;
* a revision that is not above the last one is a duplicate; a higher one replaces (takes back, then adds);
* an outcome further than the horizon from its prediction's event time is an orphan;
* an outcome later than the maturity of its prediction's window is late: published, not counted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from monitors.windows import SECOND_US, WindowRule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

TALLIES = (
    "predictions", "duplicates_predictions", "too_old_predictions", "outcomes", "duplicates_outcomes", "joined",
    "corrections", "retracted", "late", "orphans", "parked", "other_labels",
    "undecodable", "undecodable_predictions",
)  # fmt: skip
"""Counters of a partition, in the order in which they are stored. ``parked`` goes down again."""
NOTHING = -1
"""No label contributed; no revision applied."""
MAX_PARKED = 16
"""Revisions that wait for one prediction; more are the sign of a broken producer, and count as duplicates."""

_PREDICTION, _PARKED = 1, 2
_HEAD = struct.Struct("<Bqibq")
_OUTCOME = struct.Struct("<qqdiB")


class Outcome(NamedTuple):
    """What happened to one request, as the join needs it.

    Attributes:
        offset: of its record on the topic of the outcomes.
        time_us: outcome time, UTC micros.
        label: finite.
        revision: >= 0.
        retracted: the label is taken back.

    """

    offset: int
    time_us: int
    label: float
    revision: int
    retracted: bool


class Prediction(NamedTuple):
    """The entry of a request id whose prediction is known.

    Attributes:
        event_us: event time, UTC micros.
        revision: highest one applied, or ``NOTHING``.
        counted: label (0 or 1) that stands in the window's counts, or ``NOTHING``.
        counted_us: outcome time of that label, so that its delay can be taken back.
        value: the record's value on the prediction log, untouched.

    """

    event_us: int
    revision: int
    counted: int
    counted_us: int
    value: bytes


class Pair(NamedTuple):
    """A prediction with one revision of its outcome, and what that changes in the counts.

    Attributes:
        request_id: of both.
        prediction: as it was before this outcome.
        outcome: the revision.
        removed: label that leaves the counts, or ``NOTHING``.
        added: label that enters the counts, or ``NOTHING``.
        late: after maturity; changes no metric.

    """

    request_id: bytes
    prediction: Prediction
    outcome: Outcome
    removed: int
    added: int
    late: bool


@dataclass(frozen=True, slots=True)
class JoinRule:
    """The times that decide, all in micros of event time.

    Attributes:
        window: windows of the prediction's event time.
        horizon_us: largest distance of outcome and prediction.
        maturity_us: a window is final this long after its end.
        lateness_us: disorder within a topic that changes nothing.

    """

    window: WindowRule
    horizon_us: int
    maturity_us: int
    lateness_us: int

    @classmethod
    def of_seconds(cls, window: str, horizon_s: float, maturity_s: float, lateness_s: float) -> JoinRule:
        """The rule with times in seconds, as settings give them."""
        times = (int(s * SECOND_US) for s in (horizon_s, maturity_s, lateness_s))
        return cls(WindowRule.parse(window), *times)

    @property
    def bucket_us(self) -> int:
        """Grain in which entries expire."""
        return max(self.horizon_us // 64, SECOND_US)


@dataclass(slots=True)
class Step:
    """What joining one batch changes.

    Attributes:
        accepted: rows of a batch of predictions that are new.
        pairs: in the order of their making.
        changes: new entry of each request id that was touched.
        expiry: request ids by the expiry bucket in which their entry must be looked at.
        tallies: added to the partition's counters.

    """

    accepted: list[int] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    changes: dict[bytes, bytes] = field(default_factory=dict)
    expiry: dict[int, list[bytes]] = field(default_factory=dict)
    tallies: dict[str, int] = field(default_factory=dict)

    def tally(self, name: str, count: int = 1) -> None:
        """Count something."""
        self.tallies[name] = self.tallies.get(name, 0) + count


def pack_prediction(entry: Prediction) -> bytes:
    """Bytes of an entry."""
    return _HEAD.pack(_PREDICTION, entry.event_us, entry.revision, entry.counted, entry.counted_us) + entry.value


def pack_parked(outcomes: Sequence[Outcome]) -> bytes:
    """Bytes of the outcomes that wait for one prediction."""
    return bytes([_PARKED]) + b"".join(_OUTCOME.pack(*outcome) for outcome in outcomes)


def unpack(data: bytes) -> Prediction | list[Outcome]:
    """The entry behind its bytes.

    Example:
        >>> unpack(pack_prediction(Prediction(5, -1, -1, 0, b"abc")))
        Prediction(event_us=5, revision=-1, counted=-1, counted_us=0, value=b'abc')
        >>> unpack(pack_parked([Outcome(7, 5, 1.0, 0, False)]))
        [Outcome(offset=7, time_us=5, label=1.0, revision=0, retracted=False)]

    """
    if data[0] == _PREDICTION:
        _, event_us, revision, counted, counted_us = _HEAD.unpack_from(data)
        return Prediction(event_us, revision, counted, counted_us, data[_HEAD.size :])
    return [
        Outcome(offset, time_us, label, revision, bool(retracted))
        for offset, time_us, label, revision, retracted in _OUTCOME.iter_unpack(data[1:])
    ]


def join_predictions(
    entries: Mapping[bytes, bytes | None],
    request_ids: Sequence[bytes],
    event_us: NDArray[np.int64],
    values: Sequence[bytes],
    clock_us: NDArray[np.int64],
    rule: JoinRule,
) -> Step:
    """Join a batch of predictions against the entries it touches.

    Args:
        entries: entry of every request id of the batch; None or absent: there is none.
        request_ids: n ids.
        event_us: shape (n,).
        values: n raw values, kept in the entries.
        clock_us: shape (n,), the partition's clock before each row: the highest event time so far.
        rule: the times.

    """
    step = Step()
    changes = step.changes
    ends = rule.window.ends(rule.window.starts(event_us)).tolist()
    too_old = (event_us < clock_us - rule.horizon_us - rule.lateness_us).tolist()
    buckets = ((event_us + rule.horizon_us) // rule.bucket_us).tolist()
    head = _HEAD.pack
    for row, (request_id, time_us) in enumerate(zip(request_ids, event_us.tolist(), strict=True)):
        data = changes.get(request_id) or entries.get(request_id)
        if data is not None and data[0] == _PREDICTION:
            step.tally("duplicates_predictions")
        elif too_old[row]:
            # Its twin may have expired: counting it could count it twice.
            step.tally("too_old_predictions")
        else:
            step.accepted.append(row)
            step.expiry.setdefault(buckets[row], []).append(request_id)
            if data is None:
                changes[request_id] = head(_PREDICTION, time_us, NOTHING, NOTHING, 0) + values[row]
            else:
                entry = Prediction(time_us, NOTHING, NOTHING, 0, values[row])
                changes[request_id] = _apply_parked(step, request_id, entry, data, ends[row], rule)
    step.tally("predictions", len(step.accepted))
    return step


def join_outcomes(
    entries: Mapping[bytes, bytes | None], request_ids: Sequence[bytes], outcomes: Sequence[Outcome], rule: JoinRule
) -> Step:
    """Join a batch of outcomes against the entries it touches.

    Args:
        entries: entry of every request id of the batch; None or absent: there is none.
        request_ids: n ids.
        outcomes: n outcomes, in the order of their offsets.
        rule: the times.

    """
    step = Step()
    step.tally("outcomes", len(outcomes))
    for request_id, outcome in zip(request_ids, outcomes, strict=True):
        data = step.changes.get(request_id) or entries.get(request_id)
        if data is None:
            _park(step, request_id, [], outcome, rule)
            continue
        entry = unpack(data)
        if isinstance(entry, Prediction):
            changed = apply_outcome(step, request_id, entry, outcome, rule.window.end(entry.event_us), rule)
            if changed is not entry:
                step.changes[request_id] = pack_prediction(changed)
        elif outcome.revision <= entry[-1].revision or len(entry) >= MAX_PARKED:
            step.tally("duplicates_outcomes")
        else:
            _park(step, request_id, entry, outcome, rule)
    return step


def apply_outcome(
    step: Step, request_id: bytes, entry: Prediction, outcome: Outcome, end_us: int, rule: JoinRule
) -> Prediction:
    """The entry after one more outcome; the same object when it changes nothing.

    Args:
        step: where the pair and the tallies go.
        request_id: of both.
        entry: before.
        outcome: to apply.
        end_us: end of the prediction's window.
        rule: the times.

    """
    if outcome.revision <= entry.revision:
        step.tally("duplicates_outcomes")
        return entry
    if abs(outcome.time_us - entry.event_us) > rule.horizon_us:
        step.tally("orphans")
        return entry._replace(revision=outcome.revision)
    late = outcome.time_us > end_us + rule.maturity_us
    countable = outcome.label in (0.0, 1.0)
    removed, added = NOTHING, NOTHING
    if not late:
        removed = entry.counted
        added = int(outcome.label) if countable and not outcome.retracted else NOTHING
    step.pairs.append(Pair(request_id, entry, outcome, removed, added, late))
    step.tally("joined" if entry.revision == NOTHING else "corrections")
    for name, holds in (("late", late), ("retracted", outcome.retracted), ("other_labels", not countable)):
        if holds:
            step.tally(name)
    if late:
        return entry._replace(revision=outcome.revision)
    return entry._replace(revision=outcome.revision, counted=added, counted_us=outcome.time_us)


def expire(entry: bytes, clock_us: int, rule: JoinRule) -> tuple[bool, int]:
    """Whether an entry may go, and how many outcomes become orphans with it.

    Args:
        entry: its bytes.
        clock_us: event time that both topics have certainly passed.
        rule: the times.

    """
    found = unpack(entry)
    if isinstance(found, Prediction):
        return found.event_us + rule.horizon_us < clock_us, 0
    gone = max(outcome.time_us for outcome in found) + rule.horizon_us < clock_us
    return gone, len(found) if gone else 0


def _apply_parked(
    step: Step, request_id: bytes, entry: Prediction, parked: bytes, end_us: int, rule: JoinRule
) -> bytes:
    waiting = unpack(parked)
    assert isinstance(waiting, list)
    step.tally("parked", -len(waiting))
    for outcome in waiting:
        entry = apply_outcome(step, request_id, entry, outcome, end_us, rule)
    return pack_prediction(entry)


def _park(step: Step, request_id: bytes, waiting: list[Outcome], outcome: Outcome, rule: JoinRule) -> None:
    step.changes[request_id] = pack_parked([*waiting, outcome])
    step.tally("parked")
    bucket = (outcome.time_us + rule.horizon_us) // rule.bucket_us
    step.expiry.setdefault(bucket, []).append(request_id)
