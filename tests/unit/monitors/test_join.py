"""The rules of the join, and any interleaving of the two topics against a model that sees everything at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors.join import (
    MAX_PARKED,
    NOTHING,
    JoinRule,
    Outcome,
    Pair,
    Prediction,
    Step,
    expire,
    join_outcomes,
    join_predictions,
    pack_parked,
    pack_prediction,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

HOUR_US = 3_600_000_000
RULE = JoinRule.of_seconds("day", 10 * 3600, 2 * 3600, 3600)
NOON_US = 12 * HOUR_US


@dataclass
class Joined:
    """A partition in memory: the state, and all that came out."""

    entries: dict[bytes, bytes | None] = field(default_factory=dict)
    clock_us: int = -1
    accepted: list[bytes] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    tallies: dict[str, int] = field(default_factory=dict)

    def predict(self, rows: Sequence[tuple[bytes, int]]) -> None:
        """Take a batch of predictions."""
        event_us = np.array([time_us for _, time_us in rows], dtype=np.int64)
        clocks = np.maximum.accumulate(np.concatenate(([self.clock_us], event_us)))
        ids = [request_id for request_id, _ in rows]
        step = join_predictions(self.entries, ids, event_us, [b"v" + i for i in ids], clocks[:-1], RULE)
        self.accepted += [ids[row] for row in step.accepted]
        self.clock_us = int(clocks[-1])
        self._keep(step)

    def outcome(self, rows: Sequence[tuple[bytes, Outcome]]) -> None:
        """Take a batch of outcomes."""
        self._keep(join_outcomes(self.entries, [i for i, _ in rows], [o for _, o in rows], RULE))

    def _keep(self, step: Step) -> None:
        self.entries.update(step.changes)
        self.pairs += step.pairs
        for name, count in step.tallies.items():
            self.tallies[name] = self.tallies.get(name, 0) + count


def told(offset: int, hours: float, label: float = 1.0, revision: int = 0, *, retracted: bool = False) -> Outcome:
    """An outcome some hours after noon."""
    return Outcome(offset, NOON_US + int(hours * HOUR_US), label, revision, retracted)


def changes(joined: Joined) -> list[tuple[int, int, bool]]:
    """What each pair took and gave, and whether it was late."""
    return [(pair.removed, pair.added, pair.late) for pair in joined.pairs]


def meet(outcome: Outcome, *, prediction_first: bool) -> Joined:
    """A prediction at noon and one outcome, in either order."""
    joined = Joined()
    if prediction_first:
        joined.predict([(b"a", NOON_US)])
    joined.outcome([(b"a", outcome)])
    if not prediction_first:
        joined.predict([(b"a", NOON_US)])
    return joined


@pytest.mark.parametrize("prediction_first", [True, False])
def test_an_outcome_meets_its_prediction_in_either_order(prediction_first: bool) -> None:
    """Prediction first or outcome first: one pair, one label."""
    joined = meet(told(3, 1), prediction_first=prediction_first)
    assert changes(joined) == [(NOTHING, 1, False)]
    assert joined.pairs[0].outcome.offset == 3
    assert joined.tallies["joined"] == 1
    assert joined.tallies.get("parked", 0) == 0


def test_the_first_prediction_of_a_request_counts() -> None:
    """A second one, in the same batch or later, is a duplicate and changes nothing."""
    joined = Joined()
    joined.predict([(b"a", NOON_US), (b"a", NOON_US + 1)])
    joined.predict([(b"a", NOON_US)])
    assert joined.accepted == [b"a"]
    assert joined.tallies["duplicates_predictions"] == 2


def test_a_higher_revision_replaces_and_a_lower_or_equal_one_is_a_duplicate() -> None:
    """The old label leaves the counts as the new one enters them."""
    joined = Joined()
    joined.predict([(b"a", NOON_US)])
    revisions = [told(0, 1, 0.0), told(1, 1, 0.0), told(2, 2, 1.0, 2), told(3, 2, 0.0, 1)]
    joined.outcome([(b"a", outcome) for outcome in revisions])
    assert changes(joined) == [(NOTHING, 0, False), (0, 1, False)]
    assert (joined.tallies["duplicates_outcomes"], joined.tallies["corrections"]) == (2, 1)


def test_a_retraction_takes_the_label_back_and_a_later_revision_gives_a_new_one() -> None:
    """After a retraction no label is counted until a higher revision brings one."""
    joined = Joined()
    joined.predict([(b"a", NOON_US)])
    joined.outcome([(b"a", told(0, 1)), (b"a", told(1, 1, 1.0, 1, retracted=True)), (b"a", told(2, 1, 0.0, 2))])
    assert changes(joined) == [(NOTHING, 1, False), (1, NOTHING, False), (NOTHING, 0, False)]
    assert joined.tallies["retracted"] == 1


@pytest.mark.parametrize("prediction_first", [True, False])
def test_an_outcome_beyond_the_horizon_is_an_orphan_in_either_order(prediction_first: bool) -> None:
    """Ten hours are in time, a microsecond more is not; a later revision in time still counts."""
    beyond = Outcome(0, NOON_US + RULE.horizon_us + 1, 1.0, 0, retracted=False)
    joined = meet(beyond, prediction_first=prediction_first)
    assert joined.pairs == []
    assert joined.tallies["orphans"] == 1
    joined.outcome([(b"a", told(1, 10, 1.0, 1))])
    assert changes(joined) == [(NOTHING, 1, False)]


def test_an_outcome_after_maturity_is_published_but_not_counted() -> None:
    """The window ends at midnight and is mature two hours later: a label then is in time, one after it is late."""
    joined = Joined()
    evening = 20 * HOUR_US
    joined.predict([(b"a", evening), (b"b", evening), (b"c", evening)])
    mature = 26 * HOUR_US
    joined.outcome([
        (b"a", Outcome(0, mature, 1.0, 0, retracted=False)),
        (b"b", Outcome(1, mature + 1, 1.0, 0, retracted=False)),
        (b"c", Outcome(2, evening, 0.0, 0, retracted=False)),
        (b"c", Outcome(3, mature + 1, 1.0, 1, retracted=False)),
        (b"c", Outcome(4, mature, 1.0, 2, retracted=False)),
    ])  # fmt: skip
    # The late correction of c left its first label in the counts, and the next one in time takes that one back.
    assert changes(joined) == [
        (NOTHING, 1, False), (NOTHING, NOTHING, True), (NOTHING, 0, False), (NOTHING, NOTHING, True), (0, 1, False),
    ]  # fmt: skip
    assert joined.tallies["late"] == 2


def test_a_label_that_is_no_class_is_published_but_not_counted() -> None:
    """A label of 0.5 belongs to neither class."""
    joined = Joined()
    joined.predict([(b"a", NOON_US)])
    joined.outcome([(b"a", told(0, 1, 0.5))])
    assert changes(joined) == [(NOTHING, NOTHING, False)]
    assert joined.tallies["other_labels"] == 1


def test_a_prediction_older_than_the_horizon_is_not_counted_again() -> None:
    """Its twin may have expired, so a very old prediction is told apart from new ones by the topic's own clock."""
    joined = Joined()
    joined.predict([(b"new", NOON_US + RULE.horizon_us + RULE.lateness_us + 1), (b"old", NOON_US)])
    assert joined.accepted == [b"new"]
    assert joined.tallies["too_old_predictions"] == 1


