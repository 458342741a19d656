"""Workers as child processes of the demo: started, watched until they are ready, never left behind."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import httpx

from app.embedded.stack import exit_statuses
from app.embedded.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FIRST_PORT = 6066
PORTS_TRIED = 100
READY_TIMEOUT_S = 90.0
POLL_S = 0.2
LOG_TAIL_LINES = 15


class WorkerError(Exception):
    """A worker ended, or is not ready in time; the message names its log and shows its end."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process.

    Attributes:
        role: scoring or monitor.
        pid: process id.
        url: of its web views.
        log: file with everything that it says.

    """

    role: str
    pid: int
    url: str
    log: Path


class Workers:
    """Starts workers; they end with this process, however it ends.

    Args:
        folder: where exits are noted; made when it is missing.
        logs: folder of their logs.
        environ: the settings, as variables.

    """

    def __init__(self, folder: Path, logs: Path, environ: Mapping[str, str]) -> None:
        self._folder, self._logs, self._environ = folder, logs, environ
        for path in (folder, logs):
            path.mkdir(parents=True, exist_ok=True)
        self._supervised = Supervised(folder, logs / "demo-supervisor.log")
        self._workers: list[Worker] = []

    def start(self, role: str) -> Worker:
        """Starts a worker of a role on the next free port."""
        port = free_port(_port_of(self._workers[-1]) + 1 if self._workers else FIRST_PORT)
        log = self._logs / f"demo-{role}.log"
        log.write_text("")
        environ = {**os.environ, **self._environ, "SLUICE_WEB__PORT": str(port)}
        argv = [sys.executable, "-m", "app.cli", "worker", role]
        pid = self._supervised.spawn(role, argv, output=log, env=environ)
        worker = Worker(role, pid, f"http://127.0.0.1:{port}", log)
        self._workers.append(worker)
        return worker

    def check(self) -> None:
        """Returns when all workers live.

        Raises:
            WorkerError: one has ended.

        """
        exits = exit_statuses(self._folder)
        for worker in self._workers:
            if worker.pid in exits:
                msg = f"the {worker.role} worker ended with status {exits[worker.pid]}; {_log_tail(worker.log)}"
                raise WorkerError(msg)
        if not self._supervised.is_alive():
            msg = f"the supervisor of the workers is gone; look at {self._logs / 'demo-supervisor.log'}"
            raise WorkerError(msg)

    async def wait_until_ready(self) -> None:
        """Waits for ``/v2/health/ready`` of every worker.

        Raises:
            WorkerError: one ended, or is not ready within 90 s.

        """
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            for worker in self._workers:
                reason = "it does not listen"
                while (found := await _not_ready(client, worker)) is not None:
                    reason = found or reason
                    self.check()
                    if time.monotonic() > deadline_s:
                        msg = (
                            f"the {worker.role} worker is not ready after {READY_TIMEOUT_S:.0f} s ({reason}); "
                            f"{_log_tail(worker.log)}"
                        )
                        raise WorkerError(msg)
                    await asyncio.sleep(POLL_S)

    def stop(self) -> None:
        """Lets the workers drain and end; kills what does not end in time."""
        self._supervised.stop()

    def __enter__(self) -> Self:
        """The workers themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them."""
        self.stop()


async def own_stats(worker: Worker) -> dict[str, Any] | None:
    """A worker's own figures from its ``/stats``; None when it does not answer."""
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            document = (await client.get(f"{worker.url}/stats")).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    stats = document["workers"][document["worker"]]["stats"] if "workers" in document else document
    return stats if isinstance(stats, dict) else None


def free_port(first: int) -> int:
    """The first port from ``first`` on that nobody listens on.

    Raises:
        WorkerError: none of the next hundred is free.

    """
    for port in range(first, first + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    msg = f"no port from {first} to {first + PORTS_TRIED - 1} is free for a worker's web views; end what uses them"
    raise WorkerError(msg)


def _port_of(worker: Worker) -> int:
    return int(worker.url.rsplit(":", 1)[1])


async def _not_ready(client: httpx.AsyncClient, worker: Worker) -> str | None:
    try:
        answer = await client.get(f"{worker.url}/v2/health/ready")
    except httpx.HTTPError:
        return ""
    return None if answer.is_success else answer.text.strip()[:300]


def _log_tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return f"its log, {log}, ends with:\n" + "\n".join(f"  {line}" for line in lines)
