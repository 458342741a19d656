"""Programs of ``torch.export``: a network that brings its own graph instead of naming an architecture.

Loading one evaluates expressions that stand in the file (see ``app.models.archive``), so nobody calls this for a bundle
that is not trusted.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import torch
from torch.export.passes import move_to_device_pass

from app.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from torch.export import ExportedProgram


def load_exported(
    source: Path | IO[bytes], samples: dict[str, torch.Tensor], device: str, *, name: str = ""
) -> nn.Module:
    """The program's network; it takes its inputs by name.

    Args:
        source: the file, or its bytes.
        samples: inputs of the smallest bucket, on the CPU: what the program must take.
        device: where it is to run.
        name: how messages call it; empty: as the path.

    Raises:
        BundleError: the file is no program of ``torch.export``, or the program takes other inputs.

    """
    where = name or str(source)
    try:
        program = torch.export.load(source)
    except Exception as exc:
        msg = f"{where}: torch {torch.__version__} cannot load it ({exc}); export and pack it again with this torch"
        raise BundleError(msg) from exc
    faults = _input_faults(program, samples)
    if faults:
        msg = f"{where}: the program takes other inputs than model.yaml gives: {'; '.join(faults)}; export it again"
        raise BundleError(msg)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    return program.module()


def skip_input_checks(network: Any) -> None:  # noqa: ANN401 - a torch.nn.Module would take tensors alone
    """Let a network that ``load_exported`` gave no longer look at each run whether its inputs fit.

    For when it has run every bucket: the looking costs 160 us a run, a small network itself 30 us.
    """
    network.validate_inputs = False


def _input_faults(program: ExportedProgram, samples: dict[str, torch.Tensor]) -> list[str]:
    """Where the program's inputs and the given ones differ; a dimension that is a symbol takes any size."""
    names = program.call_spec.in_spec.child(1).context
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    # Arguments without names come first; a program that has them takes none of ours.
    leaves = program.graph_signature.user_inputs[-len(names) :] if names else ()
    taken = {name: placeholders[str(leaf)] for name, leaf in zip(names, leaves, strict=True)}
    keywords = ", ".join(taken) or "none"
    faults = [f"{name}: not among its keyword arguments ({keywords})" for name in samples if name not in taken]
    faults += [f"{name}: model.yaml gives no such input" for name in taken if name not in samples]
    for name in (name for name in samples if name in taken):
        wanted, sample = taken[name], samples[name]
        is_same = len(wanted.shape) == len(sample.shape) and all(
            not isinstance(size, int) or size == have for size, have in zip(wanted.shape, sample.shape, strict=True)
        )
        if not is_same or wanted.dtype != sample.dtype:
            faults.append(f"{name}: expected {_shown(wanted)}, got {_shown(sample)}")
    return faults


def _shown(tensor: torch.Tensor) -> str:
    sizes = ", ".join(str(size) if isinstance(size, int) else "any" for size in tensor.shape)
    return f"{str(tensor.dtype).removeprefix('torch.')} ({sizes})"
