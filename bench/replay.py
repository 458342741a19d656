"""Replay: every logged prediction scored again from its own log record, bit by bit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from app.models.runtime import ScoringModel
from app.postprocess import sigmoid
from bench.contenders import OURS, Running
from bench.reader import Reader
from bench.stack import PARTITIONS, Bench, Ends, fresh_topics
from bench.workload import MODEL, make_bundle, preload
from schemas.columnar import Decoder
from schemas.generate import prediction_schema
from schemas.topic_names import PREDICTIONS
from schemas.wire import HEADER_BYTES

if TYPE_CHECKING:
    from app.models.bundle import Bundle
    from schemas.columns import NumberColumn, RecordColumn

REQUESTS = 1_000_000
LOG_TIMEOUT_S = 300.0


async def run(bench: Bench) -> dict[str, Any]:
    """Score a million requests, read what was logged, score it again in the logged buckets."""
    requests = 4000 if bench.is_quick else REQUESTS
    bundle = make_bundle(bench.repository)
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, requests, PARTITIONS)
    async with Ends(bench) as ends:
        with Running(bench, OURS, MODEL):
            async with asyncio.timeout(LOG_TIMEOUT_S):  # the log may end a moment after the scores
                while (logged := await ends.of(PREDICTIONS)) < requests:  # noqa: ASYNC110 - another process writes
                    await asyncio.sleep(0.2)
    replayer, seen, equal, started_s = Replayer(bundle), 0, 0, time.monotonic()
    async with Reader(bench, PREDICTIONS, from_end=False) as reader:
        while seen < min(logged, requests):
            for batch in await reader.fetch(5.0):
                equal += replayer.equal_rows(cast("list[bytes]", batch.values))
                seen += len(batch)
    spent_s = time.monotonic() - started_s
    print(f"  {equal:,} of {seen:,} rows bit-equal in {spent_s:.1f} s; buckets {sorted(replayer.buckets)}", flush=True)
    return {
        "rows": seen,
        "bit_equal": equal,
        "logged": logged,
        "seconds": round(spent_s, 1),
        "buckets": sorted(replayer.buckets),
    }


class Replayer:
    """Scores log records of one bundle again."""

    def __init__(self, bundle: Bundle) -> None:
        self._model = ScoringModel(bundle)
        self._decoder = Decoder(prediction_schema(bundle.spec.name, bundle.spec.fields()))
        self.buckets: set[int] = set()

    def equal_rows(self, values: list[bytes]) -> int:
        """How many rows give the logged raw score and the logged calibrated score, bit by bit."""
        columns = self._decoder.decode(values, skip_bytes=HEADER_BYTES).columns
        logged = {
            name: cast("NumberColumn", columns.fields[name]).values for name in ("raw_score", "score", "batch_bucket")
        }
        features = cast("RecordColumn", columns.fields["features"]).fields
        inputs = self._model.preprocessor.transform(dict(features))
        equal = 0
        for bucket in np.unique(logged["batch_bucket"]).tolist():
            self.buckets.add(bucket)
            members = np.flatnonzero(logged["batch_bucket"] == bucket)
            smaller = max((b for b in self._model.spec.buckets if b < bucket), default=0)
            for start in range(0, len(members), bucket):
                rows = members[start : start + bucket]
                padded = np.resize(rows, max(len(rows), smaller + 1))  # a rest must land in the same bucket
                logits, used = self._model.predict({name: array[padded] for name, array in inputs.items()})
                assert used == bucket, (used, bucket)
                raw = sigmoid(logits[: len(rows)])
                score = self._model.bundle.calibration.apply(raw)
                equal += int(
                    np.sum(_same_bits(raw, logged["raw_score"][rows]) & _same_bits(score, logged["score"][rows]))
                )
        return equal


def _same_bits(one: Any, other: Any) -> Any:  # noqa: ANN401 - float64 arrays
    return one.view(np.int64) == np.asarray(other, np.float64).view(np.int64)
