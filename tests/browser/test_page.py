"""The page in a real browser: it draws realistic figures, offline, in light and dark, without an error."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import faust
import pytest
from aiohttp.test_utils import TestServer

from app.metrics import Metrics
from app.settings import BudgetSettings
from app.views import Health, attach_views
from tests.browser.documents import stats_document

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on PATH; install it, for example apt-get install chromium"
    ),
]
EMPTY: dict[str, Any] = {"worker": "scoring-1", "role": "scoring", "workers": {}}


async def serve(stats: Callable[[], dict[str, Any]], reports: Path) -> TestServer:
    """The worker's real views on a free port, without a broker."""
    app = faust.App("page-under-test", broker="kafka://127.0.0.1:1")
    metrics = Metrics(BudgetSettings(), now_s=time.monotonic)
    attach_views(app, health=Health(), stats=stats, collector=metrics.collector(), reports=reports)
    server = TestServer(await app.web.wsgi())
    await server.start_server()
    return server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    """A worker whose figures are those of a busy deployment."""
    document = stats_document(int(time.time() * 1e6))
    started = await serve(lambda: document, tmp_path)
    yield started
    await started.close()


async def browse(url: str, profile: Path, *arguments: str) -> str:
    """Standard output of headless Chromium after four virtual seconds on a page."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"),
        *("--virtual-time-budget=4000", "--window-size=1400,2300", "--enable-logging=stderr"),
        *arguments,
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout=120)
    errors = [line for line in err.decode().splitlines() if "CONSOLE" in line]
    assert errors == []
    return out.decode()


async def test_the_page_draws_every_section(server: TestServer, tmp_path: Path) -> None:
    """Tiles, plots, tables and reports of all workers are drawn, and the console stays silent."""
    dom = await browse(str(server.make_url("/")), tmp_path / "profile", "--dump-dom")
    for text in ("Answers per second", "budget 100 ms", "DEGRADED", "scoring-b21c", "2013-08", "latest.html", "ready"):
        assert text in dom
    for plot in ("rate-plot", "latency-plot", "quality-plot", "drift-plot"):
        drawn = dom.split(f'id="{plot}"', 1)[1].split("<figure", 1)[0]
        assert "main-svg" in drawn, plot


async def test_the_page_shows_every_version_and_why_it_does_not_serve(server: TestServer, tmp_path: Path) -> None:
    """One row a version over all workers, with labels, how many workers agree, and the whole reason of a failure."""
    dom = await browse(str(server.make_url("/")), tmp_path / "profile", "--dump-dom")
    models = dom.split('id="models"', 1)[1].split("</section", 1)[0]
    assert "hidden" not in models.split(">", 1)[0]
    assert "READY (1 of 2), WARMING (1 of 2)" in models
    assert "champion, stable" in models
    assert "features.3.vocabulary" in models
    assert "embedding.weight holds NaN or infinite numbers; train again" in models
    assert "scoring-b21c loads flight_delays version 5" in models
    assert "refused label challenger of flight_delays -&gt; 5: version 5 is WARMING" in models


async def test_the_page_waits_for_its_first_figures(tmp_path: Path) -> None:
    """A worker that has heard nothing yet shows an honest, empty page."""
    server = await serve(lambda: EMPTY, tmp_path)
    try:
        dom = await browse(str(server.make_url("/")), tmp_path / "profile", "--dump-dom")
    finally:
        await server.close()
    assert "scoring worker scoring-1" in dom
    for section in ("scoring", "models"):
        assert f'id="{section}" aria-labelledby="{section}-title" hidden=""' in dom


async def test_a_hostile_name_is_shown_as_text(tmp_path: Path) -> None:
    """Names that come over Kafka cannot put markup or a script link into the page."""
    document = stats_document(int(time.time() * 1e6))
    worker = document["workers"].pop("scoring-b21c")
    worker["stats"]["models"]["versions"][1]["reason"] = "<script>alert(2)</script>"
    document["workers"]["<img src=x onerror=alert(1)>"] = worker | {"web_url": "javascript:alert(1)"}
    server = await serve(lambda: document, tmp_path)
    try:
        dom = await browse(str(server.make_url("/")), tmp_path / "profile", "--dump-dom")
    finally:
        await server.close()
    assert "&lt;img src=x onerror=alert(1)&gt;" in dom
    assert "<img src=x" not in dom
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in dom
    assert "<script>alert" not in dom
    assert "javascript:alert" not in dom
