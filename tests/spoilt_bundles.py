"""Bundles gone bad, one way each: what a repository may hold, and no worker may serve."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from app.models.bundle_files import EXPORTED, SPEC, WEIGHTS, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def edit_spec(folder: Path, **changes: Any) -> None:  # noqa: ANN401 - any values of model.yaml
    """Change keys of ``model.yaml``; None removes one."""
    document = yaml.safe_load((folder / SPEC).read_text())
    document |= changes
    kept = {key: value for key, value in document.items() if value is not None}
    (folder / SPEC).write_text(yaml.safe_dump(kept))


def vouch(folder: Path, name: str) -> None:
    """Name a file's digest in ``model.yaml``, as whoever packs by hand would."""
    files = yaml.safe_load((folder / SPEC).read_text())["files"]
    edit_spec(folder, files={**files, name: sha256_of(folder / name)})


def fill_weights(folder: Path, value: float) -> None:
    """Give every weight one value, and vouch for it."""
    state = {name: torch.full_like(tensor, value) for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    save_file(state, folder / WEIGHTS)
    vouch(folder, WEIGHTS)


def _flip(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def half_copy(folder: Path) -> None:
    """Leave the first half of the weights."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def _disguise_pickle(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"weight": 1}))
    vouch(folder, WEIGHTS)


def _program(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / EXPORTED)
    files = yaml.safe_load((folder / SPEC).read_text())["files"]
    files[EXPORTED] = files.pop(WEIGHTS)
    edit_spec(folder, weights="pt2", architecture=None, files=files)


def _link_out(folder: Path) -> None:
    outside = folder.parents[1] / f"outside-{folder.name}"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def _reshape(folder: Path) -> None:
    edit_spec(folder, architecture={"name": "tabular_mlp", "arguments": {"hidden": [5], "embedding_dim": 4}})


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "corrupt": (_flip, r"weights\.safetensors: .*sha256|digest"),
    "half copied": (half_copy, r"weights\.safetensors"),
    "a file is missing": (lambda folder: (folder / WEIGHTS).unlink(), r"weights\.safetensors"),
    "no model.yaml yet": (lambda folder: (folder / SPEC).unlink(), r"no readable model\.yaml"),
    "NaN weights": (lambda folder: fill_weights(folder, float("nan")), "holds NaN or infinite numbers"),
    "infinite answers": (lambda folder: fill_weights(folder, 3e38), "not finite"),
    "not trusted": (_program, "not in the trust store"),
    "a pickle": (_disguise_pickle, "pickle|not a safetensors file"),
    "a link": (_link_out, "link"),
    "wrong shapes": (_reshape, "shape|fit"),
    "too slow": (lambda folder: edit_spec(folder, max_run_ms=1e-9), "too slow"),
    "another's name": (lambda folder: edit_spec(folder, name="other"), "says other version"),
    "another's version": (lambda folder: edit_spec(folder, version=77), "says .* version 77"),
    "an unknown key": (lambda folder: edit_spec(folder, surprise=1), "surprise"),
}
"""How to spoil the bundle in a folder, and what the reason says."""
