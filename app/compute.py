"""The part of the hot path that runs on the compute thread: preprocess, infer, calibrate, decide."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from app.lookup import store_column
from app.microbatch import Predictions
from app.postprocess import decide, sigmoid
from app.requests import Fault
from schemas.columns import NumberColumn
from schemas.records import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.microbatch import MicroBatch
    from app.models.runtime import ScoringModel


def compute(batch: MicroBatch, model: ScoringModel) -> None:
    """Fill in ``predictions`` for the live rows; rows that the model cannot score become ERROR."""
    clock = time.monotonic
    batch.marks_s["start"] = clock()
    _add_store_features(batch, model)
    if not len(batch.live):
        batch.marks_s |= dict.fromkeys(("preprocess", "inference", "postprocess"), clock())
        return
    numbers, codes = model.preprocessor.transform(batch.features)
    batch.marks_s["preprocess"] = clock()
    logits, buckets, faults = _predict(model, numbers, codes)
    batch.device_rows = len(logits)
    batch.marks_s["inference"] = clock()
    finite = np.isfinite(logits)
    if not finite.all():
        _drop_unscored(batch, ~finite, faults)
        logits, buckets = logits[finite], buckets[finite]
    raw = sigmoid(logits)
    score = model.bundle.calibration.apply(raw)
    output = model.spec.output
    batch.predictions = Predictions(raw, score, decide(score, output.threshold, output.labels), buckets)
    batch.marks_s["postprocess"] = clock()


def _add_store_features(batch: MicroBatch, model: ScoringModel) -> None:
    """Put the store features among the others; a required one that could not be had makes its row an ERROR."""
    if batch.lookup is None:
        return
    for feature in model.spec.features:
        if feature.source == "store":
            batch.features[feature.name] = store_column(
                batch.lookup, feature.view or "", feature.column or feature.name
            )
    for feature in model.spec.features:
        column = batch.features[feature.name]
        if (
            feature.source == "store"
            and feature.required
            and isinstance(column, NumberColumn)
            and column.valid is not None
        ):
            why = (
                f"{batch.lookup.error}; try again later"
                if batch.lookup.error
                else f"view {feature.view} has no readable value under its key; write the row, or correct it"
            )
            message = f"store feature {feature.name} is required and cannot be had: {why}"
            batch.drop(~column.valid, Status.ERROR, Fault("features", "MissingFeature", message))


def _predict(
    model: ScoringModel, numbers: NDArray[np.float32], codes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int32], dict[int, Fault]]:
    """Logits (NaN where the model raises on the row itself), buckets, and the faults by row.

    A batch that raises is halved until the row at fault stands alone: log2(n) runs, and its neighbours are scored.
    """
    try:
        logits, bucket = model.predict(numbers, codes)
    except Exception as exc:  # noqa: BLE001 - a model may raise anything; it must cost one row, not the worker
        if len(numbers) == 1:
            fault = Fault("inference", type(exc).__name__, f"the model raised {type(exc).__name__} on this row")
            return np.full(1, np.nan, np.float32), np.ones(1, np.int32), {0: fault}
        half = len(numbers) // 2
        left = _predict(model, numbers[:half], codes[:half])
        right = _predict(model, numbers[half:], codes[half:])
        faults = left[2] | {row + half: fault for row, fault in right[2].items()}
        return np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]]), faults
    return logits, np.full(len(logits), bucket, np.int32), {}


def _drop_unscored(batch: MicroBatch, unscored: NDArray[np.bool_], faults: dict[int, Fault]) -> None:
    raised = {int(batch.live[row]): fault for row, fault in faults.items()}
    batch.drop(unscored, Status.ERROR, Fault("inference", "NotFinite", "the model's output is not finite"))
    batch.faults |= raised
