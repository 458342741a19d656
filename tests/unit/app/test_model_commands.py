"""``sluice model``: files become a bundle, and a bundle can be looked at, checked, trusted and removed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from app import model_commands
from app.calibration import Calibration
from app.errors import BundleError, UnsafeBundle
from app.models.bundle import open_bundle
from app.models.bundle_files import PARITY, REFERENCE, SPEC, WEIGHTS
from app.models.packing import pack_bundle
from app.models.repository import add_calibration
from app.models.trust import TrustStore
from tests.samples import change_parity, pack_sample, sample_module, sample_spec, training_frame

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

NO_BROKER = "127.0.0.1:1"
INPUTS = {"numbers": torch.zeros(2, 11), "codes": torch.zeros(2, 1, dtype=torch.int64)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: repository and trust store are where the defaults say."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*arguments: object, typed: str = "", **environment: str) -> Result:
    """What a command prints; an error of ours is raised as it would reach ``sluice``."""
    env = {"KAFKA_BOOTSTRAP_SERVERS": NO_BROKER, **environment}
    result = CliRunner(env=env).invoke(model_commands.cli, [str(part) for part in arguments], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1), result.output
    return result


def _draft(here: Path, **changes: object) -> Path:
    """A model.yaml as a person writes it: no version, no files."""
    document = sample_spec().model_dump(mode="json", exclude_defaults=True)
    del document["version"]
    path = here / "draft.yaml"
    path.write_text(yaml.safe_dump({**document, **changes}))
    return path


def _weights(here: Path) -> Path:
    path = here / "mine.safetensors"
    save_file(dict(sample_module(sample_spec()).state_dict()), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's network as an exported program."""
    path = tmp_path_factory.mktemp("program") / "network.pt2"
    shapes = {name: {0: torch.export.Dim("rows", min=1, max=16)} for name in INPUTS}
    module = sample_module(sample_spec()).eval()
    torch.export.save(torch.export.export(module, (), INPUTS, dynamic_shapes=shapes), path)
    return path


def test_files_become_a_bundle(here: Path) -> None:
    """The next free version is taken, everything given is in it, and it can be verified at once."""
    sample, reference, calibration = here / "s.parquet", here / "r.parquet", here / "c.json"
    training_frame(30).to_parquet(sample)
    pd.DataFrame({"score": [0.2], "label": [0.0]}).to_parquet(reference)
    calibration.write_text(Calibration("platt", a=2.0).to_json())
    options = ["--calibration", calibration, "--reference", reference, "--sample", sample]
    packed = _run("pack", "--spec", _draft(here), "--weights", _weights(here), *options)
    assert packed.output.strip() == ".sluice/models/sample/1"
    bundle = open_bundle(here / packed.output.strip())
    assert bundle.calibration.a == 2.0
    assert {PARITY, REFERENCE} < bundle.spec.files.keys()
    again = _run("pack", "--spec", _draft(here), "--weights", _weights(here))
    assert again.output.strip() == ".sluice/models/sample/2"
    verified = _run("verify", "sample", 1)
    assert verified.exit_code == 0
    assert "30 rows replayed: bit-equal" in verified.output
    assert json.loads(_run("verify", "sample", 1, "--json").output)["is_bit_equal"] is True
    with pytest.raises(BundleError, match="packed without rows to replay"):
        _run("verify", "sample")


def test_scores_that_differ_end_in_status_1(here: Path) -> None:
    """So that a deployment can depend on it."""
    spec = sample_spec()
    folder = pack_bundle(here / ".sluice/models", spec, sample_module(spec), Calibration(), sample=training_frame(5))
    change_parity(folder, **{"result.score": 0.5})
    result = _run("verify", "sample")
    assert result.exit_code == 1
    assert "5 rows replayed: DIFFERENT" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"treshold": 0.5}, r"draft\.yaml: treshold: Extra inputs"),
        (
            {"architecture": {"name": "tabular_mlp", "arguments": {"hidden": [9]}}},
            "weights do not fit the architecture",
        ),
        ({"weights": "pt2", "architecture": None}, "pt2 is declared; give an exported program"),
    ],
)
def test_a_draft_that_does_not_fit_is_not_packed(here: Path, change: dict[str, object], message: str) -> None:
    """The message names the file and the field; nothing is left behind."""
    with pytest.raises(BundleError, match=message):
        _run("pack", "--spec", _draft(here, **change), "--weights", _weights(here))
    assert not list(here.glob(f".sluice/**/{SPEC}"))


def test_files_that_cannot_be_read_are_named(here: Path) -> None:
    """Each with what it should be."""
    weights, draft = _weights(here), _draft(here)
    (here / "bad").write_text("{")
    for option, message in (
        (["--spec", here / "none"], "none cannot be read"),
        (["--spec", draft, "--calibration", here / "bad"], "as Calibration.to_json writes it"),
        (["--spec", draft, "--sample", here / "bad"], "not a Parquet file"),
        (["--spec", draft, "--tokenizer", weights], "tokenizers: the features name none"),
    ):
        with pytest.raises(BundleError, match=message):
            _run("pack", "--weights", weights, *option)


