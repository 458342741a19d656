"""Models over the Open Inference Protocol: what a client of Triton reads, and what it may not do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faust
import pytest
from aiohttp.test_utils import TestClient, TestServer

from app.errors import TopicError
from app.metrics import Metrics
from app.models.control import Target, Wish, encode
from app.models.lifecycle import State
from app.models.spec import Architecture, Feature, FeatureView, ModelSpec, Output, ViewColumn
from app.settings import BudgetSettings
from app.views import Health, attach_views
from app.views_models import REPOSITORY_STATES, LiveModels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SPEC = ModelSpec(
    name="delays",
    version=2,
    architecture=Architecture(name="tabular_mlp"),
    features=(
        Feature(name="distance_mi"),
        Feature(name="origin", type="category", vocabulary=("EWR", "JFK")),
        Feature(name="departs_at", type="time", parts=("hour_of_day",)),
        Feature(name="is_wet", type="flag"),
        Feature(name="temp_c", source="store", view="weather"),
    ),
    views=(FeatureView(name="weather", key=("origin",), columns=(ViewColumn(name="temp_c"),)),),
    output=Output(kind="softmax", labels=("early", "late")),
)


def entry(version: int, state: State = State.READY, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a worker says of a version of ``delays``."""
    return {"name": "delays", "version": version, "state": state.value, "reason": "", "labels": [], "device": "cpu",
            "memory_bytes": 1000, "requests": 10 * version, **changes}  # fmt: skip


class Models:
    """A worker of three versions, without a broker: wishes are kept, or fail."""

    def __init__(self) -> None:
        self.versions = [
            entry(3, State.FAILED, reason="weights.safetensors: NaN", device=None, memory_bytes=0),
            entry(2, labels=["champion", "stable"], batches=4, compute_us=9),
            entry(1, State.WARMING, device=None),
        ]
        self.wishes: list[tuple[bytes, bytes]] = []
        self.broken: TopicError | None = None
        self.view = LiveModels(self.document, self.spec, self.repository, self.send)

    def repository(self, name: str) -> list[int]:
        """A fourth version has been put there."""
        return [1, 2, 3, 4] if name == "delays" else []

    def document(self) -> dict[str, Any]:
        """As the manager gives it."""
        return {"control_offset": 0, "loading": None, "versions": self.versions, "refused": []}

    def spec(self, name: str, version: int) -> ModelSpec | None:
        """Only the READY version is loaded."""
        return SPEC if (name, version) == ("delays", 2) else None

    async def send(self, wishes: list[tuple[Target, Wish]]) -> None:
        """Keep what would go to the control topic."""
        if self.broken is not None:
            raise self.broken
        self.wishes += [encode(target, Wish(wish.value)) for target, wish in wishes]


@pytest.fixture
def models() -> Models:
    """The models under test."""
    return Models()


async def serve(view: LiveModels | None, *, is_allowed: bool = False) -> TestClient[Any, Any]:
    """A client of a worker's views, served by Faust's aiohttp driver on a free port."""
    app = faust.App("models-under-test", broker="kafka://127.0.0.1:1")
    metrics = Metrics(BudgetSettings(), now_s=lambda: 5.0)
    attach_views(
        app, health=Health(), stats=dict, collector=metrics.collector(), models=view, allow_model_control=is_allowed
    )
    client = TestClient(TestServer(await app.web.wsgi()))
    await client.start_server()
    return client


@pytest.fixture
async def client(models: Models) -> AsyncIterator[TestClient[Any, Any]]:
    """Of a worker whose models nobody may control over the web."""
    client = await serve(models.view)
    yield client
    await client.close()


@pytest.fixture
async def operator(models: Models) -> AsyncIterator[TestClient[Any, Any]]:
    """Of a worker whose models may be controlled over the web."""
    client = await serve(models.view, is_allowed=True)
    yield client
    await client.close()


