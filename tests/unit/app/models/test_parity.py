"""Training and serving give the same scores, or nothing is packed; what was packed can be replayed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from app.calibration import Calibration
from app.errors import BundleError
from app.models.bundle import open_bundle
from app.models.bundle_files import PARITY, SPEC
from app.models.packing import pack_bundle
from app.models.parity import PARITY_ROWS, difference, inputs_digest, parity_columns, replay_parity
from app.models.runtime import ScoringModel
from app.models.spec import Output
from app.postprocess import Postprocessor
from tests.samples import change_parity, sample_module, sample_spec, training_frame

if TYPE_CHECKING:
    from pathlib import Path

    from app.models.spec import ModelSpec

PLATT = Calibration("platt", a=0.7, b=-0.1)


def _pack(repository: Path, spec: ModelSpec | None = None, module: nn.Module | None = None) -> Path:
    spec = spec or sample_spec()
    return pack_bundle(repository, spec, module or sample_module(spec), PLATT, sample=training_frame(100))


def test_what_was_packed_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    """Raw rows, the digest of the inputs, logits and scores are kept; the same libraries give the same bits."""
    bundle = open_bundle(_pack(tmp_path))
    report = replay_parity(bundle)
    assert report.rows == PARITY_ROWS
    assert report.is_bit_equal
    assert report.is_within
    assert report.packed_with == report.replayed_with == f"torch {torch.__version__}, numpy {np.__version__}"
    kept = pd.read_parquet(bundle.parity_path)
    assert list(kept.columns[:3]) == ["departure", "distance", "carrier"]
    assert "tailnum" not in kept.columns
    model = ScoringModel(bundle)
    logits, _ = model.predict(
        {name: array[:16] for name, array in model.preprocessor.transform(parity_columns(bundle)).items()}
    )
    assert np.array_equal(kept["result.logit_0"].to_numpy(np.float32)[:16], logits)
    score = Postprocessor(bundle.spec.output, PLATT).apply(logits).score
    assert np.array_equal(kept["result.score"].to_numpy()[:16], score)


def test_the_reference_is_the_sample_when_it_has_all_features(tmp_path: Path) -> None:
    """A training script that hands over its reference has parity without asking."""
    spec = sample_spec()
    reference = training_frame(10).assign(raw_score=0.5, score=0.4, label=0.0)
    bundle = open_bundle(pack_bundle(tmp_path, spec, sample_module(spec), PLATT, reference))
    assert replay_parity(bundle).rows == 10
    assert bundle.reference_path is not None


def test_without_rows_there_is_nothing_to_replay(tmp_path: Path) -> None:
    """The message says how to have some; no reference means no drift reference."""
    spec = sample_spec()
    bundle = open_bundle(pack_bundle(tmp_path, spec, sample_module(spec), PLATT))
    assert (bundle.reference_path, bundle.parity_path, parity_columns(bundle)) == (None, None, None)
    with pytest.raises(BundleError, match="packed without rows to replay"):
        replay_parity(bundle)


class _OverTheBatch(nn.Module):
    """A network that looks at its neighbours: padding changes its scores."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(numbers, codes)
        return logits + numbers.mean()

    def state_dict(self, *_args: object, **_options: object) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return self.inner.state_dict()


def test_a_network_that_serves_otherwise_than_it_was_trained_is_not_packed(tmp_path: Path) -> None:
    """The difference is measured and the cause named; nothing is left behind."""
    spec = sample_spec()
    with pytest.raises(BundleError, match=r"differ from those as trained by 0\.\d+, at most 1e-05: .*eval mode"):
        _pack(tmp_path, spec, _OverTheBatch(sample_module(spec)))
    assert list((tmp_path / spec.name).iterdir()) == []


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    """Packing compares in eval mode and gives the training mode back."""
    spec = sample_spec()
    module = sample_module(spec).train()
    _pack(tmp_path, spec, module)
    assert module.training


