"""Shells and cores with one mistake each; a simulator that cannot find them proves nothing."""

# ruff: noqa: D102 - a mutant changes one method, and its class says how

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from app.ledger import Ledger
from app.transactions import TransactionLane
from tests.simulation.delivery.producer import Producer
from tests.simulation.delivery.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.ledger import Partition
    from tests.simulation.delivery.broker import Place
    from tests.simulation.delivery.producer import Pending
    from tests.simulation.delivery.worker import Part


class _HastyLane(TransactionLane):
    """Commits what it has sent, acknowledged or not."""

    def step(self, *, now_s: float, more_coming: bool) -> Any:  # noqa: ANN401 - as the real one
        self._unacknowledged = 0
        return super().step(now_s=now_s, more_coming=more_coming)

    def acknowledged(self, parcels: int) -> None:
        pass


class CommitsBeforeTheAcknowledgement(Worker):
    """The lane does not wait for its records."""

    lane_type: ClassVar[type[TransactionLane]] = _HastyLane


class _OneBehindLane(TransactionLane):
    """Names the end of the newest parcel that it was given, sent or not."""

    def step(self, *, now_s: float, more_coming: bool) -> Any:  # noqa: ANN401 - as the real one
        step = super().step(now_s=now_s, more_coming=more_coming)
        if step is not None and step.offset:
            return type(step)(step.action, step.parcels, self.next_offset or 0)
        return step


class CommitsAnOffsetOfTheNextTransaction(Worker):
    """What was handed over and is not in the transaction counts as answered by it."""

    lane_type: ClassVar[type[TransactionLane]] = _OneBehindLane


class _GapLedger(Ledger):
    """Counts the last answer, not the first that is missing."""

    def committable(self) -> dict[Partition, int]:
        found = super().committable()
        found |= {tp: a.beyond[-1][1] for tp, a in self._accounts.items() if a.beyond}
        return {tp: end for tp, end in found.items() if end > self._accounts[tp].committed}

    def commit(self, offsets: dict[Partition, int]) -> None:
        for tp, offset in offsets.items():
            if tp in self._accounts:
                self._accounts[tp].committed = offset


class CommitsPastAGap(Worker):
    """The ledger commits past an unanswered offset."""

    ledger_type: ClassVar[type[Ledger]] = _GapLedger


class AnswersWhenSent(Worker):
    """Offsets count as answered when their records are handed to the producer."""

    def send(self, part: Part) -> list[Pending]:
        futures = super().send(part)
        return [] if not self.world.is_exactly_once else futures


class ForgetsDeadLetters(Worker):
    """Only the first topic's acknowledgement is waited for."""

    def send(self, part: Part) -> list[Pending]:
        return super().send(part)[:1]


class FencesNobody(Worker):
    """The transactional id belongs to the worker, so a new owner does not fence the former one."""

    def transactional_id(self, partition: int) -> str:
        return f"{self.name}-{partition}"


class FetchesOffsetsFirst(Worker):
    """Asks for the offsets before the producers have fenced the former owners."""

    def take_over(self, partitions: list[int], then: Callable[[dict[int, int]], None]) -> None:
        self.fetch_offsets(partitions, lambda offsets: self.assigned(partitions, lambda: then(offsets)))


class EndsATakeOverTooLate(Worker):
    """A take-over that the next rebalance has overtaken still opens the gate."""

    def is_current(self, hand_overs: int) -> bool:  # noqa: ARG002 - nobody asks any more
        return True


class _StubbornProducer(Producer):
    """Goes on after a failed send, with a new identity where it may."""

    def failed(self, place: Place, parcels: list[tuple[list[int], Pending]]) -> None:
        self._busy.discard(place)
        if self.name is None:
            self.pid = self.broker.new_pid()
            self._sequences = {}
        for _, pending in parcels:
            pending.is_failed = True
        self._pump(place)


class SendsAfterAFailure(Worker):
    """A failed send is overlooked: what follows is sent."""

    def start(self) -> None:
        super().start()
        self.producer = _StubbornProducer(self)
        self.producer.start(self._idle)


class _RetryingProducer(Producer):
    """Repeats the requests of a commit whose fate it does not know; aiokafka does so by itself."""

    def unknown_fate(self, result: str | None, then: Callable[[], None], call: Any, arguments: Any) -> None:  # noqa: ANN401
        if result is None:
            self._once(then, call, *arguments)
        else:
            super().unknown_fate(result, then, call, arguments)


class RepeatsACommit(Worker):
    """A commit of unknown fate is sent again, and the first may still arrive, in the next transaction."""

    def new_producer(self, name: str | None) -> Producer:
        return _RetryingProducer(self, name)


class TakesWhileGivingBack(Worker):
    """A batch of a fetch that waited for room is accepted after rows before it were given back."""

    def is_taken(self, generation: int) -> bool:  # noqa: ARG002 - nobody asks any more
        return True


class DoesNotDrain(Worker):
    """Forgets its partitions without waiting for what is in flight, and answers it later."""

    def drain(self, then: Callable[[], None]) -> None:
        then()


class RemembersRevokedPartitions(Worker):
    """The ledger keeps what was revoked."""

    def _forget(self, then: Callable[[], None]) -> None:
        ledger, self.ledger = self.ledger, Ledger()
        super()._forget(then)
        self.ledger = ledger


MUTANTS: dict[type[Worker], bool] = {
    CommitsBeforeTheAcknowledgement: True,
    CommitsAnOffsetOfTheNextTransaction: True,
    CommitsPastAGap: False,
    AnswersWhenSent: False,
    ForgetsDeadLetters: False,
    FencesNobody: True,
    FetchesOffsetsFirst: True,
    EndsATakeOverTooLate: False,
    SendsAfterAFailure: False,
    RepeatsACommit: True,
    TakesWhileGivingBack: True,
    DoesNotDrain: False,
    RemembersRevokedPartitions: False,
}
"""Each with the mode in which it does harm: exactly_once or not."""
