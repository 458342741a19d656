"""The shell around the transaction lanes, with the real producer in front of transactions in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.errors import ProducerFenced, RequestTimedOutError

import app.exactly_once
from app.errors import DeliveryError
from app.exactly_once import ExactlyOnce
from app.ledger import Ledger
from app.metrics import Metrics
from app.outboxes import Outbox
from app.producer import OutputProducer
from app.settings import BudgetSettings, DeliverySettings, KafkaSettings, Settings
from tests.fakes import FakeClock, MemoryCluster

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiokafka import TopicPartition
    from aiokafka.producer.message_accumulator import BatchBuilder

FIRST, SECOND = ("score-requests", 0), ("score-requests", 1)
GROUP = "prod-scoring"


class Transactions:
    """Takes the place of the brokers: who starts with a transactional id fences who had it.

    Attributes:
        sessions: started producers, by transactional id, newest last.
        visible: values of committed records, by topic and partition.
        offsets: committed offsets, by group, topic and partition.
        commits: closed: a commit does not come back.

    """

    def __init__(self) -> None:
        self.sessions: dict[str, list[Session]] = {}
        self.visible: dict[tuple[str, int], list[bytes | None]] = {}
        self.offsets: dict[tuple[str, str, int], int] = {}
        self.commits = asyncio.Event()
        self.commits.set()

    def producer(self, settings: KafkaSettings, *, client_id: str, transactional_id: str) -> OutputProducer:
        """As the constructor of ``OutputProducer``."""
        return TransactionalProducer(self, settings, client_id=client_id, transactional_id=transactional_id)

    def session(self, partition: int = 0) -> Session:
        """The newest producer of an input partition."""
        return self.sessions[f"{GROUP}-score-requests-{partition}"][-1]


class Session(MemoryCluster):
    """One started ``AIOKafkaProducer`` with a transactional id.

    Attributes:
        calls: what it was asked to do, in order.
        commit_failure: raised by the next commit.

    """

    def __init__(self, brokers: Transactions, transactional_id: str) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.commit_failure: BaseException | None = None
        self._brokers, self._id = brokers, transactional_id
        self._offsets: dict[tuple[str, str, int], int] = {}
        brokers.sessions.setdefault(transactional_id, []).append(self)

    def _check_fence(self) -> None:
        if self._brokers.sessions[self._id][-1] is not self:
            raise ProducerFenced

    async def begin_transaction(self) -> None:
        """As aiokafka's."""
        self.calls.append("begin")

    async def send_batch(self, builder: BatchBuilder, topic: str, *, partition: int) -> asyncio.Future[None]:
        """As aiokafka's."""
        self._check_fence()
        self.calls.append(f"send {topic}")
        return await super().send_batch(builder, topic, partition=partition)

    async def send_offsets_to_transaction(self, offsets: Mapping[TopicPartition, int], group_id: str) -> None:
        """As aiokafka's."""
        self._check_fence()
        self.calls.append("offsets")
        self._offsets = {(group_id, tp.topic, tp.partition): offset for tp, offset in offsets.items()}

    async def commit_transaction(self) -> None:
        """As aiokafka's."""
        await self._brokers.commits.wait()
        self._check_fence()
        self.calls.append("commit")
        if self.commit_failure is not None:
            raise self.commit_failure
        self._brokers.offsets |= self._offsets
        for place, records in self.records.items():
            self._brokers.visible.setdefault(place, []).extend(sent.value for sent in records)
        self.records.clear()

    async def stop(self) -> None:
        """As aiokafka's."""
        self.calls.append("stop")


class TransactionalProducer(OutputProducer):
    """The real producer, in front of transactions in memory."""

    def __init__(self, brokers: Transactions, settings: KafkaSettings, **identity: Any) -> None:  # noqa: ANN401
        super().__init__(settings, **identity)
        self._brokers = brokers

    async def start(self) -> None:
        """Connect, and fence who had the same transactional id."""
        self._space.set()
        assert self._transactional_id is not None
        self._producer = Session(self._brokers, self._transactional_id)  # type: ignore[assignment]


