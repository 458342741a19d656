"""The prediction log as a frame, and its rows scored again offline in the batch buckets that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from agents.topics import PREDICTIONS
from app.models.runtime import ScoringModel
from app.postprocess import Postprocessor
from schemas.columns import NumberColumn, RecordColumn, TextColumn
from schemas.generate import prediction_schema

from .records import decode_all, whole_topic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.bundle import Bundle
    from app.postprocess import Scored
    from app.settings import Settings
    from schemas.columns import Column
    from schemas.registry import SchemaBook

DECODED_AT_ONCE = 8192
KEPT = ("request_id", "feature_status", "raw_score", "score", "decision", "batch_bucket")


async def read_log(settings: Settings, bundle: Bundle, book: SchemaBook) -> pd.DataFrame:
    """The whole prediction log of one bundle.

    Returns:
        Index request_id; the model's features as used (NaN or None: missing), ``feature_status``, ``raw_score``,
        ``score``, ``decision``, ``batch_bucket``. Rows that another bundle scored are left out.

    Raises:
        UnreadableRecord: the log holds something else than predictions of this model.

    """
    spec = bundle.spec
    book.add(PREDICTIONS, prediction_schema(spec.name, spec.fields()))
    frames: list[pd.DataFrame] = []
    async for values in whole_topic(settings.kafka.bootstrap_servers, PREDICTIONS):
        chunks = (values[at : at + DECODED_AT_ONCE] for at in range(0, len(values), DECODED_AT_ONCE))
        frames += [_frame(decode_all(book, chunk, PREDICTIONS).columns, bundle) for chunk in chunks]
    if not frames:
        msg = f"{PREDICTIONS} is empty; look at the scoring worker's log"
        raise ValueError(msg)
    return pd.concat(frames).set_index("request_id")


def rescored(bundle: Bundle, log: pd.DataFrame) -> Scored:
    """What the bundle makes of the logged features, each row in its logged batch bucket.

    Args:
        bundle: the one that served.
        log: features as used and ``batch_bucket``, at least one row.

    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the worker does: sums over several threads are added in another order
    try:
        model = ScoringModel(bundle)
        buckets = log["batch_bucket"].to_numpy(np.int64)
        order = np.argsort(buckets, kind="stable")
        sizes, firsts = np.unique(buckets[order], return_index=True)
        groups = zip(sizes.tolist(), np.split(order, firsts[1:]), strict=True)
        logits = np.concatenate([padded_logits(model, log.iloc[rows], bucket) for bucket, rows in groups])
    finally:
        torch.set_num_threads(threads)
    return Postprocessor(bundle.spec.output, bundle.calibration).apply(logits[np.argsort(order)])


def padded_logits(model: ScoringModel, frame: pd.DataFrame, bucket: int) -> NDArray[np.float32]:
    """Logits (n,) or (n, outputs), every row computed in a batch padded to ``bucket``.

    In the same bucket a row's logits are the same to the last bit, whatever its neighbours are.
    """
    if frame.empty:
        return np.empty(0, np.float32)
    padded = np.resize(np.arange(len(frame)), -(-len(frame) // bucket) * bucket)  # the last batch is filled up
    inputs = model.preprocessor.transform(model.preprocessor.from_frame(frame))
    logits = [
        model.predict({name: array[padded[at : at + bucket]] for name, array in inputs.items()})[0]
        for at in range(0, len(padded), bucket)
    ]
    return np.concatenate(logits)[: len(frame)]


def _frame(columns: RecordColumn, bundle: Bundle) -> pd.DataFrame:
    features = columns.fields["features"]
    assert isinstance(features, RecordColumn)
    frame = pd.DataFrame(
        {name: _cells(column) for name, column in features.fields.items()}
        | {name: _cells(columns.fields[name]) for name in KEPT}
    )
    sha256 = columns.fields["artifact_sha256"]
    assert isinstance(sha256, TextColumn)
    ours: pd.DataFrame = frame.loc[sha256.codes([bundle.sha256]) == 0]
    return ours


def _cells(column: Column) -> NDArray[np.generic] | pd.Series[str]:
    if isinstance(column, TextColumn):
        return pd.Series(column.to_list(), dtype=object)
    assert isinstance(column, NumberColumn)
    return column.values if column.valid is None else np.where(column.valid, column.values, np.nan)
