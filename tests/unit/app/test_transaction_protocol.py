"""The shorter protocol in front of aiokafka's own manager of transactions, and the private names that it stands on."""

from __future__ import annotations

import asyncio
import gc
import inspect
from dataclasses import dataclass, field
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, NodeNotReadyError, ProducerFenced, RequestTimedOutError
from aiokafka.producer import sender
from aiokafka.producer.sender import Sender
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import EndTxnRequest, TxnOffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata

from app.transaction_protocol import UnknownFate, prepare_transactions

SCORES, LOG, INPUT = TopicPartition("scores", 3), TopicPartition("log", 3), TopicPartition("in", 3)
BUSY, LOADING, FENCED = 51, 14, 47
FEATURES_OF_4_3 = b"\x03\x0egroup.version\x00\x01\x00\x01\x00\x14transaction.version\x00\x02\x00\x02\x00"
"""Two features, as brokers send them: ``group.version`` 1 and ``transaction.version`` 2."""


@dataclass
class Brokers:
    """Takes the place of ``AIOKafkaClient``: keeps what is sent, and answers what it is told to.

    Attributes:
        features: the tagged field of finalized features; None: the brokers are older than that.
        sent: requests as bytes and as they are, in order.
        code: error code of every answer.
        failure: raised in place of an answer.
        gate: closed: produce requests are not answered.

    """

    features: bytes | None = FEATURES_OF_4_3
    newest: int = 13
    sent: list[Any] = field(default_factory=list)
    code: int = 0
    failure: KafkaError | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, node_id: int, request: Any, **_: Any) -> Any:  # noqa: ANN401
        """One request."""
        assert node_id in {1, 2}
        if self.failure is not None:
            raise self.failure
        if hasattr(request, "prepare") and hasattr(request, "API_VERSION"):
            request.prepare({request.API_KEY: (0, self.newest)})
        self.sent.append(request)
        match getattr(request, "API_KEY", None):
            case 18:
                return SimpleNamespace(tags={} if self.features is None else {2: self.features})
            case 0:
                await self.gate.wait()
                parts: list[Any] = [(SCORES.partition, self.code, 40, -1, 0, [], None, {})]
                return SimpleNamespace(topics=[(t[0], parts, {}) for t in request._values[3]])
            case 28:
                return SimpleNamespace(errors=[("in", [(3, self.code, {})], {})])
            case 26:
                return SimpleNamespace(error_code=self.code, producer_id=9, producer_epoch=6)
        return None


async def _prepared(brokers: Brokers) -> tuple[Any, TransactionManager]:
    manager = TransactionManager("group-in-3", 60_000)
    manager.set_pid_and_epoch(9, 5)
    brokers.gate.set()
    producer: Any = SimpleNamespace(
        client=brokers,
        _txn_manager=manager,
        _sender=SimpleNamespace(_coordinators={CoordinationType.TRANSACTION: 1}),
    )
    await prepare_transactions(producer)
    brokers.sent.clear()
    return producer, manager


def _produce(*places: TopicPartition) -> ProduceRequest:
    return ProduceRequest("group-in-3", -1, 1000, [(place.topic, [(place.partition, b"records")]) for place in places])


def _offsets() -> TxnOffsetCommitRequest:
    return TxnOffsetCommitRequest("group-in-3", "group", 9, 5, [("in", [(3, 12, "")])])


def _end() -> EndTxnRequest:
    return EndTxnRequest("group-in-3", 9, 5, 1)


async def test_nothing_is_requested_to_be_added() -> None:
    """Partitions and the group count as added at once, so that aiokafka's sender goes on to records and offsets."""
    _, manager = await _prepared(Brokers())
    manager.begin_transaction()
    manager.maybe_add_partition_to_txn(SCORES)
    assert manager.partitions_to_add() == set()
    assert manager.txn_partitions == {SCORES}
    waiter = manager.add_offsets_to_txn({INPUT: OffsetAndMetadata(12, "")}, "group")
    assert manager.consumer_group_to_add() is None
    assert manager.offsets_to_commit() == ({INPUT: OffsetAndMetadata(12, "")}, "group")
    manager.offset_committed(INPUT, 12, "group")
    assert waiter.done()
    manager.committing_transaction()
    manager.complete_transaction()
    assert manager.is_empty_transaction()


