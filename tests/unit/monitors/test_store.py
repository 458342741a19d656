"""The store: all of a step or nothing, one owner, and nothing lost by kill -9."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from monitors.join import TALLIES
from monitors.store import Meta, PartitionStore, StoreError, StoreInUse, WindowKey, index_entry

ROOT = Path(__file__).parents[3]
WRITER = """
import sys
from pathlib import Path
from monitors.store import PartitionStore
store = PartitionStore(Path(sys.argv[1]))
meta = store.meta()
print("open", flush=True)
while True:
    step = meta.predictions_offset
    meta.predictions_offset, meta.outcomes_offset = step + 1, step + 1
    meta.tallies["joined"] += 50
    rows = [(b"e%d-%d" % (step, k), b"%d" % step) for k in range(50)]
    store.write(rows, [b"e%d-%d" % (step - 3, k) for k in range(50)], meta)
    print(step, flush=True)
"""


def test_what_is_written_is_read_again_by_the_next_owner(tmp_path: Path) -> None:
    """Entries, positions, clocks and counters survive closing; deleted ones are gone."""
    store = PartitionStore(tmp_path / "p")
    assert store.meta() == Meta()
    meta = Meta(5, 7, 1000, 900, dict.fromkeys(TALLIES, 3))
    store.write([(b"ea", b"1"), (b"eb", b"2")], [], meta)
    store.write([], [b"ea"], meta)
    store.close()
    again = PartitionStore(tmp_path / "p")
    assert again.meta() == meta
    assert again.entries([b"a", b"b", b"c"]) == {b"a": None, b"b": b"2", b"c": None}
    again.close()


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    """The lock is the fence; the message names the folder and what to do."""
    store = PartitionStore(tmp_path / "p")
    with pytest.raises(StoreInUse, match="open in another process"):
        PartitionStore(tmp_path / "p")
    store.close()
    PartitionStore(tmp_path / "p").close()


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    """A damaged store says that it can be deleted, and why that loses nothing."""
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "CURRENT").write_text("nonsense")
    with pytest.raises(StoreError, match="rebuilds it from the topics"):
        PartitionStore(folder)


def test_another_version_of_the_store_is_refused() -> None:
    """Positions of another layout are never guessed."""
    with pytest.raises(StoreError, match="another version"):
        Meta.unpack(b"short")


def test_expiry_reads_due_buckets_only_and_comes_back_for_late_ones(tmp_path: Path) -> None:
    """Ids come bucket by bucket up to the limit; a bucket written again behind the cursor is found."""
    store = PartitionStore(tmp_path / "p")
    puts = [index_entry(bucket, b"p", bucket, [b"r%d" % bucket, b""]) for bucket in range(5)]
    store.write(puts, [], Meta())
    assert store.due(0, 100) == ([], [])
    ids, keys = store.due(3, 3)
    assert ids == [b"r0", b"", b"r1", b""]
    store.write([], keys, Meta())
    ids, keys = store.due(3, 100)
    assert ids == [b"r2", b""]
    store.write([index_entry(1, b"o", 99, [b"late"])], keys, Meta())
    assert store.due(4, 100)[0] == [b"r3", b""]
    store.reopen_bucket(1)
    assert store.due(4, 100)[0] == [b"late", b"r3", b""]
    store.close()


@pytest.mark.parametrize("name", ["a", "flight_delays"])
def test_window_keys_sort_by_model_version_and_start(name: str) -> None:
    """The order of the bytes is the order of the keys, and they come back."""
    keys = [WindowKey(name, v, s) for v in (1, 2, 300) for s in (0, 5, 2**40)]
    assert sorted(keys, key=WindowKey.pack) == keys
    assert [WindowKey.unpack(key.pack()) for key in keys] == keys


def test_kill_minus_nine_leaves_state_and_offsets_together(tmp_path: Path) -> None:
    """Killed in the middle of writing, five times: what the offsets say is there, and nothing else is."""
    seen = -1
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "p")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            for _ in range(40):
                seen = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        store = PartitionStore(tmp_path / "p")
        meta = store.meta()
        assert meta.predictions_offset == meta.outcomes_offset > seen
        assert meta.tallies["joined"] == 50 * meta.predictions_offset
        last = meta.predictions_offset - 1
        expected = {b"%d-%d" % (s, k): b"%d" % s for s in range(last - 2, last + 1) for k in range(50)}
        assert dict(store.scan(b"e")) == expected
        store.close()
