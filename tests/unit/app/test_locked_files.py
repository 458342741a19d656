"""Files that several processes write are never half written, and never written by two at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from app.locked_files import alone, write_atomically

if TYPE_CHECKING:
    from pathlib import Path


def test_a_write_replaces_the_whole(tmp_path: Path) -> None:
    """With the permissions asked for, whatever the umask and the old file's were."""
    path = tmp_path / "x"
    write_atomically(path, "old", mode=0o644)
    write_atomically(path, "new", mode=0o600)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    """And no draft behind."""
    path = tmp_path / "x"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_one_goes_on_while_the_others_wait(tmp_path: Path) -> None:
    """Without the lock, some of these would read what another is about to replace."""
    path = tmp_path / "count"
    path.write_text("0")

    def count() -> None:
        for _ in range(20):
            with alone(tmp_path / "lock"):
                path.write_text(str(int(path.read_text()) + 1))

    counting = [threading.Thread(target=count) for _ in range(4)]
    for thread in counting:
        thread.start()
    for thread in counting:
        thread.join()
    assert path.read_text() == "80"