def test_a_program_packed_here_is_trusted_here(here: Path, program: Path) -> None:
    """Its own packer need not say so twice; elsewhere it is not trusted."""
    draft = _draft(here, weights="pt2")
    document = yaml.safe_load(draft.read_text())
    del document["architecture"], document["weights"]  # the suffix says what it is
    draft.write_text(yaml.safe_dump(document))
    sample = here / "s.parquet"
    training_frame(9).to_parquet(sample)
    folder = _run("pack", "--spec", draft, "--weights", program, "--sample", sample).output.strip()
    assert _run("verify", "sample").exit_code == 0
    entry = next(iter(TrustStore(here / ".sluice/trusted-models.json").entries().values()))
    assert (entry.name, entry.version, entry.note) == ("sample", 1, "packed here")
    elsewhere = {"SLUICE_MODELS__TRUST_STORE": str(here / "other.json")}
    with pytest.raises(UnsafeBundle, match="sluice model trust sample 1"):
        _run("verify", "sample", **elsewhere)
    assert "NO" in _run("list", **elsewhere).output
    refused = _run("trust", "sample", 1, typed="n\n", **elsewhere)
    assert refused.exit_code == 1
    assert "can run any command as the user of your workers" in refused.output
    assert open_bundle(here / folder, trust=TrustStore(here / ".sluice/trusted-models.json")).sha256 in refused.output
    assert not TrustStore(here / "other.json").entries()
    assert _run("trust", "sample", 1, "--yes", "--note", "by Ann", **elsewhere).exit_code == 0
    assert _run("verify", "sample", **elsewhere).exit_code == 0


def test_safetensors_need_no_trust(here: Path) -> None:
    """Nothing is asked or written."""
    pack_sample(here / ".sluice/models")
    assert "need no trust" in _run("trust", "sample", 3).output
    assert not (here / ".sluice/trusted-models.json").exists()


def test_versions_are_listed_and_shown(here: Path) -> None:
    """One that cannot be read stands among them with the reason."""
    root = here / ".sluice/models"
    assert "no models in .sluice/models" in _run("list").output
    folder = pack_sample(root)
    pack_sample(root, sample_spec(version=4, description="late flights"))
    (root / "sample" / "5").mkdir()
    add_calibration(root, "sample", 4, Calibration("platt", a=2.0))
    lines = _run("list").output.splitlines()
    assert lines[0].split() == ["MODEL", "VERSION", "SHA256", "FORMAT", "PRECISION", "SIZE", "TRUSTED"]
    assert lines[1].split()[:5] == ["sample", "3", open_bundle(folder).sha256[:12], "safetensors", "fp32"]
    assert "cannot be read" in lines[3]
    documents = json.loads(_run("list", "--json").output)
    assert [document["version"] for document in documents] == [3, 4, 5]
    assert documents[0]["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    shown = _run("show", "sample", 4).output
    for part in ("late flights", "tabular_mlp", "store, view plane", "revisions: 1", "required", WEIGHTS, "key only"):
        assert part in shown
    document = json.loads(_run("show", "sample", 4, "--json").output)
    assert document["calibrations"] == [1]
    assert document["spec"]["output"]["threshold"] == 0.4
    with pytest.raises(BundleError, match="no model nobody"):
        _run("show", "nobody")


def test_a_calibration_is_put_beside_its_version(here: Path) -> None:
    """The next revision is printed, weights and digest stay; what is no calibration, or for nobody, is refused."""
    folder = pack_sample(here / ".sluice/models")
    digest = open_bundle(folder).sha256
    (here / "new.json").write_text(Calibration("platt", a=2.0).to_json())
    assert _run("add-calibration", "sample", 3, "new.json").output == "calibration 1 of sample version 3\n"
    assert _run("add-calibration", "sample", 3, "new.json").output == "calibration 2 of sample version 3\n"
    assert open_bundle(folder).sha256 == digest
    with pytest.raises(BundleError, match="sample/9"):
        _run("add-calibration", "sample", 9, "new.json")
    (here / "new.json").write_text("{}")
    with pytest.raises(BundleError, match="kind must be one of"):
        _run("add-calibration", "sample", 3, "new.json")


def test_what_may_be_served_is_not_removed_by_mistake(here: Path) -> None:
    """The newest, the pinned one, and any while labels cannot be looked up, only with --yes; the rest stays."""
    root = here / ".sluice/models"
    for version in (3, 4):
        pack_sample(root, sample_spec(version=version))
    with pytest.raises(BundleError, match=r"it is the newest, which workers serve by default.*add --yes"):
        _run("rm", "sample", 4)
    pinned = {"SLUICE_MODELS__NAME": "sample", "SLUICE_MODELS__VERSION": "3"}
    with pytest.raises(BundleError, match=r"models\.version names it; whether a label points to it is unknown"):
        _run("rm", "sample", 3, **pinned)
    assert _run("rm", "sample", 3, "--yes").output.strip() == "removed .sluice/models/sample/3"
    assert [path.name for path in (root / "sample").iterdir()] == ["4"]
    with pytest.raises(BundleError, match="no version 3 on this machine"):
        _run("rm", "sample", 3, "--yes")


def test_far_repositories_are_read_but_not_packed_into(here: Path) -> None:
    """The message says how to get a bundle there."""
    with pytest.raises(BundleError, match="is far away; pack into a folder"):
        _run("pack", "--spec", _draft(here), "--weights", _weights(here), SLUICE_MODELS__REPOSITORY="memory://far")
