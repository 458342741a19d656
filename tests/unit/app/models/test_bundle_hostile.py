"""A folder that somebody else has put there: nothing in it runs code, leads elsewhere, blocks or fills the memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from app.calibration import Calibration
from app.errors import BundleError, DigestMismatch, UnsafeBundle
from app.models.bundle import open_bundle, preprocess_digest, read_spec
from app.models.bundle_files import (
    CALIBRATION,
    EXPORTED,
    MAX_BUNDLE_BYTES,
    MAX_FILES,
    REFERENCE,
    SPEC,
    WEIGHTS,
    open_plain,
    sha256_of,
)
from app.models.packing import pack_bundle
from app.models.parity import replay_parity
from app.models.repository import Repository, open_repository
from app.models.runtime import ScoringModel
from app.models.spec import ModelSpec
from app.models.trust import TrustStore
from tests.samples import pack_sample, sample_module, sample_spec, training_frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh sample bundle that may be spoiled."""
    return pack_sample(tmp_path / "models")


@pytest.fixture
def trust(tmp_path: Path) -> TrustStore:
    """A store that trusts nothing yet."""
    return TrustStore(tmp_path / "trust.json")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``model.yaml``."""
    document = yaml.safe_load((folder / SPEC).read_text())
    change(document)
    plain = json.loads(json.dumps(document))  # copied: what stands twice would be written as an alias
    (folder / SPEC).write_text(yaml.safe_dump(plain))


def _vouch(folder: Path, name: str) -> None:
    """Name a file's digest in ``model.yaml``."""
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    _edit(folder, lambda d: d["files"].update({name: digest}))


def test_a_file_that_nobody_vouches_for_is_refused(folder: Path) -> None:
    """Also one that nobody reads: whoever copies the bundle hands it on; named, it is let be."""
    (folder / "notes.md").write_text("trained in spring")
    with pytest.raises(BundleError, match=r"no digest for notes\.md; pack the bundle again, or remove the file"):
        open_bundle(folder)
    _vouch(folder, "notes.md")
    assert open_bundle(folder).spec.files.keys() == {WEIGHTS, CALIBRATION, REFERENCE, "notes.md"}


def test_the_reference_may_be_missing(folder: Path) -> None:
    """Then there is no drift reference, and that is all."""
    (folder / REFERENCE).unlink()
    _edit(folder, lambda d: d["files"].pop(REFERENCE))
    assert open_bundle(folder).reference_path is None


def test_an_empty_file_is_refused(folder: Path) -> None:
    """As a copy that broke off leaves it, however well it is vouched for."""
    (folder / REFERENCE).write_bytes(b"")
    _vouch(folder, REFERENCE)
    with pytest.raises(BundleError, match=r"3/reference\.parquet: empty; copy the bundle again"):
        open_bundle(folder)


def test_a_folder_in_a_bundle_is_refused(folder: Path) -> None:
    """Under a name of its own, and in the place of a file."""
    (folder / "more").mkdir()
    with pytest.raises(BundleError, match="3/more: a folder; a bundle holds plain files only"):
        open_bundle(folder)
    (folder / "more").rmdir()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(BundleError, match=r"3/weights\.safetensors: a folder"):
        open_bundle(folder)


def test_special_files_are_refused(folder: Path) -> None:
    """A pipe would block the reader, a socket is no file; neither is opened."""
    os.mkfifo(folder / "pipe")
    with pytest.raises(BundleError, match=r"3/pipe: .* is a pipe, socket or device"):
        open_bundle(folder)
    (folder / "pipe").unlink()
    here = os.open(folder, os.O_RDONLY)
    back = os.open(".", os.O_RDONLY)
    try:
        os.fchdir(here)  # the name of a socket may have 107 bytes, fewer than the folder's
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.fchdir(back)
        os.close(here)
        os.close(back)
    with pytest.raises(BundleError, match=r"3/socket: .* is a pipe, socket or device"):
        open_bundle(folder)


