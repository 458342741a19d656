"""The trust store: digests of bundles that may run code when they are loaded.

A program of ``torch.export`` (``network.pt2``) is more than numbers: loading it evaluates expressions that stand in it,
and a doctored one has run a shell command. So it is loaded only when a person on this machine has said, of exactly
this bundle, that it may be: ``sluice model pack`` does so for what it packs itself, ``sluice model trust`` for others.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app.errors import BundleError, UnsafeBundle
from app.locked_files import alone, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_STORE_BYTES = 16 * 2**20
"""About 80,000 entries."""


@dataclass(frozen=True, slots=True)
class TrustEntry:
    """Why a bundle is trusted.

    Attributes:
        name: of the model.
        version: of the model.
        added_at: UTC, ISO 8601.
        note: who or what added it.

    """

    name: str
    version: int
    added_at: str
    note: str = ""


class TrustStore:
    """A JSON file ``{sha256: {name, version, added_at, note}}``, readable and writable by its owner alone.

    It is read anew for each question, so that a running worker sees what a person has just added.

    Args:
        path: the file; a missing one trusts nothing.

    Example:
        >>> from pathlib import Path
        >>> store = TrustStore(Path("/nonexistent/trusted-models.json"))
        >>> store.has("0" * 64)
        False

    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, sha256: str) -> bool:
        """Whether the bundle of this digest may be loaded.

        Raises:
            UnsafeBundle: others may write the store.
            BundleError: it cannot be read.

        """
        return sha256 in self.entries()

    def entries(self) -> dict[str, TrustEntry]:
        """All that is trusted, by digest.

        Raises:
            UnsafeBundle: others may write the store.
            BundleError: it cannot be read.

        """
        try:
            raw = self._read()
        except FileNotFoundError:
            return {}
        except OSError as exc:
            msg = f"trust store {self.path}: cannot be read ({exc.strerror}); correct its owner and mode (600)"
            raise BundleError(msg) from exc
        try:
            return {digest: _entry(fields) for digest, fields in json.loads(raw).items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            msg = f"trust store {self.path}: not what `sluice model trust` writes ({exc}); remove it and trust again"
            raise BundleError(msg) from exc

    def add(self, sha256: str, *, name: str, version: int, note: str = "") -> None:
        """Trust a bundle from now on.

        Raises:
            UnsafeBundle: others may write the store.
            BundleError: it cannot be read or written.

        """
        entry = TrustEntry(name, version, datetime.now(UTC).isoformat(timespec="seconds"), note)
        self._change(lambda entries: entries.update({sha256: entry}))

    def remove(self, sha256: str) -> None:
        """Trust a bundle no more; nothing happens when it was not trusted.

        Raises:
            UnsafeBundle: others may write the store.
            BundleError: it cannot be read or written.

        """
        self._change(lambda entries: entries.pop(sha256, None))

    def _read(self) -> bytes:
        """The bytes, after whoever could have written them is known to be its owner.

        Checked on the opened file, so that it cannot be swapped in between.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_STORE_BYTES:
                msg = f"trust store {self.path}: no plain file of at most {MAX_STORE_BYTES} bytes; remove it"
                raise BundleError(msg)
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                msg = f"trust store {self.path}: others may write it; look through it, then chmod 600 {self.path}"
                raise UnsafeBundle(msg)
            if status.st_uid not in (os.geteuid(), 0):
                msg = f"trust store {self.path}: belongs to another user, who could trust anything; name another store"
                raise UnsafeBundle(msg)
            self._check_folder()
            return file.read()

    def _check_folder(self) -> None:
        mode = self.path.parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            msg = f"trust store {self.path}: everybody may replace it; chmod o-w {self.path.parent}"
            raise UnsafeBundle(msg)

    def _change(self, change: Callable[[dict[str, TrustEntry]], object]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with alone(self.path.with_name(f"{self.path.name}.lock")):
                entries = self.entries()
                change(entries)
                document = {digest: asdict(entry) for digest, entry in sorted(entries.items())}
                write_atomically(self.path, json.dumps(document, indent=2) + "\n", mode=0o600)
        except OSError as exc:
            msg = f"trust store {self.path}: cannot be written ({exc.strerror}); name another (models.trust_store)"
            raise BundleError(msg) from exc


def _entry(fields: dict[str, Any]) -> TrustEntry:
    return TrustEntry(str(fields["name"]), int(fields["version"]), str(fields["added_at"]), str(fields.get("note", "")))
