"""A bundle is written whole, read back the same, and refused for every way in which it can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from app.calibration import Calibration
from app.errors import BundleError, DigestMismatch, UnsafeBundle
from app.models.bundle import open_bundle, read_spec, versions
from app.models.bundle_files import CALIBRATION, MAX_SPEC_BYTES, REFERENCE, SPEC, WEIGHTS
from app.models.packing import pack_bundle
from app.models.repository import open_repository
from app.models.runtime import ScoringModel
from app.models.trust import TrustStore
from tests.samples import pack_sample, sample_module, sample_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh sample bundle that may be spoiled."""
    return pack_sample(tmp_path / "models")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``model.yaml``."""
    document = yaml.safe_load((folder / SPEC).read_text())
    change(document)
    plain = json.loads(json.dumps(document))  # copied: what stands twice would be written as an alias
    (folder / SPEC).write_text(yaml.safe_dump(plain))


def _replace(folder: Path, name: str, content: bytes) -> None:
    """Change a file and vouch for it, as somebody would who packs a bundle by hand."""
    (folder / name).write_bytes(content)
    _edit(folder, lambda d: d["files"].update({name: hashlib.sha256(content).hexdigest()}))


def _reweigh(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    _replace(folder, WEIGHTS, (folder / WEIGHTS).read_bytes())


def test_what_is_packed_is_opened_the_same(tmp_path: Path) -> None:
    """Specification, weights, calibration and reference come back equal, digests name the files."""
    spec, calibration = sample_spec(), Calibration("isotonic", x=(0.0, 0.4, 1.0), y=(0.1, 0.1, 0.9))
    module = sample_module(spec)
    reference = pd.DataFrame({"distance": [1.5, np.nan], "carrier": ["AA", None], "score": [0.1, 0.2]})
    folder = pack_bundle(tmp_path, spec, module, calibration, reference)
    assert folder == tmp_path / "sample" / "3"
    assert sorted(p.name for p in folder.iterdir()) == sorted([SPEC, WEIGHTS, CALIBRATION, REFERENCE])
    bundle = open_bundle(folder)
    assert bundle.spec.model_copy(update={"files": {}}) == spec
    assert bundle.calibration == calibration
    assert {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in bundle.spec.files} == bundle.spec.files
    assert bundle.sha256 == hashlib.sha256((folder / SPEC).read_bytes()).hexdigest()
    weights = bundle.weights()
    assert weights.keys() == module.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in module.state_dict().items())
    pd.testing.assert_frame_equal(pd.read_parquet(bundle.reference_path), reference)


def test_digests_tell_what_changed(tmp_path: Path) -> None:
    """Other features change the digest of preprocessing, another calibration that of the calibration, and no other."""
    first = open_bundle(pack_sample(tmp_path))
    features = (first.spec.features[0].model_copy(update={"utc_offset_minutes": 60}), *first.spec.features[1:])
    other = open_bundle(pack_sample(tmp_path, sample_spec(version=4, features=features)))
    assert other.preprocess_sha256 != first.preprocess_sha256
    assert other.calibration_sha256 == first.calibration_sha256
    spec = sample_spec(version=5)
    recalibrated = open_bundle(
        pack_bundle(tmp_path, spec, sample_module(spec), Calibration(), pd.DataFrame({"a": [1]}))
    )
    assert recalibrated.calibration_sha256 != first.calibration_sha256
    assert recalibrated.preprocess_sha256 == first.preprocess_sha256


def test_a_version_is_never_overwritten(folder: Path) -> None:
    """The second pack is refused, names the next step, and leaves the first as it was."""
    before = (folder / SPEC).read_bytes()
    with pytest.raises(BundleError, match="choose the next version"):
        pack_sample(folder.parents[1])
    assert (folder / SPEC).read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["3"]


def test_a_pack_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """Half a bundle is never seen."""
    spec = sample_spec()
    with pytest.raises(AttributeError):
        pack_bundle(tmp_path, spec, sample_module(spec), Calibration(), 7)  # type: ignore[arg-type]
    assert list((tmp_path / spec.name).iterdir()) == []


def test_the_newest_version_is_found(tmp_path: Path) -> None:
    """By number, not by name; drafts and strangers do not count."""
    for version in (9, 10):
        pack_sample(tmp_path, sample_spec(version=version))
    (tmp_path / "sample" / "11").write_text("a file")
    (tmp_path / "sample" / "012").mkdir()
    (tmp_path / "sample" / ".12-draft").mkdir()
    assert versions(tmp_path, "sample") == [9, 10]
    repository = open_repository(tmp_path, cache=tmp_path / "cache", trust=TrustStore(tmp_path / "trust.json"))
    assert repository.latest("sample") == 10
    assert versions(tmp_path, "nobody") == []
    with pytest.raises(BundleError, match=r"no model nobody .*models\.repository"):
        repository.latest("nobody")


@pytest.mark.parametrize("name", [WEIGHTS, CALIBRATION, REFERENCE])
def test_a_file_that_is_not_the_one_packed_is_refused(folder: Path, name: str) -> None:
    """One flipped bit is enough."""
    raw = bytearray((folder / name).read_bytes())
    raw[-1] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(DigestMismatch, match=name):
        open_bundle(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CALIBRATION, REFERENCE])
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    """Half a copy is no bundle."""
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        open_bundle(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CALIBRATION, REFERENCE])
def test_every_file_is_vouched_for(folder: Path, name: str) -> None:
    """A file without a digest is not trusted."""
    _edit(folder, lambda d: d["files"].pop(name))
    with pytest.raises(BundleError, match=f"no digest for {name}"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["extra.pkl", "extra.PT", "weights.bin", "deep/model.joblib"])
def test_pickles_are_refused_wherever_they_lie(folder: Path, name: str) -> None:
    """Even one that nobody would load: the folder may be handed on."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeBundle, match="pickles can run code"):
        open_bundle(folder)


