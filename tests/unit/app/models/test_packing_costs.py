"""The threshold that wrong decisions choose when a bundle is packed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from app.calibration import Calibration
from app.errors import BundleError
from app.models.bundle import read_spec
from app.models.packing import Costs, pack_bundle
from app.models.spec import Output
from tests.samples import sample_module, sample_spec

if TYPE_CHECKING:
    from pathlib import Path

SCORES, LABELS = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, 0.0, 1.0])
REFERENCE = pd.DataFrame({"raw_score": SCORES, "score": SCORES, "label": LABELS})


def _pack(root: Path, costs: Costs | None, reference: pd.DataFrame | None = REFERENCE, **changes: object) -> float:
    spec = sample_spec(**changes)
    folder = pack_bundle(root, spec, sample_module(spec), Calibration(), reference, costs=costs)
    threshold = read_spec(folder).output.threshold
    assert threshold is not None
    return threshold


@pytest.mark.parametrize(("costs", "threshold"), [((1.0, 5.0), 0.2), ((5.0, 1.0), 0.4), (None, 0.4)])
def test_costs_choose_the_threshold(tmp_path: Path, costs: tuple[float, float] | None, threshold: float) -> None:
    """Dear misses lower it, dear alarms raise it; without costs the declared one stays."""
    assert _pack(tmp_path, None if costs is None else Costs(*costs)) == threshold


@pytest.mark.parametrize(
    ("reference", "output", "message"),
    [
        (None, Output(), "needs the columns score and label"),
        (REFERENCE.drop(columns="label"), Output(), "needs the columns score and label"),
        (REFERENCE.assign(label=0.5), Output(), "costs: "),
        (REFERENCE, Output(kind="softmax", labels=("a", "b", "c")), "one sigmoid output"),
    ],
)
def test_costs_that_choose_nothing_are_refused(
    tmp_path: Path, reference: pd.DataFrame | None, output: Output, message: str
) -> None:
    """The message says what is missing, and nothing is packed."""
    with pytest.raises(BundleError, match=message):
        _pack(tmp_path, Costs(1.0, 2.0), reference, output=output)
    assert not list(tmp_path.rglob("model.yaml"))
