"""The account of a run: every request ends in exactly one terminal record, counted by Kafka itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from agents.topics import REQUESTS, REQUESTS_DLQ, SCORES
from schemas.records import Status

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Conservation:
    """Every request ends in exactly one terminal record.

    Attributes:
        consumed_count: records of `score-requests`.
        statuses: answers on `scores` by status.
        score_record_count: records of `scores`.
        undecodable_count: dead letters that are not copies of INVALID and ERROR requests.

    """

    consumed_count: int
    statuses: dict[Status, int]
    score_record_count: int
    undecodable_count: int

    @property
    def holds(self) -> bool:
        """Whether the sum is right, and each answer was given once."""
        terminal = sum(self.statuses.values())
        return self.consumed_count == terminal + self.undecodable_count and self.score_record_count == terminal

    def line(self) -> str:
        """``consumed 5 = 4 OK + 1 DEGRADED + …``."""
        parts = [f"{count:,} {status.name}" for status, count in self.statuses.items()]
        verdict = "" if self.holds else f"   DOES NOT HOLD ({self.score_record_count:,} records on {SCORES})"
        return (
            f"consumed {self.consumed_count:,} = {' + '.join(parts)} + {self.undecodable_count:,} undecodable{verdict}"
        )


def count_statuses(answers: pd.DataFrame) -> dict[Status, int]:
    """How many answers have each status."""
    counts = np.bincount(answers["status"].to_numpy(np.int64), minlength=len(Status))
    return {status: int(counts[status]) for status in Status}


async def conservation(bootstrap_servers: str, answers: pd.DataFrame) -> Conservation:
    """The account of a run on topics that held nothing before it, from what Kafka itself counts."""
    counts = await record_counts(bootstrap_servers, (REQUESTS, SCORES, REQUESTS_DLQ))
    statuses = count_statuses(answers)
    copies = statuses[Status.INVALID] + statuses[Status.ERROR]
    return Conservation(counts[REQUESTS], statuses, counts[SCORES], counts[REQUESTS_DLQ] - copies)


async def record_counts(bootstrap_servers: str, topics: tuple[str, ...]) -> dict[str, int]:
    """Records that were ever written to each topic; 0 for one that is not there."""
    counts = dict.fromkeys(topics, 0)
    for topic in set(topics) & await _present(bootstrap_servers):
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers, enable_auto_commit=False)
        await consumer.start()
        try:
            counts[topic] = sum((await consumer.end_offsets(consumer.assignment())).values())
        finally:
            await consumer.stop()
    return counts


async def _present(bootstrap_servers: str) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        return set(await admin.list_topics())
    finally:
        await admin.close()
