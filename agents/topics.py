"""The topics of the contract: names, sizes, and the check that their partitions fit together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from app.connections import access_hint, connection_arguments
from app.errors import PartitionMismatch, TopicError
from schemas.topic_names import (
    LABELLED,
    MODEL_CONTROL,
    MONITOR_EVENTS,
    OUTCOMES,
    OUTCOMES_DLQ,
    PREDICTIONS,
    REQUESTS,
    REQUESTS_DLQ,
    ROLLOUTS,
    SCORES,
    WORKER_STATS,
)

if TYPE_CHECKING:
    from app.settings import Settings

__all__ = [
    "LABELLED",
    "MODEL_CONTROL",
    "MONITOR_EVENTS",
    "OUTCOMES",
    "OUTCOMES_DLQ",
    "PREDICTIONS",
    "REQUESTS",
    "REQUESTS_DLQ",
    "ROLLOUTS",
    "SCORES",
    "WORKER_STATS",
    "TopicSpec",
    "check_partitions",
    "delete_topics",
    "ensure_topics",
    "topic_specs",
]

MIB = 2**20
DAY_MS = 86_400_000
LEADER_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic.

    Attributes:
        name: as on the wire.
        is_data: keyed by entity_id, with the partition count that all data topics share; else it has one partition.
        config: Kafka's topic settings.

    """

    name: str
    is_data: bool
    config: dict[str, str] = field(default_factory=dict)


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """All topics; inputs take 1 MiB a record, everything that must hold an input whole takes more."""
    keep_ms = int((settings.monitor.label_horizon_s + settings.monitor.maturity_s) * 1000) + 30 * DAY_MS
    kept = {"retention.ms": str(keep_ms)}
    wide = {"max.message.bytes": str(2 * MIB)}
    compacted = {"cleanup.policy": "compact"}
    return [
        TopicSpec(REQUESTS, is_data=True, config={"max.message.bytes": str(MIB + MIB // 16)}),
        TopicSpec(SCORES, is_data=True, config=wide),
        TopicSpec(PREDICTIONS, is_data=True, config={**kept, **wide}),
        TopicSpec(OUTCOMES, is_data=True, config={**kept, "max.message.bytes": str(MIB + MIB // 16)}),
        TopicSpec(LABELLED, is_data=True, config=wide),
        TopicSpec(REQUESTS_DLQ, is_data=True, config=wide),
        TopicSpec(OUTCOMES_DLQ, is_data=True, config=wide),
        TopicSpec(MONITOR_EVENTS, is_data=False, config=wide),
        TopicSpec(ROLLOUTS, is_data=False, config=compacted),
        TopicSpec(MODEL_CONTROL, is_data=False, config=compacted),
        TopicSpec(WORKER_STATS, is_data=False, config={**compacted, **wide}),
    ]


async def ensure_topics(settings: Settings) -> dict[str, int]:
    """Create what is missing, wait for leaders, check partition counts.

    Returns:
        Partitions of each topic.

    Raises:
        TopicError: data topics differ in their partition counts, or a leader does not appear.

    """
    admin = AIOKafkaAdminClient(**connection_arguments(settings.kafka))
    try:
        await admin.start()
    except KafkaError as exc:
        msg = (
            f"no Kafka at {settings.kafka.bootstrap_servers} ({exc}); start one with `sluice up`, "
            f"or set KAFKA_BOOTSTRAP_SERVERS{access_hint(settings.kafka)}"
        )
        raise TopicError(msg) from exc
    try:
        await _create_missing(admin, settings)
        counts = await _await_leaders(admin, [spec.name for spec in topic_specs(settings)])
    finally:
        await admin.close()
    check_partitions(counts, settings)
    return counts


def check_partitions(counts: dict[str, int], settings: Settings) -> None:
    """Raise unless all data topics have the same number of partitions.

    Raises:
        PartitionMismatch: it names the topics that differ.

    """
    wanted = counts[REQUESTS]
    odd = {s.name: counts[s.name] for s in topic_specs(settings) if s.is_data and counts[s.name] != wanted}
    if odd:
        found = ", ".join(f"{name} has {count}" for name, count in odd.items())
        msg = (
            f"{REQUESTS} has {wanted} partitions but {found}: an answer goes to its request's partition, so all data "
            f"topics need the same number; recreate the odd ones, or raise their partitions to {wanted}"
        )
        raise PartitionMismatch(msg)


async def delete_topics(settings: Settings) -> None:
    """Delete all topics of the contract and wait until they are gone; for demos and tests."""
    admin = AIOKafkaAdminClient(**connection_arguments(settings.kafka))
    await admin.start()
    try:
        wanted = {spec.name for spec in topic_specs(settings)}
        present = wanted & set(await admin.list_topics())
        if present:
            await admin.delete_topics(sorted(present))
        while wanted & set(await admin.list_topics()):  # noqa: ASYNC110 - the brokers tell only who asks
            await asyncio.sleep(0.1)
    finally:
        await admin.close()


async def _create_missing(admin: AIOKafkaAdminClient, settings: Settings) -> None:
    present = set(await admin.list_topics())
    for spec in topic_specs(settings):
        if spec.name in present:
            continue
        topic = NewTopic(
            name=spec.name,
            num_partitions=settings.kafka.partitions if spec.is_data else 1,
            replication_factor=settings.kafka.replication,
            topic_configs=spec.config,
        )
        try:
            response = await admin.create_topics([topic])
        except TopicAlreadyExistsError:  # another worker was faster
            continue
        for name, code, *reason in response.topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                msg = f"cannot create topic {name}: error {code} {reason}"
                raise TopicError(msg)


async def _await_leaders(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    try:
        async with asyncio.timeout(LEADER_TIMEOUT_S):
            while True:
                described = await admin.describe_topics(names)
                if all(t["error_code"] == 0 and all(p["leader"] >= 0 for p in t["partitions"]) for t in described):
                    return {t["topic"]: len(t["partitions"]) for t in described}
                await asyncio.sleep(0.05)
    except TimeoutError as exc:
        topics = ", ".join(names)
        msg = f"no leader for every partition of {topics} after {LEADER_TIMEOUT_S:.0f} s; look at the broker's log"
        raise TopicError(msg) from exc
