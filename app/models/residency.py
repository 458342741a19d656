"""Which models must go from a device so that another one fits; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.errors import DeviceFull

if TYPE_CHECKING:
    from collections.abc import Sequence

Key = tuple[str, int]
"""Name and version of a model."""


@dataclass(frozen=True, slots=True)
class Resident:
    """An instance of a loaded model; a model that goes takes all of its instances along.

    Attributes:
        key: name and version.
        device: where it is.
        memory_bytes: what it takes there, >= 0.
        last_used_s: monotonic.
        is_pinned: it never goes.

    """

    key: Key
    device: str
    memory_bytes: int
    last_used_s: float
    is_pinned: bool = False


def plan_unloads(residents: Sequence[Resident], *, device: str, needed_bytes: int, budget_bytes: int) -> list[Key]:
    """The models to unload, the least recently used first, and no more of them than needed.

    Args:
        residents: all that is loaded, on any device.
        device: where the new model goes.
        needed_bytes: what it takes.
        budget_bytes: what all models on the device may take.

    Raises:
        DeviceFull: it does not fit beside the pinned ones.

    Example:
        >>> loaded = [Resident(("a", 1), "cpu", 40, 1.0), Resident(("b", 1), "cpu", 40, 2.0)]
        >>> plan_unloads(loaded, device="cpu", needed_bytes=50, budget_bytes=100)
        [('a', 1)]

    """
    here = [resident for resident in residents if resident.device == device]
    free_bytes = budget_bytes - sum(resident.memory_bytes for resident in here)
    pinned = {resident.key for resident in here if resident.is_pinned}
    unloads: list[Key] = []
    for key in dict.fromkeys(r.key for r in sorted(here, key=lambda r: (r.last_used_s, r.key))):
        if free_bytes >= needed_bytes:
            break
        if key not in pinned:
            unloads.append(key)
            free_bytes += sum(resident.memory_bytes for resident in here if resident.key == key)
    if free_bytes >= needed_bytes:
        return unloads
    kept = (
        ", ".join(f"{r.key[0]} version {r.key[1]} ({_mib(r.memory_bytes)})" for r in here if r.key in pinned) or "none"
    )
    msg = (
        f"{device}: {_mib(needed_bytes)} do not fit into the budget of {_mib(budget_bytes)} beside the pinned models"
        f" ({kept or 'none'}); raise models.memory_mb, pin fewer, or use another device"
    )
    raise DeviceFull(msg)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
