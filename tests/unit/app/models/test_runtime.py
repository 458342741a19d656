"""A loaded network: padding, warm-up, what it refuses, loss of its device."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from app.calibration import Calibration
from app.errors import BundleError, DeviceLost, UnsafeBundle
from app.models.architectures import register_architecture
from app.models.bundle import Bundle, open_bundle
from app.models.packing import pack_bundle
from app.models.runtime import ScoringModel
from app.models.spec import Architecture, Output
from tests.samples import sample_module, sample_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from app.models.spec import ModelSpec
    from app.preprocess import InputLayout, Inputs


def _pack(folder: Path, spec: ModelSpec, module: nn.Module | None = None) -> Bundle:
    frame = pd.DataFrame({"a": [1]})
    return open_bundle(pack_bundle(folder, spec, module or sample_module(spec), Calibration(), frame))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample's."""
    return _pack(tmp_path_factory.mktemp("m"), sample_spec())


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> ScoringModel:
    """The sample, loaded from its bundle."""
    return ScoringModel(bundle)


def _inputs(model: ScoringModel, rows: int, seed: int = 1) -> Inputs:
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(rows, model.preprocessor.layout.number_width)).astype(np.float32)
    return {"numbers": numbers, "codes": generator.integers(0, 4, (rows, 1))}


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16), (16, 16)])
def test_a_batch_is_padded_to_the_next_bucket(model: ScoringModel, rows: int, bucket: int) -> None:
    """As many logits as rows, equal to those of the padded batch bit by bit, and near those of the bare network."""
    inputs = _inputs(model, rows)
    logits, used = model.predict(inputs)
    assert (logits.shape, logits.dtype, used) == ((rows,), np.float32, bucket)
    padded = {name: np.zeros((bucket, *array.shape[1:]), array.dtype) for name, array in inputs.items()}
    for name, array in inputs.items():
        padded[name][:rows] = array
    assert model.predict(padded)[0][:rows].tolist() == logits.tolist()
    with torch.no_grad():
        bare = sample_module(model.spec)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    assert logits == pytest.approx(bare.numpy(), rel=1e-5, abs=1e-5)


def test_more_rows_than_the_largest_bucket_are_refused(model: ScoringModel) -> None:
    """The batcher never makes such a batch; a caller who does is told the limit."""
    with pytest.raises(ValueError, match="17 rows exceed the largest bucket, 16"):
        model.predict(_inputs(model, 17))


def test_warm_up_runs_every_bucket(model: ScoringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once on zeros and twice on recorded requests, smallest bucket first; few requests are repeated."""
    seen: list[Inputs] = []
    real = model.submit
    monkeypatch.setattr(model, "submit", lambda inputs: (seen.append(inputs), real(inputs))[1])
    recorded = _inputs(model, 3)
    seconds = model.warm_up(recorded)
    assert [len(inputs["numbers"]) for inputs in seen] == [bucket for bucket in model.spec.buckets for _ in range(3)]
    assert not any(inputs["numbers"].any() or inputs["codes"].any() for inputs in seen[::3])
    assert np.array_equal(seen[-1]["numbers"][:6], np.concatenate([recorded["numbers"]] * 2))
    assert np.array_equal(seen[1]["codes"], recorded["codes"][:1])
    assert list(seconds) == list(model.spec.buckets)
    assert all(value > 0 for value in seconds.values())


def test_warm_up_refuses_a_network_that_overflows(tmp_path: Path) -> None:
    """Finite weights can still give an infinite logit, for every request alike."""
    spec = sample_spec()
    module = sample_module(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(3e38)
    loaded = ScoringModel(_pack(tmp_path, spec, module))
    with pytest.raises(BundleError, match="sample version 3: warm-up gives a logit that is not finite"):
        loaded.warm_up()


def test_warm_up_refuses_a_network_that_is_too_slow(tmp_path: Path) -> None:
    """``max_run_ms`` is about the smallest bucket, and the message tells what it took."""
    loaded = ScoringModel(_pack(tmp_path, sample_spec(max_run_ms=1e-9)))
    with pytest.raises(BundleError, match=r"too slow: bucket 1 takes [0-9.e+]+ ms on cpu, max_run_ms is 1e-09; make"):
        loaded.warm_up()
    assert ScoringModel(_pack(tmp_path, sample_spec(version=4, max_run_ms=1e9))).warm_up()


def test_weights_of_another_width_are_served_as_float32(tmp_path: Path) -> None:
    """A network trained in double precision scores, its logits are float32, and its weights are no longer the file."""
    spec = sample_spec()
    loaded = ScoringModel(_pack(tmp_path, spec, sample_module(spec).double()))
    assert loaded.predict(_inputs(loaded, 2))[0].dtype == np.float32
    assert not loaded.is_mapped


def test_weights_in_half_precision_stay_mapped(tmp_path: Path) -> None:
    """A file that holds bf16 is what a bf16 network computes with."""
    spec = sample_spec(precision="bf16")
    assert ScoringModel(_pack(tmp_path, spec, sample_module(spec).bfloat16())).is_mapped


def test_logits_must_be_as_many_as_outputs_are_declared(tmp_path: Path) -> None:
    """A network of one output under a declaration of two, found when it is loaded."""
    register_once("one_output", lambda _spec, layout: _Failing(layout.number_width))
    output = Output(kind="identity", names=("low", "high"))
    spec = sample_spec(architecture=Architecture(name="one_output"), output=output)
    bundle = _pack(tmp_path, spec, _Failing(11))
    with pytest.raises(BundleError, match=r"logits of shape \(1,\) for 1 rows, \(1, 2\) is expected; model.yaml: out"):
        ScoringModel(bundle)


class _Failing(nn.Module):
    """Gives one logit a row, until it is told to fail."""

    failure: Exception | None = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits, or what it was told to raise."""
        del codes
        if self.failure is not None:
            raise self.failure
        logits: torch.Tensor = self.layer(numbers)
        return logits[:, 0]


def register_once(name: str, builder: Callable[[ModelSpec, InputLayout], nn.Module]) -> None:
    """Put a test's own network onto the allow-list, which is one for the whole process."""
    from app.models import architectures

    architectures._registered.pop(name, None)
    register_architecture(name, builder)


@pytest.fixture
def failing(tmp_path: Path) -> ScoringModel:
    """A loaded model whose network can be told to fail."""
    register_once("failing", lambda _spec, layout: _Failing(layout.number_width))
    spec = sample_spec(architecture=Architecture(name="failing"))
    return ScoringModel(_pack(tmp_path, spec, _Failing(11)))


LOSSES = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "cpu: out of memory .*2 GiB"),
    (torch.AcceleratorError("CUDA error: unspecified launch failure"), "cpu: lost .*launch failure.*restart"),
]


