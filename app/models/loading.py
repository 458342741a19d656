"""From a bundle to a network on its device, checked to fit the bundle's own signature."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from app.errors import BundleError
from app.models.architectures import build, skeleton
from app.models.bundle_files import EXPORTED
from app.models.exported import load_exported

if TYPE_CHECKING:
    from torch import nn

    from app.models.bundle import Bundle
    from app.preprocess import InputLayout

NAMED_AT_MOST = 8
"""Tensors that a message names."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a network computes in, by ``precision`` of ``model.yaml``."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network on its device.

    Attributes:
        module: ready to be called with its inputs by name.
        memory_bytes: its parameters and buffers.
        is_mapped: they are the bundle's file itself, which all processes of the machine share.

    """

    module: nn.Module
    memory_bytes: int
    is_mapped: bool


def load_network(bundle: Bundle, layout: InputLayout, samples: dict[str, torch.Tensor], device: str) -> Network:
    """The network of a bundle.

    Args:
        bundle: verified.
        layout: of the network's inputs.
        samples: inputs of the smallest bucket, on the CPU.
        device: ``cpu`` or ``cuda:N``.

    Raises:
        BundleError: the weights do not fit the architecture, or the program not the inputs.
        UnsafeBundle: it is a program of ``torch.export`` and not trusted.

    """
    if bundle.spec.weights == "pt2":
        # The bytes are had of a trusted bundle alone.
        title = f"{bundle.folder.name}/{EXPORTED}"
        module, is_mapped = load_exported(bundle.program(), samples, device, name=title), False
    else:
        module, is_mapped = _assembled(bundle, layout, device)
    return Network(module, memory_bytes(module), is_mapped)


def memory_bytes(module: nn.Module) -> int:
    """Bytes of its parameters and buffers; shared ones count once.

    Example:
        >>> from torch import nn
        >>> memory_bytes(nn.Linear(3, 2))
        32

    """
    tensors = {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _assembled(bundle: Bundle, layout: InputLayout, device: str) -> tuple[nn.Module, bool]:
    """The architecture around the bundle's weights, and whether these are still the file itself."""
    weights = bundle.weights()
    module = skeleton(bundle.spec, layout)
    faults = _weight_faults(module.state_dict(), weights)
    if faults:
        more = [f"{len(faults) - NAMED_AT_MOST} more"] if len(faults) > NAMED_AT_MOST else []
        shown = "; ".join([*faults[:NAMED_AT_MOST], *more])
        msg = f"{_title(bundle)}: weights do not fit the architecture: {shown}; pack weights and arguments together"
        raise BundleError(msg)
    module.load_state_dict(weights, assign=True)
    if any(tensor.is_meta for tensor in itertools.chain(module.parameters(), module.buffers())):
        # A buffer that is not part of the weights; the builder has to make it.
        module = build(bundle.spec, layout)
        module.load_state_dict(weights, assign=True)
    module = module.eval().requires_grad_(requires_grad=False).to(device, DTYPES[bundle.spec.precision])
    files = {tensor.data_ptr() for tensor in weights.values()}
    return module, all(tensor.data_ptr() in files for tensor in module.state_dict().values())


def _weight_faults(wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> list[str]:
    faults = [f"{name} {tuple(wanted[name].shape)} is missing" for name in wanted if name not in given]
    faults += [f"{name} {tuple(given[name].shape)} is not the network's" for name in given if name not in wanted]
    faults += [
        f"{name} has shape {tuple(given[name].shape)}, the network's is {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    return faults


def _title(bundle: Bundle) -> str:
    return f"{bundle.spec.name} version {bundle.spec.version}"
