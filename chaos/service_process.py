"""One ``sluice worker`` as a process: started, watched, frozen, killed, and started again as a supervisor would."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import psutil

from app.embedded.ports import free_ports
from chaos.patience import until

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 180.0
"""Five seconds on a quiet machine; at the lowest priority beside other work it may be a minute."""
RESTART_PAUSE_S = 0.5
_FOREIGN = ("SLUICE_", "KAFKA_", "REDIS_", "SCHEMA_")
"""Settings of the caller's own environment that a worker must not see."""


class ServiceProcess:
    """A worker of a role with its settings in the environment.

    Args:
        folder: working folder of the process, where its log is kept too.
        role: scoring or monitor.
        name: of its log.
        environment: its settings.

    Attributes:
        is_wanted: whether it is started again when it ends.
        exit_codes: of the processes that ended by themselves, or were killed, in order.
        stop_seconds: from each SIGTERM to the end of the process.

    """

    def __init__(
        self, folder: Path, role: Literal["scoring", "monitor"], name: str, environment: Mapping[str, str]
    ) -> None:
        self.role, self.name = role, name
        self.is_wanted = True
        self.is_frozen = False
        self.exit_codes: list[int] = []
        self.stop_seconds: list[float] = []
        self.start_count = 0
        self._folder, self._log = folder, folder / f"{name}.log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        paths = [path for path in (environment.get("PYTHONPATH"), str(ROOT)) if path]
        self._environment = {**inherited, "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": os.pathsep.join(paths)}
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    def start(self) -> None:
        """Start it on a web port of its own; returns at once."""
        port = free_ports(1)[0]
        self._url = f"http://127.0.0.1:{port}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "worker", self.role],
                cwd=self._folder,
                env={**self._environment, "SLUICE_WEB__PORT": str(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.start_count += 1
        self.is_frozen = False

    async def keep(self) -> None:
        """Start it again whenever it ends and is wanted; a task of the world."""
        while True:
            if self._process is not None and self._process.poll() is not None:
                self.exit_codes.append(self._process.returncode)
                self._process = None
            if self._process is None and self.is_wanted:
                if self.start_count:
                    await asyncio.sleep(RESTART_PAUSE_S)
                self.start()
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """``kill -9``."""
        self._send(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: it holds its connections and does nothing."""
        self.is_frozen = True
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.is_frozen = False
        self._send(signal.SIGCONT)

    async def terminate(self, *, timeout_s: float = 30.0) -> int:
        """SIGTERM and no restart; returns the exit code.

        Raises:
            TimeoutError: it does not end.

        """
        self.is_wanted = False
        process = self._process
        if process is None:
            return self.exit_codes[-1] if self.exit_codes else 0
        self._send(signal.SIGTERM)
        asked_s = time.monotonic()
        await until(lambda: process.poll() is not None, f"{self.name} to end after SIGTERM", timeout_s=timeout_s)
        self.stop_seconds.append(round(time.monotonic() - asked_s, 1))
        return int(process.returncode)

    def end(self) -> None:
        """Kill what still runs, for good."""
        self.is_wanted = False
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the living process; 0 when there is none."""
        return self._process.pid if self._process is not None and self.is_running else 0

    async def wait_ready(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until it has partitions and says so.

        Raises:
            TimeoutError: it does not get ready; the message has the end of its log.

        """
        try:
            await until(self.is_ready, f"{self.name} to get ready", timeout_s=timeout_s)
        except TimeoutError as exc:
            msg = f"{exc}; its log ends with\n{self.log()[-1500:]}"
            raise TimeoutError(msg) from None

    async def is_ready(self) -> bool:
        """Whether it serves."""
        if not self.is_running or self.is_frozen:
            return False
        try:
            async with httpx.AsyncClient(timeout=2.0) as client:
                answer = await client.get(self._url + "/v2/health/ready")
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    async def figures(self, *, timeout_s: float = 10.0) -> dict[str, Any]:
        """Its own figures from ``/stats``.

        Raises:
            httpx.HTTPError: it does not answer.

        """
        async with httpx.AsyncClient(timeout=timeout_s) as client:
            document = (await client.get(self._url + "/stats")).json()
        found: dict[str, Any] = document["workers"][document["worker"]]["stats"]
        return found

    def resources(self) -> dict[str, float]:
        """Resident set in MB, open file descriptors, threads and age in s; empty when it does not run."""
        try:
            view = psutil.Process(self.pid) if self.pid else None
            if view is None:
                return {}
            rss_mb = round(view.memory_info().rss / 2**20, 1)
            age_s = round(time.time() - view.create_time(), 1)
            return {"rss_mb": rss_mb, "fds": view.num_fds(), "threads": view.num_threads(), "age_s": age_s}
        except psutil.Error:
            return {}

    async def holdings(self) -> dict[str, float]:
        """The resources, and the tasks of its event loop when it says them; empty when it does not run."""
        found = self.resources()
        if found and not self.is_frozen:
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):  # it dies, hangs or is not up yet
                found["tasks"] = float((await self.figures(timeout_s=2.0))["event_loop_tasks"])
        return found

    def log(self) -> str:
        """All that it and its predecessors wrote."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
