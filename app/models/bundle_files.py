"""The files of a bundle's folder: how they are called, how large they may be, and what is refused unread.

A folder is taken for hostile until it is verified: whoever may drop one into a repository must not be able to run
code, to make us read something else, to block us on a pipe, or to fill our memory.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from typing import TYPE_CHECKING

from app.errors import BundleError, DigestMismatch, UnsafeBundle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import BufferedReader
    from pathlib import Path

SPEC, WEIGHTS, EXPORTED = "model.yaml", "weights.safetensors", "network.pt2"
CALIBRATION, REFERENCE, PARITY = "calibration.json", "reference.parquet", "parity.parquet"

MEBIBYTE = 2**20
MAX_SPEC_BYTES = 4 * MEBIBYTE
"""It is read as a whole; a vocabulary of 100,000 words takes about 2 MiB."""
MAX_BUNDLE_BYTES = 16 * 2**30
"""All files together: what a device of today holds, twice."""
MAX_FILES = 64
"""A bundle has a handful; more only makes checking them slow."""
MAX_BYTES = {
    SPEC: MAX_SPEC_BYTES,
    CALIBRATION: 16 * MEBIBYTE,
    REFERENCE: 2048 * MEBIBYTE,
    PARITY: 256 * MEBIBYTE,
}
"""Files that are read into memory, by name; other files are bounded by ``MAX_BUNDLE_BYTES``, tokenizers like these."""
MAX_TOKENIZER_BYTES = 256 * MEBIBYTE

PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".pt2"}
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = MEBIBYTE


def refuse_unsafe(folder: Path) -> None:
    """Refuse a folder that holds anything but plain files, of which none may be a pickle.

    Raises:
        BundleError: it is no folder, holds a folder or a special file, or holds too much.
        UnsafeBundle: it, or the model's folder above it, is a link, or it holds a link or a pickle.

    """
    if folder.is_symlink() or not folder.is_dir():
        msg = f"{folder}: no such bundle folder (links are not followed)"
        raise BundleError(msg)
    if folder.parent.is_symlink():
        msg = f"{folder}: {folder.parent.name} is a link; the folders of models are plain folders, copy it instead"
        raise UnsafeBundle(msg)
    total, names = 0, dict[str, str]()
    for count, (path, status) in enumerate(_walk(folder), start=1):
        if count > MAX_FILES:
            msg = f"{folder.name}: more than {MAX_FILES} files; keep only those that {SPEC} names"
            raise BundleError(msg)
        _refuse_entry(folder, path, status)
        twin = names.setdefault(path.name.casefold(), path.name)
        if twin != path.name:
            msg = f"{folder.name}/{path.name}: differs from {twin} by case alone; rename one of them"
            raise BundleError(msg)
        total += status.st_size
    if total > MAX_BUNDLE_BYTES:
        msg = f"{folder.name}: {total} bytes, at most {MAX_BUNDLE_BYTES}; choose smaller weights or precision"
        raise BundleError(msg)


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Entries, and those of folders, which stand before their folder, so that a pickle in one is named as such."""
    for path in itertools.islice(folder.iterdir(), MAX_FILES + 1):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            yield from ((inner, inner.lstat()) for inner in itertools.islice(path.iterdir(), MAX_FILES + 1))
        yield path, status


def _refuse_entry(folder: Path, path: Path, status: os.stat_result) -> None:
    where = f"{folder.name}/{path.relative_to(folder)}"
    if stat.S_ISLNK(status.st_mode):
        msg = f"{where}: a link; a bundle holds plain files only"
        raise UnsafeBundle(msg)
    if path.suffix.lower() in PICKLES and path.name != EXPORTED:
        msg = f"{where}: pickles can run code when loaded; save the weights as safetensors"
        raise UnsafeBundle(msg)
    if stat.S_ISDIR(status.st_mode):
        msg = f"{where}: a folder; a bundle holds plain files only, remove it"
        raise BundleError(msg)
    if not stat.S_ISREG(status.st_mode):
        msg = f"{where}: the plain file of this name is missing, it is a pipe, socket or device; copy the bundle again"
        raise BundleError(msg)
    limit = limit_bytes(path.name)
    if status.st_size > limit:
        msg = f"{where}: {status.st_size} bytes, at most {limit}; pack the bundle with less in it"
        raise BundleError(msg)


def limit_bytes(name: str) -> int:
    """How large a file of this name may be, bytes.

    Example:
        >>> limit_bytes("model.yaml")
        4194304

    """
    if name in (WEIGHTS, EXPORTED):
        return MAX_BUNDLE_BYTES
    return MAX_BYTES.get(name, MAX_TOKENIZER_BYTES)


def check_names(files: Mapping[str, str], *, origin: str) -> None:
    """Refuse names that leave the folder, and digests that are none.

    Args:
        files: sha256 (hex) by name, as ``model.yaml`` has them.
        origin: how messages name ``model.yaml``.

    Raises:
        BundleError: a digest is none, names differ by case alone, or there are too many.
        UnsafeBundle: a name leads out of the folder.

    """
    for name, digest in files.items():
        if FILE_NAME.fullmatch(name) is None or name == SPEC:
            msg = f"{origin}: files: {name} lies outside the bundle, or is no plain name; name files of the folder"
            raise UnsafeBundle(msg)
        if DIGEST.fullmatch(digest) is None:
            msg = f"{origin}: files: {name}: a sha256 in 64 lower-case hex digits is expected; pack the bundle again"
            raise BundleError(msg)
    if len({name.casefold() for name in files}) < len(files):
        msg = f"{origin}: files: two names differ by case alone; rename one of them"
        raise BundleError(msg)
    if len(files) >= MAX_FILES:
        msg = f"{origin}: files: more than {MAX_FILES - 1}; pack the bundle with fewer"
        raise BundleError(msg)


def check_all_named(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse a file without a digest.

    Raises:
        BundleError: there is one.

    """
    for path in folder.iterdir():
        if path.name not in files and path.name != SPEC:
            msg = f"{folder.name}/{SPEC}: files: no digest for {path.name}; pack the bundle again, or remove the file"
            raise BundleError(msg)


def verify_file(folder: Path, name: str, expected: str) -> None:
    """Read a file and compare its digest.

    Raises:
        BundleError: it is missing or empty.
        DigestMismatch: it is another.

    """
    path = folder / name
    if not path.is_file():
        msg = f"{folder.name}/{name}: missing; copy the bundle again"
        raise BundleError(msg)
    if not path.stat().st_size:
        msg = f"{folder.name}/{name}: empty; copy the bundle again"
        raise BundleError(msg)
    if sha256_of(path) != expected:
        msg = f"{folder.name}/{name}: its sha256 is not the one in {SPEC}; copy or pack the bundle again"
        raise DigestMismatch(msg)


def open_plain(path: Path) -> BufferedReader:
    """A plain file for reading: neither a link nor, were it swapped for one just now, a pipe that blocks.

    Raises:
        UnsafeBundle: it is no plain file.
        OSError: it cannot be opened.

    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        msg = f"{path.parent.name}/{path.name}: no plain file; copy the bundle again"
        raise UnsafeBundle(msg)
    return file


def sha256_of(path: Path) -> str:
    """Hex digest of a plain file, read piece by piece.

    Cost: about 1 s a GiB when the file is in the page cache.
    """
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
