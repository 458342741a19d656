"""Brokers and store, and what can happen to them: killed, started again, frozen, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING

import psutil

from chaos.patience import until

if TYPE_CHECKING:
    from app.embedded.stack import Process, Stack


class Servers:
    """The servers of a stack by name: ``kafka-1``, … and ``valkey``.

    Args:
        stack: that this process started.

    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._frozen: set[str] = set()

    @property
    def brokers(self) -> tuple[str, ...]:
        """Names of the brokers, by node id."""
        return tuple(each.name for each in self._stack.info.brokers)

    async def kill(self, name: str) -> None:
        """``kill -9``, and wait until it is gone."""
        process = self._process(name)
        self._signal(name, signal.SIGKILL)
        await until(lambda: process.find() is None, f"the end of {name}")

    async def restart(self, name: str) -> None:
        """Start it again on its old port and data, and wait until the whole stack serves."""
        await asyncio.to_thread(self._stack.restart, name)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self._frozen.add(name)
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self._frozen.discard(name)
        self._signal(name, signal.SIGCONT)

    def is_running(self, name: str) -> bool:
        """Whether the process lives, frozen or not."""
        return self._process(name).find() is not None

    async def heal(self) -> None:
        """Thaw what is frozen, start what is dead."""
        for name in tuple(self._frozen):
            self.thaw(name)
        for process in self._stack.info.processes[1:]:
            if process.find() is None:
                await self.restart(process.name)

    def fill_disk(self, name: str) -> None:
        """Let no file of the process grow beyond what its largest has now: a write fails as on a full disk.

        The limit is the kernel's own, per process (RLIMIT_FSIZE); a process that is started again has none.
        """
        limit_file_size(self._process(name).pid, self._largest_log_bytes(name))

    def _largest_log_bytes(self, name: str) -> int:
        data = self._stack.info.data_dir / name
        return max((path.stat().st_size for path in data.rglob("*.log")), default=1)

    def _signal(self, name: str, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process(name).pid, number)

    def _process(self, name: str) -> Process:
        return next(each for each in self._stack.info.processes if each.name == name)


def limit_file_size(pid: int, largest_bytes: int | None) -> None:
    """Make writes of a living process beyond this file size fail with EFBIG; None: no limit any more."""
    soft = resource.RLIM_INFINITY if largest_bytes is None else largest_bytes
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
