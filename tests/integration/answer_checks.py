"""What must hold for the answers to a stream, whatever happened to workers and broker meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents import topics
from tests.integration.kafka_client import source, without_redelivered
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from aiokafka.structs import ConsumerRecord

    from tests.integration.delays_service import Deployment

ANSWERS = (topics.SCORES, topics.PREDICTIONS)


class Stream:
    """Numbered requests from now on, and the answers to them.

    Args:
        deployment: whose topics; everything asked before is answered.

    """

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._since = {topic: deployment.kafka.ends(topic) for topic in (*ANSWERS, topics.REQUESTS_DLQ)}
        self._asked: list[tuple[int, int]] = []

    def produce(self, count: int) -> None:
        """Send the next requests."""
        self._asked += self._deployment.kafka.produce(self._deployment.numbered(count, first=len(self._asked)))

    def produce_and_wait(self, count: int, *, answers: int) -> None:
        """Send the next requests, and wait until some more answers have come than there were."""
        wanted = self.answer_count() + answers
        self.produce(count)
        until(lambda: self.answer_count() >= wanted, f"{answers} answers")

    def answer_count(self, topic: str = topics.SCORES) -> int:
        """Records on a topic since the stream began, repeated ones included."""
        return self._deployment.kafka.count(topic) - sum(self._since[topic].values())

    def check_answers(self) -> int:
        """Every request is answered on both topics, in order, and once when redelivered answers are dropped.

        Returns:
            How many records had to be dropped.

        """
        ids = {place: f"r{number:06d}" for number, place in enumerate(self._asked)}
        scores: dict[str, dict[tuple[int, int], float]] = {}
        repeated = 0
        for topic in ANSWERS:
            records = self._deployment.kafka.read(topic, self._since[topic])
            kept = without_redelivered(records)
            repeated += len(records) - len(kept)
            assert sorted(map(source, kept)) == sorted(self._asked), f"{topic}: an answer is missing, or too much"
            check_order(records)
            decoded = {source(r): self._deployment.decode(r.value) for r in kept}
            assert {place: record["request_id"] for place, record in decoded.items()} == ids
            scores[topic] = {place: record["score"] for place, record in decoded.items()}
        assert scores[topics.SCORES] == scores[topics.PREDICTIONS], "an answer and its evidence differ"
        assert self.answer_count(topics.REQUESTS_DLQ) == 0
        return repeated


def check_order(records: list[ConsumerRecord]) -> None:
    """Source offsets go up by one; where a worker began again they fall back to one that was answered before."""
    last: dict[int, int] = {}
    highest: dict[int, int] = {}
    for record in records:
        partition, offset = source(record)
        assert record.partition == partition, "an answer goes to its request's partition"
        if partition in last and offset != last[partition] + 1:
            assert offset <= highest[partition], f"{record.topic}-{partition}: {highest[partition] + 1} was left out"
        last[partition] = offset
        highest[partition] = max(highest.get(partition, -1), offset)
