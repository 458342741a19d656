"""The report's guards, and a worker that survives whatever its process does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from monitors.report import has_both_classes, usable_columns
from monitors.report_worker import LATEST, ReportJob, ReportWorker

if TYPE_CHECKING:
    from pathlib import Path


def frame_of(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """A small frame with every kind of column."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "age": rng.normal(size=rows), "town": rng.choice(["ulm", "bonn"], rows), "when": np.arange(rows),
        "empty": np.full(rows, np.nan), "raw_score": rng.random(rows), "score": rng.random(rows),
        "label": np.arange(rows) % 2.0,
    })  # fmt: skip


def test_columns_that_cannot_be_compared_are_named() -> None:
    """Missing, empty and time columns are left out with a reason; scores and labels are no inputs."""
    usable, skipped = usable_columns(frame_of().drop(columns="town"), frame_of())
    assert usable == ["age", "score"]
    reasons = {"town": "not in the window", "when": "a time: it always moves on", "empty": "no value on one side"}
    assert skipped == reasons


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0.0, 1.0], True), ([1.0, 1.0], False), ([np.nan, 1.0], False), ([np.nan, np.nan], False)],
)
def test_classification_needs_both_classes(labels: list[float], expected: bool) -> None:
    """One class, or no label at all, would make the preset raise."""
    window = pd.DataFrame({"label": labels})
    assert has_both_classes(window, frame_of())[0] is expected
    assert has_both_classes(frame_of(), window)[0] is expected


async def test_a_single_class_and_an_odd_column_cost_their_part_only(tmp_path: Path) -> None:
    """The report of a window with positive labels only, an empty column and infinities is written without them."""
    reference = tmp_path / "reference.parquet"
    frame_of(seed=1).to_parquet(reference)
    current = frame_of().assign(label=1.0)
    current.loc[0, "age"] = np.inf
    worker = ReportWorker(tmp_path / "reports")
    shown = await worker.write(ReportJob("demo.html", current, reference, 1_362_182_400_000_000, 50))
    assert shown is not None
    assert shown["columns"] == ["age", "town", "score"]
    assert shown["classification"] is False
    assert shown["reason"] == "the window has no labels of both classes"
    assert worker.names() == ["demo.html"]
    assert (tmp_path / "reports" / LATEST).read_bytes() == (tmp_path / "reports" / "demo.html").read_bytes()


async def test_a_report_that_fails_or_takes_too_long_is_none(tmp_path: Path) -> None:
    """A reference that cannot be read, or a run beyond its time, leaves no file, no process and no exception."""
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet")
    job = ReportJob("demo.html", frame_of(), broken, 0, 50)
    assert await ReportWorker(tmp_path / "a").write(job) is None
    assert await ReportWorker(tmp_path / "b", timeout_s=0.01).write(job) is None
    assert ReportWorker(tmp_path / "b").names() == []
    assert ReportWorker(tmp_path / "never").names() == []