async def test_a_fatal_error_is_told_to_those_who_wait_and_to_nobody_else() -> None:
    """The end of the transaction fails too; that it is not asked for is not logged when it is collected."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    producer, manager = await _prepared(Brokers())
    manager.begin_transaction()
    waiter = manager.add_offsets_to_txn({INPUT: OffsetAndMetadata(12, "")}, "group")
    manager.fatal_error(ProducerFenced())
    with pytest.raises(ProducerFenced):
        await waiter
    del producer, manager, waiter
    gc.collect()
    assert not unheard


async def test_the_next_transaction_has_a_new_epoch() -> None:
    """As the answer of EndTxn says, and its sequences start at 0; a refusal changes nothing."""
    brokers = Brokers(code=FENCED)
    producer, manager = await _prepared(brokers)
    manager.increment_sequence_number(SCORES, 7)
    assert (await producer.client.send(1, _end())).error_code == FENCED
    assert (manager.producer_epoch, manager.sequence_number(SCORES)) == (5, 7)
    brokers.code = 0
    await producer.client.send(1, _end())
    assert (manager.producer_id, manager.producer_epoch, manager.sequence_number(SCORES)) == (9, 6, 0)


async def test_answers_have_the_shape_that_aiokafka_reads() -> None:
    """Seven fields a partition; what meets a busy coordinator is tried again, as with one that is loading."""
    brokers = Brokers()
    producer, _ = await _prepared(brokers)
    answer = await producer.client.send(1, _produce(SCORES, LOG))
    assert answer.API_VERSION == 8
    assert answer.topics == [(name, [(3, 0, 40, -1, 0, [], None)]) for name in ("scores", "log")]
    assert (await producer.client.send(1, _offsets())).errors == [("in", [(3, 0)])]
    for code, told in ((BUSY, LOADING), (FENCED, FENCED)):
        brokers.code = code
        assert (await producer.client.send(1, _offsets())).errors == [("in", [(3, told)])]
        assert (await producer.client.send(1, _produce(SCORES))).topics[0][1][0][:2] == (3, told)


async def test_requests_as_bytes() -> None:
    """What goes over the wire, field by field as the protocol's description has them."""
    brokers = Brokers()
    producer, _ = await _prepared(brokers)
    for request in (_produce(SCORES), _offsets(), _end()):
        await producer.client.send(1, request)
    produce, offsets, end = brokers.sent
    name, topic = b"\x0bgroup-in-3", b"\x07scores"
    assert produce.encode() == (
        name + b"\xff\xff" + b"\x00\x00\x03\xe8" + b"\x02" + topic + b"\x02\x00\x00\x00\x03\x08records\x00\x00\x00"
    )
    ids = bytes(7) + b"\x09" + b"\x00\x05"
    entry = b"\x00\x00\x00\x03" + bytes(7) + b"\x0c" + b"\xff" * 4 + b"\x01\x00"
    assert offsets.encode() == (
        name + b"\x06group" + ids + b"\xff" * 4 + b"\x01" + b"\x00" + b"\x02\x03in\x02" + entry + b"\x00\x00"
    )
    assert end.encode() == name + ids + b"\x01\x00"
    header = end.build_request_header(correlation_id=2, client_id="c").encode()
    assert header == b"\x00\x1a\x00\x05\x00\x00\x00\x02\x00\x01c\x00"
    answer = end.RESPONSE_TYPE.decode(BytesIO(bytes(4) + b"\x00\x2f" + bytes(7) + b"\x09\x00\x06\x00"))
    assert (answer.error_code, answer.producer_id, answer.producer_epoch) == (FENCED, 9, 6)


