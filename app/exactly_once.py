"""Outputs, dead letters and offsets in one transaction: one transactional producer for each input partition.

The producer's id is bound to the partition, not to the worker: whoever takes the partition over starts a producer with
the same id before it fetches the offset, and with that the brokers abort what the former owner had open and refuse
what it still sends (KIP-98).
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, cast

from app.delivery import send_boxes
from app.errors import DeliveryError
from app.producer import OutputProducer
from app.transactions import Action, Parcel, TransactionLane

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from app.ledger import Ledger, Partition
    from app.metrics import Metrics
    from app.outboxes import Outbox
    from app.settings import Settings
    from app.transactions import Step


class ExactlyOnce:
    """A ``Delivery`` by transactions.

    Args:
        settings: of the worker.
        group_id: consumer group whose offsets are committed.
        ledger: knows what was delivered; more of a partition on its way lets its transaction wait for it.
        metrics: counts transactions.
        on_failure: called with the first error; must end the process.

    """

    def __init__(
        self,
        settings: Settings,
        *,
        group_id: str,
        ledger: Ledger,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._settings, self._group_id, self._ledger = settings, group_id, ledger
        self._metrics, self._on_failure = metrics, on_failure
        self._lanes: dict[Partition, _LaneRunner] = {}
        self._has_failed = False

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """See ``Delivery``: fences the former owners.

        Raises:
            KafkaError: a producer cannot be started.

        """
        await self.revoked()
        lanes = {source: self._lane(source) for source in partitions}
        self._lanes = lanes
        await asyncio.gather(*(lane.start() for lane in lanes.values()))
        if self._lanes is not lanes:  # they went while their producers started
            await asyncio.gather(*(lane.stop() for lane in lanes.values()))

    async def revoked(self) -> None:
        """See ``Delivery``; an open transaction is left to be aborted by the next owner."""
        lanes, self._lanes = list(self._lanes.values()), {}
        await asyncio.gather(*(lane.stop() for lane in lanes))

    async def send(
        self, source: Partition, start: int, end: int, boxes: Sequence[Outbox]
    ) -> list[asyncio.Future[None]]:
        """See ``Delivery``."""
        lane = self._lanes.get(source)
        if lane is None:
            msg = f"{source}: not ours any more; whoever has it answers again"
            raise DeliveryError(msg)
        return [lane.hand_over(start, end, boxes)]

    def _lane(self, source: Partition) -> _LaneRunner:
        delivery = self._settings.delivery
        core = TransactionLane(max_s=delivery.transaction_max_ms / 1000, max_records=delivery.transaction_max_records)
        name = f"{self._group_id}-{source[0]}-{source[1]}"
        producer = OutputProducer(self._settings.kafka, client_id=name, transactional_id=name)
        return _LaneRunner(source, core, producer, self)

    def more_coming(self, source: Partition, next_offset: int | None) -> bool:
        """Whether more was delivered of a partition than was handed over."""
        return next_offset is not None and self._ledger.delivered(source) > next_offset

    async def commit(self, producer: OutputProducer, source: Partition, offset: int) -> None:
        """Commit a transaction with the offset that it answers up to."""
        started_s = time.monotonic()
        await producer.commit_transaction({source: offset}, self._group_id)
        self._metrics.count("transactions")
        self._metrics.observe_us("transaction_commit_duration", int((time.monotonic() - started_s) * 1e6))

    def failed(self, exc: BaseException) -> None:
        """The fate of a transaction is unknown, or its producer was fenced: crash, start again, read again.

        One fault fails every parcel that it meets; the first says it all.
        """
        if not self._has_failed:
            self._has_failed = True
            self._on_failure(exc)


class _LaneRunner:
    """Carries out the steps of a ``TransactionLane``."""

    def __init__(self, source: Partition, core: TransactionLane, producer: OutputProducer, owner: ExactlyOnce) -> None:
        self._source, self._core, self._producer, self._owner = source, core, producer, owner
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._futures: dict[int, asyncio.Future[None]] = {}

    async def start(self) -> None:
        await self._producer.start()
        self._spawn(self._run(), f"transactions {self._source[0]}-{self._source[1]}")

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for future in self._futures.values():
            future.cancel()
        await self._producer.stop()

    def hand_over(self, start: int, end: int, boxes: Sequence[Outbox]) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._core.hand_over(Parcel(start, end, sum(len(box.values) for box in boxes), boxes))
        self._futures[start] = future
        self._changed.set()
        return future

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            more_coming = self._owner.more_coming(self._source, self._core.next_offset)
            step = self._core.step(now_s=time.monotonic(), more_coming=more_coming)
            if step is not None:
                await self._carry_out(step)
                continue
            wake_s = self._core.wake_at_s()
            try:
                async with asyncio.timeout(None if math.isinf(wake_s) else max(wake_s - time.monotonic(), 0.0)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _carry_out(self, step: Step) -> None:
        match step.action:
            case Action.BEGIN:
                await self._producer.begin_transaction()
            case Action.SEND:
                for parcel in step.parcels:
                    boxes = cast("Sequence[Outbox]", parcel.content)
                    self._spawn(self._acknowledge(await send_boxes(self._producer, boxes)), "acknowledge")
            case Action.COMMIT:
                await self._owner.commit(self._producer, self._source, step.offset)
                for parcel in self._core.committed():
                    self._futures.pop(parcel.start).set_result(None)

    async def _acknowledge(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            await future
        self._core.acknowledged(1)
        self._changed.set()

    def _spawn(self, work: object, name: str) -> None:
        task = asyncio.create_task(self._guarded(work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: object) -> None:
        try:
            await work  # type: ignore[misc]
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # noqa: BLE001 - crash-only: whatever it is, nothing may be committed after it
            self._core.fail()
            self._owner.failed(exc)