@pytest.mark.parametrize(("error", "message"), LOSSES, ids=["memory", "gone"])
def test_a_lost_device_is_told_from_a_row_at_fault(failing: ScoringModel, error: Exception, message: str) -> None:
    """Memory and broken contexts are the device's; the same model scores elsewhere, from the bundle again."""
    before = failing.predict(_inputs(failing, 3))[0]
    _network(failing).failure = error
    with pytest.raises(DeviceLost, match=message):
        failing.predict(_inputs(failing, 3))
    with pytest.raises(DeviceLost, match=message):
        failing.warm_up()
    moved = failing.moved_to("cpu")
    assert np.array_equal(moved.predict(_inputs(moved, 3))[0], before)


def test_what_the_network_itself_raises_is_left_as_it_is(failing: ScoringModel) -> None:
    """The caller finds the row at fault by it; in warm-up it is the bundle's fault."""
    _network(failing).failure = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        failing.predict(_inputs(failing, 3))
    with pytest.raises(BundleError, match=r"the network raises RuntimeError on bucket 1 \(mat1 and mat2"):
        failing.warm_up()


def _network(model: ScoringModel) -> Any:  # noqa: ANN401 - the test's own class
    return model._module


class _Branching(nn.Module):
    """Looks at its numbers, which a compiler cannot."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The logits, twice as large when the first number is negative."""
        del codes
        logits: torch.Tensor = self.layer(numbers)[:, 0]
        return logits * 2 if numbers[0, 0].item() < 0 else logits


def test_what_cannot_be_compiled_runs_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which bucket and why, and scores are the same."""
    register_once("branching", lambda _spec, layout: _Branching(layout.number_width))
    spec = sample_spec(architecture=Architecture(name="branching"), compile=True, buckets=(2,))
    loaded = ScoringModel(_pack(tmp_path, spec, _Branching(11)))
    before = loaded.predict(_inputs(loaded, 2))[0]
    with caplog.at_level(logging.WARNING):
        loaded.warm_up()
    assert "sample version 3: bucket 2 runs without torch.compile" in caplog.text
    assert np.array_equal(loaded.predict(_inputs(loaded, 2))[0], before)


def test_a_program_that_is_not_trusted_is_not_loaded(bundle: Bundle) -> None:
    """Whoever makes a bundle by hand does not get round the trust store."""
    spec = sample_spec().model_copy(update={"weights": "pt2", "architecture": None})
    with pytest.raises(UnsafeBundle, match="trust"):
        ScoringModel(dataclasses.replace(bundle, spec=spec, is_trusted=False))
