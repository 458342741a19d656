"""An exported program is told from what can run code by its entries, without loading any of it."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from app.errors import BundleError, UnsafeBundle
from app.models.archive import check_archive, refuse_disguised, strip_archive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class _Doubler(nn.Module):
    """A weight, a constant and a buffer: every kind of part that an archive has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.register_buffer("offset", torch.ones(1))
        self.two = torch.tensor([2.0])

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.linear(numbers).squeeze(1) * self.two + self.offset


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program as torch.export.save writes it."""
    path = tmp_path_factory.mktemp("exported") / "any.pt2"
    program = torch.export.export(
        _Doubler().eval(),
        (),
        kwargs={"numbers": torch.zeros(2, 2)},
        dynamic_shapes={"numbers": {0: torch.export.Dim("n")}},
    )
    torch.export.save(program, path)
    return path


@pytest.fixture
def packed(exported: Path, tmp_path: Path) -> Path:
    """It, as a bundle holds it."""
    strip_archive(exported, tmp_path / "network.pt2")
    return tmp_path / "network.pt2"


def _rewrite(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Change the entries of an archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _pickled(entries: dict[str, bytes], table: str) -> None:
    """Say of every tensor of a table that it is a pickle."""
    name = next(entry for entry in entries if entry.endswith(table))
    document: dict[str, Any] = json.loads(entries[name])
    for payload in document["config"].values():
        payload["use_pickle"] = True
    entries[name] = json.dumps(document).encode()


def test_a_packed_program_has_no_pickle_and_works(exported: Path, packed: Path) -> None:
    """Example inputs are gone, results are the same bits."""
    check_archive(packed)
    with zipfile.ZipFile(packed) as archive:
        assert not [name for name in archive.namelist() if archive.read(name)[:2] == b"\x80\x02"]
        assert not [name for name in archive.namelist() if archive.read(name)[:2] == b"PK"]
    numbers = torch.randn(5, 2)
    before, after = (torch.export.load(path).module()(numbers=numbers) for path in (exported, packed))
    assert torch.equal(before, after)


def test_the_same_program_gives_the_same_bytes(exported: Path, packed: Path, tmp_path: Path) -> None:
    """So the digest of a bundle says something about its program."""
    strip_archive(exported, tmp_path / "again.pt2")
    assert (tmp_path / "again.pt2").read_bytes() == packed.read_bytes()


def test_example_inputs_are_refused_with_the_remedy(exported: Path) -> None:
    """They are a pickle, which torch.export.load reads without restraint."""
    with pytest.raises(UnsafeBundle, match=r"pickled example inputs .*`sluice model pack`, which drops them"):
        check_archive(exported)


ROOT = "any/"
HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "pickled weights": (lambda e: _pickled(e, "weights_config.json"), "is stored as a pickle"),
    "pickled constants": (lambda e: _pickled(e, "constants_config.json"), "is stored as a pickle"),
    "a script object": (lambda e: e.update({f"{ROOT}data/constants/custom_obj_0": b"x"}), "no part of a plain"),
    "an opaque object": (lambda e: e.update({f"{ROOT}data/constants/opaque_obj_0": b"x"}), "no part of a plain"),
    "weights of an older format": (lambda e: e.update({f"{ROOT}data/weights/model.pt": b"x"}), "no part of a plain"),
    "machine code": (lambda e: e.update({f"{ROOT}data/aotinductor/model/a.so": b"x"}), "no part of a plain"),
    "TorchScript beside it": (
        lambda e: e.update({f"{ROOT}code/x.py": b"x", f"{ROOT}constants.pkl": b""}),
        "TorchScript",
    ),
    "a pickle beside it": (lambda e: e.update({f"{ROOT}data.pkl": b"x"}), "a pickle of torch.save"),
    "two archives": (lambda e: e.update({"other/models/model.json": b"{}"}), "entries of several archives"),
    "no format": (lambda e: e.pop(f"{ROOT}archive_format"), "no archive of torch.export"),
    "another format": (lambda e: e.update({f"{ROOT}archive_format": b"pt3"}), "no archive of torch.export"),
    "no graph": (lambda e: e.pop(f"{ROOT}models/model.json"), "no archive of torch.export"),
    "a table that is none": (
        lambda e: e.update({f"{ROOT}data/weights/model_weights_config.json": b"[1]"}),
        "no archive of torch.export",
    ),
    "a table of nothing": (
        lambda e: e.update({f"{ROOT}data/weights/model_weights_config.json": b'{"config": {"w": 1}}'}),
        "no archive of torch.export",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_doctored_archive_is_refused(packed: Path, name: str) -> None:
    """Each for its own reason."""
    change, message = HOSTILE[name]
    _rewrite(packed, change)
    with pytest.raises(BundleError, match=message):
        check_archive(packed)


def test_torchscript_and_pickles_are_refused_under_any_name(tmp_path: Path) -> None:
    """A zip of torch.save or torch.jit.save is no exported program, whatever it is called."""
    path = tmp_path / "network.pt2"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(UnsafeBundle, match=r"a pickle of torch\.save \(data\.pkl\)"):
        check_archive(path)
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save names its parts
        for part in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"archive/{part}", b"")
    with pytest.raises(UnsafeBundle, match="TorchScript"):
        check_archive(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(30), pickle.dumps([1]), b"{}"])
def test_what_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    """Also what begins like one."""
    (tmp_path / "network.pt2").write_bytes(content)
    with pytest.raises(BundleError, match=r"no archive of torch\.export"):
        check_archive(tmp_path / "network.pt2")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that unpacks to more than it may is not read."""
    monkeypatch.setattr("app.models.archive.MAX_CONFIG_BYTES", 2**22)
    path, bomb = tmp_path / "network.pt2", io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/archive_format", b"pt2")
        archive.writestr("a/models/model.json", b"{}")
        with archive.open("a/data/weights/model_weights_config.json", "w") as entry:
            entry.write(bytes(2**22 + 1))
    path.write_bytes(bomb.getvalue())
    assert path.stat().st_size < 2**16
    with pytest.raises(BundleError, match="has more than 4194304 bytes"):
        check_archive(path)


@pytest.mark.parametrize("name", ["tokenizer.json", "reference.parquet", "notes"])
@pytest.mark.parametrize("content", [pickle.dumps([1], 2), pickle.dumps([1], 5), b"PK\x03\x04rest"])
def test_a_pickle_under_another_name_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Its first bytes tell."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsafeBundle, match="not what its name says but a pickle"):
        refuse_disguised(tmp_path / name)


def test_safetensors_may_begin_like_a_pickle(tmp_path: Path) -> None:
    """A header of 0x280 bytes does; its reader tells what it is."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes((0x280).to_bytes(8, "little") + b"{")
    refuse_disguised(path)
    path.write_bytes(b"PK\x03\x04rest")
    with pytest.raises(UnsafeBundle, match="not a safetensors file"):
        refuse_disguised(path)
