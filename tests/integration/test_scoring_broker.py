"""The broker is down at start, and killed in mid-stream, under a real worker: in the end everything is answered."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from agents import topics
from app.embedded.stack import Stack
from app.embedded.warm import prepare_fast_starts
from tests.integration.answer_checks import Stream
from tests.integration.delays_service import SMALL_STEPS, Deployment
from tests.integration.kafka_client import KafkaClient
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

QUICK_FAILURE = {"SLUICE_KAFKA__REQUEST_TIMEOUT_S": "5", "SLUICE_DELIVERY__STALL_AFTER_S": "10"}
"""A worker that must restart after a broker was gone shall notice within a test's patience."""


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A broker that these tests may kill."""
    prepare_fast_starts(print)
    with Stack.start(tmp_path_factory.mktemp("own-stack")) as started:
        yield started


def kill_broker(stack: Stack) -> None:
    """``kill -9``, and wait until it is gone."""
    (broker,) = stack.info.brokers
    os.kill(broker.pid, signal.SIGKILL)
    until(lambda: broker.find() is None, "the broker's end")


def prepare(stack: Stack, kafka: KafkaClient, folder: Path, name: str) -> Deployment:
    """Fresh topics, and a deployment of small steps."""
    deployment = Deployment(
        name, folder, kafka, stack.info.bootstrap_servers, stack.info.redis_url,
        environment={**SMALL_STEPS, **QUICK_FAILURE},
    )  # fmt: skip
    kafka.fresh_topics(deployment.settings)
    return deployment


def test_broker_down_at_start(own_stack: Stack, tmp_path: Path) -> None:
    """The worker waits, says for what, and works when the broker comes up; it is not started again for it."""
    with KafkaClient(own_stack.info.bootstrap_servers) as kafka:
        deployment = prepare(own_stack, kafka, tmp_path, "waiting")
        stream = Stream(deployment)
        stream.produce(100)
    kill_broker(own_stack)
    with deployment.worker() as worker:
        worker.start()
        what = f"no Kafka at {own_stack.info.bootstrap_servers}"
        until(lambda: worker.log().count(what) >= 2 or not worker.is_running, "a line that says what is missing")
        assert worker.is_running, worker.log()[-3000:]
        assert "trying again" in worker.log()
        own_stack.restart("kafka-1")
        worker.wait_ready()
        with KafkaClient(own_stack.info.bootstrap_servers) as kafka:
            deployment.kafka = kafka
            deployment.wait_answered()
            assert stream.check_answers() == 0
        assert "Traceback" not in worker.log()


def test_broker_killed_in_mid_stream(own_stack: Stack, tmp_path: Path) -> None:
    """Kill -9 of the broker under load: a worker that is started again when it ends answers all, in order."""
    with KafkaClient(own_stack.info.bootstrap_servers) as kafka:
        deployment = prepare(own_stack, kafka, tmp_path, "broken")
        with deployment.worker() as worker:
            worker.start().wait_ready()
            stream = Stream(deployment)
            stream.produce_and_wait(5000, answers=500)
            kill_broker(own_stack)
            own_stack.restart("kafka-1")
            with KafkaClient(own_stack.info.bootstrap_servers) as fresh:
                deployment.kafka = fresh
                assert fresh.lag(deployment.group) > 0, "killed too late: nothing was left to do"
                assert fresh.count(topics.REQUESTS) == 5000
                deployment.wait_answered(worker, timeout_s=120)
                stream.check_answers()
