"""Real workers obey the control topic: loads, labels and refusals reach the command, the answers and the web."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from app import model_control_commands
from tests.integration.delays_service import MODEL, Deployment, model_spec, pack_model
from tests.integration.kafka_client import KafkaClient, Message
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typer.testing import Result

    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration
CLI = typer.Typer()
model_control_commands.register(CLI)


class Operator:
    """Somebody at a terminal, and two workers that serve version 2 of two."""

    def __init__(self, deployment: Deployment, workers: list[WorkerProcess]) -> None:
        self.deployment, self.workers = deployment, workers
        self._sent = 0

    def sluice(self, *arguments: str) -> Result:
        """Run ``sluice model``."""
        return CliRunner(env=self.deployment.variables).invoke(CLI, arguments)

    def states(self, worker: WorkerProcess) -> dict[tuple[int, str], list[str]]:
        """Version and state to labels, as a worker's own figures say."""
        versions = worker.figures()["models"]["versions"]
        return {(entry["version"], entry["state"]): entry["labels"] for entry in versions}

    def answering_versions(self) -> set[int]:
        """Versions that answer forty new requests."""
        kafka, before = self.deployment.kafka, self.deployment.kafka.ends("scores")
        kafka.produce(self.deployment.numbered(40, first=self._sent))
        self._sent += 40
        until(lambda: sum(kafka.ends("scores").values()) >= sum(before.values()) + 40, "forty answers")
        return {self.deployment.decode(r.value)["model_version"] for r in kafka.read("scores", before)}

    def answer(self, **headers: str) -> dict[str, Any]:
        """The answer to one request with pins."""
        kafka, before = self.deployment.kafka, self.deployment.kafka.ends("scores")
        pins = tuple((f"x-model-{name}", value.encode()) for name, value in headers.items())
        kafka.produce([Message(b"e1", self.deployment.request("pinned", "e1"), pins)])
        until(lambda: sum(kafka.ends("scores").values()) > sum(before.values()), "an answer")
        return self.deployment.decode(kafka.read("scores", before)[-1].value)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str) -> Iterator[Operator]:
    """Two workers on fresh topics, and a repository of two versions."""
    with KafkaClient(bootstrap_servers) as kafka:
        folder = tmp_path_factory.mktemp("control")
        deployment = Deployment(
            "control", folder, kafka, bootstrap_servers, redis_url,
            environment={"SLUICE_WEB__ALLOW_MODEL_CONTROL": "true"},
        )  # fmt: skip
        pack_model(folder / "models", model_spec().model_copy(update={"version": 2}))
        kafka.fresh_topics(deployment.settings)
        with deployment.worker("one") as one, deployment.worker("two") as two:
            yield Operator(deployment, [worker.start().wait_ready() for worker in (one, two)])


def test_a_label_moves_on_all_workers_and_back(operator: Operator) -> None:
    """The newest version answers; after a load and a move of the label the older one does; after a reset the newest."""
    assert operator.answering_versions() == {2}
    for arguments in (("load", MODEL, "1"), ("label", MODEL, "champion", "1")):
        done = operator.sluice(*arguments)
        assert done.exit_code == 0, done.output
        assert done.stdout.count("READY") == 2, done.output
    assert operator.answering_versions() == {1}
    assert operator.answer(version="2")["model_version"] == 2
    for worker in operator.workers:
        assert operator.states(worker) == {(1, "READY"): ["champion"], (2, "READY"): []}
    assert operator.sluice("reset", MODEL, "--label", "champion").exit_code == 0
    assert operator.answering_versions() == {2}


def test_a_version_that_bears_a_label_is_not_unloaded(operator: Operator) -> None:
    """The refusal names the label and what to do; once it is reset the version goes, and its pin is INVALID."""
    assert operator.sluice("label", MODEL, "stable", "1").exit_code == 0
    done = operator.sluice("unload", MODEL, "1")
    assert done.exit_code == model_control_commands.EXIT_FAILED, done.output
    assert "label stable points to it" in done.stdout
    assert operator.answer(label="stable")["model_version"] == 1
    assert operator.sluice("reset", MODEL, "--label", "stable").exit_code == 0
    assert operator.sluice("unload", MODEL, "1").exit_code == 0
    assert operator.answer(version="1")["status"] == "INVALID"


def test_what_is_not_in_the_repository_is_refused(operator: Operator) -> None:
    """The command ends with the worker's reason, and the version that serves goes on."""
    done = operator.sluice("load", MODEL, "9")
    assert done.exit_code == model_control_commands.EXIT_FAILED, done.output
    assert "no such version" in done.stdout
    assert operator.sluice("reset", MODEL, "--version", "9").exit_code == 0
    assert operator.answering_versions() == {2}


def test_the_web_shows_and_controls_the_same(operator: Operator) -> None:
    """Metadata, readiness, statistics and index are those of the live version; a POST to one worker reaches both."""
    one, two = operator.workers
    metadata = one.get(f"/v2/models/{MODEL}").json()
    assert "2" in metadata["versions"]
    assert metadata["inputs"][0] == {"name": "distance_mi", "datatype": "FP64", "shape": [-1]}
    assert one.get(f"/v2/models/{MODEL}/labels/champion/ready").json()["version"] == 2
    counts = [w.get(f"/v2/models/{MODEL}/versions/2/stats").json()["model_stats"][0] for w in operator.workers]
    assert sum(each["inference_count"] for each in counts) > 0
    accepted = httpx.post(f"{one.url}/v2/repository/models/{MODEL}/load", json={"parameters": {"version": 1}})
    assert accepted.status_code == 202, accepted.text
    until(lambda: (1, "READY") in operator.states(two), "version 1 on the other worker")
    index = two.get("/v2/repository/index").json()
    assert {(each["version"], each["state"]) for each in index} == {("1", "READY"), ("2", "READY")}
