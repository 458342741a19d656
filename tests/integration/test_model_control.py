"""The control topic on a real broker: read to its end, followed through trouble, the same for every worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiokafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.producer.message_accumulator import BatchBuilder

from agents.control import ControlFollower, send_wishes
from app.errors import TopicError
from app.models.control import ControlState, Wish, encode, of_label, of_version
from app.settings import KafkaSettings, Settings
from schemas.topic_names import MODEL_CONTROL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.integration
PATIENCE_S = 30


class Broker:
    """The control topic of a broker, made and deleted at will."""

    def __init__(self, bootstrap_servers: str, admin: AIOKafkaAdminClient) -> None:
        self.settings = Settings(kafka=KafkaSettings(bootstrap_servers=bootstrap_servers))
        self._admin = admin

    async def create(self) -> None:
        """Make the topic, compacted as a worker makes it, and wait for its leader."""
        topic = NewTopic(MODEL_CONTROL, 1, 1, topic_configs={"cleanup.policy": "compact"})
        async with asyncio.timeout(PATIENCE_S):
            while (await self._admin.create_topics([topic])).topic_errors[0][1] not in {0, 36}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # its predecessor is still being deleted
            while True:
                described = (await self._admin.describe_topics([MODEL_CONTROL]))[0]
                if described["error_code"] == 0 and all(p["leader"] >= 0 for p in described["partitions"]):
                    return
                await asyncio.sleep(0.05)

    async def delete(self) -> None:
        """Delete the topic, if it is there, and wait until it is gone."""
        async with asyncio.timeout(PATIENCE_S):
            while MODEL_CONTROL in await self._admin.list_topics():
                await self._admin.delete_topics([MODEL_CONTROL])
                await asyncio.sleep(0.1)

    async def say(self, *records: tuple[bytes, bytes | None]) -> int:
        """Send records; returns the offset of the last."""
        return (await send_wishes(self.settings.kafka, records))[-1]

    async def say_damaged(self) -> None:
        """Send a record of a header whose name is not UTF-8, as a broken producer would."""
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=self.settings.kafka.bootstrap_servers)
        await producer.start()
        try:
            batch = BatchBuilder(2**14, 0)
            batch.append(timestamp=None, key=b"k", value=b"v", headers=[("zz", b"1")])
            raw = bytes(batch._build())
            # Sent as it is, apart from the name; the broker checks the sum, so it is computed anew.
            batch._buffer = bytearray(with_crc(raw.replace(b"\x04zz", b"\x04\xff\xfe")))
            await (await producer.send_batch(batch, MODEL_CONTROL, partition=0))
        finally:
            await producer.stop()


def with_crc(batch: bytes) -> bytes:
    """A record batch whose sum is right again."""
    from aiokafka.record.util import calc_crc32c_py

    return batch[:17] + calc_crc32c_py(batch[21:]).to_bytes(4, "big") + batch[21:]


@pytest.fixture
async def broker(bootstrap_servers: str) -> AsyncIterator[Broker]:
    """A broker without the control topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    broker = Broker(bootstrap_servers, admin)
    await broker.delete()
    yield broker
    await broker.delete()
    await admin.close()


class Listener:
    """A worker that follows the topic and keeps what it was told."""

    def __init__(self, settings: Settings) -> None:
        self.told: list[ControlState] = []
        self.failures_left = 0
        self.follower = ControlFollower(settings, self._hear)

    async def _hear(self, state: ControlState) -> None:
        if self.failures_left:
            self.failures_left -= 1
            msg = "cannot load it"
            raise RuntimeError(msg)
        self.told.append(state)

    async def until(self, condition: Callable[[ControlState], bool]) -> None:
        """Wait until the newest state that it was told of fits."""
        async with asyncio.timeout(PATIENCE_S):
            while not (self.told and condition(self.told[-1])):  # noqa: ASYNC110 - it comes over Kafka
                await asyncio.sleep(0.02)