class Owner:
    """An ``ExactlyOnce`` with what belongs to it."""

    def __init__(self, max_ms: float = 10_000.0) -> None:
        self.ledger = Ledger()
        self.failures: list[BaseException] = []
        self.delivery = ExactlyOnce(
            Settings(delivery=DeliverySettings(mode="exactly_once", transaction_max_ms=max_ms)),
            group_id=GROUP,
            ledger=self.ledger,
            metrics=Metrics(BudgetSettings(), now_s=FakeClock()),
            on_failure=self.failures.append,
        )

    async def send(self, source: tuple[str, int], start: int, end: int) -> asyncio.Future[None]:
        """Hand over a score for each offset, and a dead letter for the first."""
        values = [b"%d" % offset for offset in range(start, end)]
        scores = Outbox("scores", source[1], [None] * len(values), values, [()] * len(values))
        letter = Outbox("dlq", source[1], [None], values[:1], [()])
        (future,) = await self.delivery.send(source, start, end, [scores, letter])
        return future


@pytest.fixture
async def brokers(monkeypatch: pytest.MonkeyPatch) -> Transactions:
    """Transactions in memory, used by every ``ExactlyOnce`` of the test."""
    brokers = Transactions()
    monkeypatch.setattr(app.exactly_once, "OutputProducer", brokers.producer)
    return brokers


async def _settle() -> None:
    """Let everything run that can run without a clock."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_future_is_done_after_the_commit_and_not_before(brokers: Transactions) -> None:
    """Acknowledged records are not answers yet: only the commit makes them visible, together with the offset."""
    owner = Owner()
    await owner.delivery.assigned([FIRST])
    brokers.commits.clear()
    future = await owner.send(FIRST, 5, 8)
    await _settle()
    assert brokers.session().calls == ["begin", "send scores", "send dlq", "offsets"]
    assert not future.done()
    assert brokers.visible == {}
    brokers.commits.set()
    await future
    assert brokers.visible == {("scores", 0): [b"5", b"6", b"7"], ("dlq", 0): [b"5"]}
    assert brokers.offsets == {(GROUP, *FIRST): 8}
    await owner.delivery.revoked()


async def test_what_is_handed_over_during_a_commit_shares_the_next_transaction(brokers: Transactions) -> None:
    """Two parcels that come while a transaction commits cost one more commit, not two."""
    owner = Owner()
    await owner.delivery.assigned([FIRST])
    brokers.commits.clear()
    futures = [await owner.send(FIRST, 0, 2)]
    await _settle()
    futures += [await owner.send(FIRST, 2, 4), await owner.send(FIRST, 4, 5)]
    brokers.commits.set()
    await asyncio.gather(*futures)
    assert brokers.session().calls.count("commit") == 2
    assert brokers.visible["scores", 0] == [b"0", b"1", b"2", b"3", b"4"]
    await owner.delivery.revoked()


async def test_a_transaction_waits_for_what_was_delivered(brokers: Transactions) -> None:
    """While more of the partition is on its way, its answers go into the same transaction."""
    owner = Owner()
    owner.ledger.deliver(FIRST, 0, 4)
    await owner.delivery.assigned([FIRST])
    first = await owner.send(FIRST, 0, 2)
    await _settle()
    assert "offsets" not in brokers.session().calls
    await asyncio.gather(first, await owner.send(FIRST, 2, 4))
    assert brokers.session().calls.count("commit") == 1
    await owner.delivery.revoked()


async def test_an_old_transaction_is_committed_without_the_rest(brokers: Transactions) -> None:
    """What was delivered and is never answered holds a transaction up for its largest age only."""
    owner = Owner(max_ms=20.0)
    owner.ledger.deliver(FIRST, 0, 4)
    await owner.delivery.assigned([FIRST])
    await (await owner.send(FIRST, 0, 2))
    assert brokers.offsets == {(GROUP, *FIRST): 2}
    await owner.delivery.revoked()


@pytest.mark.parametrize("topic", ["scores", "dlq"])
async def test_after_a_failed_send_nothing_is_sent_or_committed(brokers: Transactions, topic: str) -> None:
    """One error ends the lane: the process is told once, and the future stays open for whoever answers again."""
    owner = Owner()
    await owner.delivery.assigned([FIRST])
    session = brokers.session()
    session.failure, session.fails_on = RequestTimedOutError(), topic
    future = await owner.send(FIRST, 0, 2)
    await _settle()
    (failure,) = owner.failures
    assert isinstance(failure, DeliveryError)
    calls = list(session.calls)
    later = await owner.send(FIRST, 2, 3)
    await _settle()
    assert session.calls == calls
    assert not {"offsets", "commit"} & set(calls)
    assert (future.done(), later.done(), brokers.visible, brokers.offsets) == (False, False, {}, {})
    await owner.delivery.revoked()
    assert future.cancelled()


async def test_one_fault_is_told_once(brokers: Transactions) -> None:
    """A fault that fails many parcels of several partitions ends the process once, with the first error."""
    owner = Owner()
    await owner.delivery.assigned([FIRST, SECOND])
    for partition in (0, 1):
        session = brokers.session(partition)
        session.failure, session.fails_on = RequestTimedOutError(), "scores"
    for source in (FIRST, SECOND):
        for start in range(3):
            await owner.send(source, start, start + 1)
    await _settle()
    assert [type(failure) for failure in owner.failures] == [DeliveryError]
    await owner.delivery.revoked()


async def test_a_failed_commit_is_never_repeated(brokers: Transactions) -> None:
    """Its fate is unknown: the process is told once, and no request follows."""
    owner = Owner()
    await owner.delivery.assigned([FIRST])
    brokers.session().commit_failure = RequestTimedOutError()
    future = await owner.send(FIRST, 0, 2)
    await _settle()
    assert [type(failure) for failure in owner.failures] == [RequestTimedOutError]
    calls = list(brokers.session().calls)
    await owner.send(FIRST, 2, 3)
    await _settle()
    assert brokers.session().calls == calls
    assert not future.done()
    await owner.delivery.revoked()


async def test_a_former_owner_is_fenced(brokers: Transactions) -> None:
    """Who takes the partition over commits; what the former owner had open is never seen."""
    zombie, owner = Owner(), Owner()
    await zombie.delivery.assigned([FIRST])
    brokers.commits.clear()
    lost = await zombie.send(FIRST, 0, 3)
    await _settle()
    await owner.delivery.assigned([FIRST])
    brokers.commits.set()
    await (await owner.send(FIRST, 0, 2))
    await _settle()
    assert [type(failure) for failure in zombie.failures] == [ProducerFenced]
    assert not lost.done()
    assert brokers.visible["scores", 0] == [b"0", b"1"]
    assert brokers.offsets == {(GROUP, *FIRST): 2}
    assert owner.failures == []
    await asyncio.gather(owner.delivery.revoked(), zombie.delivery.revoked())


async def test_partitions_do_not_wait_for_each_other(brokers: Transactions) -> None:
    """Each has a producer and a transaction of its own; a failure of one leaves the other's commit alone."""
    owner = Owner()
    await owner.delivery.assigned([FIRST, SECOND])
    brokers.session(0).hold("scores")
    waiting = await owner.send(FIRST, 0, 1)
    await (await owner.send(SECOND, 0, 1))
    assert not waiting.done()
    assert brokers.offsets == {(GROUP, *SECOND): 1}
    brokers.session(0).release("scores")
    await waiting
    await owner.delivery.revoked()


