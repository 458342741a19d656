"""Reading what the service answered: the topic `scores`, followed without a consumer group."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from aiokafka import AIOKafkaConsumer

from agents.topics import SCORES
from examples.records import POLL_MS, decode_all
from schemas.columns import EnumColumn, NumberColumn, TextColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from schemas.registry import SchemaBook


@dataclass(frozen=True, slots=True)
class Answers:
    """n records of `scores`.

    Attributes:
        request_ids: n ids.
        statuses: shape (n,), int8 of ``Status``.
        scores: shape (n,); NaN without a score.
        received_s: monotonic seconds at which they were fetched.

    """

    request_ids: list[str]
    statuses: NDArray[np.int8]
    scores: NDArray[np.float64]
    received_s: float


class ScoreReader:
    """Follows `scores` from its end.

    Args:
        bootstrap_servers: of Kafka.
        book: resolves schema ids.

    """

    def __init__(self, bootstrap_servers: str, book: SchemaBook) -> None:
        self._book = book
        self._consumer = AIOKafkaConsumer(
            SCORES, bootstrap_servers=bootstrap_servers, enable_auto_commit=False, auto_offset_reset="latest"
        )

    async def start(self) -> None:
        """Connect and stand at the end of every partition.

        Raises:
            aiokafka.errors.KafkaConnectionError: no broker answers.

        """
        await self._consumer.start()
        for partition in self._consumer.assignment():  # the reset is lazy; it must be done before anything is sent
            await self._consumer.position(partition)

    async def stop(self) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def fetch(self) -> Answers | None:
        """What has come since; None when nothing came within 0.2 s.

        Raises:
            UnreadableRecord: a value is not a score.

        """
        fetched = await self._consumer.getmany(timeout_ms=POLL_MS)
        received_s = time.monotonic()
        values = [record.value for records in fetched.values() for record in records]
        if not values:
            return None
        fields = decode_all(self._book, values, SCORES).columns.fields
        ids, status, score = fields["request_id"], fields["status"], fields["score"]
        assert isinstance(ids, TextColumn)
        assert isinstance(status, EnumColumn)
        assert isinstance(score, NumberColumn)
        scores = score.values if score.valid is None else np.where(score.valid, score.values, np.nan)
        return Answers([str(i) for i in ids.to_list()], status.codes.astype(np.int8), scores, received_s)
