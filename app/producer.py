"""Output records to Kafka: idempotent, in order for each partition, and every one of them awaited.

For each partition one produce request is under way at a time; what is handed over meanwhile is packed into the next.
After a failed send nothing more is sent to that partition: that is what makes the redelivery mark sound.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiokafka

from app.connections import connection_arguments
from app.errors import DeliveryError
from app.transaction_protocol import prepare_transactions
from app.transport import append_records

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from app.settings import KafkaSettings

    RowHeaders = Sequence[Sequence[tuple[str, bytes]]]

TRANSACTION_TIMEOUT_MS = 60_000
"""After it the brokers abort what a dead producer left open, should nobody take its partition over."""
MAX_WAITING_BYTES = 64 * 2**20
"""What may wait in memory for the brokers; beyond it ``send`` waits, so that a slow broker slows the input down."""


@dataclass(slots=True)
class _Parcel:
    """Records of one ``send``; ``done_count`` of them are acknowledged."""

    keys: list[bytes | None]
    values: Sequence[bytes | None]
    headers: RowHeaders | None
    future: asyncio.Future[None]
    size_bytes: int


class OutputProducer:
    """Sends lists of records and says when the broker has them.

    Args:
        settings: connection, batch size and time-out.
        client_id: as the brokers' logs name us.
        transactional_id: whoever starts with it fences those who started with it before; none: no transactions.

    """

    def __init__(
        self, settings: KafkaSettings, *, client_id: str = "sluice", transactional_id: str | None = None
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._transactional_id = transactional_id
        self._producer: aiokafka.AIOKafkaProducer | None = None
        self._waiting: dict[tuple[str, int], deque[_Parcel]] = {}
        self._senders: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._failed: DeliveryError | None = None
        self._waiting_bytes = 0
        self._space = asyncio.Event()

    async def start(self) -> None:
        """Connect.

        Raises:
            aiokafka.errors.KafkaConnectionError: no broker answers.

        """
        self._space.set()
        self._producer = aiokafka.AIOKafkaProducer(
            **connection_arguments(self._settings),
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            transactional_id=self._transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_batch_size=self._settings.producer_batch_bytes,
            max_request_size=4 * self._settings.producer_batch_bytes,
            request_timeout_ms=int(self._settings.request_timeout_s * 1000),
        )
        await self._producer.start()
        if self._transactional_id is not None:
            await prepare_transactions(self._producer)

    async def begin_transaction(self) -> None:
        """What is sent from now on belongs to one transaction."""
        assert self._producer is not None, "start() comes first"
        await self._producer.begin_transaction()

    async def commit_transaction(self, offsets: Mapping[tuple[str, int], int], group_id: str) -> None:
        """Commit what was sent, and these offsets of a consumer group with it; every send was awaited before.

        Raises:
            KafkaError: the fate of the transaction is unknown, or another producer has its id now; never repeat it.
            TimeoutError: the same, after twice the request time-out.

        """
        assert self._producer is not None, "start() comes first"
        async with asyncio.timeout(2 * self._settings.request_timeout_s):
            await self._producer.send_offsets_to_transaction(
                {aiokafka.TopicPartition(*source): offset for source, offset in offsets.items()}, group_id
            )
            await self._producer.commit_transaction()

    async def stop(self) -> None:
        """Wait for what is under way, then disconnect; records that still wait fail."""
        await asyncio.gather(*self._senders.values(), return_exceptions=True)
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.stop()

    async def flush(self) -> None:
        """Wait until everything handed over is acknowledged or has failed."""
        while self._senders:
            await asyncio.wait(list(self._senders.values()))

    async def send(
        self,
        topic: str,
        partition: int,
        keys: list[bytes | None],
        values: Sequence[bytes | None],
        headers: RowHeaders | None = None,
    ) -> asyncio.Future[None]:
        """Hand records over; waits only while too many bytes wait for the brokers.

        A value of None is a tombstone; only a dead letter has one.

        Returns:
            A future that is done when the broker has acknowledged all of them.

        Raises:
            DeliveryError: an earlier send failed; the worker must restart.

        """
        await self._space.wait()
        self._check()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not values:
            future.set_result(None)
            return future
        size = sum(len(value) for value in values if value is not None)
        parcel = _Parcel(keys, values, headers, future, size)
        self._waiting.setdefault((topic, partition), deque()).append(parcel)
        self._account(size)
        if (topic, partition) not in self._senders:
            task = asyncio.create_task(self._send_waiting(topic, partition), name=f"send {topic}-{partition}")
            self._senders[topic, partition] = task
        return future

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _account(self, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        if self._waiting_bytes < MAX_WAITING_BYTES:
            self._space.set()
        else:
            self._space.clear()

    async def _send_waiting(self, topic: str, partition: int) -> None:
        queue = self._waiting[topic, partition]
        try:
            while queue:
                parcels = _take_parcels(queue, self._settings.producer_batch_bytes)
                await self._send_parcels(topic, partition, parcels)
        finally:
            del self._senders[topic, partition]

    async def _send_parcels(self, topic: str, partition: int, parcels: list[_Parcel]) -> None:
        try:
            self._check()
            async with asyncio.timeout(2 * self._settings.request_timeout_s):
                await self._deliver(topic, partition, parcels)
        except Exception as exc:  # noqa: BLE001 - whatever it is, nobody may wait for these records for ever
            self._fail(parcels, f"{topic}-{partition}: not acknowledged ({exc!r}); the worker must restart")
        else:
            for parcel in parcels:
                if not parcel.future.done():
                    parcel.future.set_result(None)
        finally:
            self._account(-sum(p.size_bytes for p in parcels))

    async def _deliver(self, topic: str, partition: int, parcels: list[_Parcel]) -> None:
        assert self._producer is not None, "start() comes first"
        keys, values, headers = _joined(parcels)
        timestamp_ms = int(time.time() * 1000)
        acknowledgements = []
        start = 0
        while start < len(values):
            builder = self._producer.create_batch()
            end = append_records(builder, keys, values, headers, start, timestamp_ms)
            if end == start:
                msg = f"{topic}: a record of {len(values[start] or b'')} bytes does not fit a produce batch"
                raise DeliveryError(msg)
            acknowledgements.append(await self._producer.send_batch(builder, topic, partition=partition))
            start = end
        await asyncio.gather(*acknowledgements)

    def _fail(self, parcels: list[_Parcel], message: str) -> None:
        self._failed = self._failed or DeliveryError(message)
        self._space.set()
        for parcel in parcels:
            if not parcel.future.done():
                parcel.future.set_exception(self._failed)
                parcel.future.exception()  # seen: whoever awaits it gets it raised, nobody gets a warning


def _take_parcels(queue: deque[_Parcel], batch_bytes: int) -> list[_Parcel]:
    taken = [queue.popleft()]
    size = taken[0].size_bytes
    while queue and size + queue[0].size_bytes <= batch_bytes:
        size += queue[0].size_bytes
        taken.append(queue.popleft())
    return taken


def _joined(parcels: list[_Parcel]) -> tuple[list[bytes | None], Sequence[bytes | None], RowHeaders | None]:
    if len(parcels) == 1:
        return parcels[0].keys, parcels[0].values, parcels[0].headers
    keys = [key for p in parcels for key in p.keys]
    values = [value for p in parcels for value in p.values]
    if all(p.headers is None for p in parcels):
        return keys, values, None
    return keys, values, [h for p in parcels for h in (p.headers or [()] * len(p.values))]
