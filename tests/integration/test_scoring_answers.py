"""What a worker offers: scores that an offline run repeats to the bit, web views, answers to a stranger with kcat."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest

from agents import topics
from app.models.runtime import ScoringModel
from app.postprocess import sigmoid
from app.recorded_requests import ROWS, recorded_requests
from schemas.columns import to_python
from tests.integration.delays_service import EVENT_US, MODEL, Deployment, Service, put_weather, running_service
from tests.integration.kafka_client import Message
from tests.integration.worker_process import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

COMMAND_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str) -> Iterator[Service]:
    """One worker for the whole module, on fresh topics."""
    with running_service("answers", tmp_path_factory.mktemp("answers"), bootstrap_servers, redis_url) as service:
        yield service


def odd_requests(deployment: Deployment, count: int) -> list[Message]:
    """Requests with all kinds of values: nulls, unknown categories, keys the store lacks, stale rows."""
    rng = np.random.default_rng(5)
    places = ["JFK", "EWR", "LGA", "XXX", None]
    return [
        Message(
            b"e%d" % (i % 37),
            deployment.request(
                f"r{i:06d}", f"e{i % 37}", event_us=EVENT_US + i * 1_000_000, distance_mi=float(rng.normal(1000, 900)),
                origin=places[i % 5], tailnum=None if i % 11 == 0 else f"N{i % 7}",
                departs_at=None if i % 13 == 0 else EVENT_US + i * 60_000_000, is_wet=[True, False, None][i % 3],
            ),
        )
        for i in range(count)
    ]  # fmt: skip


def test_an_offline_run_repeats_every_score_to_the_bit(service: Service, redis_url: str) -> None:
    """Logged features through the bundle, offline, in batches of the logged bucket, give the very same scores."""
    put_weather(redis_url, {"JFK": (EVENT_US, -3.25), "EWR": (EVENT_US - 3_000_000_000, 31.0)})
    rows = stream_and_read(service, 3000)
    frame = pd.DataFrame([row["features"] for row in rows])
    buckets = np.array([row["batch_bucket"] for row in rows])
    assert len(set(buckets.tolist())) >= 2, "several buckets, else the test shows little"
    model = ScoringModel(service.deployment.bundle, "cpu")
    for bucket in sorted(set(buckets.tolist())):
        places = np.flatnonzero(buckets == bucket)
        full = np.resize(
            places, -(-len(places) // bucket) * bucket
        )  # the last batch is filled with rows from the front
        logits = np.concatenate([predict(model, frame.iloc[full[i : i + bucket]]) for i in range(0, len(full), bucket)])
        raw = sigmoid(logits[: len(places)])
        score = service.deployment.bundle.calibration.apply(raw)
        assert raw.tolist() == [rows[i]["raw_score"] for i in places], f"bucket {bucket}"
        assert score.tolist() == [rows[i]["score"] for i in places], f"bucket {bucket}"


def test_the_newest_requests_of_a_model_warm_up_the_next_version(service: Service, redis_url: str) -> None:
    """What a new version is warmed up with is what the prediction log holds, as the features were used."""
    put_weather(redis_url, {"JFK": (EVENT_US, -3.25), "EWR": (EVENT_US - 3_000_000_000, 31.0)})
    rows = stream_and_read(service, 1500)
    deployment = service.deployment
    spec = deployment.spec
    columns = asyncio.run(recorded_requests(deployment.settings.kafka, deployment.book, spec))
    assert columns is not None
    assert set(columns) == {f.name for f in spec.features}
    found = [dict(zip(columns, values, strict=True)) for values in zip(*map(to_python, columns.values()), strict=True)]
    assert len(found) >= ROWS // 2
    known = [row["features"] for row in rows]
    assert all(row in known for row in found), "nothing but what was asked lately"
    inputs = ScoringModel(deployment.bundle).preprocessor.transform(columns)
    assert len(inputs["numbers"]) == len(found)
    other = spec.model_copy(update={"name": "somebody_else"})
    assert asyncio.run(recorded_requests(deployment.settings.kafka, deployment.book, other)) is None


def predict(model: ScoringModel, frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits of raw features, in one batch that fills its bucket."""
    logits, bucket = model.predict(model.preprocessor.transform(model.preprocessor.from_frame(frame)))
    assert bucket == len(frame)
    return logits


def stream_and_read(service: Service, count: int) -> list[dict[str, Any]]:
    """Send odd requests, in bursts of several sizes; returns their evidence, which has every letter."""
    deployment, kafka = service.deployment, service.deployment.kafka
    before = kafka.ends(topics.PREDICTIONS)
    messages = odd_requests(deployment, count)
    start = 0
    for size in (1, 2, 5, 20, 100, count):
        kafka.produce(messages[start : start + size])
        deployment.wait_answered()
        start += size
    rows = [deployment.decode(r.value) for r in kafka.read(topics.PREDICTIONS, before)]
    assert len(rows) == count
    assert {letter for row in rows for letter in row["feature_status"]} >= set("fms")
    return rows


