"""The control topic from a worker's and an operator's side: read whole at start, then followed without a group."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiokafka
from aiokafka.errors import KafkaError

from app.connections import connection_arguments
from app.errors import TopicError
from app.models.control import ControlState
from app.topic_reader import find_cluster
from schemas.topic_names import MODEL_CONTROL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from app.settings import KafkaSettings, Settings

RETRY_AFTER_S = 1.0
POLL_MS = 1000
READ_ALL_S = 60.0
"""A few thousand small records take well under a second; after so long the brokers are in trouble."""
PARTITION = aiokafka.TopicPartition(MODEL_CONTROL, 0)

_log = logging.getLogger(__name__)


class ControlFollower:
    """Keeps the newest ``ControlState`` and tells its owner of each change.

    The topic may be missing, be made anew, or be compacted; brokers may come and go.

    Args:
        settings: brokers and time-outs.
        on_change: awaited with the newest state after each fetched batch; if it raises it is called again.

    Attributes:
        state: what has been read so far.

    """

    def __init__(self, settings: Settings, on_change: Callable[[ControlState], Awaitable[None]]) -> None:
        self._kafka = settings.kafka
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self.state = ControlState.empty()

    async def read_all(self) -> ControlState:
        """The state at the end that the topic has now; empty while there is no such topic. Calls nobody.

        Raises:
            TopicError: no broker answers, or the end is not reached within ``READ_ALL_S``.

        """
        try:
            async with asyncio.timeout(READ_ALL_S), self._consumer() as consumer:
                if consumer is not None:
                    end = (await consumer.end_offsets([PARTITION]))[PARTITION]
                    while await consumer.position(PARTITION) < end:
                        await self._take(consumer, POLL_MS)
        except (KafkaError, TimeoutError) as exc:
            msg = f"{MODEL_CONTROL} cannot be read to its end ({exc!r}); look at the brokers, then start again"
            raise TopicError(msg) from exc
        return self.state

    async def start(self) -> None:
        """Follow the topic from where ``read_all`` ended, else from its beginning."""
        self._task = asyncio.create_task(self._follow(), name=f"{MODEL_CONTROL}: follow")

    async def stop(self) -> None:
        """Follow no longer; a call of ``on_change`` that is under way is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _follow(self) -> None:
        told = self.state
        while True:
            try:
                async with self._consumer() as consumer:
                    while consumer is not None:
                        await self._take(consumer, POLL_MS)
                        while await self._take(consumer, 0):  # what was fetched together is told together
                            pass
                        if self.state is not told:
                            newest = self.state
                            await self._on_change(newest)
                            told = newest
            except (KafkaError, TopicError) as exc:
                _log.warning("%s: following again in %.0f s: %r", MODEL_CONTROL, RETRY_AFTER_S, exc)
            except Exception:  # noqa: BLE001 - the worker serves on with what it knows
                _log.exception("%s: following again in %.0f s", MODEL_CONTROL, RETRY_AFTER_S)
            await asyncio.sleep(RETRY_AFTER_S)

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[aiokafka.AIOKafkaConsumer | None]:
        """A consumer at the first record that is not applied yet; None while there is no topic."""
        cluster = await find_cluster(self._kafka)  # asking a consumer for a missing topic could create it
        if MODEL_CONTROL not in cluster.partitions:
            yield None
            return
        consumer = aiokafka.AIOKafkaConsumer(
            **connection_arguments(self._kafka),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            request_timeout_ms=int(self._kafka.request_timeout_s * 1000),
        )
        try:
            await consumer.start()
            await asyncio.sleep(0)  # aiokafka's stop() fails while a task of its own has not had its first turn
            consumer.assign([PARTITION])
            consumer.seek(PARTITION, self.state.offset)
            yield consumer
        finally:
            await consumer.stop()

    async def _take(self, consumer: aiokafka.AIOKafkaConsumer, timeout_ms: int) -> bool:
        """Apply the next record, if one comes in time; one at a time, so that a damaged one hides no other."""
        try:
            fetched = await consumer.getmany(PARTITION, timeout_ms=timeout_ms, max_records=1)
        except UnicodeDecodeError:  # the name of a header; aiokafka can read nothing more of its batch
            damaged = await consumer.position(PARTITION)
            self._apply(None, None, damaged)
            consumer.seek(PARTITION, damaged + 1)
            return True
        if await consumer.position(PARTITION) < self.state.offset:
            _log.warning("%s was made anew; what was wanted before is forgotten", MODEL_CONTROL)
            self.state = ControlState.empty()
        records = fetched.get(PARTITION, [])
        for record in records:
            self._apply(record.key, record.value, record.offset)
        return bool(records)

    def _apply(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        self.state = self.state.apply(key, value, offset)
        if self.state.problem is not None:
            _log.warning("%s: the record at offset %d is skipped: %s", MODEL_CONTROL, offset, self.state.problem)


async def send_wishes(kafka: KafkaSettings, records: Sequence[tuple[bytes, bytes | None]]) -> list[int]:
    """Write records to the control topic, acknowledged by all replicas.

    Args:
        kafka: where the brokers are.
        records: keys and values as ``app.models.control.encode`` makes them; value None takes a wish back.

    Returns:
        The offset of each.

    Raises:
        TopicError: there is no such topic, or the brokers do not take a record.

    """
    (await find_cluster(kafka)).count(MODEL_CONTROL)
    producer = aiokafka.AIOKafkaProducer(
        **connection_arguments(kafka),
        enable_idempotence=True,  # which implies acks=all
        request_timeout_ms=int(kafka.request_timeout_s * 1000),
    )
    try:
        await producer.start()
        sent = [await producer.send_and_wait(MODEL_CONTROL, value, key, partition=0) for key, value in records]
    except KafkaError as exc:
        msg = f"{MODEL_CONTROL} does not take the record ({exc!r}); look at the brokers, then run the command again"
        raise TopicError(msg) from exc
    finally:
        await producer.stop()
    return [int(metadata.offset) for metadata in sent]
