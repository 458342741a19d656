"""The supervisor and its owner's end, with small Python programs as servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from app.embedded.errors import EmbeddedError
from app.embedded.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLEEP = (sys.executable, "-c", "import time; time.sleep(300)")
PATIENCE_S = 20.0


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    """Return a supervisor without servers."""
    started = Supervised(tmp_path, tmp_path / "supervisor.log")
    yield started
    started.stop()


def spawn(supervised: Supervised, tmp_path: Path, *argv: str) -> psutil.Process:
    """Start a server under ``supervised``."""
    pid = supervised.spawn("server", argv or SLEEP, output=tmp_path / "server.log", env=os.environ)
    return psutil.Process(pid)


def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait, with a bound, for something that must come true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def has_ended(process: psutil.Process) -> bool:
    """Tell whether a process has ended; a zombie has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def exits(tmp_path: Path) -> list[dict[str, object]]:
    """Read what the supervisor noted about servers that ended by themselves."""
    file = tmp_path / "exits.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_stop_ends_the_servers(supervised: Supervised, tmp_path: Path) -> None:
    """A stop in order ends the server, notes no death and removes ``stack.json``."""
    (tmp_path / "stack.json").touch()
    server = spawn(supervised, tmp_path)
    assert server.ppid() == supervised.pid
    supervised.stop()
    assert has_ended(server)
    assert not supervised.is_alive()
    assert exits(tmp_path) == []
    assert not (tmp_path / "stack.json").exists()


def test_output_is_kept(supervised: Supervised, tmp_path: Path) -> None:
    """What a server prints on either stream lands in its file."""
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    server = spawn(supervised, tmp_path, sys.executable, "-c", code)
    assert wait_until(lambda: has_ended(server))
    assert (tmp_path / "server.log").read_text().split() == ["out", "err"]


def test_death_is_noted_and_others_go_on(supervised: Supervised, tmp_path: Path) -> None:
    """A server that is killed is noted with its status; while it has an owner, the rest is the owner's decision."""
    first, second = spawn(supervised, tmp_path), None
    second = psutil.Process(supervised.spawn("other", SLEEP, output=tmp_path / "other.log", env=os.environ))
    first.kill()
    assert wait_until(lambda: bool(exits(tmp_path)))
    (noted,) = exits(tmp_path)
    assert (noted["name"], noted["pid"], noted["returncode"]) == ("server", first.pid, -signal.SIGKILL)
    assert not has_ended(second)


def test_missing_program_is_an_error(supervised: Supervised, tmp_path: Path) -> None:
    """A program that does not exist is reported by name, and the supervisor goes on."""
    with pytest.raises(EmbeddedError, match=r"server cannot be started.*no-such-program"):
        spawn(supervised, tmp_path, "/no-such-program")
    assert not has_ended(spawn(supervised, tmp_path))


def test_killed_supervisor_takes_its_servers_along(supervised: Supervised, tmp_path: Path) -> None:
    """The kernel ends the servers of a killed supervisor, and the owner's next wish says that it is gone."""
    server = spawn(supervised, tmp_path)
    os.kill(supervised.pid, signal.SIGKILL)
    assert wait_until(lambda: has_ended(server))
    with pytest.raises(EmbeddedError, match="is gone"):
        spawn(supervised, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_in_order(supervised: Supervised, tmp_path: Path, number: signal.Signals) -> None:
    """Each signal that asks for an end stops the server and then the supervisor."""
    server = spawn(supervised, tmp_path)
    os.kill(supervised.pid, number)
    assert wait_until(lambda: not supervised.is_alive())
    assert has_ended(server)


@pytest.mark.parametrize("stop_on_exit", [True, False])
def test_detached_supervisor_outlives_its_pipes(tmp_path: Path, stop_on_exit: bool) -> None:
    """After detaching, a closed pipe ends nothing; the last death, or with ``stop_on_exit`` the first, ends it all."""
    supervised = Supervised(tmp_path, tmp_path / "supervisor.log")
    supervisor = psutil.Process(supervised.pid)
    try:
        first = spawn(supervised, tmp_path)
        second = psutil.Process(supervised.spawn("other", SLEEP, output=tmp_path / "other.log", env=os.environ))
        supervised.detach(stop_on_exit=stop_on_exit)
        first.kill()
        assert wait_until(lambda: bool(exits(tmp_path)))
        if not stop_on_exit:
            assert not has_ended(second)
            second.kill()
        assert wait_until(lambda: has_ended(supervisor))
        assert has_ended(second)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.kill()
            os.waitpid(supervisor.pid, 0)
