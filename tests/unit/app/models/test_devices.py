"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from app.errors import BundleError, SettingsError
from app.models.devices import parse_devices, place
from tests.samples import sample_spec


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had two CUDA devices; only their number is looked at."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cpu", ("cpu",)),
        ("cuda", ("cuda:0",)),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        (" cuda:1 , cpu,cpu", ("cuda:1", "cpu", "cpu")),
        ("auto", ("cuda:0",)),
    ],
)
def test_a_list_names_an_instance_each(text: str, devices: tuple[str, ...]) -> None:
    """In the order of the list; a name that stands twice counts twice."""
    assert parse_devices(text) == devices


def test_auto_takes_what_is_there() -> None:
    """CUDA when there is one, else the CPU."""
    assert parse_devices("auto") == (("cuda:0",) if torch.cuda.is_available() else ("cpu",))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda:2", r"cuda:2 is not there \(there are cpu, cuda:0, cuda:1\); set SLUICE_MODELS__DEVICE=cpu, or auto"),
        ("cpu,,cpu", "'' is no device"),
        ("gpu", "'gpu' is no device; name cpu, cuda:N or auto"),
        ("cuda:", "'cuda:' is no device"),
        ("cpu cuda:0", "'cpu cuda:0' is no device; .* with commas between"),
    ],
)
def test_what_is_no_list_of_devices_is_refused(text: str, message: str) -> None:
    """Silently serving on another device would miss every budget."""
    with pytest.raises(SettingsError, match=message):
        parse_devices(text)


def test_without_cuda_only_the_cpu_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the message says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"cuda:0 is not there \(there are cpu\)"):
        parse_devices("cpu,cuda:0")


@pytest.mark.parametrize(
    ("pinned", "placed"),
    [
        (None, ("cuda:0", "cuda:1", "cuda:1")),
        ("cuda", ("cuda:0", "cuda:1", "cuda:1")),
        ("cuda:1", ("cuda:1", "cuda:1")),
        ("cpu", ("cpu",)),
    ],
)
def test_a_pin_narrows_the_list(pinned: str | None, placed: tuple[str, ...]) -> None:
    """The CPU is always there for who asks for it."""
    assert place(sample_spec(device=pinned), ("cuda:0", "cuda:1", "cuda:1")) == placed


def test_a_pin_to_what_the_worker_does_not_use_is_refused() -> None:
    """With both devices and what to do."""
    message = r"sample version 3: model.yaml: device: pinned to cuda:3, and this worker uses cpu, cuda:0; add it to SLU"
    with pytest.raises(BundleError, match=message):
        place(sample_spec(device="cuda:3"), ("cpu", "cuda:0"))
