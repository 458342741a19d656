"""What every model promises, whatever its format, device and precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from app.errors import BundleError
from app.models.loading import DTYPES, memory_bytes
from app.models.precision import scores_error
from app.models.runtime import ScoringModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from app.preprocess import Inputs

KINDS = ("tabular_mlp", "text_bag", "linear", "of_the_operator")
PROGRAMS = ("pt2", "pt2_text")
PAIRS = [(kind, precision) for kind in KINDS for precision in DTYPES] + [(kind, "fp32") for kind in PROGRAMS]
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))
TOLERANCE = {"fp32": 1e-5, "bf16": 0.15, "fp16": 0.02}
"""Of a logit of size 1 to 10: bf16 has 8 binary digits, fp16 has 11."""


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Where the model runs."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Network and precision."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def known(packed: Callable[..., Any], kind: tuple[str, str]) -> Any:  # noqa: ANN401 - Packed, of a conftest
    """The bundle and the network that was packed."""
    return packed(*kind)


@pytest.fixture(scope="module")
def model(known: Any, device: str) -> ScoringModel:  # noqa: ANN401
    """The bundle, loaded and warm."""
    loaded = ScoringModel(known.bundle, device)
    loaded.warm_up()
    return loaded


def _part(inputs: Inputs, rows: slice) -> Inputs:
    return {name: array[rows] for name, array in inputs.items()}


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 16), (16, 16)])
def test_logits_are_those_of_the_network_that_was_packed(
    known: Any,  # noqa: ANN401
    model: ScoringModel,
    kind: tuple[str, str],
    rows: int,
    bucket: int,
) -> None:
    """As many as rows, float32, padded to the next bucket, and near what the bare network gives in fp32."""
    inputs = known.inputs(rows)
    logits, used = model.predict(inputs)
    outputs = len(model.spec.output.output_names)
    assert (logits.shape, logits.dtype, used) == ((rows,) if outputs == 1 else (rows, outputs), np.float32, bucket)
    with torch.inference_mode():
        bare = known.module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    assert np.abs(logits - bare).max() <= TOLERANCE[kind[1]] * max(1.0, np.abs(bare).max())


def test_a_row_does_not_depend_on_its_neighbours(known: Any, model: ScoringModel) -> None:  # noqa: ANN401
    """In one bucket a row has the same bits among others, at another place and beside padding."""
    inputs = known.inputs(16)
    among = model.predict(inputs)[0]
    turned = model.predict({name: array[::-1].copy() for name, array in inputs.items()})[0]
    fewer = model.predict(_part(inputs, slice(0, 9)))[0]
    assert np.array_equal(turned[::-1], among)
    assert np.array_equal(fewer, among[:9])


def test_the_callers_arrays_are_left_alone(known: Any, model: ScoringModel) -> None:  # noqa: ANN401
    """Padding copies; the evidence is written from the same arrays afterwards."""
    inputs = known.inputs(3)
    before = {name: array.copy() for name, array in inputs.items()}
    model.predict(inputs)
    assert all(np.array_equal(inputs[name], before[name]) for name in before)


def test_each_submission_has_its_own_result(known: Any, model: ScoringModel) -> None:  # noqa: ANN401
    """Whichever is asked for first, and however many wait."""
    batches = [known.inputs(rows, seed) for seed, rows in enumerate((16, 3, 16, 1, 16))]
    alone = [model.predict(batch)[0] for batch in batches]
    pending = [model.submit(batch) for batch in batches]
    together = [waiting.result()[0] for waiting in reversed(pending)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, reversed(together), strict=True))


def test_loading_again_gives_the_same_bits(known: Any, model: ScoringModel, device: str) -> None:  # noqa: ANN401
    """A replay scores as the worker did, here and in an instance that took another's place."""
    inputs = known.inputs(16)
    logits = model.predict(inputs)[0]
    assert np.array_equal(ScoringModel(known.bundle, device).predict(inputs)[0], logits)
    assert np.array_equal(model.moved_to(device).predict(inputs)[0], logits)


@pytest.mark.parametrize("rows", [0, 3, 40])
def test_warm_up_takes_recorded_requests(known: Any, model: ScoringModel, rows: int) -> None:  # noqa: ANN401
    """None, fewer or more of them than a bucket has: every bucket is run and timed."""
    seconds = model.warm_up(known.inputs(rows))
    assert list(seconds) == list(model.spec.buckets)
    assert all(value > 0 for value in seconds.values())


def test_memory_is_that_of_the_parameters(known: Any, model: ScoringModel, kind: tuple[str, str]) -> None:  # noqa: ANN401
    """Half of it in half precision; in fp32 on the CPU it is the bundle's file itself, but for exported programs."""
    size = memory_bytes(known.module)
    assert model.memory_bytes == (size if kind[1] == "fp32" else size // 2)
    assert model.is_mapped == (kind[1] == "fp32" and kind[0] not in PROGRAMS and model.device == "cpu")


def test_the_error_of_a_precision_is_that_of_its_scores(
    packed: Callable[..., Any],
    known: Any,  # noqa: ANN401
    model: ScoringModel,
    kind: tuple[str, str],
    device: str,
) -> None:
    """None of fp32 to itself; of narrow numbers some, measured over more rows than a bucket holds."""
    exact = ScoringModel(packed(kind[0]).bundle, device)
    error = scores_error(exact, model, known.inputs(50))
    assert error == 0 if kind[1] == "fp32" else 0 < error < TOLERANCE[kind[1]] * 10


def test_after_close_nothing_is_scored(known: Any, device: str) -> None:  # noqa: ANN401
    """No answer comes from a version that is unloaded."""
    closed = ScoringModel(known.bundle, device)
    closed.close()
    with pytest.raises(BundleError, match="version 1 is unloaded"):
        closed.predict(known.inputs(1))
