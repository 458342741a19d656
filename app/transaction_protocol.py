"""How a transactional producer speaks to the brokers: what is never sent twice, and the shorter protocol of Kafka 4.

aiokafka speaks the protocol of 2017: partitions and group are added to a transaction by requests of their own, five
round trips in all. Brokers whose ``transaction.version`` is 2 add them when the first record or offset arrives, which
leaves three; and every transaction has an epoch of its own, so that nothing late can meet the next one (KIP-890). Where
brokers offer it we send the newer requests in place of aiokafka's; elsewhere aiokafka's own go out.

Like ``app/transport.py`` this stands on private names of aiokafka 0.14.0, and
``tests/unit/app/test_transaction_protocol.py`` fails when an upgrade moves one of them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    IncompatibleBrokerVersion,
    KafkaError,
    NodeNotReadyError,
)
from aiokafka.producer import sender
from aiokafka.producer.transaction_manager import PidAndEpoch
from aiokafka.protocol.api import RequestHeader_v2, ResponseHeader_v0, ResponseHeader_v1
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import EndTxnRequest, TxnOffsetCommitRequest
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactBytes,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import aiokafka

    Send = Callable[..., Awaitable[Any]]

sender.BACKOFF_OVERRIDE = 0.002
"""Seconds until a transaction that begins before the one before it is marked everywhere is tried again; the markers
take a millisecond or two, aiokafka waits 20."""

_TEXT = CompactString("utf-8")
_TAGS = ("tags", TaggedFields)
_NO_TAGS: dict[int, bytes] = {}


class UnknownFate(RuntimeError):
    """Whether a commit was applied is not known; only a new producer with the same id can tell."""


async def prepare_transactions(producer: aiokafka.AIOKafkaProducer) -> None:
    """Use the shorter protocol if the brokers offer it, and send no commit twice.

    Args:
        producer: transactional and started, with no transaction open.

    Raises:
        KafkaError: the coordinator does not say what it offers.

    """
    client: Any = producer.client
    manager: Any = producer._txn_manager  # noqa: SLF001
    manager.fatal_error = partial(_fail_heard, manager, manager.fatal_error)
    if await _transaction_version(producer) >= _BROKERS_ADD:
        manager.maybe_add_partition_to_txn = manager._txn_partitions.add  # noqa: SLF001 - nothing is left to request
        manager.consumer_group_to_add = partial(_count_group_as_added, manager)
        client.send = _Translator(client.send, manager).send
    client.send = partial(_send_once, client.send)


def _fail_heard(manager: Any, fatal_error: Callable[[BaseException], None], exc: BaseException) -> None:  # noqa: ANN401
    """Fail all that wait for the transaction; that nobody waits for its end, too, is no news for the log."""
    fatal_error(exc)
    manager._transaction_waiter.exception()  # noqa: SLF001


async def _send_once(send: Send, node_id: int, request: Any, **options: Any) -> Any:  # noqa: ANN401 - aiokafka's types
    """Let a transactional producer fail for good when a commit that was sent gets no answer.

    aiokafka would send it again. Should the first one only be late, with the older protocol the repeated one meets the
    next transaction and commits half of it (Jepsen, Bufstream 2024): start again, and with that abort or complete the
    old one.
    """
    try:
        return await send(node_id, request, **options)
    except NodeNotReadyError:
        raise  # it was not sent
    except KafkaError as exc:
        if isinstance(request, (EndTxnRequest, TxnOffsetCommitRequest)):
            msg = f"{type(request).__name__} got no answer ({exc!r})"
            raise UnknownFate(msg) from exc
        raise


def _count_group_as_added(manager: Any) -> None:  # noqa: ANN401 - aiokafka's TransactionManager
    """Let the offsets follow at once: no request adds their group."""
    for group_id, _, _ in manager._pending_txn_offsets:  # noqa: SLF001
        manager.consumer_group_added(group_id)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of request in one version: its fields, and those of its answer."""

    key: int
    version: int
    fields: Schema
    answer: Schema
    header: Any = ResponseHeader_v1

    def decode(self, data: BytesIO) -> SimpleNamespace:
        """The answer; aiokafka asks the type of a response for it."""
        return SimpleNamespace(**dict(zip(self.answer.names, self.answer.decode(data), strict=True)))


