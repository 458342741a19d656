"""Kafka's class path: jar files from the local Maven cache or the network, byte for byte those of the lock.

The lock (``jgo.lock.toml``) is the resolved list, so no dependency is resolved here: each jar is looked up, fetched if
it is not cached, and compared with its digest at every start (46 files, 45 MB, about 0.1 s).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.embedded.errors import JarsNotAvailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from jgo.maven import MavenContext

LOCK_FILE = Path(__file__).with_name("jgo.lock.toml")
_PARALLEL_DOWNLOADS = 6


@dataclass(frozen=True, slots=True)
class Jar:
    """One locked jar: Maven coordinates and the SHA-256 of its bytes, in hex."""

    group: str
    artifact: str
    version: str
    sha256: str

    def __str__(self) -> str:
        """Return group:artifact:version."""
        return f"{self.group}:{self.artifact}:{self.version}"


def locked_jars(lock_file: Path = LOCK_FILE) -> list[Jar]:
    """Read the lock.

    Raises:
        JarsNotAvailable: the lock is missing or an entry has no digest.
    """
    try:
        entries = tomllib.loads(lock_file.read_text(encoding="utf-8"))["dependencies"]
        return [Jar(each["groupId"], each["artifactId"], each["version"], each["sha256"]) for each in entries]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise JarsNotAvailable(cause=f"the list of Kafka's jars {lock_file} cannot be read ({error!r})") from error


def class_path(on_progress: Callable[[str], None], *, repository: Path | None = None) -> str:
    """Return the class path of the broker, downloading what is not cached.

    Args:
        on_progress: told what is downloaded, one line a call.
        repository: the local Maven cache; default ``$M2_REPO`` or ``~/.m2/repository``.

    Returns:
        Paths joined by ``os.pathsep``; with ``$KAFKA_HOME`` set, the wildcard of its ``libs``.

    Raises:
        JarsNotAvailable: a jar can neither be found nor fetched, or its bytes are not those of the lock.
    """
    home = os.environ.get("KAFKA_HOME")
    if home:
        return _class_path_of(Path(home))
    jars = locked_jars()
    usual = repository or Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")
    paths = _cached_all(jars, usual) or resolve(jars, _maven(repository), on_progress)
    return os.pathsep.join(map(str, paths))


def _maven(repository: Path | None) -> MavenContext:
    # Imported late: jgo takes 0.25 s, and once the jars are cached nothing needs it.
    from jgo.config import GlobalSettings  # noqa: PLC0415
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    settings = GlobalSettings.load()
    return MavenContext(
        repo_cache=repository or settings.repo_cache,
        remote_repos={**settings.repositories, "central": MAVEN_CENTRAL_URL},
    )


def _class_path_of(home: Path) -> str:
    libraries = home / "libs"
    if not any(libraries.glob("kafka_2.13-*.jar")):
        raise JarsNotAvailable(cause=f"KAFKA_HOME is {home}, but {libraries} holds no kafka_2.13-*.jar")
    return str(libraries / "*")


def resolve(jars: list[Jar], maven: MavenContext, on_progress: Callable[[str], None]) -> list[Path]:
    """Return the paths of ``jars``, in order, each with the bytes that its digest names.

    Args:
        jars: what to find.
        maven: where it is cached, and where it may be fetched from.
        on_progress: told what is downloaded, one line a call; silent when all is cached.

    Raises:
        JarsNotAvailable: a jar can neither be found nor fetched, or its bytes are others.
    """
    cached = _cached_all(jars, maven.repo_cache)
    if cached is not None:
        return cached
    missing = sum(not _place(maven.repo_cache, jar).exists() for jar in jars)
    on_progress(f"Downloading Apache Kafka: {missing} of {len(jars)} jars (45 MB in all), once for this machine")
    maven.repo_cache.mkdir(parents=True, exist_ok=True)
    # jgo writes into its cache in place, so two starts at once would read each other's half-written files.
    with (maven.repo_cache / ".sluice.lock").open("w") as lock, ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return list(_in_order(jars, pool.map(lambda jar: _fetch(jar, maven), jars), on_progress))


def _cached_all(jars: list[Jar], repository: Path) -> list[Path] | None:
    """Return the paths of all ``jars`` if each is cached with the right bytes, else None."""
    paths = [_place(repository, jar) for jar in jars]
    return paths if all(_is_intact(path, jar) for path, jar in zip(paths, jars, strict=True)) else None


def _in_order(jars: list[Jar], paths: Iterator[Path], on_progress: Callable[[str], None]) -> Iterator[Path]:
    for done, (jar, path) in enumerate(zip(jars, paths, strict=True), start=1):
        if done % 10 == 0 or done == len(jars):
            on_progress(f"  {done} of {len(jars)} jars ready, last {jar.artifact}")
        yield path


def _place(repository: Path, jar: Jar) -> Path:
    """Return where Maven keeps a jar in ``repository``."""
    return repository.joinpath(*jar.group.split("."), jar.artifact, jar.version, f"{jar.artifact}-{jar.version}.jar")


def _fetch(jar: Jar, maven: MavenContext) -> Path:
    """Return the path of a jar whose bytes are those of the lock; a damaged copy in the cache is fetched again once."""
    cached = _place(maven.repo_cache, jar)
    if _is_intact(cached, jar):
        return cached
    cached.unlink(missing_ok=True)
    artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact(packaging="jar")
    try:
        path = Path(artifact.resolve())
    except Exception as error:
        # jgo and requests raise a dozen kinds; a half-written file must not be taken for a jar next time.
        cached.unlink(missing_ok=True)
        raise JarsNotAvailable(
            cause=f"Kafka's jar {jar} is not cached and cannot be downloaded ({_brief(error)})"
        ) from error
    found = _sha256(path)
    if found != jar.sha256:
        if path == cached:
            path.unlink(missing_ok=True)
        raise JarsNotAvailable(cause=f"{jar} at {path} has SHA-256 {found[:16]}…, the lock says {jar.sha256[:16]}…")
    return path


def _is_intact(path: Path, jar: Jar) -> bool:
    return path.exists() and _sha256(path) == jar.sha256


def _brief(error: Exception) -> str:
    """Return the kind of an error and the first 120 characters of its message."""
    return f"{type(error).__name__}: {str(error)[:120]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