def test_a_file_that_becomes_a_pipe_does_not_block(tmp_path: Path) -> None:
    """Checked on what was opened: it may have been swapped since it was looked at."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafeBundle, match="no plain file"):
        open_plain(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with pytest.raises(OSError, match="symbolic link"):
        open_plain(tmp_path / "link")


def test_names_that_differ_by_case_alone_are_refused(folder: Path) -> None:
    """On some disks they are one file; of the two, another may be served there than here."""
    (folder / "Weights.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"differs from .* by case alone"):
        open_bundle(folder)
    (folder / "Weights.safetensors").unlink()
    _edit(folder, lambda d: d["files"].update({"Weights.safetensors": "0" * 64}))
    with pytest.raises(BundleError, match="two names differ by case alone"):
        open_bundle(folder)


def test_too_many_and_too_much_are_refused_unread(folder: Path) -> None:
    """Holes cost no disk, so such a folder is quickly made."""
    os.truncate(folder / REFERENCE, 2**31 + 1)
    with pytest.raises(BundleError, match=r"3/reference\.parquet: 2147483649 bytes, at most 2147483648"):
        open_bundle(folder)
    os.truncate(folder / REFERENCE, 2**31)
    os.truncate(folder / WEIGHTS, MAX_BUNDLE_BYTES)
    with pytest.raises(BundleError, match=f"bytes, at most {MAX_BUNDLE_BYTES}"):
        open_bundle(folder)
    for i in range(MAX_FILES):
        (folder / f"part-{i}").touch()
    with pytest.raises(BundleError, match=f"more than {MAX_FILES} files"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0b", "é", "x" * 129, SPEC, "a\nb"])
def test_a_name_that_is_no_plain_name_is_refused(folder: Path, name: str) -> None:
    """Only letters, digits, dots, dashes and underscores, so that no file system reads anything into it."""
    _edit(folder, lambda d: d["files"].update({name: "0" * 64}))
    with pytest.raises(UnsafeBundle, match="lies outside the bundle, or is no plain name"):
        open_bundle(folder)


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, "sha256:" + "0" * 57, "g" * 64])
def test_a_digest_that_is_none_is_refused(folder: Path, digest: str) -> None:
    """It could never match; the message says so instead of blaming the file."""
    _edit(folder, lambda d: d["files"].update({REFERENCE: digest}))
    with pytest.raises(BundleError, match="64 lower-case hex digits"):
        open_bundle(folder)


def test_names_without_end_are_refused(folder: Path) -> None:
    """Each would be read and hashed."""
    _edit(folder, lambda d: d["files"].update({f"f{i}": "0" * 64 for i in range(MAX_FILES)}))
    with pytest.raises(BundleError, match=f"files: more than {MAX_FILES - 1}"):
        open_bundle(folder)


YAMLS = {
    "aliases that multiply": (
        b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b]\n",
        "an alias",
    ),
    "an alias of itself": (b"a: &a [*a]\n", "an alias"),
    "a key twice": (b"name: sample\nname: other\n", "name stands twice"),
    "a key twice, deep inside": (b"output: {threshold: 0.1, threshold: 0.9}\n", "threshold stands twice"),
    "too deep": (b"a: " + b"[" * 40 + b"]" * 40, "nested more than 32 deep"),
    "several documents": (b"a: 1\n---\nb: 2\n", "not YAML"),
    "a Python object": (b"a: !!python/object/apply:os.system ['true']\n", "not YAML"),
    "a Python name": (b"a: !!python/name:os.system\n", "not YAML"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_is_more_than_values_is_refused(folder: Path, name: str) -> None:
    """Few lines must not become gigabytes, nor objects, nor mean two things."""
    content, message = YAMLS[name]
    (folder / SPEC).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_spec(folder)


def test_a_pickle_under_an_innocent_name_is_refused(folder: Path) -> None:
    """Even vouched for."""
    (folder / "vocabulary.txt").write_bytes(b"\x80\x04\x95rest")
    _vouch(folder, "vocabulary.txt")
    with pytest.raises(UnsafeBundle, match="not what its name says but a pickle"):
        open_bundle(folder)


def test_files_that_do_not_belong_together_are_refused(folder: Path) -> None:
    """Weights beside a program: which of them is the model?"""
    (folder / EXPORTED).write_bytes(b"PK\x03\x04")
    _vouch(folder, EXPORTED)
    with pytest.raises(BundleError, match=r"says safetensors, but there is network\.pt2 too"):
        open_bundle(folder)


def test_the_digest_of_preprocessing_knows_what_is_declared_alone() -> None:
    """Two ways to write the same declaration are one; another declaration is another."""
    spec = sample_spec()
    assert preprocess_digest(spec) == preprocess_digest(spec.model_copy(update={"version": 9, "description": "x"}))
    gate = spec.features[4].model_copy(update={"default": 2.0})
    changed = spec.model_copy(update={"features": (*spec.features[:4], gate, *spec.features[5:])})
    assert preprocess_digest(changed) != preprocess_digest(spec)


def _program_spec(spec: ModelSpec) -> ModelSpec:
    document = spec.model_dump(mode="json", exclude_defaults=True)
    del document["architecture"]
    return ModelSpec.model_validate({**document, "weights": "pt2"})


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's network as an exported program."""
    path = tmp_path_factory.mktemp("program") / "sample.pt2"
    inputs = {"numbers": torch.zeros(2, 11), "codes": torch.zeros(2, 1, dtype=torch.int64)}
    rows = torch.export.Dim("rows", min=1, max=16)
    shapes = {name: {0: rows} for name in inputs}
    exported = torch.export.export(sample_module(sample_spec()).eval(), (), inputs, dynamic_shapes=shapes)
    torch.export.save(exported, path)
    return path


