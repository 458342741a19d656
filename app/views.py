"""The web views of every worker: one page, figures as JSON, Prometheus, health, reports.

All views answer GET and HEAD and change nothing, but for two that ``web.allow_model_control`` turns on. The address is
Faust's own web server (``settings.web``); Faust's built-in routes are taken off.

=============================================================  ========================================================
``/``, ``/static/...``                                         the page
``/stats``                                                     figures of all workers, as the page reads them
``/metrics``                                                   Prometheus
``/reports/<name>``                                            Evidently reports, in a sandbox
``/v2``                                                        name, version and extensions of the server
``/v2/health/live``, ``/v2/health/ready`` and their aliases    200, or 503 with the failing checks
``/v2/models/<name>`` *                                        a model's versions, inputs and outputs
``/v2/models/<name>/ready`` *                                  200, or 503 with the state
``/v2/models/<name>/stats`` *                                  Triton's statistics of all its versions
``/v2/repository/index``, GET or POST *                        every version with its state, and why it is not READY
POST ``/v2/repository/models/<name>/load``, ``.../unload`` *   202: written for all workers; 403 unless turned on
=============================================================  ========================================================

Those marked * are those of a scoring worker; elsewhere they are 404. After ``/v2/models/<name>`` may come
``/versions/<version>`` or ``/labels/<label>``, else the champion is meant. Errors are JSON, ``{"error": reason}``.
"""

from __future__ import annotations

import importlib.util
import json
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp.web import FileResponse, Response
from faust.web.base import BlueprintManager
from faust.web.drivers.aiohttp import Web
from faust.web.views import View
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, GCCollector, ProcessCollector, generate_latest

from app.errors import SluiceError
from app.health import FailingCheck, Health
from app.models.control import ControlError
from app.views_models import UnknownVersion, find, is_ready, model_statistics, repository_index, versions_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp.web import StreamResponse
    from faust.types import AppT
    from faust.web.base import Request
    from prometheus_client.registry import Collector

    from app.views_models import ModelsView

__all__ = ["Health", "attach_views"]

LIVE_PATHS = ("/v2/health/live", "/health/live", "/livez", "/healthz")
READY_PATHS = ("/v2/health/ready", "/health/ready", "/readyz")
EXTENSIONS = ("statistics", "model_repository", "model_repository(unload_dependents)", "prometheus", "health")
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


