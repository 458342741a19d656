"""Bundles from afar: any file system that ``fsspec`` knows, and the local cache that they are served from.

A bundle is fetched once into ``<cache>/<sha256 of model.yaml>/<name>/<version>/``. It grows in a draft beside it, whose
finished files are verified and whose unfinished one is continued after an interruption; the draft takes its final name
when all is there, so that half a copy is never seen. Processes that want the same bundle wait for the one that
fetches it, by a lock that ends with its process.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import fsspec

from app.errors import BundleError, DigestMismatch, RepositoryAway, SluiceError
from app.locked_files import alone
from app.models.bundle import check_place, parse_spec_bytes
from app.models.bundle_files import MAX_BUNDLE_BYTES, MAX_SPEC_BYTES, SPEC, check_names, limit_bytes, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.models.spec import ModelSpec

INDEX = "index.json"
MAX_INDEX_BYTES = 16 * 2**20
PIECE_BYTES = 2**20
CONNECT_S, SILENCE_S = 10.0, 60.0
"""A connection that takes longer, or says nothing for so long, has failed; a whole file may take as long as it does."""
MARKS = (
    "size",
    "ETag",
    "etag",
    "Content-MD5",
    "Digest",
    "Last-Modified",
    "LastModified",
    "mtime",
    "created",
    "updated",
)
"""What file systems tell of a file's content; those of them that a file system has."""


