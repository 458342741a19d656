"""Kafka's jars: the committed lock, the local cache, and a repository that serves right and wrong bytes."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from typing import TYPE_CHECKING

import pytest
from jgo.maven import MavenContext

from app.embedded import jars
from app.embedded.errors import JarsNotAvailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = b"the bytes of a jar"
JAR = jars.Jar("org.example", "thing", "1.0", hashlib.sha256(CONTENT).hexdigest())
PATH = "org/example/thing/1.0/thing-1.0.jar"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without writing a log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """Return the file of the jar in the directory that the repository serves."""
    file = tmp_path / "served" / PATH
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def maven(tmp_path: Path, served: Path) -> Iterator[MavenContext]:
    """Return a Maven with an empty cache whose only repository is a server on 127.0.0.1."""
    assert served.exists()
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield MavenContext(repo_cache=tmp_path / "cache", local_repos=[], remote_repos={"here": url})
        server.shutdown()
        thread.join()


def test_lock_names_the_pinned_broker_and_no_address() -> None:
    """The lock pins Kafka, scala and one log binding by digest, and names no server."""
    locked = {jar.artifact: jar for jar in jars.locked_jars()}
    assert locked["kafka_2.13"].version == "4.3.1"
    assert {"kafka-clients", "scala-library", "log4j-core", "log4j-slf4j-impl"} <= locked.keys()
    assert all(len(jar.sha256) == 64 for jar in locked.values())
    assert "://" not in jars.LOCK_FILE.read_text(encoding="utf-8")


def test_unreadable_lock_is_named(tmp_path: Path) -> None:
    """A lock without digests is an error that names the file."""
    lock = tmp_path / "jgo.lock.toml"
    lock.write_text('[[dependencies]]\ngroupId = "g"\nartifactId = "a"\nversion = "1"\n')
    with pytest.raises(JarsNotAvailable, match=r"jgo\.lock\.toml"):
        jars.locked_jars(lock)


def test_missing_jar_is_downloaded_once(maven: MavenContext, served: Path) -> None:
    """The first call downloads and says so; the second finds the cached file, even with the repository empty."""
    told: list[str] = []
    paths = jars.resolve([JAR], maven, told.append)
    served.unlink()
    assert jars.resolve([JAR], maven, told.append) == paths
    assert [path.read_bytes() for path in paths] == [CONTENT]
    assert len(told) == 2
    assert "1 of 1 jars" in told[0]


def test_damaged_jar_in_the_cache_is_replaced(maven: MavenContext) -> None:
    """A half-written file of an interrupted download does not survive the next start."""
    cached = maven.repo_cache / PATH
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT[:5])
    assert [path.read_bytes() for path in jars.resolve([JAR], maven, print)] == [CONTENT]


def test_wrong_bytes_are_refused_and_not_kept(maven: MavenContext, served: Path) -> None:
    """A repository that serves other bytes than the lock names is refused, and the file is not left in the cache."""
    served.write_bytes(b"something else")
    with pytest.raises(JarsNotAvailable, match=r"org\.example:thing:1\.0.*the lock says"):
        jars.resolve([JAR], maven, print)
    assert not (maven.repo_cache / PATH).exists()


def test_absent_jar_names_the_way_out(maven: MavenContext, served: Path) -> None:
    """A jar that is nowhere is an error that names it and the setting for a Kafka of one's own."""
    served.unlink()
    with pytest.raises(JarsNotAvailable, match=r"org\.example:thing:1\.0.*KAFKA_BOOTSTRAP_SERVERS"):
        jars.resolve([JAR], maven, print)


def test_no_network_and_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty cache and a network that refuses, the error comes soon and names the way out."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", "KAFKA_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(JarsNotAvailable, match=r"cannot be downloaded.*KAFKA_BOOTSTRAP_SERVERS"):
        jars.class_path(print, repository=tmp_path / "empty")


def test_kafka_home_is_used_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``KAFKA_HOME`` replaces the jars of the lock; one without Kafka's jar in it is refused."""
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    with pytest.raises(JarsNotAvailable, match=r"holds no kafka_2\.13"):
        jars.class_path(print)
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.1.0.jar").touch()
    assert jars.class_path(print) == str(tmp_path / "libs" / "*")
