"""The process that owns the embedded servers: it starts them, notices their ends, stops them, and dies with its owner.

Run as ``python -m app.embedded.supervisor DATA_DIR``; `app.embedded.supervised` is its other end. Standard library
only: it stays small (13 MB) and starts fast.

Why a process of its own: the kernel's "signal me when my parent dies" is tied to the parent's *thread*, so servers
forked by a thread that ends would die with it; here one single-threaded process forks them all. What ends it:

* the owner's pipe closes, or our parent changes (the owner is gone, however it died): stop the servers, then end;
* SIGTERM, SIGINT or SIGHUP: the same;
* SIGKILL: the kernel kills the servers (Linux).

Commands arrive as JSON lines on stdin, each is answered by one JSON line on stdout:
``{"op": "spawn", "name": …, "argv": […], "output": path, "env": {…}, "grace_s": …}`` -> ``{"pid": …}`` or
``{"error": …}``;
``{"op": "detach", "stop_on_exit": bool}`` -> ``{}``: outlive the owner; end everything when a server ends by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

STACK_FILE = "stack.json"
EXITS_FILE = "exits.jsonl"
STOP_GRACE_S = 10.0
_PARENT_CHECK_S = 0.5
_PR_SET_PDEATHSIG = 1


class Supervisor:
    """Servers by name, and the loop that serves the owner's commands until it is time to stop."""

    def __init__(self, data_dir: Path) -> None:
        """Remember the owner and prepare the signals; nothing is started yet."""
        self._data_dir = data_dir
        self._owner_pid = os.getppid()
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._grace_s: dict[str, float] = {}
        self._owned = True
        self._stop_on_exit = False
        self._stopping = False
        self._pending = b""
        self._waker, self._wakes = socket.socketpair()
        for end in (self._waker, self._wakes):
            end.settimeout(0.0)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, self._on_stop_signal)
        # A handler, because a signal that is ignored by default does not wake the loop.
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> int:
        """Serve until stopped; return the exit status, 0 unless a server ended by itself."""
        failed = False
        while not self._stopping:
            self._wait()
            if self._owned and os.getppid() != self._owner_pid:
                self._stopping = True
            failed = self._reap() or failed
        self._stop_servers()
        if not failed:
            (self._data_dir / STACK_FILE).unlink(missing_ok=True)
        return int(failed)

    def _wait(self) -> None:
        """Sleep until a command, a signal, or the next look at our parent."""
        sources: list[Any] = [self._waker, *([sys.stdin] if self._owned else [])]
        ready, _, _ = select.select(sources, [], [], _PARENT_CHECK_S if self._owned else None)
        if self._waker in ready:
            with contextlib.suppress(BlockingIOError):
                self._waker.recv(4096)
        if sys.stdin in ready:
            self._read_commands()

    def _read_commands(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self._stopping = True
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            answer = self._obey(json.loads(line))
            with contextlib.suppress(BrokenPipeError):
                os.write(1, json.dumps(answer).encode() + b"\n")

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["op"] == "detach":
            self._owned = False
            self._stop_on_exit = bool(command["stop_on_exit"])
            return {}
        try:
            return {"pid": self._spawn(command)}
        except OSError as error:
            return {"error": f"{command['argv'][0]}: {error}"}

    def _spawn(self, command: dict[str, Any]) -> int:
        name = str(command["name"])
        with Path(command["output"]).open("ab") as output:
            server = subprocess.Popen(
                command["argv"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=command["env"],
                preexec_fn=_die_with_supervisor(os.getpid()),  # noqa: PLW1509 - this process has one thread
            )
        self._servers[name] = server
        self._grace_s[name] = float(command["grace_s"])
        _log(f"started {name} as pid {server.pid}")
        return server.pid

    def _reap(self) -> bool:
        """Record servers that ended by themselves; return whether there were any that matter."""
        ended = [(name, server) for name, server in self._servers.items() if server.poll() is not None]
        for name, server in ended:
            del self._servers[name]
            _log(f"{name} (pid {server.pid}) ended by itself with status {server.returncode}")
            line = {"name": name, "pid": server.pid, "returncode": server.returncode, "at_unix_s": time.time()}
            with (self._data_dir / EXITS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if ended and (self._stop_on_exit or (not self._owned and not self._servers)):
            self._stopping = True
            return True
        return False

    def _stop_servers(self) -> None:
        """Ask all servers to end at once, give each its grace, kill the rest."""
        for server in self._servers.values():
            server.terminate()
        asked_at = time.monotonic()
        for name, server in self._servers.items():
            try:
                server.wait(timeout=max(0.0, asked_at + self._grace_s[name] - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log(f"{name} (pid {server.pid}) did not end within {self._grace_s[name]:.0f} s, killing it")
                server.kill()
                server.wait()
        _log("stopped")

    def _on_stop_signal(self, signum: int, _frame: FrameType | None) -> None:
        self._stopping = True
        _log(f"stopping on {signal.Signals(signum).name}")


def _die_with_supervisor(supervisor_pid: int) -> Callable[[], None] | None:
    """Return what a server does before exec so that the kernel ends it with us; None where there is no such call."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor_pid:  # we died before the kernel could know
            os._exit(1)

    return ask_kernel


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(Supervisor(Path(sys.argv[1])).run())
