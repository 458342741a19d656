"""Transactions of the output producer on a real broker, in the protocol of Kafka 4 and in the older one."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import ProducerFenced

import app.transaction_protocol
from app.errors import DeliveryError
from app.producer import OutputProducer
from app.settings import KafkaSettings
from tests.integration.kafka_client import KafkaClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.integration

PROTOCOLS = ["newer", "older"]
GROUP = "transactions-test"
END = -1
READ_TIMEOUT_S = 60.0


class Output:
    """Two topics, and who writes to their first partitions.

    Attributes:
        name: of the transactional id.
        topics: of the output.

    """

    def __init__(self, servers: str) -> None:
        self._settings = KafkaSettings(bootstrap_servers=servers, request_timeout_s=5)
        self.name = f"transactions-{uuid.uuid4().hex[:8]}"
        self.source = (f"{self.name}-in", 0)
        self.topics = (f"{self.name}-scores", f"{self.name}-log")
        self._started: list[OutputProducer] = []

    async def producer(self) -> OutputProducer:
        """The next owner of the transactional id."""
        producer = OutputProducer(self._settings, client_id=self.name, transactional_id=self.name)
        self._started.append(producer)
        await producer.start()
        return producer

    async def send(self, producer: OutputProducer, number: int) -> None:
        """A record to each topic, in the open transaction."""
        value = b"%d" % number
        await asyncio.gather(*[await producer.send(topic, 0, [value], [value]) for topic in self.topics])

    async def seen(self) -> list[list[int]]:
        """What a reader of committed records finds on each topic, up to a record that is committed last."""
        producer = await self.producer()
        await producer.begin_transaction()
        await self.send(producer, END)
        await producer.commit_transaction({(self.source[0], 1): 1}, GROUP)
        return [await self._read(topic) for topic in self.topics]

    async def _read(self, topic: str) -> list[int]:
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=self._settings.bootstrap_servers, isolation_level="read_committed",
            auto_offset_reset="earliest",
        )  # fmt: skip
        await consumer.start()
        found: list[int] = []
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                while END not in found:
                    found.append(int((await consumer.getone()).value or b""))
        finally:
            await consumer.stop()
        return found[:-1]

    async def committed(self) -> int | None:
        """The offset of the group."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.bootstrap_servers, group_id=GROUP)
        await consumer.start()
        try:
            offset: int | None = await consumer.committed(TopicPartition(*self.source))
            return offset
        finally:
            await consumer.stop()

    async def stop(self) -> None:
        """End all producers."""
        for producer in self._started:
            await producer.stop()


@pytest.fixture(params=PROTOCOLS)
async def output(
    request: pytest.FixtureRequest, bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Output]:
    """Fresh topics, and a protocol; the older one as for brokers that offer no other."""
    if request.param == "older":
        monkeypatch.setattr(app.transaction_protocol, "_BROKERS_ADD", 99)
    output = Output(bootstrap_servers)
    await asyncio.to_thread(_create, bootstrap_servers, [*output.topics, output.source[0]])
    yield output
    await output.stop()


def _create(servers: str, topics: list[str]) -> None:
    with KafkaClient(servers) as kafka:
        for topic in topics:
            kafka.create_topic(topic, 2)


async def test_transactions_follow_each_other(output: Output) -> None:
    """Whatever is committed is there once and in order, and so is the group's offset; each begins at once."""
    producer = await output.producer()
    for number in range(20):
        await producer.begin_transaction()
        await output.send(producer, 2 * number)
        await output.send(producer, 2 * number + 1)
        await producer.commit_transaction({output.source: 2 * number + 2}, GROUP)
    assert await output.committed() == 40
    assert await output.seen() == [list(range(40))] * 2


async def test_a_new_owner_aborts_and_fences_the_former(output: Output) -> None:
    """What the former had open is never seen; what it sends afterwards is refused, and it can commit nothing."""
    former = await output.producer()
    await former.begin_transaction()
    await output.send(former, 1)
    await former.commit_transaction({output.source: 1}, GROUP)
    await former.begin_transaction()
    await output.send(former, 2)
    owner = await output.producer()
    with pytest.raises(DeliveryError, match="ProducerFenced"):
        await output.send(former, 3)
    await owner.begin_transaction()
    await output.send(owner, 4)
    await owner.commit_transaction({output.source: 2}, GROUP)
    assert await output.committed() == 2
    assert await output.seen() == [[1, 4]] * 2


async def test_a_former_owner_cannot_commit(output: Output) -> None:
    """Its records were acknowledged before the new owner came; they are aborted, and its offset counts for nothing."""
    former = await output.producer()
    await former.begin_transaction()
    await output.send(former, 1)
    await output.producer()
    with pytest.raises(ProducerFenced):
        await former.commit_transaction({output.source: 1}, GROUP)
    assert await output.committed() is None
    assert await output.seen() == [[], []]
