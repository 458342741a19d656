"""The proof: what the stream did equals what an offline run does, feature by feature and bit by bit.

Read back from `predictions-log`: the features as used must equal those that `simulate` computes from the raw files, and
the scores must equal the same bundle's, run offline in the logged batch bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.topics import PREDICTIONS
from app.models.runtime import ScoringModel
from schemas.columns import NumberColumn, RecordColumn, TextColumn
from schemas.generate import prediction_schema

from .answers import POLL_MS, decode_all
from .model import request_frame
from .offline import raw_scores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

    from app.models.bundle import Bundle
    from app.settings import Settings
    from schemas.columns import Column
    from schemas.registry import SchemaBook

STORE_NOT_HAD = "d"
DECODED_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Verification:
    """What the comparison found; all ``*_wrong`` are request ids, empty when the stream is proven right.

    Attributes:
        prediction_count: records of the log.
        bucket_counts: rows for each logged batch bucket.
        store_not_had_count: rows that fell back because the store did not answer in time; their features are not
            compared with the simulation, their scores are.
        features_wrong: a feature differs from the offline simulation.
        scores_wrong: the score differs, in any bit, from the offline run in the same bucket.
        answers_wrong: the answer on `scores` differs from the log, or one of the two is missing.

    """

    prediction_count: int
    bucket_counts: dict[int, int]
    store_not_had_count: int
    features_wrong: tuple[str, ...]
    scores_wrong: tuple[str, ...]
    answers_wrong: tuple[str, ...]

    @property
    def is_proven(self) -> bool:
        """Whether nothing differs."""
        return not (self.features_wrong or self.scores_wrong or self.answers_wrong)

    def lines(self) -> list[str]:
        """The findings, for people."""
        buckets = ", ".join(f"{rows:,} in {bucket}" for bucket, rows in sorted(self.bucket_counts.items()))
        count = self.prediction_count
        compared = count - self.store_not_had_count
        lines = [
            _line("features as used = offline simulation", compared, self.features_wrong),
            _line("scores = offline run in the same bucket, bit by bit", count, self.scores_wrong),
            _line("answers = log", count, self.answers_wrong),
            f"rows by batch bucket: {buckets}",
        ]
        if self.store_not_had_count:
            lines.append(
                f"{self.store_not_had_count:,} rows were answered DEGRADED without the store, within its budget"
            )
        return lines


def compare(log: pd.DataFrame, expected: pd.DataFrame, bundle: Bundle, answers: pd.DataFrame) -> Verification:
    """Compares the log with an offline run.

    Args:
        log: as ``read_log`` gives it, index request_id.
        expected: every feature of the model for every replayed flight, index request_id.
        bundle: the one that served.
        answers: ``score`` as it came on `scores`, index request_id.

    """
    names = [f.name for f in bundle.spec.features]
    not_had = log["feature_status"].str.contains(STORE_NOT_HAD).to_numpy(bool)
    differs = _different(log[names], expected.loc[log.index, names]) & ~not_had
    raw = _raw_in_buckets(bundle, log)
    same_score = (raw == log["raw_score"]) & (bundle.calibration.apply(raw) == log["score"])
    scored = answers["score"].dropna()
    doubled = log.index.duplicated()
    logged = log.loc[~doubled, "score"]
    both = scored.index.intersection(logged.index)
    odd = scored.index.symmetric_difference(logged.index)
    unequal = both[scored.loc[both].to_numpy() != logged.loc[both].to_numpy()]
    buckets, rows = np.unique(log["batch_bucket"], return_counts=True)
    return Verification(
        prediction_count=len(log),
        bucket_counts=dict(zip(buckets.tolist(), rows.tolist(), strict=True)),
        store_not_had_count=int(not_had.sum()),
        features_wrong=tuple(log.index[differs]),
        scores_wrong=tuple(log.index[~same_score.to_numpy(bool)]),
        answers_wrong=(*odd, *unequal, *log.index[doubled]),
    )


def expected_features(flights: pd.DataFrame, simulated: pd.DataFrame) -> pd.DataFrame:
    """Request and store features of flights, index request_id."""
    frame = pd.concat([request_frame(flights), simulated.loc[flights.index]], axis=1)
    return frame.set_index(pd.Index(flights["request_id"], name="request_id"))


async def read_log(settings: Settings, bundle: Bundle, book: SchemaBook) -> pd.DataFrame:
    """The whole prediction log of one bundle.

    Returns:
        Index request_id; the model's features as used (NaN or None: missing), ``feature_status``, ``raw_score``,
        ``score``, ``batch_bucket``. Rows that another bundle scored are left out.

    Raises:
        UnreadableRecord: the log holds something else than predictions of this model.

    """
    spec = bundle.spec
    book.add(PREDICTIONS, prediction_schema(spec.name, spec.fields()))
    frames: list[pd.DataFrame] = []
    async for values in _whole_topic(settings.kafka.bootstrap_servers, PREDICTIONS):
        chunks = (values[at : at + DECODED_AT_ONCE] for at in range(0, len(values), DECODED_AT_ONCE))
        frames += [_frame(decode_all(book, chunk, PREDICTIONS).columns, bundle) for chunk in chunks]
    if not frames:
        msg = f"{PREDICTIONS} is empty; look at the scoring worker's log"
        raise ValueError(msg)
    return pd.concat(frames).set_index("request_id")


async def _whole_topic(bootstrap_servers: str, topic: str) -> AsyncIterator[list[bytes]]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        ends = await consumer.end_offsets(partitions)
        left = {p for p in partitions if ends[p] > (await consumer.position(p))}
        while left:
            fetched = await consumer.getmany(timeout_ms=POLL_MS)
            yield [record.value for records in fetched.values() for record in records]
            left = {p for p in left if ends[p] > (await consumer.position(p))}
    finally:
        await consumer.stop()


def _frame(columns: RecordColumn, bundle: Bundle) -> pd.DataFrame:
    features = columns.fields["features"]
    assert isinstance(features, RecordColumn)
    kept = ("request_id", "feature_status", "raw_score", "score", "batch_bucket")
    frame = pd.DataFrame(
        {name: _cells(column) for name, column in features.fields.items()}
        | {name: _cells(columns.fields[name]) for name in kept}
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


def _different(found: pd.DataFrame, expected: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows with a cell that differs; missing equals missing, and nothing else does."""
    differs = np.zeros(len(found), bool)
    for name in found.columns:
        one, other = found[name].to_numpy(), expected[name].to_numpy()
        missing, also_missing = pd.isna(one), pd.isna(other)
        differs |= (missing != also_missing) | (~missing & ~also_missing & (one != other))
    return differs


def _raw_in_buckets(bundle: Bundle, log: pd.DataFrame) -> NDArray[np.float64]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the worker does: sums over several threads are added in another order
    try:
        model = ScoringModel(bundle)
        raw = np.full(len(log), np.nan)
        buckets = log["batch_bucket"].to_numpy(np.int64)
        for bucket in np.unique(buckets).tolist():
            rows = np.flatnonzero(buckets == bucket)
            raw[rows] = raw_scores(model, log.iloc[rows], bucket)
        return raw
    finally:
        torch.set_num_threads(threads)


def _line(what: str, count: int, wrong: tuple[str, ...]) -> str:
    if not wrong:
        return f"{what}: all {count:,} equal"
    return f"{what}: {len(wrong):,} of {count:,} DIFFER, the first ones {', '.join(wrong[:5])}"