async def test_first_records_of_two_leaders_go_one_after_another() -> None:
    """Both would be added to the transaction at once, and one refused; what was added before waits for nobody."""
    brokers = Brokers()
    producer, _ = await _prepared(brokers)
    await producer.client.send(1, _produce(SCORES))
    brokers.gate.clear()
    brokers.sent.clear()
    new = [asyncio.create_task(producer.client.send(2, _produce(place))) for place in (LOG, INPUT)]
    known = asyncio.create_task(producer.client.send(1, _produce(SCORES)))
    await asyncio.sleep(0.001)
    assert [request._values[3][0][0] for request in brokers.sent] == ["log", "scores"]
    brokers.gate.set()
    await asyncio.gather(*new, known)
    assert len(brokers.sent) == 3


async def test_what_was_refused_or_belongs_to_another_transaction_is_not_added() -> None:
    """Such records wait for their turn again."""
    brokers = Brokers(code=BUSY)
    producer, _ = await _prepared(brokers)
    for code, request in ((0, _produce(LOG)), (0, _end())):
        await producer.client.send(1, _produce(SCORES))
        brokers.code = code
        await producer.client.send(1, request)
    brokers.gate.clear()
    brokers.sent.clear()
    sends = [asyncio.create_task(producer.client.send(1, _produce(place))) for place in (SCORES, LOG)]
    await asyncio.sleep(0.001)
    assert len(brokers.sent) == 1
    brokers.gate.set()
    await asyncio.gather(*sends)


@pytest.mark.parametrize(
    "brokers",
    [Brokers(features=None), Brokers(features=b"\x02\x14transaction.version\x00\x01\x00\x01\x00"), Brokers(newest=2)],
    ids=["no features", "version 1", "no question"],
)
async def test_other_brokers_are_spoken_to_as_aiokafka_does(brokers: Brokers) -> None:
    """Without ``transaction.version`` 2 the requests are aiokafka's own, and partitions and group are requested."""
    producer, manager = await _prepared(brokers)
    request = _end()
    await producer.client.send(1, request)
    assert brokers.sent == [request]
    manager.begin_transaction()
    manager.maybe_add_partition_to_txn(SCORES)
    manager.add_offsets_to_txn({INPUT: OffsetAndMetadata(12, "")}, "group")
    assert manager.partitions_to_add() == {SCORES}
    assert manager.consumer_group_to_add() == "group"


@pytest.mark.parametrize("features", [FEATURES_OF_4_3, None], ids=["newer", "older"])
@pytest.mark.parametrize("request_of", [_offsets, _end])
async def test_a_commit_without_an_answer_is_not_repeated(features: bytes | None, request_of: Any) -> None:  # noqa: ANN401
    """It becomes an error that aiokafka's sender does not catch, so its producer fails for good; others are retried."""
    brokers = Brokers(features=features)
    producer, _ = await _prepared(brokers)
    brokers.failure = RequestTimedOutError()
    with pytest.raises(UnknownFate):
        await producer.client.send(1, request_of(), group=0)
    with pytest.raises(RequestTimedOutError):
        await producer.client.send(1, _produce(SCORES), group=0)
    brokers.failure = NodeNotReadyError()
    with pytest.raises(NodeNotReadyError):
        await producer.client.send(1, request_of(), group=0)
    assert not issubclass(UnknownFate, KafkaError)


def test_the_private_names_are_where_they_were() -> None:
    """Aiokafka's sender asks the manager through these, and waits for the markers through this."""
    assert sender.BACKOFF_OVERRIDE == 0.002
    assert "BACKOFF_OVERRIDE" in inspect.getsource(sender.AddPartitionsToTxnHandler.handle_response)
    source = inspect.getsource(Sender._maybe_do_transactional_request)
    assert "consumer_group_to_add()" in source
    assert "offsets_to_commit()" in source
    assert list(inspect.signature(AIOKafkaClient.send).parameters) == ["self", "node_id", "request", "group"]
    for name in ("_txn_manager", "_sender"):
        assert f"self.{name} =" in inspect.getsource(AIOKafkaProducer.__init__)
    assert "_pid_and_epoch.epoch" in inspect.getsource(TransactionManager.producer_epoch.fget)
    partition = inspect.getsource(sender.SendProduceReqHandler.handle_response)
    assert "_,\n                        global_error,\n                    ) = partition_info" in partition
