"""A warm standby on a real broker: idle beside a primary, answering after its death, idle again when one is back."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import pytest

from agents import topics
from tests.integration.answer_checks import Stream
from tests.integration.delays_service import PARTITIONS, Deployment
from tests.integration.kafka_client import KafkaClient
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration
ALL = list(range(PARTITIONS))
log = logging.getLogger(__name__)


@pytest.fixture
def deployment(
    tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str
) -> Iterator[Deployment]:
    """Fresh topics."""
    with KafkaClient(bootstrap_servers) as kafka:
        deployment = Deployment("standby", tmp_path_factory.mktemp("standby"), kafka, bootstrap_servers, redis_url)
        kafka.fresh_topics(deployment.settings)
        yield deployment


def partitions(worker: WorkerProcess) -> list[int]:
    """What a worker says it has."""
    found: list[int] = worker.figures()["group"]["partitions"]
    return found


def test_a_standby_takes_over_and_gives_back(deployment: Deployment) -> None:
    """Nothing is lost on the way; a standby is ready and warm all the time, and shows what it is."""
    kafka = deployment.kafka
    standby = deployment.worker("standby", SLUICE_KAFKA__STANDBY="true")
    with deployment.worker("primary") as primary, standby:
        for worker in (standby, primary):  # the standby first: even what it has already goes to a primary
            worker.start().wait_ready()
        until(lambda: (partitions(standby), partitions(primary)) == ([], ALL), "all partitions at the primary")
        until(lambda: standby.get("/v2/health/ready").status_code == 200, "a standby that is ready")
        assert standby.figures()["group"] == {"is_standby": True, "partitions": []}
        assert primary.figures()["group"]["is_standby"] is False
        (model,) = standby.figures()["models"]["versions"]
        assert (model["state"], model["labels"]) == ("READY", ["champion"])
        stream = Stream(deployment)
        stream.produce_and_wait(400, answers=400)
        assert standby.figures()["conservation"]["consumed"] == 0

        before = kafka.count(topics.SCORES)
        primary.kill()
        killed_s = time.monotonic()
        stream.produce(400)
        until(lambda: kafka.count(topics.SCORES) > before, "an answer of the standby")
        log.info("from kill -9 to the first answer of the standby: %.2f s", time.monotonic() - killed_s)
        until(lambda: partitions(standby) == ALL, "all partitions at the standby")

        primary.start().wait_ready()
        until(lambda: (partitions(standby), partitions(primary)) == ([], ALL), "all partitions back at the primary")
        stream.produce(400)
        deployment.wait_answered()
        stream.check_answers()