def test_parked_outcomes_are_bounded() -> None:
    """A producer that sends ever higher revisions of an unknown request cannot fill the store."""
    joined = Joined()
    joined.outcome([(b"a", told(k, 1, 1.0, k)) for k in range(MAX_PARKED + 5)])
    assert (joined.tallies["parked"], joined.tallies["duplicates_outcomes"]) == (MAX_PARKED, 5)


def test_entries_expire_when_both_topics_have_passed_them() -> None:
    """A prediction goes after its horizon, parked outcomes become orphans after theirs."""
    prediction = pack_prediction(Prediction(NOON_US, 0, 1, NOON_US, b"v"))
    parked = pack_parked([told(0, 1), told(1, 2, 1.0, 1)])
    end = NOON_US + RULE.horizon_us
    assert expire(prediction, end, RULE) == (False, 0)
    assert expire(prediction, end + 1, RULE) == (True, 0)
    assert expire(parked, end + 2 * HOUR_US, RULE) == (False, 0)
    assert expire(parked, end + 2 * HOUR_US + 1, RULE) == (True, 2)


@pytest.mark.parametrize("value", [b"", b"\x00\x01", bytes(300)])
def test_entries_keep_the_prediction_untouched(value: bytes) -> None:
    """The raw value comes back byte for byte."""
    entry = Prediction(5, 3, 1, 6, value)
    assert unpack(pack_prediction(entry)) == entry


