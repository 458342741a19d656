"""The repository finds models, versions and calibrations, and opens none that is not verified."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import yaml

from app.calibration import Calibration
from app.errors import BundleError, DigestMismatch, UnsafeBundle
from app.models.bundle import open_bundle
from app.models.bundle_files import CALIBRATION, SPEC, WEIGHTS
from app.models.repository import Repository, add_calibration, configured_repository, open_repository
from app.models.trust import TrustStore
from app.settings import load_settings
from tests.samples import pack_sample, sample_spec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with versions 9 and 10 of a model, and strangers beside them."""
    root = tmp_path / "models"
    for version in (9, 10):
        pack_sample(root, sample_spec(version=version))
    (root / "README.md").write_text("a file")
    (root / "Not-A-Name").mkdir()
    (root / "sample" / "11").write_text("a file")
    (root / "sample" / "012").mkdir()
    (root / "sample" / ".12-draft").mkdir()
    return root


@pytest.fixture
def repository(root: Path, tmp_path: Path) -> Repository:
    """The repository of that folder."""
    return open_repository(root, cache=tmp_path / "cache", trust=TrustStore(tmp_path / "trust.json"))


def test_models_and_versions_are_found(repository: Repository) -> None:
    """By number, not by name; drafts and strangers do not count."""
    assert repository.names() == ["sample"]
    assert repository.versions("sample") == [9, 10]
    assert repository.latest("sample") == 10
    assert [(spec.name, spec.version) for spec in repository.specs()] == [("sample", 9), ("sample", 10)]


@pytest.mark.parametrize("name", ["nobody", "../sample", "/etc", "", "."])
def test_what_is_not_there_is_not_found(repository: Repository, name: str) -> None:
    """A name that is a path finds nothing, wherever it leads."""
    assert repository.versions(name) == []
    for ask in (repository.latest, lambda n: repository.open(n, 9), lambda n: repository.spec(n, 9)):
        with pytest.raises(BundleError):
            ask(name)


def test_no_folder_is_an_empty_repository(tmp_path: Path) -> None:
    """It is created by the first pack."""
    empty = open_repository(tmp_path / "none", cache=tmp_path, trust=TrustStore(tmp_path / "t"))
    assert empty.names() == []
    assert empty.specs() == []
    with pytest.raises(BundleError, match=r"no model sample .*models\.repository"):
        empty.latest("sample")


def test_a_folder_is_used_in_place(repository: Repository, root: Path, tmp_path: Path) -> None:
    """Nothing is copied; a file URL names the same."""
    assert repository.open("sample", 9) == open_bundle(root / "sample" / "9")
    same = open_repository(f"file://{root}", cache=tmp_path / "cache", trust=repository.trust)
    assert same.open("sample", 10).folder == root / "sample" / "10"
    assert repository.digest("sample", 9) == repository.open("sample", 9).sha256
    assert not (tmp_path / "cache").exists()


def test_the_drift_reference_is_found_in_what_cannot_be_served(repository: Repository, root: Path) -> None:
    """A monitor needs no more of a bundle than its reference; another version or model has none."""
    (root / "sample" / "9" / WEIGHTS).write_bytes(b"spoilt")
    path = repository.reference_path("sample", 9)
    assert path is not None
    assert pd.read_parquet(path)["score"].tolist() == [0.2]
    path.unlink()
    for name, version in (("sample", 9), ("sample", 99), ("other", 1), ("../sample", 9)):
        assert repository.reference_path(name, version) is None


def test_a_spoilt_bundle_is_refused_and_kept(repository: Repository, root: Path) -> None:
    """The original is never dropped, however bad."""
    (root / "sample" / "9" / WEIGHTS).write_bytes(b"spoilt")
    with pytest.raises(DigestMismatch, match=WEIGHTS):
        repository.open("sample", 9)
    assert (root / "sample" / "9" / WEIGHTS).read_bytes() == b"spoilt"


