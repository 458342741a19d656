"""Devices by name: which are there, which a model runs on, and when one is lost."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from app.errors import BundleError, DeviceLost, SettingsError

if TYPE_CHECKING:
    from app.models.spec import ModelSpec

NAME = re.compile(r"cpu|auto|cuda(:\d{1,3})?")


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices of a worker, one model instance each; a name that stands twice means two instances.

    Args:
        text: names with commas between them: ``cpu``, ``cuda:N``, ``cuda`` (that is ``cuda:0``), or ``auto``
            (``cuda:0`` when there is one, else ``cpu``).

    Raises:
        SettingsError: it is no such list, or a device is not there.

    Example:
        >>> parse_devices("cpu, cpu")
        ('cpu', 'cpu')

    """
    return tuple(choose_device(name.strip()) for name in text.split(","))


def choose_device(name: str) -> str:
    """The one device that a name means; ``cpu`` or ``cuda:N``.

    Raises:
        SettingsError: it is no name of a device, or the device is not there.

    """
    if not NAME.fullmatch(name):
        msg = f"models.device: {name!r} is no device; name cpu, cuda:N or auto, several with commas between them"
        raise SettingsError(msg)
    if name == "cpu":
        return name
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if there else "cpu"
    number = int(name.partition(":")[2] or 0)
    if number >= there:
        have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(there))])
        msg = f"models.device: {name} is not there (there are {have}); set SLUICE_MODELS__DEVICE=cpu, or auto"
        raise SettingsError(msg)
    return f"cuda:{number}"


def place(spec: ModelSpec, devices: tuple[str, ...]) -> tuple[str, ...]:
    """The devices on which a model gets an instance each.

    Args:
        spec: its ``device``, if any, pins it. The CPU is there for a model that asks for it, whatever the worker uses.
        devices: of the worker, as ``parse_devices`` gives them.

    Raises:
        BundleError: the worker does not have the device that the model is pinned to.

    Example:
        >>> from types import SimpleNamespace as Spec
        >>> place(Spec(device="cuda:1"), ("cuda:0", "cuda:1")), place(Spec(device=None), ("cpu", "cpu"))
        (('cuda:1',), ('cpu', 'cpu'))

    """
    pinned = spec.device
    if pinned is None:
        return devices
    found = tuple(device for device in devices if device == pinned or device.partition(":")[0] == pinned)
    if found or pinned == "cpu":
        return found or ("cpu",)
    msg = (
        f"{spec.name} version {spec.version}: model.yaml: device: pinned to {pinned}, and this worker uses"
        f" {', '.join(devices)}; add it to SLUICE_MODELS__DEVICE, or pack a version without device"
    )
    raise BundleError(msg)


def raise_if_lost(error: RuntimeError, device: str) -> None:
    """Turn an error of torch that is the device's fault into ``DeviceLost``; let the model's own pass.

    Args:
        error: what a run raised.
        device: where it ran.

    Raises:
        DeviceLost: the device is out of memory, or fails.

    Example:
        >>> raise_if_lost(RuntimeError("shapes do not fit"), "cuda:0")
        >>> raise_if_lost(torch.OutOfMemoryError("tried to allocate 2 GiB"), "cuda:0")
        Traceback (most recent call last):
        app.errors.DeviceLost: cuda:0: out of memory (tried to allocate 2 GiB); unload models, or choose smaller buckets

    """
    first_line = str(error).partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError):
        msg = f"{device}: out of memory ({first_line}); unload models, or choose smaller buckets"
        raise DeviceLost(msg) from error
    if isinstance(error, torch.AcceleratorError):
        # Whatever kernel failed, the CUDA context of this process gives nothing but errors from here on.
        msg = f"{device}: lost ({first_line}); restart the worker to use it again"
        raise DeviceLost(msg) from error
