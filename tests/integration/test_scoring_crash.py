"""A scoring worker is killed, stopped, joined and taken over from in mid-stream: nothing is lost, and what is repeated shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agents import topics
from tests.integration.answer_checks import check_answers, produce_and_wait
from tests.integration.delays_service import PARTITIONS, SMALL_STEPS, Deployment
from tests.integration.kafka_client import KafkaClient
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration

SESSION_ENDS_S = 30.0


@pytest.fixture
def deployment(
    tmp_path: Path, bootstrap_servers: str, redis_url: str, request: pytest.FixtureRequest
) -> Iterator[Deployment]:
    """Fresh topics and a deployment of its own for each test."""
    with KafkaClient(bootstrap_servers) as kafka:
        name = request.node.name.removeprefix("test_")[:30].replace("_", "-")
        found = Deployment(name, tmp_path, kafka, bootstrap_servers, redis_url, environment=SMALL_STEPS)
        kafka.fresh_topics(found.settings)
        yield found


def test_kill_9_in_mid_stream_loses_nothing(deployment: Deployment) -> None:
    """Three kills among 20,000 requests: each is answered, in order, and a reader can drop what was repeated."""
    kafka, asked = deployment.kafka, []
    with deployment.worker() as worker:
        worker.start().wait_ready()
        for step in range(4):
            asked += produce_and_wait(deployment, 5000, first=5000 * step, answers=500)
            if step == 3:
                break
            worker.kill()
            assert kafka.lag(deployment.group) > 0, "killed too late: nothing was left to do"
            worker.start()
        deployment.wait_answered(worker)
        assert worker.start_count == 4, worker.log()[-3000:]
        assert worker.is_running
    check_answers(deployment, asked)


def test_sigterm_drains(deployment: Deployment) -> None:
    """SIGTERM in mid-stream: exit code 0, what was taken is answered and committed, and the next worker repeats nothing."""
    kafka = deployment.kafka
    with deployment.worker() as worker:
        worker.start().wait_ready()
        asked = produce_and_wait(deployment, 8000, first=0, answers=500)
        assert worker.terminate() == 0, worker.log()[-3000:]
        left = kafka.lag(deployment.group)
        assert 0 < left < len(asked), "stopped in the middle"
        assert kafka.count(topics.SCORES) == len(asked) - left, "answered is committed, and committed is answered"
        worker.start()
        deployment.wait_answered(worker)
        assert worker.terminate() == 0, worker.log()[-3000:]
        assert "CRITICAL" not in worker.log()
    assert check_answers(deployment, asked) == 0, "nothing is repeated after a drain"
    assert kafka.count(topics.SCORES) == kafka.count(topics.PREDICTIONS) == len(asked)


def test_two_workers_share_and_one_takes_over(deployment: Deployment) -> None:
    """Two workers have two partitions each; one is killed, the other gets all four and answers what was left."""
    kafka = deployment.kafka
    with deployment.worker("first") as first, deployment.worker("second") as second:
        first.start()
        second.start()
        first.wait_ready()
        second.wait_ready()
        asked = kafka.produce(deployment.numbered(400))
        until(lambda: kafka.lag(deployment.group) == 0, "the first requests answered")
        until(lambda: consumed(first, second) == 400, "the workers' own figures")
        each = [worker.figures()["conservation"]["consumed"] for worker in (first, second)]
        assert all(each), f"both have partitions with requests in them: {each}"
        asked += produce_and_wait(deployment, 8000, first=400, answers=500)
        first.kill()
        assert kafka.lag(deployment.group) > 0, "killed too late: nothing was left to do"
        until(lambda: kafka.lag(deployment.group) == 0, "the other worker takes over", timeout_s=SESSION_ENDS_S + 30)
        assert second.start_count == 1
        assert second.is_running, second.log()[-3000:]
    check_answers(deployment, asked)
    assert {partition for partition, _ in asked} == set(range(PARTITIONS))


def consumed(*workers: WorkerProcess) -> int:
    """Requests that the workers have consumed, by their own figures."""
    return sum(worker.figures()["conservation"]["consumed"] for worker in workers)
