"""A wrong schema deploy must not drain the topic into the dead letters: the worker stops reading, and says so."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from agents import topics
from tests.integration.delays_service import Deployment
from tests.integration.kafka_client import KafkaClient, Message, source
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

POISON = 450


def test_most_records_poison_stops_consuming_until_a_probe_is_good(
    tmp_path: Path, bootstrap_servers: str, redis_url: str
) -> None:
    """Some dead letters, then none until a probe; unready with reason and remedy; at the end each record once."""
    environment = {
        "SLUICE_KAFKA__MAX_POLL_RECORDS": "64",
        "SLUICE_BATCHING__MAX_BATCH_SIZE": "64",
        "SLUICE_DELIVERY__POISON_SHARE": "0.5",
        "SLUICE_DELIVERY__POISON_OPEN_S": "5",
        "SLUICE_DELIVERY__POISON_PROBE_RECORDS": "100",
        "SLUICE_DELIVERY__STALL_AFTER_S": "2",
    }
    with KafkaClient(bootstrap_servers) as kafka:
        deployment = Deployment("circuit", tmp_path, kafka, bootstrap_servers, redis_url, environment=environment)
        kafka.fresh_topics(deployment.settings)
        for _ in range(POISON // 50):
            kafka.produce([Message(b"k", b"not a request", partition=0)] * 50)
        with deployment.worker() as worker:
            worker.start()
            until(lambda: worker.is_running and "poison circuit open" in _readiness(worker), "the circuit opens")
            assert "SLUICE_DELIVERY__POISON_SHARE" in _readiness(worker)
            held = kafka.count(topics.REQUESTS_DLQ)
            assert held <= POISON - 150
            kafka.produce(deployment.numbered(300))
            until(lambda: kafka.count(topics.SCORES) == 300, "requests behind the poison are answered", timeout_s=120)
            until(lambda: "poison circuit open" not in _readiness(worker), "the circuit closes")
            assert worker.start_count == 1, "waiting is no stall: the watchdog must not end the worker"
        letters = Counter(source(record) for record in kafka.read(topics.REQUESTS_DLQ))
        assert len(letters) == POISON
        assert set(letters.values()) == {1}


def _readiness(worker: object) -> str:
    try:
        return str(worker.get("/v2/health/ready").text)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - it is starting
        return ""
