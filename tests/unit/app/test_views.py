"""The web views on Faust's own web server: figures, health, reports, and nothing that they should not show."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import faust
import numpy as np
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from app.metrics import Metrics
from app.settings import BudgetSettings
from app.views import LIVE_PATHS, READY_PATHS, Health, attach_views
from schemas.records import FireReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Worker:
    """What the views show: a health, figures and a folder of reports."""

    def __init__(self, folder: Path) -> None:
        self.health = Health()
        self.metrics = Metrics(BudgetSettings(), now_s=lambda: 5.0)
        self.reports = folder / "reports"
        self.reports.mkdir()
        (self.reports / "flight_delays-1-2013-03.html").write_text("<p>drift</p>")
        (folder / "secret.html").write_text("the salaries")
        (self.reports / "link.html").symlink_to(folder / "secret.html")
        (self.reports / "notes.txt").write_text("not a report")

    def stats(self) -> dict[str, Any]:
        """As a worker without neighbours answers."""
        return {"worker": "scoring-1", "workers": {"scoring-1": {"stats": self.metrics.snapshot()}}}


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """The worker under test."""
    return Worker(tmp_path)


@pytest.fixture
async def client(worker: Worker) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of the worker's views, served by Faust's aiohttp driver on a free port."""
    app = faust.App("views-under-test", broker="kafka://127.0.0.1:1")
    attach_views(
        app,
        health=worker.health,
        stats=worker.stats,
        collector=worker.metrics.collector(),
        reports=worker.reports,
        version="9.9",
    )
    client = TestClient(TestServer(await app.web.wsgi()))
    await client.start_server()
    yield client
    await client.close()


async def test_the_page_replaces_fausts_constant_index(client: TestClient[Any, Any]) -> None:
    """``/`` is our page, and everything it loads comes from this worker."""
    response = await client.get("/")
    page = await response.text()
    assert response.content_type == "text/html"
    assert "Model quality and drift" in page
    assert "//" not in page.replace("<!doctype", "")
    for name, content_type in (("page.js", "text/javascript"), ("page.css", "text/css")):
        static = await client.get(f"/static/{name}")
        assert (static.status, static.content_type) == (200, content_type)


async def test_plotly_comes_from_the_installed_package(client: TestClient[Any, Any]) -> None:
    """The plots work offline: plotly.js is the file of the plotly package."""
    response = await client.get("/static/plotly.min.js")
    assert response.status == 200
    assert b"plotly.js v" in (await response.read())[:200]


async def test_fausts_own_routes_are_off(client: TestClient[Any, Any]) -> None:
    """Faust's table, router and statistics pages would tell strangers about the application."""
    for path in ("/router/", "/table/", "/graph/", "/performance/", "/stats/", "/static/", "/reports/"):
        assert (await client.get(path)).status == 404, path


async def test_stats_is_the_workers_document(client: TestClient[Any, Any], worker: Worker) -> None:
    """``/stats`` gives exactly what the worker counts."""
    worker.metrics.count("consumed", 12)
    assert await (await client.get("/stats")).json() == json.loads(json.dumps(worker.stats()))


async def test_metrics_are_prometheus_text_with_the_process(client: TestClient[Any, Any], worker: Worker) -> None:
    """A scrape parses, carries our families and the process's memory, no family twice."""
    worker.metrics.observe_batch(
        statuses=np.zeros(3, dtype=np.int8),
        stage_us={"emit": 10},
        total_us=np.full(3, 900),
        rows_on_device=3,
        bucket=4,
        reason=FireReason.IDLE,
    )
    response = await client.get("/metrics")
    names = [family.name for family in text_string_to_metric_families(await response.text())]
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert len(names) == len(set(names))
    assert {"sluice_requests", "sluice_stage_duration_seconds", "process_resident_memory_bytes"} <= set(names)


async def test_server_metadata(client: TestClient[Any, Any]) -> None:
    """``/v2`` names the service as the Open Inference Protocol asks."""
    document = await (await client.get("/v2")).json()
    assert (document["name"], document["version"]) == ("sluice", "9.9")


async def test_readiness_lists_what_fails(client: TestClient[Any, Any], worker: Worker) -> None:
    """Not ready is 503 with the failing checks; the worker still lives; all aliases agree."""
    for path in (*LIVE_PATHS, *READY_PATHS):
        assert (await client.get(path)).status == 200, path
    worker.health.add_check("model", lambda: "flight_delays 1 is warming")
    for path in READY_PATHS:
        response = await client.get(path)
        assert response.status == 503
        assert await response.json() == {
            "live": True,
            "ready": False,
            "failing": [{"check": "model", "reason": "flight_delays 1 is warming"}],
        }
    for path in LIVE_PATHS:
        assert (await client.get(path)).status == 200, path


async def test_a_stalled_worker_is_not_live(client: TestClient[Any, Any], worker: Worker) -> None:
    """A failing live check turns both endpoints to 503."""
    worker.health.add_check("progress", lambda: "lag and no progress for 60 s", live=True)
    for path in (*LIVE_PATHS, *READY_PATHS):
        assert (await client.get(path)).status == 503, path


async def test_a_report_is_served_in_a_sandbox(client: TestClient[Any, Any]) -> None:
    """A report runs its own scripts, in an origin of its own."""
    response = await client.get("/reports/flight_delays-1-2013-03.html")
    assert await response.text() == "<p>drift</p>"
    assert response.content_type == "text/html"
    assert "sandbox allow-scripts" in response.headers["Content-Security-Policy"]
    assert "allow-same-origin" not in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "name",
    [
        *("missing.html", "notes.txt", "link.html", "..%2Fsecret.html", "%2e%2e%2fsecret.html", "..%5Csecret.html"),
        *("%2Fetc%2Fpasswd", ".html", "..", "a%00.html", "x" * 300 + ".html"),
    ],
)
async def test_nothing_but_reports_leaves_the_folder(client: TestClient[Any, Any], name: str) -> None:
    """Traversal, links out of the folder, other files and odd names are all 404."""
    async with ClientSession() as session:
        url = URL(f"{str(client.make_url('/')).rstrip('/')}/reports/{name}", encoded=True)
        async with session.get(url, allow_redirects=False) as response:
            body = await response.text()
    assert response.status == 404
    assert "salaries" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_the_views_only_read(client: TestClient[Any, Any], method: str) -> None:
    """Every method but GET and HEAD is refused."""
    for path in ("/", "/stats", "/metrics", "/v2/health/live"):
        assert (await client.request(method, path)).status == 405, path


async def test_head_has_no_body(client: TestClient[Any, Any]) -> None:
    """HEAD answers like GET, without the body."""
    for path in ("/", "/stats", "/metrics", "/static/page.js"):
        response = await client.head(path)
        assert (response.status, await response.read()) == (200, b""), path


async def test_every_answer_carries_the_security_headers(client: TestClient[Any, Any]) -> None:
    """Refusals too say that nothing may be framed, sniffed, cached or loaded from elsewhere."""
    for path in ("/", "/stats", "/no-such-page", "/reports/missing.html"):
        headers = (await client.get(path)).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'"), path
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "sluice", path
