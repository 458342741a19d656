"""The repository: ``<name>/<version>/`` with bundles, ``<name>/calibrations/<version>/<revision>.json`` beside them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from app.errors import BundleError, DigestMismatch, UnsafeBundle
from app.locked_files import write_atomically
from app.models.bundle import (
    VERSION_PATTERN,
    Bundle,
    check_place,
    open_bundle,
    parse_calibration,
    parse_spec_bytes,
    read_spec,
)
from app.models.bundle_files import CALIBRATION, MAX_BYTES, MAX_SPEC_BYTES, REFERENCE, SPEC, open_plain
from app.models.trust import TrustStore
from app.postprocess import check_calibration
from schemas.generate import check_name

if TYPE_CHECKING:
    from app.calibration import Calibration
    from app.models.spec import ModelSpec
    from app.settings import ModelSettings

log = logging.getLogger(__name__)
CALIBRATIONS = "calibrations"
REVISION_FILE = re.compile(r"([1-9][0-9]{0,9})\.json")
MAX_CALIBRATION_BYTES = MAX_BYTES[CALIBRATION]
DIGEST_BYTES = 128
"""A sidecar holds 64 digits, and what ``sha256sum`` writes behind them."""


class Source(Protocol):
    """Where the files are; paths are relative, their parts joined by ``/``."""

    url: str
    """How messages name it."""

    def list_folder(self, path: str) -> list[str]:
        """Names of the entries, in any order; empty when there is no such folder."""

    def read(self, path: str, max_bytes: int) -> bytes:
        """A file's bytes.

        Raises:
            BundleError: it is missing, larger, or cannot be read.

        """

    def stamp(self, name: str, version: int) -> str:
        """Changes when a file of the bundle does."""

    def size_bytes(self, path: str) -> int:
        """Size of a file; 0 when it is not there."""

    def fetch(self, name: str, version: int) -> Path:
        """The bundle's folder on this machine, not yet verified."""

    def discard(self, folder: Path) -> bool:
        """Drop what ``fetch`` gave, so that it is fetched anew; False: it is the original."""

    def remove(self, name: str, version: int) -> list[Path]:
        """Remove what this machine has of a version; the folders that are gone."""


