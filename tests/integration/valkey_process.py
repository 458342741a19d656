"""A Valkey of the test's own, on one port for good, that can be started, killed, frozen and thawed."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import redis

from app.embedded.ports import answers, free_ports
from app.embedded.servers import valkey_server
from tests.integration.worker_process import until

if TYPE_CHECKING:
    import signal
    from pathlib import Path


class ValkeyProcess:
    """Not started yet; ``kill`` it at the end.

    Args:
        folder: its working folder.

    """

    def __init__(self, folder: Path) -> None:
        self.port = free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._argv = valkey_server(folder, self.port).argv
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty."""
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(lambda: answers(self.port), "Valkey")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """``kill -9``; nothing happens when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> redis.Redis:
        """A client beside the one under test."""
        return redis.Redis.from_url(self.url)

    def calls(self) -> dict[str, int]:
        """How often each command has been called since the start, by the server's own count, but for INFO."""
        with self.client() as client:
            found = client.info("commandstats")
        return {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in found.items() if "info" not in name}