def test_a_pickle_under_the_name_of_weights_is_not_loaded(folder: Path) -> None:
    """The reader of safetensors reads nothing else."""
    torch.save({"layers.0.weight": torch.zeros(1)}, folder / "x")
    content = (folder / "x").read_bytes()
    (folder / "x").unlink()
    _replace(folder, WEIGHTS, content)
    with pytest.raises(BundleError, match="not a safetensors file"):
        open_bundle(folder).weights()


@pytest.mark.parametrize("name", [WEIGHTS, SPEC])
def test_links_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """A link may lead to another file tomorrow."""
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UnsafeBundle, match="a link"):
        open_bundle(folder)


def test_a_linked_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """So is a version that is only a link to another."""
    (tmp_path / "4").symlink_to(folder)
    with pytest.raises(BundleError, match="no such bundle folder"):
        open_bundle(tmp_path / "4")


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "sub/../../3x"])
def test_a_name_that_leads_out_of_the_bundle_is_refused(folder: Path, name: str) -> None:
    """``files:`` names files of the bundle; a file elsewhere is not read, not even for its digest."""
    _edit(folder, lambda d: d["files"].update({name: "0" * 64}))
    with pytest.raises(UnsafeBundle, match="lies outside the bundle"):
        open_bundle(folder)


