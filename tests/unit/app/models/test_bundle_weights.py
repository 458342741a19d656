"""Weights are the file's own pages: processes share them, and nothing is copied to look at them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import BundleError
from app.models.bundle_files import WEIGHTS
from app.models.weights import CHECKED_ELEMENTS, mapped_weights

MEBIBYTES = 64
READER = """
import sys
from pathlib import Path
from app.models.weights import mapped_weights
tensors = mapped_weights(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
"""


def _pages(pid: int, path: Path) -> dict[str, int]:
    """KiB of a process's pages of a file, by kind."""
    pages: dict[str, int] = {}
    is_inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if not name.isidentifier():
            is_inside = line.endswith(str(path))
        elif is_inside and rest.endswith("kB"):
            pages[name] = pages.get(name, 0) + int(rest.split()[0])
    return pages


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="pages are counted by Linux")
def test_two_processes_have_the_weights_in_memory_once(tmp_path: Path) -> None:
    """Each has mapped all of the file, and half of its cost is charged to each."""
    path = tmp_path / WEIGHTS
    save_file({"a": torch.randn(MEBIBYTES * 2**18)}, path)
    command = [sys.executable, "-c", READER, path]
    readers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        pages = [_pages(reader.pid, path) for reader in readers]
    finally:
        for reader in readers:
            reader.communicate("\n", timeout=60)
    for seen in pages:
        assert seen["Rss"] >= MEBIBYTES * 1024
        assert seen["Pss"] < 0.55 * MEBIBYTES * 1024
        assert seen["Anonymous"] == 0, "a copy of our own"


def test_the_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    """All types, also empty ones and single numbers."""
    tensors = {
        "f32": torch.randn(3, 4),
        "bf16": torch.randn(5).to(torch.bfloat16),
        "f8": torch.randn(5).to(torch.float8_e4m3fn),
        "i64": torch.arange(4),
        "flag": torch.tensor([True]),
        "one": torch.tensor(1.5),
        "none": torch.zeros(0, 3),
    }
    save_file(tensors, tmp_path / WEIGHTS)
    loaded = mapped_weights(tmp_path / WEIGHTS)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name].float(), tensor.float()) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("place", [0, CHECKED_ELEMENTS - 1, CHECKED_ELEMENTS, CHECKED_ELEMENTS + 6])
def test_one_number_that_is_none_is_found_wherever_it_is(tmp_path: Path, dtype: torch.dtype, place: int) -> None:
    """At the first and last place of each piece that is looked at, in every type."""
    tensor = torch.zeros(CHECKED_ELEMENTS + 7)
    tensor[place] = torch.nan
    save_file({"fine": torch.ones(1), "spoilt": tensor.to(dtype)}, tmp_path / WEIGHTS)
    with pytest.raises(BundleError, match="spoilt holds NaN or infinite numbers; train again"):
        mapped_weights(tmp_path / WEIGHTS)


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    """Their sum is infinite, they are not."""
    tensors = {"f32": torch.full((9,), 3e38), "f16": torch.full((9,), 65504.0, dtype=torch.float16)}
    save_file(tensors, tmp_path / WEIGHTS)
    assert mapped_weights(tmp_path / WEIGHTS).keys() == tensors.keys()


@pytest.mark.parametrize("cut", [0, 4, 50, -1])
def test_half_a_file_is_refused(tmp_path: Path, cut: int) -> None:
    """The header says how long the file must be."""
    save_file({"a": torch.ones(100)}, tmp_path / WEIGHTS)
    assert load_file(tmp_path / WEIGHTS)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:cut])
    with pytest.raises(BundleError, match="not a safetensors file"):
        mapped_weights(tmp_path / WEIGHTS)