def test_a_row_without_a_finite_logit_is_named(tmp_path: Path) -> None:
    """Such a network would answer ERROR."""
    spec = sample_spec(version=8)
    frame = training_frame(20)
    frame.loc[7, "distance"] = 1e41
    with pytest.raises(BundleError, match="sample: row 7 has no finite logit"):
        pack_bundle(tmp_path, spec, sample_module(spec), PLATT, sample=frame)


def test_a_sample_must_have_all_features_and_a_row(tmp_path: Path) -> None:
    """One that is given is not silently left out."""
    spec = sample_spec()
    for frame, message in (
        (training_frame(5).drop(columns=["gate", "gust"]), "sample: lacks gate, gust"),
        (training_frame(0), "sample: has no row"),
    ):
        with pytest.raises(BundleError, match=message):
            pack_bundle(tmp_path, spec, sample_module(spec), PLATT, sample=frame)


def test_a_replay_tells_other_inputs_from_other_scores(tmp_path: Path) -> None:
    """Rows that became others, and scores that did, each show in their own figure."""
    folder = _pack(tmp_path)
    kept = pd.read_parquet(folder / PARITY)
    change_parity(folder, **{"result.score": kept["result.score"] + 0.25})
    report = replay_parity(open_bundle(folder))
    assert report.are_inputs_equal
    assert report.logit_difference == 0
    assert report.score_difference == pytest.approx(0.25)
    assert not report.is_within
    change_parity(folder, **{"result.score": kept["result.score"], "distance": kept["distance"] + 1})
    report = replay_parity(open_bundle(folder))
    assert not report.are_inputs_equal
    assert report.score_difference > 0
    assert not report.is_bit_equal


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    """The message names the file."""
    folder = _pack(tmp_path)
    (folder / PARITY).write_bytes(b"PAR1PAR1")
    document = yaml.safe_load((folder / SPEC).read_text())
    document["files"][PARITY] = hashlib.sha256(b"PAR1PAR1").hexdigest()
    (folder / SPEC).write_text(yaml.safe_dump(document))
    with pytest.raises(BundleError, match=r"3/parity\.parquet: not what pack writes"):
        replay_parity(open_bundle(folder))


def test_a_narrow_precision_is_packed_with_its_error(tmp_path: Path) -> None:
    """Measured on the sample against fp32; a replay is as exact as ever, and is allowed that much elsewhere."""
    bundle = open_bundle(_pack(tmp_path, sample_spec(precision="bf16")))
    error = bundle.spec.precision_error
    assert error is not None
    assert 0 < error < 0.1
    report = replay_parity(bundle)
    assert report.is_bit_equal
    assert report.tolerance == pytest.approx(1e-5 + error)


def test_several_outputs_keep_their_shape(tmp_path: Path) -> None:
    """Logits of several outputs are kept as several columns."""
    output = Output(name="cause", kind="softmax", labels=("none", "weather", "carrier"), threshold=None)
    spec = sample_spec(output=output)
    folder = pack_bundle(tmp_path, spec, sample_module(spec), Calibration(), sample=training_frame(9))
    kept = pd.read_parquet(folder / PARITY)
    assert [name for name in kept.columns if "." in name] == [*(f"result.logit_{i}" for i in range(3)), "result.score"]
    assert replay_parity(open_bundle(folder)).is_bit_equal


def test_differences_are_relative_above_one() -> None:
    """And infinite where there is nothing to compare."""
    ones = np.ones(2)
    assert difference(ones, ones) == 0.0
    assert difference(np.array([]), np.array([])) == 0.0
    assert difference(np.array([0.5]), np.array([0.25])) == 0.25
    assert difference(ones, np.ones(3)) == np.inf
    assert difference(np.array([np.nan, 1.0]), ones) == np.inf


def test_the_digest_of_inputs_tells_types_and_shapes() -> None:
    """The same bytes as another type, shape or name are other inputs."""
    zeros = np.zeros((2, 2), np.float32)
    forms = [{"a": zeros}, {"b": zeros}, {"a": zeros.view(np.int32)}, {"a": zeros.reshape(4)}, {"a": zeros + 1}]
    assert len({inputs_digest(form) for form in forms}) == 5
