"""Several versions and models under load on two workers: labels, pins, a kill in the middle of a load, a restart."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

from agents import topics
from app import model_control_commands
from app.calibration import Calibration
from app.models.architectures import build, load_architecture_modules
from app.models.bundle import Bundle, open_bundle
from app.models.packing import pack_bundle
from app.models.runtime import ScoringModel
from app.models.spec import Architecture, Feature, ModelSpec, Standardise
from app.postprocess import Postprocessor
from schemas.generate import prediction_schema, request_schema
from schemas.wire import frame_header
from tests.integration.delays_service import EVENT_US, MODEL, Deployment, encode, model_spec
from tests.integration.kafka_client import KafkaClient, Message
from tests.integration.request_load import RequestLoad
from tests.integration.worker_process import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration
CLI = typer.Typer()
model_control_commands.register(CLI)
OTHER = "tips"
ASKS = ("any", "version", "label", "both", "other", "other_pinned")
"""What the requests of the load name, in turn."""
HELD = '''
"""A network that takes as long to load as the file `hold` lies in the working folder."""
import time
from pathlib import Path

from app.models.architectures import register_architecture
from app.models.networks.tabular_mlp import build_tabular_mlp


def held(spec, layout):
    while Path("hold").exists():
        time.sleep(0.02)
    return build_tabular_mlp(spec, layout)


register_architecture("held", held)
'''


def other_spec() -> ModelSpec:
    """A model with other features, and none of them from the store."""
    return ModelSpec(
        name=OTHER,
        version=4,
        architecture=Architecture(name="tabular_mlp", arguments={"hidden": [8]}),
        features=(Feature(name="total", required=True, standardise=Standardise(mean=30, scale=20)),
                  Feature(name="size", required=True)),
        buckets=(1, 2, 4, 8, 16, 32, 64),
    )  # fmt: skip


def pack(repository: Path, spec: ModelSpec, seed: int) -> Bundle:
    """A bundle whose weights and calibration depend on a seed."""
    torch.manual_seed(seed)
    return open_bundle(pack_bundle(repository, spec, build(spec), Calibration("platt", a=0.5 + seed / 10)))


@dataclass
class Fleet:
    """Two workers, and somebody at a terminal."""

    deployment: Deployment
    workers: tuple[WorkerProcess, WorkerProcess]
    bundles: dict[tuple[str, int], Bundle]

    def sluice(self, *arguments: str) -> Result:
        """Run ``sluice model``, which has to succeed."""
        done = CliRunner(env=self.deployment.variables).invoke(CLI, arguments)
        assert done.exit_code == 0, done.output
        return done

    def states(self, worker: WorkerProcess, name: str = MODEL) -> dict[int, tuple[str, list[str]]]:
        """State and labels of each version of a model."""
        rows = worker.figures()["models"]["versions"]
        return {row["version"]: (row["state"], row["labels"]) for row in rows if row["name"] == name}

    def message(self, number: int) -> Message:
        """The request of a number; its id tells what it names."""
        ask = ASKS[number % len(ASKS)]
        request_id, entity_id, distance = f"{ask}-{number}", f"e{number % 97}", 100.0 + number % 2000
        if ask.startswith("other"):
            features = {"total": float(number % 60), "size": float(number % 7)}
            record = {"request_id": request_id, "entity_id": entity_id, "unit_id": None, "event_time": EVENT_US,
                      "model": OTHER, "features": features}  # fmt: skip
            value = self._other_header + encode(self._other_schema, record)
            return Message(entity_id.encode(), value, (("x-model-version", b"4"),) if ask == "other_pinned" else ())
        headers = {"version": (("x-model-version", b"1"),), "label": (("x-model-label", b"stable"),),
                   "both": (("x-model-version", b"2"), ("x-model-label", b"next"))}  # fmt: skip
        model = MODEL if ask == "both" else None
        value = self.deployment.request(request_id, entity_id, model=model, distance_mi=distance)
        return Message(entity_id.encode(), value, headers.get(ask, ()))

    def __post_init__(self) -> None:
        """The other model's schemas."""
        fields, book = other_spec().fields(), self.deployment.book
        self._other_schema = request_schema(OTHER, fields)
        self._other_header = frame_header(book.add(topics.REQUESTS, self._other_schema))
        book.add(topics.PREDICTIONS, prediction_schema(OTHER, fields))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str) -> Iterator[Fleet]:
    """Versions 1 and 2 of one model, version 4 of another, on two workers."""
    folder = tmp_path_factory.mktemp("lifecycle")
    (folder / "held_network.py").write_text(HELD)
    with KafkaClient(bootstrap_servers) as kafka:
        deployment = Deployment(
            "lifecycle", folder, kafka, bootstrap_servers, redis_url,
            environment={
                "SLUICE_MODELS__SERVE": f"{MODEL}@1+2,{OTHER}", "SLUICE_MODELS__POLL_S": "0.2",
                "SLUICE_MODELS__ARCHITECTURES": "held_network",
            },
        )  # fmt: skip
        second = pack(folder / "models", model_spec().model_copy(update={"version": 2}), seed=2)
        other = pack(folder / "models", other_spec(), seed=3)
        bundles = {(MODEL, 1): deployment.bundle, (MODEL, 2): second, (OTHER, 4): other}
        kafka.fresh_topics(deployment.settings)
        with deployment.worker("one") as one, deployment.worker("two") as two:
            fleet = Fleet(deployment, (one, two), bundles)
            for worker in fleet.workers:
                worker.start()
            for worker in fleet.workers:
                worker.wait_ready()
            until(lambda: all(len(w.figures()["group"]["partitions"]) == 2 for w in fleet.workers), "a balanced group")
            fleet.sluice("label", MODEL, "champion", "1")
            fleet.sluice("label", MODEL, "stable", "1")
            fleet.sluice("label", MODEL, "next", "2")
            yield fleet


