"""``stack.json``: what is written is read back, and only living processes count."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import TYPE_CHECKING

import psutil
import pytest

from app.embedded.errors import EmbeddedError
from app.embedded.stack_file import Process, StackInfo, load, running

if TYPE_CHECKING:
    from pathlib import Path


def info(data_dir: Path, *, port: int = 0) -> StackInfo:
    """Describe a stack whose processes are all this one."""
    started = psutil.Process().create_time()
    names = ("supervisor", "kafka-1", "valkey")
    processes = tuple(Process(name, os.getpid(), started, port, data_dir / f"{name}.log") for name in names)
    return StackInfo("127.0.0.1:1", "redis://127.0.0.1:2/0", data_dir, processes)


def test_saved_is_loaded(tmp_path: Path) -> None:
    """Every field survives the file, and the short names say what the processes say."""
    saved = info(tmp_path, port=5)
    saved.save()
    assert load(tmp_path) == saved
    assert saved.broker_pids == (os.getpid(),)
    assert saved.kafka_ports == (5,)
    assert (saved.redis_pid, saved.redis_port) == (os.getpid(), 5)
    assert saved.supervisor.name == "supervisor"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"processes": [{"name": 1}]}'])
def test_garbage_is_no_stack(tmp_path: Path, text: str) -> None:
    """A file that is not ours is no stack."""
    (tmp_path / "stack.json").write_text(text)
    assert load(tmp_path) is None
    assert running(tmp_path) is None


def test_running_needs_life_and_an_open_port(tmp_path: Path) -> None:
    """A stack runs only if its processes live, are the same as then, and answer on their ports."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        alive = info(tmp_path, port=server.getsockname()[1])
        alive.save()
        assert running(tmp_path) == alive
    assert running(tmp_path) is None


def test_later_process_of_the_same_pid_does_not_count(tmp_path: Path) -> None:
    """A process that started at another time is not the one that was noted."""
    mine = info(tmp_path).processes[0]
    assert mine.find() is not None
    assert dataclasses.replace(mine, started_unix_s=mine.started_unix_s - 60).find() is None


def test_servers_of_others_have_no_supervisor(tmp_path: Path) -> None:
    """A stack given by settings has no processes of ours."""
    others = StackInfo("kafka:9092", "redis://redis:6379/0", tmp_path, ())
    assert (others.broker_pids, others.redis_pid, others.redis_port) == ((), 0, 0)
    with pytest.raises(EmbeddedError, match="not started by us"):
        _ = others.supervisor