def test_one_bad_version_hides_no_other(repository: Repository, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Specifications of a repository are what can be read of it; the rest is in the log."""
    (root / "sample" / "9" / SPEC).write_text("a: [")
    (root / "sample" / "8").mkdir()
    assert [spec.version for spec in repository.specs()] == [10]
    assert "left out sample version 9" in caplog.text
    assert "left out sample version 8" in caplog.text


def test_another_version_than_the_folder_says_is_refused(repository: Repository, root: Path) -> None:
    """A copy under another number would answer in its name."""
    shutil.copytree(root / "sample" / "9", root / "sample" / "13")
    with pytest.raises(BundleError, match=r"says sample version 9, but lies in sample/13; copy it to sample/9"):
        repository.open("sample", 13)


def test_a_model_behind_a_link_is_refused(repository: Repository, root: Path) -> None:
    """The folder of a model is as plain as those of its versions."""
    (root / "sample").rename(root / "elsewhere")
    (root / "sample").symlink_to(root / "elsewhere")
    assert repository.names() == ["elsewhere"]
    with pytest.raises(UnsafeBundle, match="sample is a link"):
        repository.open("sample", 9)
    with pytest.raises(UnsafeBundle, match="behind a link"):
        repository.spec("sample", 9)


def test_the_fingerprint_changes_with_any_file(repository: Repository, root: Path) -> None:
    """Also with one that keeps its size, and with one that is added or goes."""
    folder = root / "sample" / "9"
    seen = {repository.fingerprint("sample", 9)}
    assert repository.fingerprint("sample", 9) in seen
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    seen.add(repository.fingerprint("sample", 9))
    (folder / WEIGHTS).write_bytes(content[:-1])
    seen.add(repository.fingerprint("sample", 9))
    (folder / "new").write_bytes(content)
    seen.add(repository.fingerprint("sample", 9))
    shutil.rmtree(folder)
    seen.add(repository.fingerprint("sample", 9))
    assert len(seen) == 5


def test_a_calibration_of_its_own_replaces_that_of_the_bundle(repository: Repository, root: Path) -> None:
    """Weights and digest stay, the calibration's digest tells which it was."""
    first = add_calibration(root, "sample", 9, Calibration("platt", a=2.0))
    second = add_calibration(root, "sample", 9, Calibration("platt", a=3.0, note="spring"))
    assert (first, second) == (1, 2)
    assert repository.calibrations("sample", 9) == [1, 2]
    assert repository.calibrations("sample", 10) == []
    own, newer = repository.open("sample", 9), repository.open("sample", 9, calibration=2)
    assert newer.calibration.a == 3.0
    assert (newer.calibration.revision, newer.calibration.note) == (2, "spring")
    assert (own.calibration_revision, newer.calibration_revision) == (None, 2)
    assert newer.sha256 == own.sha256
    assert newer.calibration_sha256 == hashlib.sha256(newer.calibration.to_json().encode()).hexdigest()
    assert own.calibration_sha256 != newer.calibration_sha256
    assert repository.versions("sample") == [9, 10]
    p = np.array([0.2, 0.7])
    assert not np.array_equal(own.calibration.apply(p), newer.calibration.apply(p))


def test_a_calibration_that_cannot_be_is_not_added(root: Path) -> None:
    """For a version that is not there, or an output that it does not fit."""
    with pytest.raises(BundleError, match=r"no readable model\.yaml"):
        add_calibration(root, "sample", 12, Calibration())
    folder = root / "sample" / "9"
    document = yaml.safe_load((folder / SPEC).read_text())
    document["output"] = {"name": "minutes", "kind": "identity"}
    (folder / SPEC).write_text(yaml.safe_dump(document))
    with pytest.raises(BundleError, match="platt does not fit identity"):
        add_calibration(root, "sample", 9, Calibration("platt"))
    assert not (root / "sample" / "calibrations").exists()


SPOILT = {
    "one flipped letter": (lambda text: text.replace("2.0", "2.1"), "its sha256 is not the one in"),
    "empty": (lambda _: "", "its sha256 is not the one in"),
    "too long": (lambda text: text + " " * 2**24, "more than 16777216 bytes"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_calibration_is_refused(repository: Repository, root: Path, name: str) -> None:
    """The bundle's own is still there."""
    add_calibration(root, "sample", 9, Calibration("platt", a=2.0))
    change, message = SPOILT[name]
    path = root / "sample" / "calibrations" / "9" / "1.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(BundleError, match=message):
        repository.open("sample", 9, calibration=1)
    assert repository.open("sample", 9).calibration_revision is None


def test_a_calibration_without_its_digest_or_of_another_version_is_refused(repository: Repository, root: Path) -> None:
    """Half a copy, a copy for another version, one under another revision: each is named."""
    add_calibration(root, "sample", 9, Calibration("platt", a=2.0))
    folder = root / "sample" / "calibrations"
    shutil.copytree(folder / "9", folder / "10")
    with pytest.raises(BundleError, match="was fitted for sample version 9, not for sample version 10"):
        repository.open("sample", 10, calibration=1)
    for suffix in ("json", "json.sha256"):
        shutil.copy(folder / "9" / f"1.{suffix}", folder / "9" / f"2.{suffix}")
    with pytest.raises(BundleError, match="says that it is revision 1"):
        repository.open("sample", 9, calibration=2)
    (folder / "9" / "1.json.sha256").unlink()
    with pytest.raises(BundleError, match=r"1\.json\.sha256: cannot be read"):
        repository.open("sample", 9, calibration=1)
    with pytest.raises(BundleError, match=r"7\.json: cannot be read"):
        repository.open("sample", 9, calibration=7)


def test_a_calibration_of_the_bundle_must_be_for_it(repository: Repository, root: Path) -> None:
    """Also the one inside says for which version it was fitted, when it says so."""
    folder = root / "sample" / "9"
    text = Calibration(model="sample", model_version=8).to_json()
    (folder / CALIBRATION).write_text(text)
    document = yaml.safe_load((folder / SPEC).read_text())
    document["files"][CALIBRATION] = hashlib.sha256(text.encode()).hexdigest()
    (folder / SPEC).write_text(yaml.safe_dump(document))
    with pytest.raises(BundleError, match=r"9/calibration\.json: was fitted for sample version 8"):
        repository.open("sample", 9)


def test_the_settings_name_a_repository(root: Path, tmp_path: Path) -> None:
    """Folder, cache and trust store are settings."""
    models = {"repository": str(root), "cache": str(tmp_path / "c"), "trust_store": str(tmp_path / "t.json")}
    repository = configured_repository(load_settings({"models": models}, environ={}).models)
    assert repository.latest("sample") == 10
    assert repository.trust.path == tmp_path / "t.json"


def test_a_url_that_nothing_reads_is_named(tmp_path: Path) -> None:
    """The message says what to install, and hides the password."""
    with pytest.raises(BundleError, match=r"nosuch://models: .*install what reads it"):
        open_repository("nosuch://me:secret@models", cache=tmp_path, trust=TrustStore(tmp_path / "t"))


def test_a_removed_version_is_gone_with_its_calibrations_and_its_trust(repository: Repository, root: Path) -> None:
    """Others stay; who has it mapped keeps it."""
    add_calibration(root, "sample", 9, Calibration("platt", a=2.0))
    add_calibration(root, "sample", 10, Calibration("platt", a=2.0))
    weights = repository.open("sample", 9).weights()
    for version in (9, 10):
        repository.vouch("sample", version)
    size = sum(path.stat().st_size for path in (root / "sample" / "9").iterdir())
    assert repository.size_bytes("sample", 9) == size
    gone = repository.remove("sample", 9)
    assert gone == [root / "sample" / "9", root / "sample" / "calibrations" / "9"]
    assert repository.versions("sample") == [10]
    assert repository.calibrations("sample", 10) == [1]
    assert [entry.version for entry in repository.trust.entries().values()] == [10]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    with pytest.raises(BundleError, match="sample has no version 9"):
        repository.remove("sample", 9)
    assert not list(root.rglob(".removed*"))


def test_a_version_that_cannot_be_read_can_be_removed(repository: Repository, root: Path) -> None:
    """It is what one most wants to be rid of."""
    (root / "sample" / "9" / SPEC).write_text("a: [")
    assert repository.remove("sample", 9) == [root / "sample" / "9"]
