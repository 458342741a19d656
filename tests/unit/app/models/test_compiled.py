"""``torch.compile`` by bucket, with a real compiler."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psutil
import pytest

from app.calibration import Calibration
from app.models.bundle import open_bundle
from app.models.packing import pack_bundle
from app.models.runtime import ScoringModel
from tests.samples import sample_module, sample_spec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # raised within torch's compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_every_bucket_has_a_program_of_its_own(tmp_path: Path) -> None:
    """More buckets than torch caches programs of one function for; near the scores that are not compiled."""
    spec = sample_spec(buckets=tuple(range(1, 11)), compile=True)
    frame = pd.DataFrame({"a": [1]})
    model = ScoringModel(open_bundle(pack_bundle(tmp_path, spec, sample_module(spec), Calibration(), frame)))
    inputs = {
        "numbers": np.random.default_rng(1).normal(size=(10, 11)).astype(np.float32),
        "codes": np.ones((10, 1), np.int64),
    }
    plain = model.predict(inputs)[0]
    children = set(psutil.Process().children(recursive=True))
    model.warm_up()
    assert len(set(map(id, model._runs.values()))) == len(spec.buckets), "none fell back"
    assert model._module not in model._runs.values()
    assert model.predict(inputs)[0] == pytest.approx(plain, rel=1e-4, abs=1e-4)
    assert set(psutil.Process().children(recursive=True)) == children, "no compiler processes stay"
