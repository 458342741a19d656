"""``sluice up``, ``down`` and ``status`` where nothing runs or nothing may start; real starts are integration tests."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import typer
from typer.testing import CliRunner

from app.embedded.commands import NOT_RUNNING, register
from app.embedded.stack_file import Process, StackInfo

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from click.testing import Result


def sluice(*arguments: str) -> Result:
    """Run a command in this process."""
    cli = typer.Typer()
    register(cli)
    return CliRunner().invoke(cli, arguments)


def test_down_where_nothing_runs(tmp_path: Path) -> None:
    """``down`` without a stack is no failure: it says that nothing runs, and makes no directory."""
    done = sluice("down", "--data-dir", str(tmp_path / "none"))
    assert done.exit_code == 0
    assert "Nothing runs from" in done.output
    assert not (tmp_path / "none").exists()


def test_status_where_nothing_runs(tmp_path: Path) -> None:
    """``status`` without a stack says how to start one and exits with 3."""
    done = sluice("status", "--data-dir", str(tmp_path))
    assert done.exit_code == NOT_RUNNING
    assert "`sluice up`" in done.output


def test_status_of_dead_processes(tmp_path: Path) -> None:
    """Processes that are gone are shown as such, with the exit status where it is known."""
    gone = [
        Process(name, pid, 1.0, 1, tmp_path / f"{name}.log")
        for name, pid in (("supervisor", 2**22 + 2), ("kafka-1", 2**22), ("valkey", 2**22 + 1))
    ]
    StackInfo("127.0.0.1:1", "redis://127.0.0.1:1/0", tmp_path, tuple(gone)).save()
    (tmp_path / "exits.jsonl").write_text(f'{{"name": "kafka-1", "pid": {2**22}, "returncode": 137}}\n')
    done = sluice("status", "--data-dir", str(tmp_path))
    assert done.exit_code == NOT_RUNNING
    assert "died, status 137" in done.output
    assert "not running" in done.output
    assert sluice("down", "--data-dir", str(tmp_path)).exit_code == 0
    assert not (tmp_path / "stack.json").exists()


def test_up_with_a_taken_port(tmp_path: Path) -> None:
    """``up`` on a taken port exits with 1 and names the port and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        done = sluice("up", "--kafka-port", port, "--data-dir", str(tmp_path))
    assert done.exit_code == 1
    assert port in done.output
    assert "Next: " in done.output


def test_clean_spares_what_is_not_ours(tmp_path: Path) -> None:
    """``--clean`` on a directory that no stack made deletes nothing and says so."""
    kept = tmp_path / "logs" / "precious.txt"
    kept.parent.mkdir()
    kept.touch()
    for command in ("up", "down"):
        done = sluice(command, "--clean", "--data-dir", str(tmp_path))
        assert done.exit_code == 1
        assert "nothing was deleted" in done.output
    assert kept.exists()


def test_two_brokers_are_refused(tmp_path: Path) -> None:
    """``up --brokers 2`` is a usage error."""
    assert sluice("up", "--brokers", "2", "--data-dir", str(tmp_path)).exit_code == 2


def test_own_servers_are_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With servers of one's own set, ``up`` says that workers will use those."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka.example:9092")
    with socket.create_server(("127.0.0.1", 0)) as held:
        done = sluice("up", "--redis-port", str(held.getsockname()[1]), "--data-dir", str(tmp_path))
    assert "kafka.example:9092" in done.output