@pytest.mark.parametrize("place", ["", "/versions/2", "/labels/champion", "/labels/stable"])
async def test_metadata_names_inputs_and_outputs(client: TestClient[Any, Any], place: str) -> None:
    """Inputs are what a request sends, with the protocol's types; store features are not sent; versions that answer."""
    response = await client.get(f"/v2/models/delays{place}")
    assert response.status == 200
    assert await response.json() == {
        "name": "delays",
        "versions": ["2"],
        "platform": "sluice_safetensors",
        "inputs": [
            {"name": "distance_mi", "datatype": "FP64", "shape": [-1]},
            {"name": "origin", "datatype": "BYTES", "shape": [-1]},
            {"name": "departs_at", "datatype": "INT64", "shape": [-1]},
            {"name": "is_wet", "datatype": "BOOL", "shape": [-1]},
        ],
        "outputs": [
            {"name": "early", "datatype": "FP64", "shape": [-1]},
            {"name": "late", "datatype": "FP64", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize(
    "path",
    ["/v2/models/nobody", "/v2/models/nobody/ready", "/v2/models/nobody/stats", "/v2/models/delays/versions/9",
     "/v2/models/delays/versions/2x/ready", "/v2/models/delays/labels/gone/stats"],
)  # fmt: skip
async def test_what_is_not_there_is_404(client: TestClient[Any, Any], path: str) -> None:
    """The answer is JSON and says where all versions are listed."""
    response = await client.get(path)
    assert response.status == 404
    assert "/v2/repository/index" in (await response.json())["error"]


async def test_metadata_of_a_failed_version_gives_the_reason(client: TestClient[Any, Any]) -> None:
    """There is nothing to describe, and the reason says why."""
    response = await client.get("/v2/models/delays/versions/3")
    assert response.status == 404
    assert (await response.json())["error"] == "delays 3 is FAILED weights.safetensors: NaN"


@pytest.mark.parametrize(
    ("place", "status", "state"),
    [("", 200, "READY"), ("/versions/2", 200, "READY"), ("/versions/1", 503, "WARMING"), ("/versions/3", 503, "FAILED"),
     ("/labels/champion", 200, "READY")],
)  # fmt: skip
async def test_readiness_is_that_of_the_version(
    client: TestClient[Any, Any], place: str, status: int, state: str
) -> None:
    """Only READY is ready; otherwise the state and its reason are there."""
    response = await client.get(f"/v2/models/delays{place}/ready")
    document = await response.json()
    assert (response.status, document["ready"], document["state"]) == (status, status == 200, state)
    assert bool(document["reason"]) == (state == "FAILED")


async def test_without_a_champion_the_newest_version_is_meant(client: TestClient[Any, Any], models: Models) -> None:
    """A model that serves nothing is not ready, with the newest version's reason."""
    models.versions[1]["labels"] = []
    response = await client.get("/v2/models/delays/ready")
    assert (response.status, (await response.json())["version"]) == (503, 3)


async def test_statistics_have_tritons_shape(client: TestClient[Any, Any], models: Models) -> None:
    """Counts, nanoseconds and memory of all versions, or of one; what is not counted is left out, not zero."""
    models.versions[1]["device"] = "cuda:0,cuda:1"
    everything = (await (await client.get("/v2/models/delays/stats")).json())["model_stats"]
    assert [each["version"] for each in everything] == ["1", "2", "3"]
    assert everything[0] == {"name": "delays", "version": "1", "inference_count": 10, "memory_usage": []}
    one = (await (await client.get("/v2/models/delays/versions/2/stats")).json())["model_stats"]
    assert one == [{
        "name": "delays", "version": "2", "inference_count": 20, "execution_count": 4,
        "inference_stats": {"compute_infer": {"count": 4, "ns": 9000}},
        "memory_usage": [{"type": "GPU", "id": 0, "byte_size": 500}, {"type": "GPU", "id": 1, "byte_size": 500}],
    }]  # fmt: skip


async def test_the_index_lists_every_version_with_its_reason(client: TestClient[Any, Any]) -> None:
    """GET and POST give the same; with ``ready`` only those that answer; states are Triton's, reasons ours."""
    index = await (await client.get("/v2/repository/index")).json()
    assert index == await (await client.post("/v2/repository/index")).json()
    assert [(e["version"], e["state"], e["reason"]) for e in index] == [
        ("3", "UNAVAILABLE", "weights.safetensors: NaN"),
        ("2", "READY", ""),
        ("1", "LOADING", "WARMING"),
    ]
    ready = await (await client.post("/v2/repository/index", json={"ready": True})).json()
    assert [e["version"] for e in ready] == ["2"]
    assert (await client.post("/v2/repository/index", data=b"{")).status == 400


def test_every_state_has_a_word_of_tritons() -> None:
    """A new state cannot be forgotten."""
    assert set(REPOSITORY_STATES) == set(State)


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_control_is_off_by_default(client: TestClient[Any, Any], models: Models, verb: str) -> None:
    """403 names the command and the setting, and nothing is written."""
    response = await client.post(f"/v2/repository/models/delays/{verb}", json={})
    error = (await response.json())["error"]
    assert response.status == 403
    assert f"sluice model {verb} delays" in error
    assert "SLUICE_WEB__ALLOW_MODEL_CONTROL" in error
    assert (await client.get(f"/v2/repository/models/delays/{verb}")).status == 405
    assert models.wishes == []


@pytest.mark.parametrize(
    ("verb", "body", "written"),
    [
        ("load", None, [(b"delays/version/4", b'{"wanted": "loaded"}')]),
        ("load", {"parameters": {"version": 1}}, [(b"delays/version/1", b'{"wanted": "loaded"}')]),
        ("load", {"parameters": {"version": "1"}}, [(b"delays/version/1", b'{"wanted": "loaded"}')]),
        ("unload", {"parameters": {"version": 2}}, [(b"delays/version/2", b'{"wanted": "unloaded"}')]),
        ("unload", {"parameters": {"unload_dependents": False}},
         [(b"delays/version/%d" % v, b'{"wanted": "unloaded"}') for v in (1, 2, 3)]),
    ],
)  # fmt: skip
async def test_allowed_control_writes_the_wish(
    operator: TestClient[Any, Any], models: Models, verb: str, body: dict[str, Any] | None, written: list[Any]
) -> None:
    """Without a version Triton's meaning holds: load the newest, unload all; 202, for the workers act later."""
    response = await operator.post(f"/v2/repository/models/delays/{verb}", json=body) if body is not None else (
        await operator.post(f"/v2/repository/models/delays/{verb}"))  # fmt: skip
    assert response.status == 202
    assert models.wishes == written
    assert f"{verb} delays" in (await response.json())["accepted"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("delays/load", b'{"parameters": {"version": 9}}', 404),
        ("nobody/load", b"{}", 404),
        ("nobody/unload", b"{}", 404),
        ("delays/unload", b'{"parameters": {"version": 4}}', 404),
        ("delays/load", b'{"parameters": {"version": -1}}', 400),
        ("delays/load", b'{"parameters": {"version": "99999999999"}}', 400),
        ("delays/load", b'{"parameters": {"config": "{}"}}', 400),
        ("delays/load", b'{"parameters": 3}', 400),
        ("delays/load", b"[]", 400),
        ("delays/load", b"\xff", 400),
    ],
)
async def test_control_that_makes_no_sense_is_refused(
    operator: TestClient[Any, Any], models: Models, path: str, body: bytes, status: int
) -> None:
    """Unknown versions are 404, what cannot be read 400; each says why, and nothing is written."""
    response = await operator.post(f"/v2/repository/models/{path}", data=body)
    assert response.status == status
    assert (await response.json())["error"]
    assert models.wishes == []


async def test_a_web_page_may_not_control_models(operator: TestClient[Any, Any], models: Models) -> None:
    """A form on somebody's page that posts to a worker is refused, for browsers name the page's origin."""
    for origin in ("https://evil.example", "null", str(operator.make_url("/")).rstrip("/")):
        response = await operator.post("/v2/repository/models/delays/load", data=b"{}", headers={"Origin": origin})
        assert response.status == 403, origin
    assert models.wishes == []


async def test_brokers_that_fail_are_said_so(operator: TestClient[Any, Any], models: Models) -> None:
    """503 with the reason: the wish was not written."""
    models.broken = TopicError("model-control does not take the record")
    response = await operator.post("/v2/repository/models/delays/load", json={})
    assert (response.status, (await response.json())["error"]) == (503, "model-control does not take the record")


async def test_other_workers_have_no_models() -> None:
    """A monitor answers 404 on all paths of models."""
    client = await serve(None)
    try:
        for path in ("/v2/models/delays", "/v2/models/delays/ready", "/v2/repository/index"):
            assert (await client.get(path)).status == 404, path
    finally:
        await client.close()