async def test_a_revoked_partition_takes_nothing_more(brokers: Transactions) -> None:
    """Its producer is stopped, and whoever still has answers is told that they are not ours to give."""
    owner = Owner()
    await owner.delivery.assigned([FIRST])
    await owner.delivery.revoked()
    assert brokers.session().calls == ["stop"]
    with pytest.raises(DeliveryError, match="not ours any more"):
        await owner.send(FIRST, 0, 1)


async def test_an_open_transaction_is_left_to_the_next_owner(brokers: Transactions) -> None:
    """A revocation commits nothing that was not committed before."""
    owner = Owner()
    owner.ledger.deliver(FIRST, 0, 9)
    await owner.delivery.assigned([FIRST])
    future = await owner.send(FIRST, 0, 2)
    await _settle()
    await owner.delivery.revoked()
    assert future.cancelled()
    assert (brokers.visible, brokers.offsets, owner.failures) == ({}, {}, [])


async def test_a_new_assignment_replaces_the_lanes(brokers: Transactions) -> None:
    """Every partition gets a new producer, and offsets may start again where they were committed."""
    owner = Owner()
    await owner.delivery.assigned([FIRST])
    await (await owner.send(FIRST, 0, 4))
    await owner.delivery.assigned([FIRST, SECOND])
    old, new = brokers.sessions[f"{GROUP}-score-requests-0"]
    assert old.calls[-1] == "stop"
    await asyncio.gather(await owner.send(FIRST, 2, 4), await owner.send(SECOND, 0, 1))
    assert new.calls[0] == "begin"
    assert brokers.offsets == {(GROUP, *FIRST): 4, (GROUP, *SECOND): 1}
    await owner.delivery.revoked()