class Repository:
    """Bundles by name and version, from a local folder or from afar; every one is verified each time it is opened.

    Args:
        source: where the files are.
        trust: bundles that may run code.

    """

    def __init__(self, source: Source, trust: TrustStore) -> None:
        self.source = source
        self.trust = trust

    @property
    def url(self) -> str:
        """How messages name it, without passwords."""
        return self.source.url

    def names(self) -> list[str]:
        """Models that there are, by name."""
        return sorted(name for name in self.source.list_folder("") if _is_name(name))

    def versions(self, name: str) -> list[int]:
        """Version numbers of a model, increasing; empty when there are none."""
        if not _is_name(name):
            return []
        return sorted(int(entry) for entry in self.source.list_folder(name) if VERSION_PATTERN.fullmatch(entry))

    def latest(self, name: str) -> int:
        """The newest version of a model.

        Raises:
            BundleError: there is none.

        """
        found = self.versions(name)
        if not found:
            msg = f"no model {name} in {self.url}; pack one there, or name another repository (models.repository)"
            raise BundleError(msg)
        return found[-1]

    def spec(self, name: str, version: int) -> ModelSpec:
        """The specification of a version, its other files unseen.

        Raises:
            BundleError: there is none, or it does not hold together.

        """
        return parse_spec_bytes(self._spec_bytes(name, version), origin=f"{version}/{SPEC}")

    def digest(self, name: str, version: int) -> str:
        """Hex sha256 of a version's ``model.yaml``, which stands for the whole bundle.

        Raises:
            BundleError: there is none.

        """
        return hashlib.sha256(self._spec_bytes(name, version)).hexdigest()

    def size_bytes(self, name: str, version: int) -> int:
        """All files of a version together.

        Raises:
            BundleError: there is none, or it does not hold together.

        """
        files = (SPEC, *self.spec(name, version).files)
        return sum(self.source.size_bytes(f"{name}/{version}/{file}") for file in files)

    def remove(self, name: str, version: int) -> list[Path]:
        """Remove a version from a local repository; of one that is far away, the copies in the cache.

        Workers that have it loaded keep it: a mapped file lives on until nobody maps it. Trust in it ends.

        Returns:
            The folders that are gone.

        Raises:
            BundleError: there is nothing to remove.

        """
        self._check_name(name)
        with contextlib.suppress(BundleError):  # one that cannot be read can still be removed
            self.trust.remove(self.digest(name, version))
        gone = self.source.remove(name, version)
        if not gone:
            msg = f"{name} has no version {version} on this machine ({self.url}); see `sluice model list`"
            raise BundleError(msg)
        return gone

    def specs(self) -> list[ModelSpec]:
        """The specification of every version, by name and version; one that does not hold together is logged.

        A version that is still being copied must not stop a worker that needs another.
        """
        found = []
        for name in self.names():
            for version in self.versions(name):
                try:
                    found.append(self.spec(name, version))
                except BundleError as exc:
                    log.warning("left out %s version %d: %s", name, version, exc)
        return found

    def open(self, name: str, version: int, *, calibration: int | None = None) -> Bundle:
        """The verified bundle; a cached copy that has gone bad is fetched once more.

        Args:
            name: of the model.
            version: of the model.
            calibration: revision of a calibration that was added later; None: the bundle's own.

        Raises:
            BundleError: there is none, or it cannot be used; the message names the file and the field.

        """
        self._check_name(name)
        folder = self.source.fetch(name, version)
        try:
            bundle = open_bundle(folder, trust=self.trust)
        except DigestMismatch:
            if not self.source.discard(folder):
                raise
            bundle = open_bundle(self.source.fetch(name, version), trust=self.trust)
        return bundle if calibration is None else self._recalibrated(bundle, calibration)

    def reference_path(self, name: str, version: int) -> Path | None:
        """The drift reference of a version; None when there is no such version, or no reference in it.

        The rest of the bundle is not looked at: a version that cannot be served, or not here, may still be monitored.

        Raises:
            BundleError: the repository cannot be reached.

        """
        if version not in self.versions(name):
            return None
        path = self.source.fetch(name, version) / REFERENCE
        return path if path.is_file() else None

    def vouch(self, name: str, version: int, *, sha256: str | None = None, note: str = "") -> Bundle:
        """Trust a version from now on, after all that can be checked without loading it.

        Args:
            name: of the model.
            version: of the model.
            sha256: hex digest that a person has agreed to; None: whatever lies there now.
            note: who vouches for it, and why.

        Raises:
            BundleError: there is none, or it could not be used even if it were trusted.
            UnsafeBundle: it holds pickles, which trust does not help against, or others may write the trust store.

        """
        self._check_name(name)
        bundle = open_bundle(self.source.fetch(name, version), trust=_TrustsAll(self.trust.path))
        if sha256 not in (None, bundle.sha256):
            msg = f"{name} version {version}: was changed in between; look at it again"
            raise DigestMismatch(msg)
        self.trust.add(bundle.sha256, name=name, version=version, note=note)
        return bundle

    def fingerprint(self, name: str, version: int) -> str:
        """Changes when a file of the version does; its files are not read (far away, ``model.yaml`` is).

        Raises:
            BundleError: the repository cannot be reached.

        """
        self._check_name(name)
        return self.source.stamp(name, version)

    def calibrations(self, name: str, version: int) -> list[int]:
        """Revisions of calibrations that were added to a version, increasing."""
        self._check_name(name)
        return _revisions(self.source.list_folder(f"{name}/{CALIBRATIONS}/{version}"))

    def _recalibrated(self, bundle: Bundle, revision: int) -> Bundle:
        spec = bundle.spec
        path = f"{spec.name}/{CALIBRATIONS}/{spec.version}/{revision}.json"
        raw = self.source.read(path, MAX_CALIBRATION_BYTES)
        expected = self.source.read(f"{path}.sha256", DIGEST_BYTES).decode(errors="replace")[:64]
        digest = hashlib.sha256(raw).hexdigest()
        if digest != expected:
            msg = f"{path}: its sha256 is not the one in {revision}.json.sha256; copy both again, or calibrate again"
            raise DigestMismatch(msg)
        calibration = parse_calibration(raw, spec, origin=path)
        if calibration.revision not in (None, revision):
            msg = f"{path}: says that it is revision {calibration.revision}; copy it under its own name"
            raise BundleError(msg)
        return dataclasses.replace(
            bundle, calibration=calibration, calibration_sha256=digest, calibration_revision=revision
        )

    def _spec_bytes(self, name: str, version: int) -> bytes:
        self._check_name(name)
        return self.source.read(f"{name}/{version}/{SPEC}", MAX_SPEC_BYTES)

    def _check_name(self, name: str) -> None:
        if not _is_name(name):
            msg = f"no model {name} in {self.url}: names are lower-case letters, digits and underscores"
            raise BundleError(msg)


class _TrustsAll(TrustStore):
    """For looking at a bundle that a person is about to trust: opening one loads nothing of it."""

    def has(self, sha256: str) -> bool:
        del sha256
        return True