class _Request:
    """A request of a settled version, as aiokafka's connections take it."""

    def __init__(self, kind: _Kind, *values: Any) -> None:  # noqa: ANN401 - whatever the fields are
        self.RESPONSE_TYPE = kind
        self.API_KEY, self.API_VERSION = kind.key, kind.version
        self._values = values

    def prepare(self, versions: dict[int, tuple[int, int]]) -> _Request:
        """What goes over the wire, if the broker knows it.

        Raises:
            IncompatibleBrokerVersion: it does not.

        """
        newest = versions[self.API_KEY][1]
        if newest < self.API_VERSION:
            msg = f"request {self.API_KEY}: version {self.API_VERSION} is needed, the broker knows {newest}"
            raise IncompatibleBrokerVersion(msg)
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> RequestHeader_v2:
        return RequestHeader_v2(self, correlation_id=correlation_id, client_id=client_id)

    def encode(self) -> bytes:
        encoded: bytes = self.RESPONSE_TYPE.fields.encode((*self._values, _NO_TAGS))
        return encoded

    def parse_response_header(self, data: BytesIO) -> Any:  # noqa: ANN401 - one of aiokafka's two
        return self.RESPONSE_TYPE.header.decode(data)


@dataclass(slots=True)
class _Translator:
    """Sends the newer request in place of aiokafka's, and hands back the answer in the shape that aiokafka reads.

    A coordinator refuses to add to one transaction twice at a time, and brokers ask again after 20 ms: with leaders on
    several brokers the first produce requests of a transaction would meet. They go one after another.
    """

    plain: Send
    manager: Any
    added: set[tuple[str, int]] = field(default_factory=set)
    adding: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:  # noqa: ANN401 - aiokafka's own types
        match request:
            case ProduceRequest():
                return await self._produce(node_id, request, options)
            case TxnOffsetCommitRequest():
                return _old_offsets_answer(await self.plain(node_id, _offsets(request), **options))
            case EndTxnRequest():
                return self._ended(await self.plain(node_id, _end(request), **options))
        return await self.plain(node_id, request, **options)

    async def _produce(self, node_id: int, request: Any, options: dict[str, Any]) -> Any:  # noqa: ANN401
        places = {(topic, partition) for topic, records in request._topics for partition, _ in records}  # noqa: SLF001
        if places <= self.added:
            return _old_produce_answer(await self.plain(node_id, _produce(request), **options))
        async with self.adding:
            answer = _old_produce_answer(await self.plain(node_id, _produce(request), **options))
        self.added |= {(topic, part[0]) for topic, parts in answer.topics for part in parts if not part[1]}
        return answer

    def _ended(self, answer: Any) -> Any:  # noqa: ANN401
        """The next transaction has a new epoch, and its sequences start anew."""
        if not answer.error_code:
            self.added.clear()
            self.manager._pid_and_epoch = PidAndEpoch(answer.producer_id, answer.producer_epoch)  # noqa: SLF001
            self.manager._sequence_numbers.clear()  # noqa: SLF001
        return answer


def _produce(request: Any) -> _Request:  # noqa: ANN401 - aiokafka's request
    topics = [
        (topic, [(place, records, _NO_TAGS) for place, records in data], _NO_TAGS)
        for topic, data in request._topics  # noqa: SLF001
    ]
    head = (request._transactional_id, request._required_acks, request._timeout)  # noqa: SLF001
    return _Request(_PRODUCE, *head, topics)


def _offsets(request: Any) -> _Request:  # noqa: ANN401
    """Without a generation: the transactional id, one a partition, fences former owners."""
    topics = [
        (topic, [(place, offset, -1, metadata, _NO_TAGS) for place, offset, metadata in partitions], _NO_TAGS)
        for topic, partitions in request._topics  # noqa: SLF001
    ]
    ids = (request._transactional_id, request._group_id, request._producer_id, request._producer_epoch)  # noqa: SLF001
    return _Request(_OFFSETS, *ids, -1, "", None, topics)


