"""The part of the hot path that runs on the compute thread: preprocess, infer, calibrate, decide."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from app.errors import DeviceLost
from app.lookup import store_column
from app.microbatch import Predictions
from app.request_features import Fault
from schemas.columns import NumberColumn
from schemas.records import Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.microbatch import MicroBatch
    from app.models.live import LiveModel
    from app.models.runtime import ScoringModel
    from app.models.spec import ModelSpec
    from app.preprocess import Inputs


def compute(batch: MicroBatch, model: LiveModel, scorer: ScoringModel) -> None:
    """Fill in ``predictions`` for the live rows; rows that the model cannot score become ERROR.

    Args:
        batch: rows of this model alone.
        model: that answers.
        scorer: the instance of it that computes.

    Raises:
        DeviceLost: the device is gone; nothing was filled in, and another one may be tried.

    """
    clock = time.monotonic
    batch.marks_s["start"] = clock()
    _add_store_features(batch, model.spec)
    if not len(batch.live):
        batch.marks_s |= dict.fromkeys(("preprocess", "inference", "postprocess"), clock())
        return
    inputs = scorer.preprocessor.transform(batch.features)
    batch.marks_s["preprocess"] = clock()
    logits, buckets, faults = _predict(scorer, inputs, 0, len(batch.live))
    batch.device_rows = len(logits)
    batch.marks_s["inference"] = clock()
    finite = np.asarray(np.isfinite(logits).reshape(len(logits), -1).all(axis=1))
    if not finite.all():
        _drop_unscored(batch, ~finite, faults)
        logits, buckets = logits[finite], buckets[finite]
    batch.predictions = Predictions(model.postprocessor.apply(logits), buckets, scorer.device)
    batch.marks_s["postprocess"] = clock()


def _add_store_features(batch: MicroBatch, spec: ModelSpec) -> None:
    """Put the store features among the others; a required one that could not be had makes its row an ERROR."""
    if batch.lookup is None:
        return
    for feature in spec.features:
        if feature.source == "store":
            batch.features[feature.name] = store_column(
                batch.lookup, feature.view or "", feature.column or feature.name
            )
    for feature in spec.features:
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
    scorer: ScoringModel, inputs: Inputs, start: int, end: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], dict[int, Fault]]:
    """Logits of rows ``start .. end - 1`` (NaN where the model raises on the row itself), buckets, faults by row.

    More rows than the largest bucket holds are several device batches. A batch that raises is halved until the row at
    fault stands alone: log2(n) runs, and its neighbours are scored.
    """
    count = end - start
    if count > scorer.spec.buckets[-1]:
        middle = start + scorer.spec.buckets[-1]
        return _both(scorer, inputs, (start, middle, end))
    whole = count == len(next(iter(inputs.values())))
    try:
        logits, bucket = scorer.predict(inputs if whole else {n: array[start:end] for n, array in inputs.items()})
    except DeviceLost:
        raise
    except Exception as exc:  # noqa: BLE001 - a model may raise anything; it must cost one row, not the worker
        if count == 1:
            fault = Fault("inference", type(exc).__name__, f"the model raised {type(exc).__name__} on this row")
            return np.full(_lone_shape(scorer), np.nan, np.float32), np.ones(1, np.int32), {start: fault}
        return _both(scorer, inputs, (start, start + count // 2, end))
    return logits, np.full(len(logits), bucket, np.int32), {}


def _both(
    scorer: ScoringModel, inputs: Inputs, edges: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.int32], dict[int, Fault]]:
    left = _predict(scorer, inputs, edges[0], edges[1])
    right = _predict(scorer, inputs, edges[1], edges[2])
    return np.concatenate([left[0], right[0]]), np.concatenate([left[1], right[1]]), left[2] | right[2]


def _lone_shape(scorer: ScoringModel) -> tuple[int, ...]:
    width = len(scorer.spec.output.output_names)
    return (1,) if width == 1 else (1, width)


def _drop_unscored(batch: MicroBatch, unscored: NDArray[np.bool_], faults: dict[int, Fault]) -> None:
    raised = {int(batch.live[row]): fault for row, fault in faults.items()}
    batch.drop(unscored, Status.ERROR, Fault("inference", "NotFinite", "the model's output is not finite"))
    batch.faults |= raised
