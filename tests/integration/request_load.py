"""Requests in a steady stream while a test does something else, and what they were answered with."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from agents import topics
from tests.integration.kafka_client import KafkaClient, source
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from tests.integration.delays_service import Deployment
    from tests.integration.kafka_client import Message

STEP = 8
PAUSE_S = 0.04
"""About two hundred requests a second: every look of a worker at its repository falls into the stream."""


class RequestLoad:
    """Sends until the block ends; then every request has to be answered.

    Args:
        deployment: whose topics.
        make: the message of a number.

    """

    def __init__(self, deployment: Deployment, make: Callable[[int], Message]) -> None:
        self._deployment, self._make = deployment, make
        self._since = {topic: deployment.kafka.ends(topic) for topic in (topics.SCORES, topics.PREDICTIONS)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="load")
        self.sent: list[tuple[int, int]] = []

    def wait_for(self, count: int) -> None:
        """Wait until so many more requests have been sent."""
        wanted = len(self.sent) + count
        until(lambda: len(self.sent) >= wanted or not self._thread.is_alive(), f"{count} requests")
        assert self._thread.is_alive(), "the load has stopped"

    def answers(self, topic: str = topics.SCORES) -> dict[int, list[dict[str, Any]]]:
        """All that was answered so far, decoded, by partition, in order."""
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for record in self._deployment.kafka.read(topic, self._since[topic]):
            found[record.partition].append({**self._deployment.decode(record.value), "source": source(record)})
        return found

    def rows(self, topic: str = topics.SCORES) -> list[dict[str, Any]]:
        """All that was answered so far, whatever the partition."""
        return [row for rows in self.answers(topic).values() for row in rows]

    def check_complete(self) -> None:
        """Each request was answered once; to be asked after the block, of workers that were not killed."""
        self._deployment.wait_answered()
        assert sorted(row["source"] for row in self.rows()) == sorted(self.sent)

    def _send(self) -> None:
        with KafkaClient(self._deployment.bootstrap_servers) as kafka:
            while not self._stop.wait(PAUSE_S):
                first = len(self.sent)
                self.sent += kafka.produce([self._make(number) for number in range(first, first + STEP)])

    def __enter__(self) -> Self:
        """The load, under way."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send no more."""
        self._stop.set()
        self._thread.join()


def message(deployment: Deployment, number: int) -> Message:
    """An ordinary request that pins nothing."""
    (made,) = deployment.numbered(1, first=number)
    return made