@pytest.fixture
def packed(program: Path, tmp_path: Path) -> Path:
    """A bundle of it."""
    spec = _program_spec(sample_spec())
    module = sample_module(sample_spec())
    frame = training_frame(20)
    return pack_bundle(tmp_path / "models", spec, module, Calibration(), sample=frame, exported=program)


def _repository(packed: Path, trust: TrustStore) -> Repository:
    return open_repository(packed.parents[1], cache=packed.parents[2] / "cache", trust=trust)


def test_a_program_loads_only_when_its_bundle_is_trusted(packed: Path, trust: TrustStore) -> None:
    """Before, it is refused with the command that trusts it; after, it scores as the network that it was made of."""
    with pytest.raises(UnsafeBundle, match=r"can run code when loaded.*sluice model trust sample 3"):
        open_bundle(packed, trust=trust)
    with pytest.raises(UnsafeBundle, match="not in the trust store"):
        open_bundle(packed)
    repository = _repository(packed, trust)
    vouched = repository.vouch("sample", 3, note="packed by a friend")
    assert trust.entries()[vouched.sha256].note == "packed by a friend"
    bundle = repository.open("sample", 3)
    assert bundle.is_trusted
    assert replay_parity(bundle).is_bit_equal


def test_trust_is_in_exactly_this_bundle(packed: Path, trust: TrustStore) -> None:
    """Any other model.yaml, and thus any other file, is another bundle."""
    repository = _repository(packed, trust)
    repository.vouch("sample", 3)
    _edit(packed, lambda d: d.update(description="changed"))
    with pytest.raises(UnsafeBundle, match="not in the trust store"):
        repository.open("sample", 3)


def test_a_program_of_pickles_cannot_be_trusted(packed: Path, trust: TrustStore) -> None:
    """Trust is in the packer; pickles and TorchScript are never loaded, whoever vouches for them."""
    torch.save({"a": torch.zeros(1)}, packed / "x")
    (packed / "x").rename(packed / EXPORTED)
    _vouch(packed, EXPORTED)
    with pytest.raises(UnsafeBundle, match="which can run code when loaded, is never loaded"):
        _repository(packed, trust).vouch("sample", 3)
    assert trust.entries() == {}
    trust.add(sha256_of(packed / SPEC), name="sample", version=3)
    with pytest.raises(UnsafeBundle, match="is never loaded"):
        open_bundle(packed, trust=trust)


def test_an_untrusted_program_is_refused_before_a_byte_of_it_is_read(packed: Path, trust: TrustStore) -> None:
    """The program's file may be anything: it is not looked at."""
    (packed / EXPORTED).write_bytes(b"anything")
    with pytest.raises(UnsafeBundle, match="not in the trust store"):
        open_bundle(packed, trust=trust)


def test_a_bundle_that_was_not_opened_as_trusted_gives_no_program(packed: Path, trust: TrustStore) -> None:
    """Whoever makes a Bundle by other means gets no further either."""
    trust.add(sha256_of(packed / SPEC), name="sample", version=3)
    bundle = dataclasses.replace(open_bundle(packed, trust=trust), is_trusted=False)
    with pytest.raises(UnsafeBundle, match="not in the trust store"):
        ScoringModel(bundle)


def test_a_program_that_is_swapped_after_its_verification_is_not_loaded(packed: Path, trust: TrustStore) -> None:
    """What is loaded are the very bytes whose digest is trusted."""
    trust.add(sha256_of(packed / SPEC), name="sample", version=3)
    bundle = open_bundle(packed, trust=trust)
    assert bundle.program().read() == (packed / EXPORTED).read_bytes()
    (packed / EXPORTED).write_bytes(b"swapped")
    with pytest.raises(DigestMismatch, match="was replaced while it was loaded"):
        bundle.program()


def test_parts_that_do_not_fit_are_not_packed(program: Path, tmp_path: Path) -> None:
    """What is declared and what is given are compared before anything is written."""
    spec = sample_spec()
    module = sample_module(spec)
    faults: list[tuple[Callable[[], object], str]] = [
        (lambda: pack_bundle(tmp_path, spec, module, Calibration(), exported=program), "safetensors is declared"),
        (lambda: pack_bundle(tmp_path, _program_spec(spec), module, Calibration()), "pt2 is declared"),
        (lambda: pack_bundle(tmp_path, spec, None, Calibration()), "give the trained module"),
        (
            lambda: pack_bundle(tmp_path, spec, module, Calibration(), tokenizers={"tokenizer.json": program}),
            r"the features name none; given: tokenizer\.json",
        ),
        (lambda: pack_bundle(tmp_path, spec, program, Calibration()), "not a safetensors file"),
    ]
    for pack, message in faults:
        with pytest.raises(BundleError, match=message):
            pack()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