async def test_the_whole_topic_is_read_then_followed(broker: Broker) -> None:
    """What was said before the start is there at once, untold; what is said later is told; nothing is said twice."""
    await broker.create()
    await broker.say(encode(of_version("delays", 1), Wish(1)), encode(of_version("delays", 2), Wish(0)))
    listener = Listener(broker.settings)
    state = await listener.follower.read_all()
    assert (state.wanted("delays"), state.offset) == ({1: True, 2: False}, 2)
    await listener.follower.start()
    try:
        offset = await broker.say(encode(of_label("delays", "champion"), Wish(1)))
        await listener.until(lambda told: told.offset == offset + 1)
        await broker.say((of_version("delays", 2).key, None))
        await listener.until(lambda told: told.wanted("delays") == {1: True})
    finally:
        await listener.follower.stop()
    assert listener.told[0].labels("delays") == {"champion": 1}
    assert [told.offset for told in listener.told] == [3, 4]


async def test_a_topic_that_comes_later_is_found(broker: Broker) -> None:
    """Without a topic nothing is wanted, asking does not create it, and its first record arrives once it is there."""
    listener = Listener(broker.settings)
    assert (await listener.follower.read_all()).models() == ()
    with pytest.raises(TopicError, match=MODEL_CONTROL):
        await broker.say(encode(of_version("delays", 1), Wish(1)))
    await listener.follower.start()
    try:
        await broker.create()
        await broker.say(encode(of_version("delays", 1), Wish(1)))
        await listener.until(lambda told: told.wanted("delays") == {1: True})
    finally:
        await listener.follower.stop()


async def test_a_topic_made_anew_is_read_anew(broker: Broker) -> None:
    """Wishes of a topic that was deleted are forgotten, and those of its successor hold."""
    await broker.create()
    await broker.say(*(encode(of_version("delays", 1), Wish(1)) for _ in range(5)))
    listener = Listener(broker.settings)
    await listener.follower.read_all()
    await broker.delete()
    await broker.create()
    await listener.follower.start()
    try:
        await broker.say(encode(of_version("other", 1), Wish(1)))
        await listener.until(lambda told: told.models() == ("other",))
    finally:
        await listener.follower.stop()


async def test_damaged_records_hide_no_other(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Nonsense, and a header that aiokafka cannot read, are skipped at start and later, and the log says so."""
    await broker.create()
    await broker.say(encode(of_version("delays", 1), Wish(1)), (b"nonsense", b"\xff"))
    await broker.say_damaged()
    await broker.say(encode(of_version("delays", 2), Wish(1)))
    listener = Listener(broker.settings)
    assert (await listener.follower.read_all()).wanted("delays") == {1: True, 2: True}
    assert [f"offset {i} is skipped" in caplog.text for i in range(4)] == [False, True, True, False]
    await listener.follower.start()
    try:
        await broker.say_damaged()
        offset = await broker.say(encode(of_version("delays", 3), Wish(1)))
        await listener.until(lambda told: told.offset == offset + 1)
    finally:
        await listener.follower.stop()
    assert listener.told[-1].wanted("delays") == {1: True, 2: True, 3: True}


async def test_an_owner_that_fails_is_told_again(broker: Broker) -> None:
    """A state that could not be taken is offered again, without another record."""
    await broker.create()
    listener = Listener(broker.settings)
    listener.failures_left = 1
    await listener.follower.start()
    try:
        await broker.say(encode(of_version("delays", 1), Wish(1)))
        await listener.until(lambda told: told.wanted("delays") == {1: True})
    finally:
        await listener.follower.stop()
    assert listener.failures_left == 0


async def test_without_a_broker_reading_says_what_to_do() -> None:
    """The error names the address and the next step."""
    settings = Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_s=1))
    with pytest.raises(TopicError, match="KAFKA_BOOTSTRAP_SERVERS"):
        await Listener(settings).follower.read_all()