def test_web_views_answer_on_loopback_alone(service: Service) -> None:
    """Health, figures, metrics and page answer; the worker listens nowhere else than on 127.0.0.1."""
    worker, deployment = service.worker, service.deployment
    for path in ("/v2/health/live", "/v2/health/ready"):
        answer = worker.get(path)
        assert (answer.status_code, answer.json()["failing"]) == (200, [])
    page = worker.get("/")
    assert page.status_code == 200
    assert "<html" in page.text
    document = worker.get("/stats").json()
    assert document["worker"] == f"answers-scoring-{worker.pid}"
    assert document["workers"][document["worker"]]["web_url"] == worker.url
    consumed = document["workers"][document["worker"]]["stats"]["conservation"]["consumed"]
    assert consumed == deployment.kafka.count(topics.REQUESTS)
    assert f"sluice_consumed_total {float(consumed)}" in worker.get("/metrics").text
    listening = [c.laddr for c in psutil.Process(worker.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_other_methods_and_unknown_paths_are_refused(service: Service) -> None:
    """Nothing can be changed over HTTP, and what is not there is a 404."""
    assert httpx.post(service.worker.url + "/stats", timeout=10).status_code == 405
    assert service.worker.get("/reports/..%2f..%2fetc%2fpasswd").status_code == 404


kcat = pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed (apt-get install kcat)")


@kcat
def test_kcat_asks_and_reads(service: Service) -> None:
    """A stranger with kcat and `sluice schema`: encodes JSON, produces it, reads the answer as JSON."""
    deployment, servers = service.deployment, service.deployment.bootstrap_servers
    before = deployment.kafka.ends(topics.SCORES)
    request = {"request_id": "kcat-1", "entity_id": "N-kcat", "event_time": EVENT_US, "features": {"distance_mi": 760}}
    out = deployment.folder / "encoded"
    line = json.dumps(request)
    told = run_sluice(deployment, "schema", "encode", MODEL, "--out", str(out), "-", stdin=line.encode()).decode()
    command = told.strip().replace("$KAFKA_BOOTSTRAP_SERVERS", servers).split()
    subprocess.run([*command, "-H", "x-request-id=q-77"], check=True, timeout=COMMAND_TIMEOUT_S)
    deployment.wait_answered()
    (partition, offset), *others = [(p, o) for p, o in before.items() if deployment.kafka.ends(topics.SCORES)[p] > o]
    assert not others
    consume = ["kcat", "-C", "-q", "-b", servers, "-t", topics.SCORES, "-p", str(partition), "-o", str(offset), "-e"]
    framed = subprocess.run(
        [*consume, "-f", "%S\\n%s"], check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S
    ).stdout
    (answer,) = [json.loads(text) for text in run_sluice(deployment, "schema", "decode", stdin=framed).splitlines()]
    assert (answer["request_id"], answer["entity_id"], answer["status"]) == ("kcat-1", "N-kcat", "OK")
    assert 0 < answer["score"] < 1
    headers = subprocess.run([*consume, "-f", "%h"], check=True, capture_output=True, timeout=COMMAND_TIMEOUT_S).stdout
    assert b"x-request-id=q-77,x-src=score-requests:" in headers


@kcat
def test_kcat_partitions_as_we_do(service: Service) -> None:
    """The command that `sluice schema encode` prints sends a key to the partition that our own producers choose."""
    deployment = service.deployment
    request = {"request_id": "kcat-2", "entity_id": "e7", "event_time": EVENT_US, "features": {"distance_mi": 1}}
    ((ours, _),) = deployment.kafka.produce([Message(b"e7", deployment.request("ours", "e7"))])
    told = run_sluice(
        deployment, "schema", "encode", MODEL, "--out", str(deployment.folder / "again"), "-",
        stdin=json.dumps(request).encode(),
    ).decode()  # fmt: skip
    before = deployment.kafka.ends(topics.REQUESTS)
    command = told.strip().replace("$KAFKA_BOOTSTRAP_SERVERS", deployment.bootstrap_servers).split()
    subprocess.run(command, check=True, timeout=COMMAND_TIMEOUT_S)
    after = deployment.kafka.ends(topics.REQUESTS)
    assert [p for p in after if after[p] > before[p]] == [ours]
    deployment.wait_answered()


def run_sluice(deployment: Deployment, *arguments: str, stdin: bytes) -> bytes:
    """Standard output of the command line, with the deployment's settings."""
    environment = {**os.environ, **deployment.variables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        input=stdin, env=environment, cwd=deployment.folder,
        capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