def test_a_pipe_is_no_file(folder: Path) -> None:
    """Opening it would wait for ever."""
    (folder / CALIBRATION).unlink()
    os.mkfifo(folder / CALIBRATION)
    with pytest.raises(BundleError, match="missing"):
        open_bundle(folder)


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda d: d.update(treshold=0.5), "treshold: Extra inputs"),
    "unknown key of a feature": (lambda d: d["features"][0].update(requird=True), r"features\.0\.requird: Extra"),
    "another format": (lambda d: d.update(format="sluice-model/2"), "format: "),
    "no version": (lambda d: d.pop("version"), "version: Field required"),
    "version 0": (lambda d: d.update(version=0), "version: "),
    "a name that is a path": (lambda d: d.update(name="../x"), "name: "),
    "no features": (lambda d: d.update(features=[]), "features: "),
    "a feature twice": (lambda d: d["features"].append(d["features"][1]), "a name stands twice"),
    "a view twice": (lambda d: d["views"].append(d["views"][0]), "views: a name stands twice"),
    "too many views": (lambda d: d.update(views=[{**d["views"][0], "name": f"v{i}"} for i in range(33)]), "views: "),
    "no model input": (lambda d: d.update(features=d["features"][3:4], views=[]), "none of them is a model input"),
    "an unknown view": (lambda d: d["features"][6].update(view="ship"), "there is no view ship"),
    "an unknown column": (lambda d: d["features"][6].update(column="speed"), "has no column speed"),
    "a key that is no feature": (lambda d: d["views"][0].update(key=["mast"]), "needs the request feature mast"),
    "a key that is a time": (lambda d: d["views"][0].update(key=["departure"]), "needs the request feature departure"),
    "a vocabulary for a number": (lambda d: d["features"][1].update(vocabulary=["a"]), "has a vocabulary"),
    "parts for a number": (lambda d: d["features"][1].update(parts=["hour_of_day"]), "has parts"),
    "a view for a request feature": (lambda d: d["features"][1].update(view="plane"), "belong to store features"),
    "a store feature without view": (lambda d: d["features"][6].pop("view"), "names its view"),
    "a range for a category": (lambda d: d["features"][2].update(range=[0, 1]), "belong to numbers"),
    "scale 0": (lambda d: d["features"][1].update(standardise={"mean": 0, "scale": 0}), "scale: "),
    "a threshold of 2": (lambda d: d["output"].update(threshold=2), "threshold: "),
    "buckets that fall": (lambda d: d.update(buckets=[4, 2]), "buckets: must be positive and increase"),
    "a bucket of 0": (lambda d: d.update(buckets=[0, 2]), "buckets: must be positive and increase"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_specification_that_does_not_hold_together_is_refused(folder: Path, name: str) -> None:
    """The message names the file and the field."""
    change, message = SPOILT[name]
    _edit(folder, change)
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(folder)
    assert "3/model.yaml: " in str(caught.value)


TEXTS = {
    "empty": b"",
    "a list": b"- 1\n",
    "a number": b"7",
    "not YAML": b"a: [",
    "not text": b"\xff\xfe\x00",
    "a Python object": b"!!python/object/apply:os.system ['true']",
    "a date that is none": b"version: 2020-99-99",
    "brackets without end": b"[" * 20_000,
    "too long": b"#" * (MAX_SPEC_BYTES + 1),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_specification_is_refused(folder: Path, name: str) -> None:
    """Whatever lies under the name model.yaml, the answer is a BundleError."""
    (folder / SPEC).write_bytes(TEXTS[name])
    with pytest.raises(BundleError, match=r"model\.yaml"):
        read_spec(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"kind": "platt", "a": null}', b"\xff"])
def test_what_is_no_calibration_is_refused(folder: Path, content: bytes) -> None:
    """The message names the file."""
    _replace(folder, CALIBRATION, content)
    with pytest.raises(BundleError, match=r"3/calibration\.json: "):
        open_bundle(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder: Path, value: float) -> None:
    """A diverged training run does not reach a device."""
    _reweigh(folder, lambda tensors: tensors["layers.0.bias"].__setitem__(0, value))
    with pytest.raises(BundleError, match=r"layers\.0\.bias holds NaN or infinite"):
        open_bundle(folder).weights()


WEIGHT_FAULTS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "another shape": lambda t: t.update({"layers.0.bias": torch.zeros(9)}),
    "one is missing": lambda t: t.pop("layers.0.bias"),
    "one too many": lambda t: t.update({"layers.9.bias": torch.zeros(1)}),
}


@pytest.mark.parametrize("name", WEIGHT_FAULTS)
def test_weights_that_do_not_fit_are_refused(folder: Path, name: str) -> None:
    """Name and shape of every tensor are the architecture's."""
    _reweigh(folder, WEIGHT_FAULTS[name])
    with pytest.raises(BundleError, match="sample version 3: weights do not fit the architecture"):
        ScoringModel(open_bundle(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": [8, 8], "embedding_dim": 4}, "weights do not fit"),
        ({"hidden": [65_536] * 16, "embedding_dim": 1024}, "parameters, at most"),
    ],
)
def test_another_architecture_than_that_of_the_weights_is_refused(
    folder: Path, arguments: dict[str, Any], message: str
) -> None:
    """A few lines of YAML that ask for gigabytes are refused before any is allocated."""
    _edit(folder, lambda d: d["architecture"].update(arguments=arguments))
    with pytest.raises(BundleError, match=message):
        ScoringModel(open_bundle(folder))
