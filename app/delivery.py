"""How terminal records become answered offsets: acknowledged by the brokers, or committed with their offsets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Sequence

    from app.ledger import Partition
    from app.outboxes import Outbox
    from app.producer import OutputProducer


class Delivery(Protocol):
    """What the pipeline hands its answers to."""

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """These input partitions are ours; called before their offsets are fetched."""

    async def revoked(self) -> None:
        """All input partitions are gone; what they had is answered or will be answered by others."""

    async def send(
        self, source: Partition, start: int, end: int, boxes: Sequence[Outbox]
    ) -> list[asyncio.Future[None]]:
        """Hand over the terminal records of offsets ``start .. end - 1``, in the order of the offsets.

        Returns:
            Futures; when all are done the offsets are answered.

        Raises:
            DeliveryError: an earlier record was not delivered; the worker must restart.

        """


async def send_boxes(producer: OutputProducer, boxes: Sequence[Outbox]) -> list[asyncio.Future[None]]:
    """Send what is in the boxes; a future for each that is not empty."""
    return [
        await producer.send(box.topic, box.partition, box.keys, box.values, box.headers) for box in boxes if box.values
    ]


class AtLeastOnce:
    """Answered is what the brokers have acknowledged; the committer commits the offsets later.

    A worker that dies between the two leaves answers that another gives again; both have the same ``x-src``.
    """

    def __init__(self, producer: OutputProducer) -> None:
        self._producer = producer

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """See ``Delivery``; nothing is bound to a partition."""

    async def revoked(self) -> None:
        """See ``Delivery``."""

    async def send(
        self,
        source: Partition,  # noqa: ARG002 - the protocol's signature
        start: int,  # noqa: ARG002
        end: int,  # noqa: ARG002
        boxes: Sequence[Outbox],
    ) -> list[asyncio.Future[None]]:
        """See ``Delivery``."""
        return await send_boxes(self._producer, boxes)
