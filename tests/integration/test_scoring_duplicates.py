"""The same request sent again gets the same answer, marked, without the device: at once, later, after a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agents import topics
from tests.integration.delays_service import Deployment
from tests.integration.kafka_client import KafkaClient, header
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiokafka.structs import ConsumerRecord

    from tests.integration.kafka_client import Message
    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", params=["at_least_once", "exactly_once"])
def deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str
) -> Iterator[Deployment]:
    """Fresh topics, in either delivery mode."""
    with KafkaClient(bootstrap_servers) as kafka:
        name = f"again-{request.param[:2]}"
        found = Deployment(
            name, tmp_path_factory.mktemp(name), kafka, bootstrap_servers, redis_url,
            environment={"SLUICE_DELIVERY__MODE": request.param, "SLUICE_DELIVERY__REMEMBERED_ANSWERS": "10000"},
        )  # fmt: skip
        kafka.fresh_topics(found.settings)
        yield found


@pytest.fixture(scope="module")
def worker(deployment: Deployment) -> Iterator[WorkerProcess]:
    """One worker for the module."""
    with deployment.worker() as found:
        yield found.start().wait_ready()


def _answers(deployment: Deployment, messages: list[Message]) -> list[ConsumerRecord]:
    """The answers to messages, once all are there."""
    before = deployment.kafka.ends(topics.SCORES)
    deployment.kafka.produce(messages)
    found: list[ConsumerRecord] = []

    def is_complete() -> bool:
        found[:] = deployment.kafka.read(topics.SCORES, before)
        return len(found) >= len(messages)

    until(is_complete, f"{len(messages)} answers")
    return found


def _by_key(records: list[ConsumerRecord]) -> dict[bytes, bytes]:
    """Values by key and first place of the id in them; the tests send one request an entity at a time."""
    return {record.key: record.value for record in records}


def test_a_request_sent_again_gets_the_same_bytes(deployment: Deployment, worker: WorkerProcess) -> None:
    """Byte for byte, marked; no evidence twice, and nothing on the device."""
    messages = deployment.numbered(60)
    first = _answers(deployment, messages)
    assert not any(header(record, "x-duplicate") for record in first)
    rows, evidence = worker.figures()["batches"]["rows"], deployment.kafka.count(topics.PREDICTIONS)
    again = _answers(deployment, messages)
    assert sorted(r.value for r in again) == sorted(r.value for r in first)
    assert {header(record, "x-duplicate") for record in again} == {b"1"}
    assert len({header(record, "x-src") for record in [*first, *again]}) == 120, "each answers its own record"
    assert worker.figures()["batches"]["rows"] == rows
    assert deployment.kafka.count(topics.PREDICTIONS) == evidence


def test_a_request_twice_in_one_breath_is_scored_once(deployment: Deployment, worker: WorkerProcess) -> None:
    """Both are on their way together, perhaps in one micro-batch."""
    rows = worker.figures()["batches"]["rows"]
    messages = deployment.numbered(40, first=1000)
    both = _answers(deployment, [m for message in messages for m in (message, message)])
    assert len(both) == 80
    assert sum(header(record, "x-duplicate") == b"1" for record in both) == 40
    assert len({record.value for record in both}) == 40
    until(lambda: worker.figures()["batches"]["rows"] == rows + 40, "40 rows on the device")


def test_a_restarted_worker_remembers(deployment: Deployment, worker: WorkerProcess) -> None:
    """After SIGTERM, and after a kill once the offsets are committed, the answer of before is sent again."""
    messages = deployment.numbered(50, first=2000)
    first = sorted(r.value for r in _answers(deployment, messages))
    for end in (worker.terminate, worker.kill):
        until(lambda: deployment.kafka.lag(deployment.group) == 0, "all committed")
        end()
        worker.start().wait_ready()
        again = _answers(deployment, messages)
        assert sorted(r.value for r in again) == first
        assert {header(record, "x-duplicate") for record in again} == {b"1"}
