"""Evidently reports, written by a process of their own that is bounded in rows, time and priority.

A report that fails costs a log line: it never stops the join.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from monitors.partition import NO_LABEL
from schemas.columns import NumberColumn, TextColumn, to_python
from schemas.wire import schema_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitors.prediction_plans import PredictionPlans
    from schemas.columns import Column

logger = logging.getLogger(__name__)

LATEST = "latest.html"
TIMEOUT_S = 180.0
"""A report of 5,000 rows a side takes about 10 s, imports included."""
SOURCE_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class ReportJob:
    """One report.

    Attributes:
        name: file name, ends in ``.html``.
        current: rows of the window, one column a feature, ``score`` and ``label`` (NaN: none yet).
        reference: parquet file of the reference frame.
        window_end_us: UTC micros.
        rows: at most so many of each side.

    """

    name: str
    current: pd.DataFrame
    reference: Path
    window_end_us: int
    rows: int


class ReportWorker:
    """Writes reports into a folder, one at a time.

    Args:
        folder: made when it is missing; ``latest.html`` is always the newest report.
        timeout_s: a run that takes longer is killed.

    """

    def __init__(self, folder: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self.folder = folder
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()

    def names(self) -> list[str]:
        """File names of the reports that exist, oldest first."""
        files = [f for f in self.folder.glob("*.html") if f.name != LATEST] if self.folder.exists() else []
        return [f.name for f in sorted(files, key=lambda f: f.stat().st_mtime)]

    async def write(self, job: ReportJob) -> dict[str, Any] | None:
        """Write one report.

        Returns:
            What it shows (see ``monitors.report.write_report``); None when it failed, with the reason in the log.

        """
        async with self._lock:
            with tempfile.TemporaryDirectory(prefix="sluice-report-") as scratch:
                try:
                    return await self._write_in(Path(scratch), job)
                except (OSError, ValueError, TimeoutError) as exc:
                    logger.warning("report %s was not written: %s", job.name, exc or type(exc).__name__)
                    return None

    async def _write_in(self, scratch: Path, job: ReportJob) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        target = (self.folder / job.name).resolve()
        await asyncio.to_thread(job.current.to_parquet, scratch / "current.parquet")
        order = {"current": str(scratch / "current.parquet"), "reference": str(job.reference.resolve()),
                 "target": str(target), "rows": job.rows, "window_end_us": job.window_end_us}  # fmt: skip
        (scratch / "job.json").write_text(json.dumps(order))
        output = await self._run(scratch)
        shutil.copyfile(target, target.with_name(LATEST + ".part"))
        target.with_name(LATEST + ".part").replace(target.with_name(LATEST))
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found

    async def _run(self, scratch: Path) -> bytes:
        path = os.pathsep.join(filter(None, (str(SOURCE_ROOT), os.environ.get("PYTHONPATH"))))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "monitors.report", str(scratch / "job.json"),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "DO_NOT_TRACK": "1", "PYTHONPATH": path}, cwd=scratch,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._timeout_s):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0 or not output.strip():
            last = errors.decode(errors="replace").strip().splitlines()[-1:] or [""]
            msg = f"the report process ended with {process.returncode}: {last[0][:300]}"
            raise ValueError(msg)
        return output


def sample_frame(rows: Sequence[bytes], plans: PredictionPlans) -> pd.DataFrame:
    """Sampled rows of a window as a frame like the reference's.

    Args:
        rows: a label byte (0, 1, or ``NO_LABEL``) and the raw value of the prediction, each.
        plans: schemas of the predictions.

    """
    ids = schema_ids([row[1:] for row in rows])
    labels = np.array([row[0] for row in rows], dtype=np.float64)
    labels[labels == NO_LABEL] = np.nan
    frames = []
    for schema_id in np.unique(ids).tolist():
        plan = plans.plan(schema_id)
        if plan is None:
            continue
        at = np.flatnonzero(ids == schema_id)
        fields: dict[str, Any] = dict(plan.decoder.decode([rows[k][1:] for k in at.tolist()]).columns.fields)
        columns = {name: _values(column) for name, column in fields["features"].fields.items()}
        columns |= {"raw_score": fields["raw_score"].values, "score": fields["score"].values, "label": labels[at]}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _values(column: Column) -> Any:  # noqa: ANN401 - whatever a frame takes
    if isinstance(column, TextColumn):
        return pd.Series(column.to_list(), dtype=object)
    if isinstance(column, NumberColumn):
        if column.values.dtype.kind == "f" and column.valid is not None:
            return np.where(column.valid, column.values, np.nan)
        if column.values.dtype.kind == "b":
            return pd.Series(to_python(column), dtype=object)
        return column.values
    return pd.Series([None] * len(column), dtype=object)
