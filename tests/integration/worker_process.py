"""Workers as processes of their own: started from the command line, watched over HTTP, killed by pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from app.embedded.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
"""A worker starts in about 5 s on a quiet machine; two busy cores need patience."""


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
    """Look again and again until a condition holds.

    Raises:
        TimeoutError: it does not within ``timeout_s``; the message says what was waited for.

    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            msg = f"not within {timeout_s:.0f} s: {what}"
            raise TimeoutError(msg)
        time.sleep(0.02)


class WorkerProcess:
    """One ``sluice worker`` with its settings in the environment; at the end of the block it is killed.

    Args:
        folder: working folder of the process, where its log is kept too.
        environment: settings; those of the test's own environment are not handed on.
        role: scoring or monitor.
        name: of the log file.

    """

    def __init__(
        self, folder: Path, environment: dict[str, str], *, role: str = "scoring", name: str = "worker"
    ) -> None:
        self._folder, self._role = folder, role
        self._log = folder / f"{name}.log"
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "KAFKA_", "REDIS_", "SCHEMA_"))
        }
        self._environment = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self.start_count = 0
        self.url = ""

    def start(self) -> Self:
        """Start the process, on a web port of its own; returns at once."""
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "worker", self._role],
                cwd=self._folder,
                env={**self._environment, "SLUICE_WEB__PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.start_count += 1
        return self

    def wait_ready(self) -> Self:
        """Wait until it has partitions and says so.

        Raises:
            TimeoutError: it does not get ready.
            AssertionError: it ended instead.

        """
        until(self._is_ready, f"a ready worker; its log ends with\n{self.log()[-2000:]}", timeout_s=START_TIMEOUT_S)
        return self

    def keep_alive(self) -> None:
        """Start it again if it ended: what a supervisor does."""
        if not self.is_running:
            self.start()

    def kill(self) -> None:
        """``kill -9``."""
        self._popen.kill()
        self._popen.wait()

    def terminate(self, *, timeout_s: float = 60.0) -> int:
        """SIGTERM; returns the exit code."""
        self._popen.send_signal(signal.SIGTERM)
        return self.wait(timeout_s=timeout_s)

    def wait(self, *, timeout_s: float = START_TIMEOUT_S) -> int:
        """The exit code, once it ends."""
        return self._popen.wait(timeout=timeout_s)

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Of the current process."""
        return self._popen.pid

    def log(self) -> str:
        """All that it and its predecessors wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> httpx.Response:
        """Answer of its web server."""
        return httpx.get(self.url + path, timeout=10)

    def figures(self) -> dict[str, Any]:
        """Its own figures from ``/stats``."""
        document = self.get("/stats").json()
        figures: dict[str, Any] = document["workers"][document["worker"]]["stats"]
        return figures

    @property
    def _popen(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "start() comes first"
        return self._process

    def _is_ready(self) -> bool:
        assert self.is_running, f"the worker ended with {self._popen.returncode}:\n{self.log()[-4000:]}"
        try:
            return self.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def __enter__(self) -> Self:
        """The worker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what still runs."""
        if self._process is not None and self.is_running:
            self.kill()