IDS = st.sampled_from([b"a", b"b", b"c", b"d"])
PREDICTIONS = st.lists(st.tuples(IDS, st.integers(0, 30).map(lambda h: h * HOUR_US)), max_size=10)
OUTCOMES = st.lists(
    st.tuples(IDS, st.integers(0, 40), st.sampled_from([0.0, 1.0, 0.5]), st.integers(0, 4), st.booleans()), max_size=14
)


def model(
    predictions: list[tuple[bytes, int]], outcomes: list[tuple[bytes, Outcome]]
) -> tuple[list[bytes], set[tuple[bytes, int, bool]], dict[bytes, float], int]:
    """The join as one would write it with both topics in a list: accepted ids, pairs, final labels, orphans."""
    known: dict[bytes, int] = {}
    clock = -1
    for request_id, time_us in predictions:
        if request_id not in known and time_us >= clock - RULE.horizon_us - RULE.lateness_us:
            known[request_id] = time_us
        clock = max(clock, time_us)
    pairs, labels, orphans = set(), {}, 0
    for request_id, time_us in known.items():
        last = -1
        for outcome in [o for i, o in outcomes if i == request_id]:
            if outcome.revision <= last:
                continue
            last = outcome.revision
            if abs(outcome.time_us - time_us) > RULE.horizon_us:
                orphans += 1
                continue
            late = outcome.time_us > (time_us // (24 * HOUR_US) + 1) * 24 * HOUR_US + RULE.maturity_us
            pairs.add((request_id, outcome.offset, late))
            if not late:
                labels.pop(request_id, None)
                if not outcome.retracted and outcome.label != 0.5:
                    labels[request_id] = outcome.label
    return list(known), pairs, labels, orphans


@settings(max_examples=300)
@given(PREDICTIONS, OUTCOMES, st.randoms(use_true_random=False))
def test_any_interleaving_ends_as_the_model_does(predictions: list, outcomes: list, random: object) -> None:
    """However the two topics are cut into batches and mixed: the same pairs, the same labels, the same orphans."""
    rows = [(i, Outcome(k, h * HOUR_US, label, rev, gone)) for k, (i, h, label, rev, gone) in enumerate(outcomes)]
    joined = Joined()
    p, o = 0, 0
    while p < len(predictions) or o < len(rows):
        size = random.randint(1, 4)  # type: ignore[attr-defined]
        if o == len(rows) or (p < len(predictions) and random.random() < 0.5):  # type: ignore[attr-defined]
            joined.predict(predictions[p : p + size])
            p += size
        else:
            joined.outcome(rows[o : o + size])
            o += size
    accepted, pairs, labels, orphans = model(predictions, rows)
    assert sorted(joined.accepted) == sorted(accepted)
    assert sorted((pair.request_id, pair.outcome.offset, pair.late) for pair in joined.pairs) == sorted(pairs)
    counted: dict[bytes, float] = {}
    for pair in joined.pairs:
        if pair.removed != NOTHING:
            assert counted.pop(pair.request_id) == pair.removed
        if pair.added != NOTHING:
            assert pair.request_id not in counted
            counted[pair.request_id] = pair.added
    assert counted == labels
    assert joined.tallies.get("orphans", 0) == orphans
