"""What runs, on disk: ``stack.json`` in the data directory, and whether its processes are really alive."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.embedded.errors import EmbeddedError
from app.embedded.ports import answers
from app.embedded.supervisor import STACK_FILE

_SAME_START_S = 2.0


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the stack.

    Attributes:
        name: ``supervisor``, ``kafka-1``, … or ``valkey``.
        pid: process id.
        started_unix_s: when the operating system says it started; tells it from a later process of the same pid.
        port: where it listens on 127.0.0.1, 0 for the supervisor.
        log: its log file.
    """

    name: str
    pid: int
    started_unix_s: float
    port: int
    log: Path

    def find(self) -> psutil.Process | None:
        """Return the living process, or None if it ended (a zombie has ended)."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_unix_s) < _SAME_START_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True, slots=True)
class StackInfo:
    """Addresses and processes of a running stack.

    Attributes:
        bootstrap_servers: ``host:port`` of each broker, joined by commas.
        redis_url: ``redis://127.0.0.1:port/0``.
        data_dir: absolute; holds partitions, logs and ``stack.json``.
        processes: supervisor first, then the brokers by node id, then Valkey; empty for servers that are not ours.
    """

    bootstrap_servers: str
    redis_url: str
    data_dir: Path
    processes: tuple[Process, ...]

    @property
    def broker_pids(self) -> tuple[int, ...]:
        """Process ids of the brokers, by node id."""
        return tuple(each.pid for each in self.brokers)

    @property
    def kafka_ports(self) -> tuple[int, ...]:
        """Client ports of the brokers, by node id."""
        return tuple(each.port for each in self.brokers)

    @property
    def brokers(self) -> tuple[Process, ...]:
        """The brokers, by node id."""
        return tuple(each for each in self.processes if each.name.startswith("kafka-"))

    @property
    def redis_pid(self) -> int:
        """Process id of Valkey; 0 when Redis is not ours."""
        return next((each.pid for each in self.processes if each.name == "valkey"), 0)

    @property
    def redis_port(self) -> int:
        """Port of Valkey; 0 when Redis is not ours."""
        return next((each.port for each in self.processes if each.name == "valkey"), 0)

    @property
    def supervisor(self) -> Process:
        """The process that owns the others.

        Raises:
            EmbeddedError: the servers are not ours.
        """
        for each in self.processes:
            if each.name == "supervisor":
                return each
        raise EmbeddedError(cause="these servers were not started by us", next_step="stop them where they were started")

    def save(self) -> None:
        """Write ``stack.json`` so that a reader sees the old one or the new one, never a part."""
        text = json.dumps(dataclasses.asdict(self), indent=2, default=str)
        partial = self.data_dir / f".{STACK_FILE}.new"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.data_dir / STACK_FILE)


def load(data_dir: Path) -> StackInfo | None:
    """Return what ``stack.json`` says, alive or not; None if there is no file, or one that cannot be read."""
    try:
        saved = json.loads((data_dir / STACK_FILE).read_text(encoding="utf-8"))
        processes = tuple(Process(**{**each, "log": Path(each["log"])}) for each in saved.pop("processes"))
        return StackInfo(**{**saved, "data_dir": Path(saved["data_dir"]), "processes": processes})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def running(data_dir: Path) -> StackInfo | None:
    """Return the stack that really runs from ``data_dir``: all its processes live and all its ports answer.

    Args:
        data_dir: the directory given to `Stack.start`, usually ``.sluice``.

    Returns:
        Its addresses, or None.
    """
    info = load(data_dir)
    if info is None or not info.processes:
        return None
    if all(each.find() and (not each.port or answers(each.port)) for each in info.processes):
        return info
    return None
