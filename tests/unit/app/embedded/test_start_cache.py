"""Which start-up cache belongs to which Java and jars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.embedded.start_cache import cache_file, using_flags

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the program of a Java 25 whose caches go to an empty directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "release").write_text('JAVA_VERSION="25.0.2"\n')
    return tmp_path / "bin" / "java"


def test_cache_belongs_to_java_and_jars(java: Path) -> None:
    """Other jars and another build of Java have another cache."""
    first = cache_file(java, "a.jar")
    assert first == cache_file(java, "a.jar")
    assert first != cache_file(java, "b.jar")
    java.parents[1].joinpath("release").write_text('JAVA_VERSION="25.0.3"\n')
    assert first != cache_file(java, "a.jar")


def test_older_java_makes_none(java: Path) -> None:
    """A Java before 25, or one that does not tell its version, is started as it is."""
    release = java.parents[1] / "release"
    release.write_text('JAVA_VERSION="21.0.1"\n')
    assert cache_file(java, "a.jar") is None
    release.unlink()
    assert using_flags(java, "a.jar") == []


def test_only_a_finished_cache_is_used(java: Path) -> None:
    """Without the file there are no flags; with it the JVM is pointed at it."""
    assert using_flags(java, "a.jar") == []
    file = cache_file(java, "a.jar")
    assert file is not None
    file.parent.mkdir(parents=True)
    file.touch()
    assert using_flags(java, "a.jar")[0] == f"-XX:AOTCache={file}"
