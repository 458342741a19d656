"""What must hold for the answers to a stream, whatever happened to workers and broker meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents import topics
from tests.integration.kafka_client import source, without_redelivered
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from aiokafka.structs import ConsumerRecord

    from tests.integration.delays_service import Deployment


def produce_and_wait(deployment: Deployment, count: int, *, first: int, answers: int) -> list[tuple[int, int]]:
    """Send ``count`` requests and wait until some answers have come; returns partition and offset of each request."""
    wanted = deployment.kafka.count(topics.SCORES) + answers
    asked = deployment.kafka.produce(deployment.numbered(count, first=first))
    until(lambda: deployment.kafka.count(topics.SCORES) >= wanted, f"{answers} answers")
    return asked


def check_answers(deployment: Deployment, asked: list[tuple[int, int]]) -> int:
    """Every request answered on both topics, in order, once after redelivered ones are dropped; returns how many were.

    Args:
        deployment: whose.
        asked: partition and offset of each request, in the order of their ids.

    """
    ids = {place: f"r{number:06d}" for number, place in enumerate(asked)}
    repeated = 0
    by_topic: dict[str, dict[tuple[int, int], float]] = {}
    for topic in (topics.SCORES, topics.PREDICTIONS):
        records = deployment.kafka.read(topic)
        assert all(r.partition == source(r)[0] for r in records), "an answer goes to its request's partition"
        kept = without_redelivered(records)
        assert sorted(source(r) for r in kept) == sorted(asked), f"{topic}: an answer is missing or too much"
        repeated += len(records) - len(kept)
        check_repeats(records)
        decoded = {source(r): deployment.decode(r.value) for r in kept}
        assert all(decoded[place]["request_id"] == ids[place] for place in asked)
        by_topic[topic] = {place: record["score"] for place, record in decoded.items()}
    assert by_topic[topics.SCORES] == by_topic[topics.PREDICTIONS], "the answer and its evidence agree"
    assert deployment.kafka.count(topics.REQUESTS_DLQ) == 0
    return repeated


def check_repeats(records: list[ConsumerRecord]) -> None:
    """Offsets go up by one; where a worker began again they fall back to one that was answered before, once per restart."""
    last: dict[int, int] = {}
    highest: dict[int, int] = {}
    for record in records:
        partition, offset = source(record)
        if partition in last and offset != last[partition] + 1:
            assert offset <= highest[partition] + 1, (
                f"{record.topic}-{partition}: {highest[partition] + 1} was left out"
            )
        last[partition] = offset
        highest[partition] = max(highest.get(partition, -1), offset)
