"""A scoring worker is killed, stopped and taken over from in mid-stream: nothing is lost, what is repeated shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.answer_checks import Stream
from tests.integration.delays_service import SMALL_STEPS, Deployment
from tests.integration.kafka_client import KafkaClient
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str
) -> Iterator[Deployment]:
    """Fresh topics and a deployment of small steps."""
    with KafkaClient(bootstrap_servers) as kafka:
        folder = tmp_path_factory.mktemp("crash")
        found = Deployment("crash", folder, kafka, bootstrap_servers, redis_url, environment=SMALL_STEPS)
        kafka.fresh_topics(found.settings)
        yield found


@pytest.fixture(scope="module")
def only_worker(deployment: Deployment) -> Iterator[WorkerProcess]:
    """The process that the tests take turns to end."""
    with deployment.worker() as found:
        yield found.start()


@pytest.fixture
def worker(only_worker: WorkerProcess) -> WorkerProcess:
    """A ready worker that has all partitions; started again when the test before ended it."""
    only_worker.keep_alive()
    return only_worker.wait_ready()


def test_kill_9_in_mid_stream_loses_nothing(deployment: Deployment, worker: WorkerProcess) -> None:
    """Three kills among 20,000 requests: each is answered, in order, and a reader can drop what was repeated."""
    stream, start_count = Stream(deployment), worker.start_count
    for _ in range(3):
        stream.produce_and_wait(5000, answers=500)
        worker.kill()
        assert deployment.kafka.lag(deployment.group) > 0, "killed too late: nothing was left to do"
        worker.start()
    stream.produce_and_wait(5000, answers=500)
    deployment.wait_answered(worker)
    assert worker.start_count == start_count + 3, worker.log()[-3000:]
    assert stream.check_answers() > 0, "what was answered and not yet committed is repeated"


def test_sigterm_drains(deployment: Deployment, worker: WorkerProcess) -> None:
    """SIGTERM in mid-stream: exit code 0, what was taken is answered and committed, the next worker repeats nothing."""
    kafka, stream = deployment.kafka, Stream(deployment)
    stream.produce_and_wait(5000, answers=500)
    assert worker.terminate() == 0, worker.log()[-3000:]
    left = kafka.lag(deployment.group)
    assert 0 < left < 5000, "stopped in the middle"
    assert stream.answer_count() == 5000 - left, "answered is committed, and committed is answered"
    worker.start()
    deployment.wait_answered(worker)
    assert stream.check_answers() == 0, "nothing is repeated after a drain"
    assert "CRITICAL" not in worker.log()


def test_two_workers_share_and_one_takes_over(deployment: Deployment, worker: WorkerProcess) -> None:
    """Two workers have two partitions each; one is killed, the other gets all four and answers what was left."""
    kafka, stream = deployment.kafka, Stream(deployment)
    before = consumed(worker)
    with deployment.worker("second") as second:
        second.start().wait_ready()
        worker.wait_ready()
        stream.produce_and_wait(400, answers=400)
        until(lambda: kafka.lag(deployment.group) == 0, "the first requests committed")
        shares = (consumed(worker) - before, consumed(second))
        assert all(shares), f"both have partitions with requests in them: {shares}"
        stream.produce_and_wait(5000, answers=500)
        worker.kill()
        assert kafka.lag(deployment.group) > 0, "killed too late: nothing was left to do"
        until(lambda: kafka.lag(deployment.group) == 0, "the other worker takes over")
        assert second.start_count == 1
        assert second.is_running, second.log()[-3000:]
        stream.check_answers()
        assert consumed(second) > shares[1] + 2500, "it has answered for all partitions"


def consumed(worker: WorkerProcess) -> int:
    """Requests that a worker has taken since it started, by its own figures."""
    count: int = worker.figures()["conservation"]["consumed"]
    return count