def _end(request: Any) -> _Request:  # noqa: ANN401
    ids = (request._transactional_id, request._producer_id, request._producer_epoch)  # noqa: SLF001
    return _Request(_END, *ids, bool(request._transaction_result))  # noqa: SLF001


def _old_produce_answer(answer: Any) -> Any:  # noqa: ANN401
    """Records that meet a busy coordinator were not written; aiokafka sends them again in their place."""
    topics = [
        (topic, [(place, _known(code), *fields[:-1]) for place, code, *fields in partitions])
        for topic, partitions, _ in answer.topics
    ]
    return SimpleNamespace(API_VERSION=8, topics=topics)


def _old_offsets_answer(answer: Any) -> Any:  # noqa: ANN401
    errors = [
        (topic, [(place, _known(code)) for place, code, _ in partitions]) for topic, partitions, _ in answer.errors
    ]
    return SimpleNamespace(errors=errors)


def _known(code: int) -> int:
    """An error code as aiokafka takes it where a transaction is added to.

    That the coordinator is still busy with the transaction before is new to it there, and would be fatal; it knows to
    wait for a coordinator that is loading.
    """
    return CoordinatorLoadInProgressError.errno if code == ConcurrentTransactions.errno else code


_PRODUCE = _Kind(
    0,
    12,
    Schema(
        ("transactional_id", _TEXT),
        ("required_acks", Int16),
        ("timeout", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT), ("data", CompactArray(("partition", Int32), ("records", CompactBytes), _TAGS)), _TAGS
            ),
        ),
        _TAGS,
    ),
    Schema(
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("offset", Int64),
                        ("timestamp", Int64),
                        ("log_start_offset", Int64),
                        ("record_errors", CompactArray(("batch_index", Int32), ("message", _TEXT), _TAGS)),
                        ("error_message", _TEXT),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        ("throttle_time_ms", Int32),
        _TAGS,
    ),
)
_OFFSETS = _Kind(
    28,
    5,
    Schema(
        ("transactional_id", _TEXT),
        ("group_id", _TEXT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation", Int32),
        ("member_id", _TEXT),
        ("group_instance_id", _TEXT),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", _TEXT), _TAGS
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    ),
    Schema(
        ("throttle_time_ms", Int32),
        (
            "errors",
            CompactArray(
                ("topic", _TEXT),
                ("partitions", CompactArray(("partition", Int32), ("error_code", Int16), _TAGS)),
                _TAGS,
            ),
        ),
        _TAGS,
    ),
)
_END = _Kind(
    26,
    5,
    Schema(
        ("transactional_id", _TEXT),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("transaction_result", Boolean),
        _TAGS,
    ),
    Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        _TAGS,
    ),
)
_FEATURES = _Kind(
    18,
    3,
    Schema(("software_name", _TEXT), ("software_version", _TEXT), _TAGS),
    Schema(
        ("error_code", Int16),
        ("api_versions", CompactArray(("api_key", Int16), ("min_version", Int16), ("max_version", Int16), _TAGS)),
        ("throttle_time_ms", Int32),
        _TAGS,
    ),
    header=ResponseHeader_v0,  # so that a client can read it before it knows anything
)
_FEATURE_LEVELS = CompactArray(("name", _TEXT), ("max_level", Int16), ("min_level", Int16), _TAGS)
_FINALIZED_FEATURES = 2
"""The tag of what the whole cluster has switched on."""
_BROKERS_ADD = 2
"""The ``transaction.version`` from which on brokers add partitions themselves."""


async def _transaction_version(producer: aiokafka.AIOKafkaProducer) -> int:
    """The cluster's ``transaction.version``, asked of the producer's coordinator; 0 when it is too old to have one."""
    coordinator = producer._sender._coordinators[CoordinationType.TRANSACTION]  # noqa: SLF001
    question = _Request(_FEATURES, "sluice", "1")
    try:
        answer = await producer.client.send(coordinator, question, group=ConnectionGroup.COORDINATION)
    except IncompatibleBrokerVersion:
        return 0
    levels = _FEATURE_LEVELS.decode(BytesIO(answer.tags.get(_FINALIZED_FEATURES, b"\x01"))) or []
    return next((level for name, level, _, _ in levels if name == "transaction.version"), 0)