class RemoteSource:
    """A repository behind a URL.

    Its folders are listed as the file system lists them (over HTTP: the links of index pages), or as an ``index.json``
    at its root says, ``{"<name>": [<version>, ...]}``, which an HTTP server without index pages needs.

    Args:
        url: of the repository's root.
        cache: folder for fetched bundles.

    Raises:
        BundleError: nothing reads URLs of this kind.

    """

    def __init__(self, url: str, cache: Path) -> None:
        self.url = redacted(url)
        self._cache = cache
        self._is_http = url.startswith(("http://", "https://"))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        options = {"client_kwargs": {"timeout": timeout}} if self._is_http else {}
        try:
            self._files, root = fsspec.core.url_to_fs(url, **options)
        except (ValueError, ImportError) as exc:
            msg = f"{self.url}: {exc}; install what reads it (s3fs for s3://, gcsfs for gs://), or name another URL"
            raise BundleError(msg) from exc
        self._root = root.rstrip("/")

    def list_folder(self, path: str) -> list[str]:
        """Names of the entries; of the root and of models as the index says, when there is one."""
        index = self._index() if path.count("/") == 0 else None
        if index is not None:
            return [str(entry) for entry in (index.get(path, []) if path else index)]
        with self._told(path or "its root"):
            self._files.invalidate_cache()
            try:
                entries = self._files.ls(self._at(f"{path}/"), detail=False)
            except FileNotFoundError:
                return []
        return [entry.rstrip("/").rpartition("/")[2] for entry in entries]

    def read(self, path: str, max_bytes: int) -> bytes:
        """A file's bytes."""
        with self._told(path), self._open(path) as file:
            pieces, size = [], 0
            while size <= max_bytes and (piece := file.read(PIECE_BYTES)):
                pieces.append(piece)
                size += len(piece)
        if size > max_bytes:
            msg = f"{path}: more than {max_bytes} bytes; copy or pack it again"
            raise BundleError(msg)
        return b"".join(pieces)

    def stamp(self, name: str, version: int) -> str:
        """Digest of ``model.yaml`` and of what the file system tells of the files that it names."""
        raw = self.read(f"{name}/{version}/{SPEC}", MAX_SPEC_BYTES)
        digest = hashlib.sha256(raw)
        for file in self._parse(name, version, raw).files:
            digest.update(repr(self._marks(f"{name}/{version}/{file}")).encode())
        return digest.hexdigest()

    def fetch(self, name: str, version: int) -> Path:
        """The bundle's folder in the cache, fetched unless it is there."""
        raw = self.read(f"{name}/{version}/{SPEC}", MAX_SPEC_BYTES)
        spec = self._parse(name, version, raw)
        digest = hashlib.sha256(raw).hexdigest()
        entry = self._cache / digest
        folder = entry / name / str(version)
        self._cache.mkdir(parents=True, exist_ok=True)
        with alone(self._cache / f".{digest}.lock"):
            if all((folder / file).is_file() for file in (SPEC, *spec.files)):
                return folder
            shutil.rmtree(entry, ignore_errors=True)
            draft = self._cache / f".{digest}.draft"
            self._fill(draft / name / str(version), spec, raw)
            draft.rename(entry)
        return folder

    def discard(self, folder: Path) -> bool:
        """Drop a cached bundle."""
        shutil.rmtree(folder.parents[1])
        return True

    def remove(self, name: str, version: int) -> list[Path]:
        """Remove the cached copies, more than one after it was packed anew, and drafts of them."""
        gone = sorted(self._cache.glob(f"*/{name}/{version}"))
        for folder in gone:
            self.discard(folder)
        return gone

    def size_bytes(self, path: str) -> int:
        """Size of a file, as the file system tells it."""
        return int(self._marks(path).get("size") or 0)

    def _fill(self, folder: Path, spec: ModelSpec, raw: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC).write_bytes(raw)
        left = MAX_BUNDLE_BYTES
        for file, expected in spec.files.items():
            remote = f"{spec.name}/{spec.version}/{file}"
            self._fetch_file(remote, folder / file, expected, max_bytes=min(left, limit_bytes(file)))
            left -= (folder / file).stat().st_size

    def _fetch_file(self, remote: str, target: Path, expected: str, *, max_bytes: int) -> None:
        if target.is_file():  # from an earlier try, and verified then
            return
        part = target.with_name(f"{target.name}.part")
        has_part = part.is_file() and part.stat().st_size > 0
        if not (has_part and self._continue(remote, part, expected, max_bytes)):
            part.unlink(missing_ok=True)
            self._append(remote, part, max_bytes)
            if sha256_of(part) != expected:
                part.unlink()
                msg = f"{remote}: its sha256 is not the one in {SPEC}; copy it to {self.url} again, or pack it again"
                raise DigestMismatch(msg)
        part.rename(target)

    def _continue(self, remote: str, part: Path, expected: str, max_bytes: int) -> bool:
        """Whether what was there, and the rest behind it, are the file; the server may have no ranges, or another."""
        try:
            self._append(remote, part, max_bytes)
        except BundleError as exc:
            if isinstance(exc.__cause__, ValueError):  # how fsspec says that it cannot begin in the middle
                return False
            raise
        return sha256_of(part) == expected

    def _append(self, remote: str, part: Path, max_bytes: int) -> None:
        # Unbuffered: what has arrived is on disk, even if the process is killed.
        with part.open("ab", buffering=0) as out, self._told(remote), self._open(remote, at=out.tell()) as file:
            while piece := file.read(PIECE_BYTES):
                out.write(piece)
                if out.tell() > max_bytes:
                    msg = f"{remote}: more than {max_bytes} bytes; pack the bundle with less in it"
                    raise BundleError(msg)

    def _open(self, path: str, *, at: int = 0) -> Any:  # noqa: ANN401 - file systems have files of their own
        """The file from byte ``at`` on; over HTTP from 0 as one stream, which needs no ranges."""
        if at == 0:
            return self._files.open(self._at(path), "rb", **({"block_size": 0} if self._is_http else {}))
        file = self._files.open(self._at(path), "rb")
        file.seek(at)
        return file

    def _index(self) -> dict[str, list[int]] | None:
        """The index at the root; None: there is none."""
        with self._told(INDEX):
            try:
                with self._files.open(self._at(INDEX), "rb") as file:
                    raw = file.read(MAX_INDEX_BYTES)
            except FileNotFoundError:
                return None
        try:
            index = json.loads(raw)
            return {str(name): [int(version) for version in found] for name, found in index.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            msg = f"{self.url}/{INDEX}: {{name: [versions]}} is expected ({exc})"
            raise BundleError(msg) from exc

    def _marks(self, path: str) -> dict[str, Any]:
        with self._told(path):
            try:
                info = self._files.info(self._at(path))
            except FileNotFoundError:
                return {}
        return {mark: info[mark] for mark in MARKS if mark in info}

    def _parse(self, name: str, version: int, raw: bytes) -> ModelSpec:
        origin = f"{name}/{version}/{SPEC}"
        spec = parse_spec_bytes(raw, origin=origin)
        check_names(spec.files, origin=origin)
        check_place(self._cache / name / str(version), spec)
        return spec

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Errors of the file system, told as ours."""
        try:
            yield
        except SluiceError:
            raise
        except FileNotFoundError as exc:
            msg = f"{path}: not there in {self.url}; copy the bundle there, all of it"
            raise BundleError(msg) from exc
        except Exception as exc:  # each file system has errors of its own
            msg = f"{path}: cannot be read from {self.url} ({exc!r}); what has arrived is kept for the next try"
            raise RepositoryAway(msg) from exc


def redacted(url: str) -> str:
    """A URL without the password in it, for messages.

    Example:
        >>> redacted("https://me:secret@models.example/x?sig=abc")
        'https://models.example/x'

    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
