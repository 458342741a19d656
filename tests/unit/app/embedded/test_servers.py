"""How servers are prepared; that they start is shown by the integration tests."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app.embedded.servers import new_cluster_id, tail, valkey_server

if TYPE_CHECKING:
    from pathlib import Path


def test_tail_says_what_happened(tmp_path: Path) -> None:
    """The last lines of a log leave out stack frames and the JVM's warnings, and are cut to a readable width."""
    log = tmp_path / "kafka-1.log"
    frames = "\tat org.example.Bind(Unknown Source)\n" * 30
    log.write_text(f"INFO start\nERROR it failed\n{frames}Caused by: in use\n\t... 18 more\nWARNING: x\n{'y' * 999}\n")
    assert tail(log, 3) == f"    ERROR it failed\n    Caused by: in use\n    {'y' * 240}"


def test_tail_of_nothing(tmp_path: Path) -> None:
    """A log that does not exist, or is empty, has no last lines."""
    assert tail(tmp_path / "none.log") == ""
    (tmp_path / "empty.log").touch()
    assert tail(tmp_path / "empty.log") == ""


def test_cluster_ids_are_valid_and_differ() -> None:
    """Cluster ids have Kafka's 22 characters, never begin like an option, and never repeat."""
    ids = [new_cluster_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{21}", each) for each in ids)


def test_valkey_listens_here_alone_and_keeps_nothing(tmp_path: Path) -> None:
    """Valkey is bound to 127.0.0.1, stays in the foreground and writes no snapshots."""
    server = valkey_server(tmp_path, 7000)
    flags = dict(zip(server.argv[1::2], server.argv[2::2], strict=True))
    assert flags["--bind"] == "127.0.0.1"
    assert flags["--port"] == "7000"
    assert (flags["--daemonize"], flags["--appendonly"], flags["--save"]) == ("no", "no", "")
    assert (tmp_path / "valkey").is_dir()