def test_a_label_moves_under_load(fleet: Fleet) -> None:
    """Nothing that comes after the command is the old version's; pins and another model beside it are kept."""
    returned_us = []
    with RequestLoad(fleet.deployment, fleet.message) as load:
        for version in ("2", "1", "2"):
            load.wait_for(100)
            done = fleet.sluice("label", MODEL, "champion", version)
            returned_us.append(time.time_ns() // 1000)
            assert done.stdout.count("READY") == 2, done.stdout
        load.wait_for(100)
    load.check_complete()
    expected = {"version": (MODEL, 1), "label": (MODEL, 1), "both": (MODEL, 2), "other": (OTHER, 4),
                "other_pinned": (OTHER, 4)}  # fmt: skip
    for rows in load.answers().values():
        for row in rows:
            ask = row["request_id"].partition("-")[0]
            assert row["status"] in {"OK", "DEGRADED"}, row
            assert ask == "any" or (row["model_name"], row["model_version"]) == expected[ask], row
        check_switches([row for row in rows if row["request_id"].startswith("any-")], returned_us)


def check_switches(rows: list[dict[str, Any]], returned_us: list[int]) -> None:
    """One partition's unpinned answers go from 1 to 2 to 1 to 2, each time at one place, before the command returns.

    A partition is one worker's: once it has applied a record, none of its answers is the old version's.
    """
    turns = [(a, b) for a, b in pairwise(rows) if a["model_version"] != b["model_version"]]
    assert [rows[0]["model_version"], *(after["model_version"] for _, after in turns)] == [1, 2, 1, 2]
    for (last, _), returned in zip(turns, returned_us, strict=True):
        assert last["served_at"] <= returned, "an answer of the old version after the command has returned"


def test_scores_are_those_of_the_version_that_is_named(fleet: Fleet) -> None:
    """Evidence of every version and model, through its own bundle offline, gives the same bits; digests name it."""
    with RequestLoad(fleet.deployment, fleet.message) as load:
        load.wait_for(600)
    load.check_complete()
    answers = {row["request_id"]: row["score"] for row in load.rows()}
    evidence: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in load.rows(topics.PREDICTIONS):
        evidence[row["model_name"], row["model_version"], row["batch_bucket"]].append(row)
    assert {key[:2] for key in evidence} == fleet.bundles.keys()
    models = {key: ScoringModel(bundle) for key, bundle in fleet.bundles.items()}
    for (name, version, bucket), rows in evidence.items():
        bundle = fleet.bundles[name, version]
        assert {row["artifact_sha256"] for row in rows} == {bundle.sha256}
        assert offline(models[name, version], rows, bucket) == [row["score"] for row in rows]
        assert [answers[row["request_id"]] for row in rows] == [row["score"] for row in rows]


def offline(model: ScoringModel, rows: list[dict[str, Any]], bucket: int) -> list[float]:
    """Scores of logged features, in batches of the logged bucket; the last is filled with rows from the front."""
    frame = pd.DataFrame([row["features"] for row in rows])
    places = np.resize(np.arange(len(rows)), -(-len(rows) // bucket) * bucket)
    scores: list[float] = []
    for start in range(0, len(places), bucket):
        inputs = model.preprocessor.transform(model.preprocessor.from_frame(frame.iloc[places[start : start + bucket]]))
        logits, _ = model.predict(inputs)
        scores += Postprocessor(model.spec.output, model.bundle.calibration).apply(logits).score.tolist()
    return scores[: len(rows)]


def test_a_worker_killed_in_the_middle_of_a_load(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other answers on; back again, it loads what the control topic says, labels and all, before it joins."""
    deployment, (killed, other) = fleet.deployment, fleet.workers
    pack_held(fleet, 3, monkeypatch)
    hold = deployment.folder / "hold"
    with RequestLoad(deployment, partial(unpinned, fleet)) as load:
        load.wait_for(50)
        hold.touch()
        fleet.sluice("load", MODEL, "3", "--no-wait")
        for worker in fleet.workers:
            until(lambda worker=worker: fleet.states(worker).get(3) == ("LOADING", []), "the load under way")
        killed.kill()
        load.wait_for(50)
        hold.unlink()
        killed.start().wait_ready()
        load.wait_for(50)
    deployment.wait_answered()
    loaded = {1: ("READY", ["stable"]), 2: ("READY", ["champion", "next"]), 3: ("READY", [])}
    for worker in (killed, other):
        until(lambda worker=worker: fleet.states(worker) == loaded, "the third version on both")
    rows = load.rows()
    assert {row["source"] for row in rows} >= set(load.sent), "no request is left without an answer"
    assert {row["model_version"] for row in rows} == {2}, "nobody answered with what was being loaded"


def unpinned(fleet: Fleet, number: int) -> Message:
    """A request that names nothing."""
    return fleet.message(number * len(ASKS))


def pack_held(fleet: Fleet, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version whose load takes as long as the test wants."""
    monkeypatch.syspath_prepend(fleet.deployment.folder)
    load_architecture_modules(["held_network"])
    architecture = Architecture(name="held", arguments={"hidden": [16, 8], "embedding_dim": 4})
    spec = model_spec().model_copy(update={"version": version, "architecture": architecture})
    aside = pack(fleet.deployment.folder / "aside", spec, seed=version).folder
    aside.rename(fleet.deployment.folder / "models" / MODEL / str(version))