def attach_views(  # noqa: PLR0913 - every part of a worker that the web shows
    faust_app: AppT,
    *,
    health: Health,
    stats: Callable[[], dict[str, Any]],
    collector: Collector,
    reports: Path | None = None,
    version: str = "0",
    models: ModelsView | None = None,
    allow_model_control: bool = False,
) -> None:
    """Register all views on a Faust app, before it starts.

    Args:
        faust_app: the worker's app; its web server must not have started.
        health: the checks behind the health endpoints.
        stats: the document of ``/stats``; the page reads it once a second.
        collector: the worker's own Prometheus families; process and garbage collector ones are added.
        reports: folder of the Evidently reports; none: ``/reports`` answers 404.
        version: of the service, for ``/v2``.
        models: those of a scoring worker; none: their paths answer 404.
        allow_model_control: whether POST may load and unload models.

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
    if models is not None:
        for place in ("", "/versions/{version}", "/labels/{label}"):
            _attach_model(faust_app, models, "/v2/models/{name}" + place)
        _attach_repository(faust_app, models, allow_control=allow_model_control)


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


def _attach_model(faust_app: AppT, models: ModelsView, path: str) -> None:
    """Metadata, readiness and statistics of the version that a path names."""

    def route(suffix: str, answer: Callable[[View, Mapping[str, Any]], Any]) -> None:
        @faust_app.page(path + suffix, name=path + suffix)
        async def show_model(
            self: View, _request: Request, name: str, version: str | None = None, label: str | None = None
        ) -> Any:  # noqa: ANN401
            entry = find(models.document(), name, version=version, label=label)
            if entry is None:
                wanted = f"version {version}" if version else f"label {label}" if label else "version"
                return _not_found(self, f"no {wanted} of model {name} on this worker; see /v2/repository/index")
            return answer(self, entry)

    def metadata(view: View, entry: Mapping[str, Any]) -> Any:  # noqa: ANN401
        found = models.metadata(entry["name"], int(entry["version"]))
        if found is None:
            return _not_found(view, f"{entry['name']} {entry['version']} is {entry['state']} {entry['reason']}".strip())
        return view.json(found)

    def readiness(view: View, entry: Mapping[str, Any]) -> Any:  # noqa: ANN401
        shown = {key: entry[key] for key in ("name", "version", "state", "reason")}
        return view.json({**shown, "ready": is_ready(entry)}, status=200 if is_ready(entry) else 503)

    def statistics(view: View, entry: Mapping[str, Any]) -> Any:  # noqa: ANN401
        entries = versions_of(models.document(), entry["name"]) if path.endswith("{name}") else [entry]
        return view.json({"model_stats": [model_statistics(each) for each in entries]})

    route("", metadata)
    route("/ready", readiness)
    route("/stats", statistics)


def _attach_repository(faust_app: AppT, models: ModelsView, *, allow_control: bool) -> None:
    """Triton's repository extension: the index for everybody, load and unload only where it is allowed."""

    @faust_app.page("/v2/repository/index", name="repository-index")
    class ShowIndex(View):
        async def get(self, _request: Request) -> Any:  # noqa: ANN401
            return self.json(repository_index(models.document()))

        async def post(self, request: Request) -> Any:  # noqa: ANN401
            body = await _json_body(request)
            if body is None:
                return self.json({"error": "a JSON object is expected"}, status=400)
            return self.json(repository_index(models.document(), only_ready=body.get("ready") is True))

    def route(verb: str, act: Callable[[str, int | None], Awaitable[str]]) -> None:
        @faust_app.page(f"/v2/repository/models/{{name}}/{verb}", name=f"repository-{verb}")
        class Change(View):
            async def post(self, request: Request, name: str) -> Any:  # noqa: ANN401
                refusal = _refusal(request, name, verb, allow_control=allow_control)
                if refusal is not None:
                    return self.json({"error": refusal}, status=403)
                status, answer = await _change(request, name, act)
                return self.json(answer, status=status)

    route("load", models.load)
    route("unload", models.unload)


def _refusal(request: Request, name: str, verb: str, *, allow_control: bool) -> str | None:
    """Why nobody may do this here; None when they may."""
    if not allow_control:
        return (
            f"models are not controlled over the web here; run `sluice model {verb} {name} VERSION`, or set "
            "SLUICE_WEB__ALLOW_MODEL_CONTROL=true on the workers if only those you trust reach this port"
        )
    if "Origin" in request.headers:  # whatever page somebody has open, it shall not command a worker on their network
        return "browsers may not control models; use another client, without an Origin header"
    return None


async def _change(
    request: Request, name: str, act: Callable[[str, int | None], Awaitable[str]]
) -> tuple[int, dict[str, Any]]:
    """Status and body of the answer to one who may load and unload."""
    body = await _json_body(request)
    parameters = None if body is None else body.get("parameters", {})
    if not isinstance(parameters, dict) or not parameters.keys() <= {"version", "unload_dependents"}:
        return 400, {"error": 'the body may be {"parameters": {"version": 3}}; nothing else can be given'}
    version = str(parameters.get("version", ""))
    if version and not (version.isascii() and version.isdecimal() and len(version) <= 10):
        return 400, {"error": f"version {version!r} is not a whole number"}
    try:
        return 202, {"accepted": await act(name, int(version) if version else None)}
    except UnknownVersion as exc:
        return 404, {"error": str(exc)}
    except ControlError as exc:
        return 400, {"error": str(exc)}
    except SluiceError as exc:
        return 503, {"error": str(exc)}


async def _json_body(request: Request) -> dict[str, Any] | None:
    """The request's body, empty if it has none; None when it is not a JSON object."""
    try:
        raw = await request.read()
        body = json.loads(raw) if raw else {}
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


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
