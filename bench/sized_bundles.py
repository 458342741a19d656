"""Bundles of a wanted size, and whether their weights are in the page cache.

All of them take the same requests and compute the same: the size is that of an embedding of one hashed category, so
what differs between them is what a larger file costs.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import torch

from app.calibration import Calibration
from app.models.architectures import build
from app.models.bundle import open_bundle
from app.models.bundle_files import WEIGHTS
from app.models.packing import pack_bundle
from app.models.spec import Architecture, Feature, ModelSpec, Standardise
from bench.workload import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

    from app.models.bundle import Bundle

MODEL = "bench_sized"
EMBEDDING_DIM = 16
ROW_BYTES = 4 * EMBEDDING_DIM


def make_sized_bundle(repository: Path, version: int, megabytes: int) -> Bundle:
    """A version whose weights have about so many MB, other ones for each version; packed when it is not there yet."""
    folder = repository / MODEL / str(version)
    if not folder.exists():
        numbers = [Feature(name=f"f{i}", standardise=Standardise(mean=0, scale=1)) for i in range(FEATURES)]
        account = Feature(name="account", type="category", hash_buckets=megabytes * 1_000_000 // ROW_BYTES)
        spec = ModelSpec(
            name=MODEL,
            version=version,
            architecture=Architecture(
                name="tabular_mlp", arguments={"hidden": [64, 32], "embedding_dim": EMBEDDING_DIM}
            ),
            features=(*numbers, account),
        )
        torch.manual_seed(version)
        pack_bundle(repository, spec, build(spec), Calibration())
        _to_disk(folder / WEIGHTS)
    return open_bundle(folder)


def weights_mb(folder: Path) -> float:
    """Size of a bundle's weights."""
    return round((folder / WEIGHTS).stat().st_size / 1e6, 1)


def warm(folder: Path) -> float:
    """Read a bundle's weights into the page cache; returns the share that is there then."""
    with (folder / WEIGHTS).open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return cached_share(folder)


def evict(folder: Path) -> float:
    """Drop a bundle's weights from the page cache; returns the share that is there all the same.

    Pages that a process maps stay, so nobody may have the bundle loaded.
    """
    descriptor = os.open(folder / WEIGHTS, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return cached_share(folder)


def cached_share(folder: Path) -> float:
    """Share of a bundle's weights that is in the page cache, as ``fincore`` of util-linux tells."""
    path = folder / WEIGHTS
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return round(int(told) / path.stat().st_size, 3)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
