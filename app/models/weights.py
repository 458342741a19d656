"""Weights from a safetensors file: mapped, not copied, so that all processes of a machine share their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from app.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

CHECKED_ELEMENTS = 2**20
"""Elements that are looked at in one piece: ``isfinite`` of a gigabyte at once would need another quarter of one."""


def mapped_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors by name, on the CPU, checked to be finite.

    Their memory is the file's: ``load_state_dict(..., assign=True)`` keeps it so, and a tensor that is written to gets
    pages of its own. The file must not be shortened while they live; versions are never edited in place.

    Raises:
        BundleError: the file is no safetensors file, or a weight is NaN or infinite.

    Cost: one pass over the file, about 0.2 s a GiB on one thread.

    """
    where = f"{path.parent.name}/{path.name}"
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError) as exc:
        msg = f"{where}: not a safetensors file ({exc}); pack the bundle again"
        raise BundleError(msg) from exc
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            msg = f"{where}: {name} holds NaN or infinite numbers; train again"
            raise BundleError(msg)
    return tensors


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return all(_piece_is_finite(piece) for piece in torch.split(tensor.flatten(), CHECKED_ELEMENTS))


def _piece_is_finite(piece: torch.Tensor) -> bool:
    # One number that is none makes the sum one too, and a sum costs an eighth of looking at each. A sum may also
    # overflow, in 16 and 8 bits soon; then each is looked at.
    wide = piece if piece.element_size() >= 4 else piece.float()
    return bool(wide.sum().isfinite()) or bool(wide.isfinite().all())
