"""What is trusted is written whole, read anew each time, and believed only when nobody else can have written it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from app.errors import BundleError, UnsafeBundle
from app.models.trust import TrustStore

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "a" * 64


@pytest.fixture
def store(tmp_path: Path) -> TrustStore:
    """A store that names one bundle."""
    store = TrustStore(tmp_path / "deep" / "trusted-models.json")
    store.add(DIGEST, name="sample", version=3, note="packed here")
    return store


def test_what_is_added_is_trusted_until_it_is_removed(store: TrustStore) -> None:
    """Another reader of the same file sees it at once, with when and why."""
    other = TrustStore(store.path)
    assert other.has(DIGEST)
    assert not other.has("b" * 64)
    entry = other.entries()[DIGEST]
    assert (entry.name, entry.version, entry.note) == ("sample", 3, "packed here")
    assert entry.added_at.endswith("+00:00")
    store.remove(DIGEST)
    store.remove(DIGEST)
    assert not other.has(DIGEST)


def test_without_a_file_nothing_is_trusted(tmp_path: Path) -> None:
    """Asking creates none."""
    assert not TrustStore(tmp_path / "none.json").has(DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_may_read_and_write_it(store: TrustStore) -> None:
    """Whatever the umask."""
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert json.loads(store.path.read_text())[DIGEST].keys() == {"name", "version", "added_at", "note"}


@pytest.mark.parametrize("mode", [0o602, 0o620])
def test_a_store_that_others_may_write_is_refused(store: TrustStore, mode: int) -> None:
    """It is neither believed nor added to; the message says what to do."""
    store.path.chmod(mode)
    with pytest.raises(UnsafeBundle, match="others may write it; look through it, then chmod 600"):
        store.has(DIGEST)
    with pytest.raises(UnsafeBundle, match="others may write it"):
        store.add("b" * 64, name="sample", version=4)


def test_a_store_in_a_folder_that_everybody_may_write_is_refused(store: TrustStore) -> None:
    """Anybody could put another file in its place; a sticky folder, such as /tmp, prevents that."""
    store.path.parent.chmod(0o777)
    with pytest.raises(UnsafeBundle, match="everybody may replace it"):
        store.has(DIGEST)
    store.path.parent.chmod(0o1777)
    assert store.has(DIGEST)


def test_a_linked_store_is_refused(store: TrustStore, tmp_path: Path) -> None:
    """A link may lead elsewhere tomorrow."""
    (tmp_path / "link.json").symlink_to(store.path)
    with pytest.raises(BundleError, match="cannot be read"):
        TrustStore(tmp_path / "link.json").has(DIGEST)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"name": "x"}}', "\ud800", "[" * 50_000])
def test_what_is_no_store_is_refused(store: TrustStore, text: str) -> None:
    """A damaged store trusts nothing, and says so instead of being silently replaced."""
    store.path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match="not what `sluice model trust` writes"):
        store.has(DIGEST)


def test_two_who_add_at_once_both_get_in(store: TrustStore) -> None:
    """Processes that add at the same time do not lose each other's entries."""
    code = (
        "import sys; from pathlib import Path; from app.models.trust import TrustStore\n"
        "for i in range(5): TrustStore(Path(sys.argv[1])).add(sys.argv[2] * 63 + str(i), name='m', version=1)"
    )
    adding = [subprocess.Popen([sys.executable, "-c", code, store.path, who]) for who in "bcd"]
    assert [process.wait(timeout=60) for process in adding] == [0, 0, 0]
    assert len(store.entries()) == 16
