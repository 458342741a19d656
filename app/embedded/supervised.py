"""The owner's end of the supervisor process: start it, give it servers to run, let it go or stop it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.embedded.errors import EmbeddedError
from app.embedded.supervisor import STOP_GRACE_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

_PROJECT_ROOT = Path(__file__).resolve().parents[2]


class Supervised:
    """A running supervisor that we own: when this process ends, however it ends, so do the servers.

    Attributes:
        pid: process id of the supervisor.
    """

    def __init__(self, data_dir: Path, log: Path) -> None:
        """Start the supervisor; its own messages are appended to ``log``."""
        python_path = os.pathsep.join(filter(None, [str(_PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
        with log.open("ab") as messages:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.embedded.supervisor", str(data_dir)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                env={**os.environ, "PYTHONPATH": python_path},
                # Its own session: Ctrl-C in the terminal reaches the owner alone, which then stops us in order.
                start_new_session=True,
            )
        self.pid = self._process.pid

    def spawn(
        self, name: str, argv: Sequence[str], *, output: Path, env: Mapping[str, str], grace_s: float = STOP_GRACE_S
    ) -> int:
        """Start a server.

        Args:
            name: what to call it in logs; a server of the same name must have ended.
            argv: program and arguments.
            output: file to which its standard output and error are appended.
            env: its environment.
            grace_s: how long it may take to end when asked to; then it is killed.

        Returns:
            Its process id.

        Raises:
            EmbeddedError: the program cannot be started, or the supervisor is gone.
        """
        server = {"name": name, "argv": list(argv), "output": str(output), "env": dict(env), "grace_s": grace_s}
        answer = self._ask({"op": "spawn", **server})
        if "error" in answer:
            raise EmbeddedError(
                cause=f"{name} cannot be started ({answer['error']})",
                next_step="check that the file exists and is executable",
            )
        return int(answer["pid"])

    def detach(self, *, stop_on_exit: bool) -> None:
        """Let the servers outlive this process; with ``stop_on_exit`` all end when one of them ends by itself."""
        self._ask({"op": "detach", "stop_on_exit": stop_on_exit})
        self._close_pipes()
        # It is somebody else's now: without this, Popen warns that a child still runs.
        self._process.returncode = 0

    def stop(self) -> None:
        """Stop the servers and the supervisor, in order; kill what does not end in time."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_GRACE_S + 5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._close_pipes()

    def is_alive(self) -> bool:
        """Tell whether the supervisor still runs."""
        return self._process.poll() is None

    def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        try:
            to, answers = self._pipes()
            to.write(json.dumps(command).encode() + b"\n")
            to.flush()
            line = answers.readline()
        except (BrokenPipeError, ValueError) as error:
            raise self._gone() from error
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> EmbeddedError:
        return EmbeddedError(
            cause=f"the supervisor (pid {self.pid}) of the embedded servers is gone", next_step="start the stack again"
        )

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _close_pipes(self) -> None:
        for pipe in self._pipes():
            # Closing flushes, and a command that nobody reads any more is no loss.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
