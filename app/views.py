"""The web views of every worker: one page, figures as JSON, Prometheus, health, reports.

All views answer GET and HEAD alone and change nothing. The address is Faust's own web server
(``settings.web``); Faust's built-in routes are taken off.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp.web import FileResponse, Response
from faust.web.base import BlueprintManager
from faust.web.drivers.aiohttp import Web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, GCCollector, ProcessCollector, generate_latest

from app.health import FailingCheck, Health

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.web import StreamResponse
    from faust.types import AppT
    from faust.web.base import Request
    from faust.web.views import View
    from prometheus_client.registry import Collector

__all__ = ["Health", "attach_views"]

LIVE_PATHS = ("/v2/health/live", "/health/live", "/livez", "/healthz")
READY_PATHS = ("/v2/health/ready", "/health/ready", "/readyz")
EXTENSIONS = ("statistics", "prometheus", "health")
_REPORT_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.html$")
_STATIC_TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing leaves the worker; plotly.js sets inline styles, no inline script runs."""
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' data: blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox allow-scripts allow-downloads allow-popups"
)
"""A report brings its own scripts; the sandbox gives it an origin of its own and no way to the network."""
SECURITY_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def attach_views(
    faust_app: AppT,
    *,
    health: Health,
    stats: Callable[[], dict[str, Any]],
    collector: Collector,
    reports: Path | None = None,
    version: str = "0",
) -> None:
    """Register all views on a Faust app, before it starts.

    Args:
        faust_app: the worker's app; its web server must not have started.
        health: the checks behind the health endpoints.
        stats: the document of ``/stats``; the page reads it once a second.
        collector: the worker's own Prometheus families; process and garbage collector ones are added.
        reports: folder of the Evidently reports; none: ``/reports`` answers 404.
        version: of the service, for ``/v2``.

    """
    web = faust_app.web
    assert isinstance(web, Web), "these views need Faust's aiohttp driver"
    web.blueprints = BlueprintManager([])  # Faust's index, router and table routes stay off
    web.web_app.on_response_prepare.append(_add_security_headers)
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    _attach_page(faust_app)
    _attach_figures(faust_app, stats, registry, version)
    _attach_health(faust_app, health)
    _attach_reports(faust_app, reports)


async def _add_security_headers(_request: object, response: StreamResponse) -> None:
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "sluice"  # not which versions run here


def _attach_page(faust_app: AppT) -> None:
    """The page and what it loads; the files are read once, they are part of the package."""
    folder = resources.files("app") / "web"
    page = (folder / "page.html").read_text(encoding="utf-8")
    static = {name: (folder / name).read_text(encoding="utf-8") for name in _STATIC_TYPES}
    plotly = _plotly_file()

    @faust_app.page("/", name="page")
    async def show_page(self: View, _request: Request) -> Any:  # noqa: ANN401 - Faust's own type
        return self.html(page)

    @faust_app.page("/static/{name}", name="static")
    async def show_static(self: View, _request: Request, name: str) -> Any:  # noqa: ANN401
        if name == "plotly.min.js" and plotly is not None:
            return FileResponse(plotly, headers={"Cache-Control": "max-age=86400"})
        if name not in static:
            return _not_found(self, f"no file {name} here")
        return self.text(static[name], content_type=_STATIC_TYPES[name])


def _plotly_file() -> Path | None:
    """The plotly.js that comes with the plotly package, found without importing it (2 s); None: not installed."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return file if file.is_file() else None


def _attach_figures(
    faust_app: AppT, stats: Callable[[], dict[str, Any]], registry: CollectorRegistry, version: str
) -> None:
    @faust_app.page("/stats", name="stats")
    async def show_stats(self: View, _request: Request) -> Any:  # noqa: ANN401
        return self.json(stats())

    @faust_app.page("/metrics", name="metrics")
    async def show_metrics(_self: View, _request: Request) -> Any:  # noqa: ANN401
        return Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @faust_app.page("/v2", name="server-metadata")
    async def show_server(self: View, _request: Request) -> Any:  # noqa: ANN401
        return self.json({"name": "sluice", "version": version, "extensions": list(EXTENSIONS)})


def _attach_health(faust_app: AppT, health: Health) -> None:
    def route(path: str, failing: Callable[[], list[FailingCheck]]) -> None:
        @faust_app.page(path, name=f"health{path}")
        async def show_health(self: View, _request: Request) -> Any:  # noqa: ANN401
            found = failing()
            return self.json(_health_document(health, found), status=503 if found else 200)

    for path in LIVE_PATHS:
        route(path, health.failing_live)
    for path in READY_PATHS:
        route(path, health.failing_ready)


def _health_document(health: Health, failing: list[FailingCheck]) -> Mapping[str, Any]:
    return {
        "live": not health.failing_live(),
        "ready": not health.failing_ready(),
        "failing": [{"check": item.check, "reason": item.reason} for item in failing],
    }


def _attach_reports(faust_app: AppT, reports: Path | None) -> None:
    @faust_app.page("/reports/{name}", name="report")
    async def show_report(self: View, _request: Request, name: str) -> Any:  # noqa: ANN401
        file = _report_file(reports, name)
        if file is None:
            return _not_found(self, "no such report on this worker; /stats lists the reports and who has them")
        headers = {"Content-Security-Policy": REPORT_POLICY, "Content-Type": "text/html; charset=utf-8"}
        return FileResponse(file, headers=headers)


def _report_file(reports: Path | None, name: str) -> Path | None:
    """The report's file; None for a name that is no report, leads out of the folder or does not exist."""
    if reports is None or not _REPORT_NAME.match(name):
        return None
    folder = reports.resolve()
    file = (folder / name).resolve()
    return file if file.parent == folder and file.is_file() else None


def _not_found(view: View, reason: str) -> Any:  # noqa: ANN401 - Faust's own type
    return view.json({"error": reason}, status=404)
