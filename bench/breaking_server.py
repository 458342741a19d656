"""An HTTP server of a model repository whose connection breaks in the middle of the weights, once."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from app.models.bundle_files import WEIGHTS

if TYPE_CHECKING:
    from io import BufferedReader
    from typing import Self

PIECE_BYTES = 2**20
BREAKS_AT = 0.5
"""Share of the weights that is sent before the connection breaks."""


class BreakingServer:
    """Serves a folder on a port of its own, from entering it to leaving it.

    Args:
        root: of the repository.
        has_ranges: a request for the rest of a file gets the rest; else the whole file.

    Attributes:
        breaks_next: the next request for weights is cut off.
        sent_bytes: of weights since it was last set to 0.
        first_byte: of the first request for weights since then; None: there was none.

    """

    def __init__(self, root: Path, *, has_ranges: bool) -> None:
        self.has_ranges = has_ranges
        self.breaks_next = False
        self.sent_bytes = 0
        self.first_byte: int | None = None
        handler = functools.partial(_Handler, self, directory=str(root))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Of the repository."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def take_count(self) -> tuple[float, int | None]:
        """MB of weights that were sent since the last count, and where the first request for them began."""
        counted = round(self.sent_bytes / 1e6, 1), self.first_byte
        self.sent_bytes, self.first_byte = 0, None
        return counted

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the folder; weights by range, counted, and cut off when it is their turn."""

    def __init__(self, owner: BreakingServer, *arguments: object, directory: str) -> None:
        self._owner = owner
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type] # as http.server calls it

    def do_GET(self) -> None:
        """Send a file, the rest of one, or half of it."""
        if not self.path.endswith(WEIGHTS):
            super().do_GET()
            return
        path = Path(self.translate_path(self.path))
        size, (first, last) = path.stat().st_size, self._range()
        last = min(last, size - 1)
        is_part = (first, last) != (0, size - 1)
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if self._owner.first_byte is None:
            self._owner.first_byte = first
        is_cut, self._owner.breaks_next = self._owner.breaks_next, False
        with path.open("rb") as file:
            file.seek(first)
            self._send(file, int(size * BREAKS_AT) if is_cut else last - first + 1)
        self.close_connection = is_cut

    def _range(self) -> tuple[int, int]:
        wanted = self.headers.get("Range", "")
        if not (wanted and self._owner.has_ranges):
            return 0, 2**63
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        return int(first), int(last or 2**63)

    def _send(self, file: BufferedReader, count: int) -> None:
        while count > 0:
            piece = file.read(min(PIECE_BYTES, count))
            try:
                self.wfile.write(piece)
            except ConnectionError:  # whoever asked for a range and sees that it gets the whole hangs up
                return
            self._owner.sent_bytes += len(piece)
            count -= len(piece)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""
