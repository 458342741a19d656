"""Exported programs: what they must take, and what is said when they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from app.calibration import Calibration
from app.errors import BundleError
from app.models.bundle import open_bundle
from app.models.bundle_files import SPEC, sha256_of
from app.models.exported import load_exported
from app.models.packing import pack_bundle
from app.models.runtime import ScoringModel
from app.models.trust import TrustStore
from tests.samples import sample_spec

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES = {"numbers": torch.zeros(1, 3), "codes": torch.zeros(1, 2, dtype=torch.int64)}


class _Sum(nn.Module):
    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return numbers.sum(1) + codes.sum(1)


class _Others(nn.Module):
    def forward(self, numbers: torch.Tensor, ages: torch.Tensor) -> torch.Tensor:
        return numbers.sum(1) + ages.sum(1)


def _save(path: Path, module: nn.Module, *, any_rows: bool = True, **inputs: torch.Tensor) -> Path:
    shapes = {name: {0: torch.export.Dim("rows", min=1, max=64)} for name in inputs} if any_rows else None
    torch.export.save(torch.export.export(module.eval(), (), inputs, dynamic_shapes=shapes), path)
    return path


def _inputs(rows: int = 4, *, numbers: int = 3, codes: int = 2) -> dict[str, torch.Tensor]:
    return {"numbers": torch.ones(rows, numbers), "codes": torch.ones(rows, codes, dtype=torch.int64)}


def test_a_program_runs_for_any_number_of_rows(tmp_path: Path) -> None:
    """By keyword, in any order of its inputs."""
    network = load_exported(_save(tmp_path / "network.pt2", _Sum(), **_inputs()), SAMPLES, "cpu")
    assert [network(codes=c, numbers=n).tolist() for n, c in (_inputs(1).values(), _inputs(3).values())] == [
        [5.0],
        [5.0] * 3,
    ]


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (_Sum(), _inputs(numbers=4), r"numbers: expected float32 \(any, 4\), got float32 \(1, 3\)"),
        (_Sum(), {**_inputs(), "codes": torch.ones(4, 2)}, r"codes: expected float32 \(any, 2\), got int64 \(1, 2\)"),
        (
            _Others(),
            {"numbers": torch.ones(4, 3), "ages": torch.ones(4, 1)},
            r"codes: not among its keyword arguments \(numbers, ages\); ages: model.yaml gives no such input; export",
        ),
    ],
    ids=["width", "type", "name"],
)
def test_a_program_of_other_inputs_is_refused(
    tmp_path: Path, module: nn.Module, inputs: dict[str, torch.Tensor], message: str
) -> None:
    """Name, shape and type of each: expected and given."""
    path = _save(tmp_path / "network.pt2", module, **inputs)
    with pytest.raises(BundleError, match=message):
        load_exported(path, SAMPLES, "cpu")


def test_a_program_of_positions_is_refused(tmp_path: Path) -> None:
    """Inputs come by name, so that none can be taken for another."""
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(_Sum(), tuple(_inputs().values())), path)
    with pytest.raises(BundleError, match=r"numbers: not among its keyword arguments \(none\)"):
        load_exported(path, SAMPLES, "cpu")


def test_a_program_of_another_batch_size_is_refused(tmp_path: Path) -> None:
    """One that was exported for four rows serves the bucket of four and no other."""
    path = _save(tmp_path / "network.pt2", _Sum(), any_rows=False, **_inputs(4))
    with pytest.raises(BundleError, match=r"numbers: expected float32 \(4, 3\), got float32 \(1, 3\)"):
        load_exported(path, SAMPLES, "cpu")
    assert load_exported(path, _inputs(4), "cpu")(**_inputs(4)).tolist() == [5.0] * 4


def test_what_is_no_program_is_refused(tmp_path: Path) -> None:
    """With the version of torch that was asked, since programs of newer ones may not load."""
    (tmp_path / "network.pt2").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(
        BundleError, match=rf"network.pt2: torch {torch.__version__.partition('+')[0]}.* cannot load it"
    ):
        load_exported(tmp_path / "network.pt2", SAMPLES, "cpu")


def _model(tmp_path: Path, **changes: Any) -> ScoringModel:  # noqa: ANN401 - fields of ModelSpec
    spec = sample_spec(weights="pt2", architecture=None, **changes)
    rows = spec.buckets[0]
    program = _save(tmp_path / "p.pt2", _Sum(), any_rows=False, **_inputs(rows, numbers=11, codes=1))
    folder = pack_bundle(tmp_path, spec, None, Calibration(), exported=program)
    trust = TrustStore(tmp_path / "trusted.json")
    trust.add(sha256_of(folder / SPEC), name=spec.name, version=spec.version)
    return ScoringModel(open_bundle(folder, trust=trust))


def test_a_bucket_that_a_program_cannot_take_fails_warm_up(tmp_path: Path) -> None:
    """The smallest bucket is tried when it is loaded, the others when it is warmed up."""
    with pytest.raises(BundleError, match=r"sample version 3: .* raises RuntimeError on bucket 4 \(Expected input"):
        _model(tmp_path, buckets=(2, 4)).warm_up()
