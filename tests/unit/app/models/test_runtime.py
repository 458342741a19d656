"""A loaded network: padding, warm-up, devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

from app.errors import BundleError
from app.models.bundle import open_bundle, pack_bundle
from app.models.runtime import ScoringModel, choose_device
from app.postprocess import Calibration
from tests.samples import sample_module, sample_spec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ScoringModel:
    """The sample, loaded from its bundle."""
    spec = sample_spec()
    folder = pack_bundle(
        tmp_path_factory.mktemp("m"), spec, sample_module(spec), Calibration(), pd.DataFrame({"a": [1]})
    )
    return ScoringModel(open_bundle(folder))


def _inputs(model: ScoringModel, rows: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(rows, model.preprocessor.number_width)).astype(np.float32)
    return numbers, generator.integers(0, 4, (rows, 1))


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (16, 16)])
def test_a_batch_is_padded_to_the_next_bucket(model: ScoringModel, rows: int, bucket: int) -> None:
    """As many logits as rows, equal to those of the padded batch bit by bit, and near those of the bare network."""
    numbers, codes = _inputs(model, rows)
    logits, used = model.predict(numbers, codes)
    assert (logits.shape, logits.dtype, used) == ((rows,), np.float32, bucket)
    padded = np.zeros((bucket, numbers.shape[1]), np.float32), np.zeros((bucket, 1), np.int64)
    padded[0][:rows], padded[1][:rows] = numbers, codes
    assert model.predict(*padded)[0][:rows].tolist() == logits.tolist()
    with torch.no_grad():
        bare = sample_module(model.spec)(torch.from_numpy(numbers), torch.from_numpy(codes))
    assert logits == pytest.approx(bare.numpy(), rel=1e-5, abs=1e-5)


def test_more_rows_than_the_largest_bucket_are_refused(model: ScoringModel) -> None:
    """The batcher never makes such a batch; a caller who does is told the limit."""
    with pytest.raises(ValueError, match="17 rows exceed the largest bucket, 16"):
        model.predict(*_inputs(model, 17))


def test_the_callers_arrays_are_left_alone(model: ScoringModel) -> None:
    """Padding copies; the evidence is written from the same arrays afterwards."""
    numbers, codes = _inputs(model, 3)
    before = numbers.copy(), codes.copy()
    model.predict(numbers, codes)
    assert np.array_equal(numbers, before[0])
    assert np.array_equal(codes, before[1])


def test_warm_up_runs_every_bucket(model: ScoringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice each, smallest first, and the second time is what it tells."""
    sizes: list[int] = []
    real = model.predict
    monkeypatch.setattr(model, "predict", lambda numbers, codes: (sizes.append(len(numbers)), real(numbers, codes))[1])
    seconds = model.warm_up()
    assert sizes == [bucket for bucket in model.spec.buckets for _ in range(2)]
    assert list(seconds) == list(model.spec.buckets)
    assert all(value > 0 for value in seconds.values())


def test_warm_up_refuses_a_network_that_overflows(tmp_path: Path) -> None:
    """Finite weights can still give an infinite logit, for every request alike."""
    spec = sample_spec()
    module = sample_module(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(3e38)
    bundle = open_bundle(pack_bundle(tmp_path, spec, module, Calibration(), pd.DataFrame({"a": [1]})))
    with pytest.raises(BundleError, match="warm-up gives a logit that is not finite"):
        ScoringModel(bundle).warm_up()


def test_weights_of_another_width_are_served_as_float32(tmp_path: Path) -> None:
    """A network trained in double precision scores, and its logits are float32."""
    spec = sample_spec()
    folder = pack_bundle(tmp_path, spec, sample_module(spec).double(), Calibration(), pd.DataFrame({"a": [1]}))
    model = ScoringModel(open_bundle(folder))
    assert model.predict(*_inputs(model, 2))[0].dtype == np.float32


def test_auto_takes_what_is_there() -> None:
    """CUDA when there is one, else the CPU."""
    assert choose_device("auto") == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silently serving on the CPU would miss every budget."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BundleError, match="SLUICE_MODELS__DEVICE=cpu, or auto"):
        choose_device("cuda:1")
