"""The online store goes away and comes back under a running worker: answers go on, and say what they lack."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from agents import topics
from tests.integration.delays_service import EVENT_US, Deployment, model_spec, put_weather
from tests.integration.kafka_client import KafkaClient, Message, header, source
from tests.integration.valkey_process import ValkeyProcess
from tests.integration.worker_process import WorkerProcess, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


class Valkey(ValkeyProcess):
    """A store that always starts with the weather of JFK in it."""

    def start(self) -> None:
        """Start it."""
        super().start()
        put_weather(self.url, {"JFK": (EVENT_US, 21.5)})


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A store that does not run yet."""
    found = Valkey(tmp_path)
    yield found
    found.kill()


@pytest.fixture
def kafka(bootstrap_servers: str) -> Iterator[KafkaClient]:
    """A client of the session's broker."""
    with KafkaClient(bootstrap_servers) as client:
        yield client


def ask(deployment: Deployment, worker: WorkerProcess) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """One request; returns its answer and its evidence."""
    kafka = deployment.kafka
    before = {topic: kafka.ends(topic) for topic in (topics.SCORES, topics.PREDICTIONS)}
    kafka.produce([Message(b"e1", deployment.request("r1", "e1"))])
    deployment.wait_answered(timeout_s=30)
    assert worker.is_running, worker.log()[-3000:]
    (score,) = kafka.read(topics.SCORES, before[topics.SCORES])
    evidence = kafka.read(topics.PREDICTIONS, before[topics.PREDICTIONS])
    return deployment.decode(score.value), deployment.decode(evidence[0].value) if evidence else None


def check_degraded(deployment: Deployment, worker: WorkerProcess) -> None:
    """An answer without a store: scored, DEGRADED, and the evidence says that the temperature could not be had."""
    score, evidence = ask(deployment, worker)
    assert (score["status"], score["degraded"]) == ("DEGRADED", ["weather:default"])
    assert 0 < score["score"] < 1
    assert evidence is not None
    assert (evidence["feature_status"], evidence["features"]["temp_c"]) == ("fffffd", None)
    assert evidence["feature_age_ms"] == [-1]


def check_last_known(deployment: Deployment, worker: WorkerProcess) -> None:
    """An answer without a store that was read before: DEGRADED, with the last known temperature and its age."""
    score, evidence = ask(deployment, worker)
    assert (score["status"], score["degraded"]) == ("DEGRADED", ["weather:stale"])
    assert evidence is not None
    assert (evidence["feature_status"], evidence["features"]["temp_c"]) == ("fffffs", 21.5)
    assert evidence["feature_age_ms"] == [0]


def wait_fresh(deployment: Deployment, worker: WorkerProcess) -> None:
    """Ask until the store is used again; the breaker lets a probe through after a second."""

    def is_fresh() -> bool:
        score, evidence = ask(deployment, worker)
        assert score["status"] in {"OK", "DEGRADED"}
        return evidence is not None and bool(evidence["features"]["temp_c"] == 21.5)

    until(is_fresh, "an answer with a fresh temperature", timeout_s=30)


def test_store_down_at_start_and_in_the_middle(
    tmp_path: Path, kafka: KafkaClient, bootstrap_servers: str, valkey: Valkey
) -> None:
    """Down at start, up, killed, up again, frozen, thawed: one worker answers all along, DEGRADED or OK as it must."""
    deployment = Deployment("store", tmp_path, kafka, bootstrap_servers, valkey.url)
    kafka.fresh_topics(deployment.settings)
    with deployment.worker() as worker:
        worker.start().wait_ready()
        check_degraded(deployment, worker)
        valkey.start()
        wait_fresh(deployment, worker)
        valkey.kill()
        check_last_known(deployment, worker)
        valkey.start()
        wait_fresh(deployment, worker)
        valkey.send(signal.SIGSTOP)  # connected, and silent: the time-out must bite
        check_last_known(deployment, worker)
        valkey.send(signal.SIGCONT)
        wait_fresh(deployment, worker)
        figures = worker.figures()
        assert figures["counters"]["store_failures"] >= 3
        assert figures["conservation"]["consumed"] == sum(figures["statuses"].values()) == kafka.count(topics.SCORES)


def test_a_required_feature_that_cannot_be_had_is_an_error(
    tmp_path: Path, kafka: KafkaClient, bootstrap_servers: str, valkey: Valkey
) -> None:
    """With a required store feature: ERROR and a dead-letter copy while the store is down, OK as soon as it is up."""
    spec = model_spec(is_temp_required=True)
    deployment = Deployment("strict", tmp_path, kafka, bootstrap_servers, valkey.url, spec=spec)
    kafka.fresh_topics(deployment.settings)
    with deployment.worker() as worker:
        worker.start().wait_ready()
        score, evidence = ask(deployment, worker)
        assert (score["status"], score["score"], evidence) == ("ERROR", None, None)
        assert score["reason"].startswith("MissingFeature: store feature temp_c is required")
        (dead,) = kafka.read(topics.REQUESTS_DLQ)
        assert dead.value == deployment.request("r1", "e1")
        assert header(dead, "__connect.errors.stage") == b"features"
        assert header(dead, "__connect.errors.exception.class.name") == b"MissingFeature"
        (answer,) = kafka.read(topics.SCORES)
        assert source(dead) == source(answer)
        valkey.start()

        def is_ok() -> bool:
            return str(ask(deployment, worker)[0]["status"]) == "OK"

        until(is_ok, "an answer with the required temperature", timeout_s=30)
        valkey.kill()
        check_last_known(deployment, worker)
        conservation = worker.figures()["conservation"]
        assert conservation["undecodable"] == 0, "a copy is not counted"
        assert conservation["consumed"] == conservation["terminal"]


def test_a_micro_batch_of_the_worker_is_one_command(
    tmp_path: Path, kafka: KafkaClient, bootstrap_servers: str, valkey: Valkey
) -> None:
    """Under load the server counts as many MGETs as the worker ran micro-batches, and no other reads."""
    valkey.start()
    deployment = Deployment("trips", tmp_path, kafka, bootstrap_servers, valkey.url)
    kafka.fresh_topics(deployment.settings)
    with deployment.worker(SLUICE_BATCHING__MAX_BATCH_SIZE="64") as worker:
        worker.start().wait_ready()
        for first in range(0, 5000, 500):
            kafka.produce(deployment.numbered(500, first=first))
        deployment.wait_answered()
        figures = worker.figures()
        assert figures["statuses"]["OK"] + figures["statuses"]["DEGRADED"] == 5000
        calls = valkey.calls()
        assert calls["mget"] == figures["batches"]["executions"] >= 5000 / 64
        assert not set(calls) & {"get", "hmget", "hgetall", "exists"}


def test_nobody_else_has_the_port(valkey: Valkey) -> None:
    """The tests above start with a store that is really down."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", valkey.port)) != 0
