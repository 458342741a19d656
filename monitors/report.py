"""The Evidently report of one window; runs in a process of its own: ``python -m monitors.report JOB.json``.

Evidently is imported here and nowhere else: the import alone takes seconds and 280 MB, a run holds the interpreter for
seconds more, and one bad column or a window with labels of a single class makes its presets raise.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monitors.drift import MIN_INDEX, FeatureReference, freeze, population_stability

STAT_TEST = "psi_frozen_deciles"
NICENESS = 10
PR_SET_PDEATHSIG = 1
LABELS = ("label",)
HIDDEN = ("raw_score",)


def write_report(job: dict[str, Any]) -> dict[str, Any]:
    """Write the HTML file of a job.

    Args:
        job: ``current`` and ``reference`` (parquet files with one column a feature, ``score`` and ``label``),
            ``target`` (the HTML file), ``rows`` (at most so many of each side), ``window_end_us``.

    Returns:
        What the report shows: ``columns`` judged, ``skipped`` with reasons, ``classification`` or why not.

    """
    current = _sampled(pd.read_parquet(job["current"]), job["rows"])
    reference = _sampled(pd.read_parquet(job["reference"]), job["rows"])
    columns, skipped = usable_columns(current, reference)
    has_quality, reason = has_both_classes(current, reference)
    moment = datetime.fromtimestamp(job["window_end_us"] / 1e6, tz=UTC)
    while True:
        try:
            snapshot = _run(current, reference, columns, has_quality=has_quality, moment=moment)
            break
        except Exception as exc:  # whatever Evidently raises: find the column that it chokes on
            failing = [c for c in columns if not _runs_alone(current, reference, c, moment)]
            if not failing and not has_quality:
                raise
            skipped.update(dict.fromkeys(failing, "Evidently cannot compare it"))
            columns = [c for c in columns if c not in failing]
            if not failing:
                has_quality, reason = False, f"Evidently failed: {exc}"
    target = Path(job["target"])
    part = target.with_suffix(".part")
    snapshot.save_html(str(part))
    part.replace(target)
    return {"columns": columns, "skipped": skipped, "classification": has_quality, "reason": reason}


def usable_columns(current: pd.DataFrame, reference: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """Columns that both sides can be compared on, and why the others cannot."""
    usable, skipped = [], {}
    for name in [str(c) for c in reference.columns if c not in (*LABELS, *HIDDEN)]:
        if name not in current.columns:
            skipped[name] = "not in the window"
        elif current[name].notna().sum() == 0 or reference[name].notna().sum() == 0:
            skipped[name] = "no value on one side"
        elif pd.api.types.is_integer_dtype(reference[name]):
            skipped[name] = "a time: it always moves on"
        else:
            usable.append(name)
    return usable, skipped


def has_both_classes(current: pd.DataFrame, reference: pd.DataFrame) -> tuple[bool, str]:
    """Whether classification quality can be shown: both classes on both sides, else the reason why not."""
    for side, frame in (("window", current), ("reference", reference)):
        labels = {float(v) for v in frame["label"].dropna()} if "label" in frame.columns else set()
        if not {0.0, 1.0} <= labels:
            return False, f"the {side} has no labels of both classes"
    return True, ""


def _run(
    current: pd.DataFrame, reference: pd.DataFrame, columns: list[str], *, has_quality: bool, moment: datetime
) -> Any:  # noqa: ANN401 - Evidently's own type
    from evidently import BinaryClassification, DataDefinition, Dataset, Report  # noqa: PLC0415 - seconds to import
    from evidently.metrics import ValueDrift  # noqa: PLC0415
    from evidently.presets import ClassificationQuality  # noqa: PLC0415

    _register_stat_test(reference)
    numbers = [c for c in columns if pd.api.types.is_float_dtype(reference[c])]
    categories = [c for c in columns if c not in numbers]
    items: list[Any] = [ValueDrift(column=c, method=STAT_TEST, threshold=MIN_INDEX) for c in columns]
    sides = [_plain(frame, numbers, categories) for frame in (current, reference)]
    extra: dict[str, Any] = {}
    if has_quality:
        sides = [frame.dropna(subset=["label"]).astype({"label": "int64"}) for frame in sides]
        extra = {"classification": [BinaryClassification(target="label", prediction_probas="score", pos_label=1)]}
        items.append(ClassificationQuality())
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=categories, **extra)
    datasets = [Dataset.from_pandas(frame, data_definition=definition) for frame in sides]
    return Report(items).run(datasets[0], datasets[1], timestamp=moment.replace(tzinfo=None))


def _plain(frame: pd.DataFrame, numbers: list[str], categories: list[str]) -> pd.DataFrame:
    kept = {c: frame[c].astype("float64").replace([np.inf, -np.inf], np.nan) for c in numbers}
    kept |= {c: frame[c].astype(object).where(frame[c].notna(), None) for c in categories}
    return pd.DataFrame({**kept, "score": frame["score"], "label": frame["label"]})


def _runs_alone(current: pd.DataFrame, reference: pd.DataFrame, column: str, moment: datetime) -> bool:
    try:
        _run(current, reference, [column], has_quality=False, moment=moment)
    except Exception:  # noqa: BLE001 - the question is whether it raises
        return False
    return True


def _register_stat_test(reference: pd.DataFrame) -> None:
    """Evidently's own index moves its edges with every window: register ours, on the reference's deciles."""
    from evidently.legacy.calculations.stattests import StatTest, register_stattest  # noqa: PLC0415
    from evidently.legacy.core import ColumnType  # noqa: PLC0415

    frozen: dict[str, FeatureReference] = {str(c): freeze(str(c), reference[c]) for c in reference.columns}

    def index(
        reference: pd.Series[Any], current: pd.Series[Any], _kind: object, threshold: float
    ) -> tuple[float, bool]:
        bins = frozen.get(str(reference.name)) or freeze(str(reference.name), reference)
        counts = [bins.count(side) for side in (reference, current)]
        found, _ = population_stability(counts[0], counts[1])
        return found, found >= threshold

    register_stattest(
        StatTest(
            name=STAT_TEST,
            display_name="population stability index on the reference's deciles",
            allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
            default_threshold=MIN_INDEX,
        ),
        default_impl=index,
    )


def _sampled(frame: pd.DataFrame, rows: int) -> pd.DataFrame:
    return frame if len(frame) <= rows else frame.sample(rows, random_state=0)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(path: str) -> None:
    """Write the report of the job in ``path``; the result goes to standard output as one JSON line."""
    _die_with_parent()
    os.nice(NICENESS)
    os.environ["DO_NOT_TRACK"] = "1"
    result = write_report(json.loads(Path(path).read_text()))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
