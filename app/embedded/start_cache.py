"""A cache of loaded and linked classes for the broker's JVM: brokers start in half the time.

It is Java 25's ahead-of-time cache, made on request and once for a machine by running a broker and stopping it (about
8 s). The session-wide test stack asks for it; a single ``sluice up`` would not earn that back, but uses it if it is
there. The JVM checks that a cache fits its own build and the jars, and ignores one that does not.

Measured on two cores, one broker: port open after 0.65 s instead of 1.5 to 2.0, with 0.9 s of CPU instead of 1.9.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from app.embedded.java import major_version

_FIRST_JAVA_WITH_CACHE = 25
# Its remarks about single classes that it could not keep are noise in a broker's log.
_QUIET = "-Xlog:aot*=off"


def cache_file(java: Path, class_path: str) -> Path | None:
    """Return where the cache for this Java and these jars lies or would lie; None if this Java makes none.

    Args:
        java: the ``java`` program; its home has a ``release`` file that tells the version.
        class_path: Kafka's jars.
    """
    release = java.parents[1] / "release"
    text = release.read_text(encoding="utf-8", errors="replace") if release.exists() else ""
    if (major_version(text) or 0) < _FIRST_JAVA_WITH_CACHE:
        return None
    key = hashlib.sha256("\0".join((str(java), text, class_path)).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "sluice" / f"kafka-{key}.aot"


def using_flags(java: Path, class_path: str) -> list[str]:
    """Return the JVM flags that use the cache; none if it has not been made."""
    file = cache_file(java, class_path)
    return [f"-XX:AOTCache={file}", _QUIET] if file is not None and file.exists() else []


def recording_flags(output: Path) -> list[str]:
    """Return the JVM flags that write a cache to ``output`` when the JVM ends in order."""
    return [f"-XX:AOTCacheOutput={output}", _QUIET]