class LocalSource:
    """A folder of this machine; bundles are used where they lie.

    Args:
        root: the folder; a missing one is an empty repository.

    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def list_folder(self, path: str) -> list[str]:
        """Names of the folders and files in a folder; links are not followed."""
        folder = self.root / path
        try:
            with os.scandir(folder) as entries:
                is_wanted = _plain_file if CALIBRATIONS in path else _plain_folder
                return [entry.name for entry in entries if is_wanted(entry)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            msg = f"{folder}: cannot be listed ({exc.strerror}); correct its permissions"
            raise BundleError(msg) from exc

    def read(self, path: str, max_bytes: int) -> bytes:
        """A file's bytes; neither it nor a folder on the way may be a link."""
        parents = [self.root / parent for parent in Path(path).parents if parent.name]
        if any(parent.is_symlink() for parent in parents):
            msg = f"{path}: lies behind a link; the folders of models are plain folders, copy them instead"
            raise UnsafeBundle(msg)
        try:
            with open_plain(self.root / path) as file:
                raw = file.read(max_bytes + 1)
        except OSError as exc:
            msg = f"{path}: cannot be read from {self.url} ({exc.strerror}); copy it again"
            raise BundleError(msg) from exc
        if len(raw) > max_bytes:
            msg = f"{path}: more than {max_bytes} bytes; copy or pack it again"
            raise BundleError(msg)
        return raw

    def stamp(self, name: str, version: int) -> str:
        """Digest of names, sizes, times and inodes: a file that was replaced, or is still growing, changes it."""
        seen = []
        with contextlib.suppress(OSError), os.scandir(self.root / name / str(version)) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                seen.append((entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
        return hashlib.sha256(repr(sorted(seen)).encode()).hexdigest()

    def fetch(self, name: str, version: int) -> Path:
        """The bundle's own folder."""
        return self.root / name / str(version)

    def size_bytes(self, path: str) -> int:
        """Size of a file."""
        with contextlib.suppress(OSError):
            return (self.root / path).lstat().st_size
        return 0

    def discard(self, folder: Path) -> bool:
        """It is the original, which is never dropped."""
        del folder
        return False

    def remove(self, name: str, version: int) -> list[Path]:
        """Remove the version and its calibrations, each under another name first: no reader sees half of it."""
        gone = []
        for folder in (self.root / name / str(version), self.root / name / CALIBRATIONS / str(version)):
            if folder.is_dir() and not folder.is_symlink() and not folder.parent.is_symlink():
                doomed = folder.with_name(f".removed-{version}-{os.getpid()}")
                folder.rename(doomed)
                shutil.rmtree(doomed)
                gone.append(folder)
        return gone


def _plain_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _plain_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def open_repository(url: str | Path, *, cache: Path, trust: TrustStore) -> Repository:
    """The repository at a folder or URL.

    Args:
        url: a folder, or any URL that ``fsspec`` knows: http and memory as installed, s3 with s3fs, gs with gcsfs.
        cache: where bundles from afar are kept, by digest.
        trust: bundles that may run code.

    Raises:
        BundleError: nothing reads URLs of this kind.

    Example:
        >>> trust = TrustStore(Path("trusted-models.json"))
        >>> open_repository("/nonexistent", cache=Path("cache"), trust=trust).names()
        []

    """
    text = str(url)
    if "://" not in text:
        return Repository(LocalSource(Path(text)), trust)
    if text.startswith("file://"):
        return Repository(LocalSource(Path(unquote(urlsplit(text).path))), trust)
    from app.models.fetch import RemoteSource  # noqa: PLC0415 - fsspec and aiohttp; a local folder needs neither

    return Repository(RemoteSource(text, cache), trust)


def configured_repository(models: ModelSettings) -> Repository:
    """The repository that the settings name.

    Raises:
        BundleError: nothing reads URLs of this kind.

    """
    return open_repository(models.repository, cache=models.cache, trust=TrustStore(models.trust_store))


def add_calibration(repository: Path, name: str, version: int, calibration: Calibration) -> int:
    """Put a calibration beside a version; weights and digest of the version stay as they are.

    Args:
        repository: root folder of all models.
        name: of the model.
        version: that it is for.
        calibration: fitted on that version's scores.

    Returns:
        Its revision, one more than the newest.

    Raises:
        BundleError: there is no such version, or the calibration does not fit its output.

    """
    bundle = repository / name / str(version)
    spec = read_spec(bundle)
    check_place(bundle, spec)
    check_calibration(spec.output, calibration)
    path = f"{name}/{CALIBRATIONS}/{version}"
    folder = repository / path
    folder.mkdir(parents=True, exist_ok=True)
    revision = max(_revisions(LocalSource(repository).list_folder(path)), default=0) + 1
    while not _claim(folder, revision):
        revision += 1
    text = dataclasses.replace(calibration, model=name, model_version=version, revision=revision).to_json()
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_atomically(folder / f"{revision}.json.sha256", f"{digest}  {revision}.json\n")
    write_atomically(folder / f"{revision}.json", text)  # last: readers look for it
    return revision


def _revisions(entries: list[str]) -> list[int]:
    return sorted(int(match[1]) for entry in entries if (match := REVISION_FILE.fullmatch(entry)))


def _claim(folder: Path, revision: int) -> bool:
    """Whether this revision is ours: of two who add at once, one creates the sidecar."""
    try:
        (folder / f"{revision}.json.sha256").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True
