"""Which records go into which transaction, and when it is committed: each rule of the lane, and all at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.transactions import Action, Parcel, Step, TransactionLane

MAX_S, MAX_RECORDS = 10.0, 8


def _lane() -> TransactionLane:
    return TransactionLane(max_s=MAX_S, max_records=MAX_RECORDS)


def _steps(lane: TransactionLane, *, now_s: float = 0.0, more_coming: bool = False) -> list[Step]:
    """All steps that the lane takes now."""
    steps: list[Step] = []
    while (step := lane.step(now_s=now_s, more_coming=more_coming)) is not None:
        steps.append(step)
    return steps


def _actions(steps: list[Step]) -> list[Action]:
    return [step.action for step in steps]


@dataclass
class _Brokers:
    """Carries out what the lane asks for, and holds it to its rules.

    Attributes:
        handed: parcels in the order of their hand-over.
        sent: those that were sent.
        open: those of the transaction that is open.
        committed: those whose transaction is committed.

    """

    lane: TransactionLane
    handed: list[Parcel] = field(default_factory=list)
    sent: list[Parcel] = field(default_factory=list)
    open: list[Parcel] = field(default_factory=list)
    committed: list[Parcel] = field(default_factory=list)
    unacknowledged: int = 0
    began_s: float | None = None
    is_committing: bool = False

    def hand_over(self, gap: int, length: int, records: int) -> None:
        """The next offsets of the partition."""
        start = (self.lane.next_offset or 0) + gap
        parcel = Parcel(start, start + length, records)
        self.lane.hand_over(parcel)
        self.handed.append(parcel)

    def step(self, now_s: float, *, more_coming: bool) -> bool:
        """Carry out one step; False when there is none."""
        step = self.lane.step(now_s=now_s, more_coming=more_coming)
        if step is None:
            return False
        assert not self.is_committing, "nothing happens while a transaction commits"
        match step.action:
            case Action.BEGIN:
                assert self.began_s is None, "one transaction is open at a time"
                self.began_s = now_s
            case Action.SEND:
                self._send(step, now_s)
            case Action.COMMIT:
                assert self.unacknowledged == 0
                assert step.offset == self.open[-1].end
                is_full = sum(p.records for p in self.open) >= MAX_RECORDS or now_s >= self._began_s() + MAX_S
                assert is_full or (not more_coming and self.sent == self.handed)
                self.is_committing = True
        return True

    def _send(self, step: Step, now_s: float) -> None:
        assert step.parcels
        before = sum(parcel.records for parcel in self.open)
        assert not self.open or (before < MAX_RECORDS and now_s < self._began_s() + MAX_S)
        with_first = before + step.parcels[0].records
        assert before + sum(p.records for p in step.parcels) <= max(MAX_RECORDS, with_first)
        self.sent += step.parcels
        self.open += step.parcels
        self.unacknowledged += len(step.parcels)

    def _began_s(self) -> float:
        assert self.began_s is not None, "BEGIN comes first"
        return self.began_s

    def acknowledge(self, count: int) -> None:
        """Of the parcels under way so many are with the brokers."""
        count = min(count, self.unacknowledged)
        self.unacknowledged -= count
        self.lane.acknowledged(count)

    def end(self) -> None:
        """The commit comes back."""
        if self.is_committing:
            done = self.lane.committed()
            assert done == self.open
            self.committed += done
            self.open, self.began_s, self.is_committing = [], None, False


ACTIONS = st.one_of(
    st.tuples(st.just("hand over"), st.integers(0, 3), st.integers(1, 4), st.integers(0, 12)),
    st.tuples(st.just("step"), st.booleans()),
    st.tuples(st.just("step"), st.booleans()),
    st.tuples(st.just("acknowledge"), st.integers(1, 4)),
    st.tuples(st.just("end")),
    st.tuples(st.just("wait"), st.floats(0.0, 12.0)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ACTIONS, max_size=60))
def test_every_parcel_is_sent_and_committed_once_in_order(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    """Whatever comes when, parcels keep their order, no rule is broken, and in the end all are committed."""
    brokers, now_s = _Brokers(_lane()), 0.0
    for name, *arguments in actions:
        match name:
            case "hand over":
                brokers.hand_over(*arguments)
            case "step":
                brokers.step(now_s, more_coming=arguments[0])
            case "acknowledge":
                brokers.acknowledge(*arguments)
            case "end":
                brokers.end()
            case "wait":
                now_s += arguments[0]
        assert brokers.sent == brokers.handed[: len(brokers.sent)]
        assert brokers.committed == brokers.sent[: len(brokers.committed)]
    for _ in range(4 * len(brokers.handed) + 4):
        brokers.step(now_s, more_coming=False)
        brokers.acknowledge(brokers.unacknowledged)
        brokers.end()
    assert brokers.committed == brokers.handed


def test_a_lone_parcel_is_committed_as_soon_as_it_is_acknowledged() -> None:
    """At light load nothing waits for company."""
    lane = _lane()
    lane.hand_over(Parcel(3, 7, records=4))
    assert _actions(_steps(lane)) == [Action.BEGIN, Action.SEND]
    lane.acknowledged(1)
    assert _steps(lane) == [Step(Action.COMMIT, offset=7)]


def test_nothing_is_committed_while_a_record_is_on_its_way() -> None:
    """However old the transaction is, it waits for its last acknowledgement."""
    lane = _lane()
    lane.hand_over(Parcel(0, 1, records=1))
    lane.hand_over(Parcel(1, 2, records=1))
    _steps(lane)
    lane.acknowledged(1)
    assert _steps(lane, now_s=100 * MAX_S) == []
    lane.acknowledged(1)
    assert _actions(_steps(lane, now_s=100 * MAX_S)) == [Action.COMMIT]


def test_a_transaction_waits_for_more_of_its_partition_until_it_is_old() -> None:
    """While answers will follow, it stays open up to ``max_s``, and says when to look again."""
    lane = _lane()
    lane.hand_over(Parcel(0, 1, records=1))
    _steps(lane, now_s=5.0, more_coming=True)
    assert lane.wake_at_s() == math.inf, "an acknowledgement comes first"
    lane.acknowledged(1)
    assert _steps(lane, now_s=5.0 + MAX_S - 0.001, more_coming=True) == []
    assert lane.wake_at_s() == 5.0 + MAX_S
    assert _actions(_steps(lane, now_s=5.0 + MAX_S, more_coming=True)) == [Action.COMMIT]


def test_an_old_transaction_takes_no_more_records() -> None:
    """What is handed over after ``max_s`` goes into the next one."""
    lane = _lane()
    lane.hand_over(Parcel(0, 1, records=1))
    _steps(lane)
    lane.hand_over(Parcel(1, 2, records=1))
    assert _steps(lane, now_s=MAX_S) == []
    lane.acknowledged(1)
    assert _steps(lane, now_s=MAX_S) == [Step(Action.COMMIT, offset=1)]
    assert lane.committed() == [Parcel(0, 1, records=1)]
    assert _actions(_steps(lane, now_s=MAX_S)) == [Action.BEGIN, Action.SEND]


def test_a_full_transaction_takes_no_more_records() -> None:
    """Parcels that do not fit with the others wait for the next one, more to come or not."""
    lane = _lane()
    for i in range(3):
        lane.hand_over(Parcel(i, i + 1, records=4))
    begin, send = _steps(lane, more_coming=True)
    assert (begin.action, [parcel.start for parcel in send.parcels]) == (Action.BEGIN, [0, 1])
    lane.acknowledged(2)
    assert _steps(lane, more_coming=True) == [Step(Action.COMMIT, offset=2)]


def test_a_parcel_larger_than_a_transaction_goes_alone() -> None:
    """A parcel is never split, and never waits for ever."""
    lane = _lane()
    lane.hand_over(Parcel(0, 50, records=5 * MAX_RECORDS))
    lane.hand_over(Parcel(50, 51, records=1))
    _, send = _steps(lane)
    assert [parcel.end for parcel in send.parcels] == [50]


def test_what_comes_while_a_transaction_commits_goes_into_the_next() -> None:
    """Group commit: all of it together, and only after the commit came back."""
    lane = _lane()
    lane.hand_over(Parcel(0, 1, records=1))
    _steps(lane)
    lane.acknowledged(1)
    _steps(lane)
    for i in range(1, 4):
        lane.hand_over(Parcel(i, i + 1, records=1))
    assert _steps(lane) == []
    assert lane.wake_at_s() == math.inf
    assert lane.committed() == [Parcel(0, 1, records=1)]
    _, send = _steps(lane)
    assert [parcel.start for parcel in send.parcels] == [1, 2, 3]


def test_a_parcel_without_records_is_committed_too() -> None:
    """Offsets that need no record still move the committed offset."""
    lane = _lane()
    lane.hand_over(Parcel(0, 5, records=0))
    _steps(lane)
    lane.acknowledged(1)
    assert _steps(lane) == [Step(Action.COMMIT, offset=5)]


@pytest.mark.parametrize("acknowledged", [0, 1], ids=["under way", "acknowledged"])
def test_after_a_failure_nothing_is_sent_or_committed(acknowledged: int) -> None:
    """A failed lane stays as it is, whatever is handed over or acknowledged later."""
    lane = _lane()
    lane.hand_over(Parcel(0, 1, records=1))
    _steps(lane)
    lane.acknowledged(acknowledged)
    lane.fail()
    lane.hand_over(Parcel(1, 2, records=1))
    assert _steps(lane, now_s=100 * MAX_S) == []
    assert lane.wake_at_s() == math.inf
    with pytest.raises(ValueError, match="FAILED"):
        lane.committed()


@pytest.mark.parametrize(("start", "end"), [(4, 4), (5, 4), (3, 9)], ids=["empty", "backwards", "again"])
def test_a_parcel_must_follow_the_one_before(start: int, end: int) -> None:
    """An empty range or one that was handed over before is refused, and changes nothing."""
    lane = _lane()
    lane.hand_over(Parcel(0, 4, records=1))
    with pytest.raises(ValueError, match="handed over after 4"):
        lane.hand_over(Parcel(start, end, records=1))
    assert lane.next_offset == 4
    _, send = _steps(lane)
    assert len(send.parcels) == 1


def test_an_acknowledgement_too_many_is_refused() -> None:
    """More acknowledged than sent means that two transactions were mixed up."""
    lane = _lane()
    lane.hand_over(Parcel(0, 1, records=1))
    _steps(lane)
    with pytest.raises(ValueError, match="2 parcels acknowledged, 1 are under way"):
        lane.acknowledged(2)


def test_a_commit_that_nobody_asked_for_is_refused() -> None:
    """``committed`` belongs to a COMMIT step."""
    with pytest.raises(ValueError, match="IDLE"):
        _lane().committed()
