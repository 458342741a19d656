"""What a worker refuses to start with: it says why, names the file or the topic, and ends with code 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agents import topics
from tests.integration.delays_service import PARTITIONS, Deployment
from tests.integration.kafka_client import KafkaClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture
def deployment(tmp_path: Path, bootstrap_servers: str, redis_url: str) -> Iterator[Deployment]:
    """A deployment without a running worker."""
    with KafkaClient(bootstrap_servers) as kafka:
        yield Deployment("refused", tmp_path, kafka, bootstrap_servers, redis_url)


def refusal(deployment: Deployment) -> str:
    """What a worker says that must end by itself with code 1."""
    with deployment.worker() as worker:
        assert worker.start().wait() == 1, worker.log()
        return worker.log()


def cut_weights(bundle: Path) -> None:
    """Half of the weights are gone."""
    path = bundle / "weights.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def misspell(bundle: Path) -> None:
    """A key that nobody knows."""
    path = bundle / "model.yaml"
    path.write_text(path.read_text().replace("buckets:", "bukkets:"))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut": (cut_weights, "1/weights.safetensors: its sha256 is not the one in model.yaml"),
    "misspelt key": (misspell, "1/model.yaml: bukkets: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_bundle_is_refused(deployment: Deployment, case: str) -> None:
    """Exit code 1 and one message that names the file and what is wrong with it; no traceback."""
    break_it, message = BROKEN[case]
    break_it(deployment.bundle.folder)
    said = refusal(deployment)
    assert message in said
    assert "Traceback" not in said


def test_unequal_partitions_are_refused(deployment: Deployment) -> None:
    """An answer goes to its request's partition: topics that do not fit together are named, with the remedy."""
    kafka = deployment.kafka
    kafka.delete_topics(deployment.settings)
    kafka.create_topic(topics.SCORES, 2)
    try:
        said = refusal(deployment)
        assert f"{topics.REQUESTS} has {PARTITIONS} partitions but {topics.SCORES} has 2" in said
        assert "recreate the odd ones" in said
        assert "Traceback" not in said
    finally:
        kafka.delete_topics(deployment.settings)
