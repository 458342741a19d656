"""A schema registry that speaks Confluent's protocol on a loopback port."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class RegistryHandler(BaseHTTPRequestHandler):
    """Registers and serves schemas; refuses subjects that start with ``refused``.

    Attributes:
        schemas: by id, as text.
        requests: paths that were asked for.
        gate: questions wait until it is open; None lets them pass.

    """

    schemas: ClassVar[dict[int, str]] = {}
    requests: ClassVar[list[str]] = []
    gate: ClassVar[threading.Event | None] = None

    def do_GET(self) -> None:
        """A schema by its id."""
        self.requests.append(self.path)
        if self.gate is not None:
            self.gate.wait(30)
        schema_id = int(self.path.rsplit("/", 1)[1])
        if schema_id in self.schemas:
            self._answer(200, {"schema": self.schemas[schema_id]})
        else:
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})

    def do_POST(self) -> None:
        """Register a schema."""
        self.requests.append(self.path)
        schema = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
        if "refused" in self.path:
            self._answer(409, {"error_code": 409, "message": "Schema being registered is incompatible"})
            return
        known = {text: number for number, text in self.schemas.items()}
        schema_id = known.get(schema, len(known) + 1)
        self.schemas[schema_id] = schema
        self._answer(200, {"id": schema_id})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        with contextlib.suppress(ConnectionError):  # the client gave up meanwhile
            self.send_response(code)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)


@contextlib.contextmanager
def running_registry() -> Iterator[tuple[str, type[RegistryHandler]]]:
    """Address of a registry, and its handler with what it saw."""
    handler = type("Handler", (RegistryHandler,), {"schemas": {}, "requests": [], "gate": None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        if handler.gate is not None:
            handler.gate.set()
        server.shutdown()
        thread.join()
