"""What the answers of a run with swaps say: which version gave each, and whether an offline run gives the same bits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from app.models.bundle import open_bundle
from bench.reader import Reader
from bench.replay import Replayer
from bench.sized_bundles import MODEL
from bench.stack import PARTITIONS, Bench, Ends
from schemas.columnar import Decoder
from schemas.generate import prediction_schema
from schemas.registry import load_schema
from schemas.topic_names import PREDICTIONS, SCORES
from schemas.wire import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from numpy.typing import NDArray

    from schemas.columns import NumberColumn, RecordColumn, TextColumn
    from schemas.records import RecordBatch

READ_TIMEOUT_S = 300.0


async def answered_versions(bench: Bench, count: int) -> NDArray[np.int64]:
    """The version that answered each request, in the order in which the generator sent them."""
    decoder = Decoder(load_schema(bench.settings().schemas.folder, "score"))
    versions, seen = np.zeros(count, np.int64), [0] * PARTITIONS
    async for batch in _batches(bench, SCORES):
        first = seen[batch.partition]
        seen[batch.partition] += len(batch)
        index = np.arange(first, first + len(batch)) * PARTITIONS + batch.partition
        fields = decoder.decode(cast("list[bytes]", batch.values), skip_bytes=HEADER_BYTES).columns.fields
        versions[index] = cast("NumberColumn", fields["model_version"]).values
    return versions


async def bit_equal(bench: Bench, wanted: int) -> dict[str, Any]:
    """Rows spread over the whole run: answer against evidence, and evidence against an offline run of its version.

    Every request was scored, so the k-th record of a partition is of the same request in both topics.
    """
    async with Ends(bench) as ends:
        stride = max(await ends.of(PREDICTIONS) // wanted, 1)
    answers = [await _every(bench, topic, stride) for topic in (SCORES, PREDICTIONS)]
    spec = open_bundle(bench.repository / MODEL / "1").spec
    scores = Decoder(load_schema(bench.settings().schemas.folder, "score")).decode(answers[0], skip_bytes=HEADER_BYTES)
    logged = Decoder(prediction_schema(spec.name, spec.fields())).decode(answers[1], skip_bytes=HEADER_BYTES)
    same = _same(scores.columns, logged.columns)
    versions = cast("NumberColumn", logged.columns.fields["model_version"]).values
    equal, by_version = 0, {}
    for version in np.unique(versions).tolist():
        values = [answers[1][i] for i in np.flatnonzero(versions == version)]
        equal += Replayer(open_bundle(bench.repository / MODEL / str(version))).equal_rows(values)
        by_version[str(version)] = len(values)
    return {
        "rows": len(versions),
        "rows_by_version": by_version,
        "answer_is_evidence": int(same.sum()),
        "bit_equal": equal,
    }


def _same(scores: RecordColumn, logged: RecordColumn) -> NDArray[np.bool_]:
    """Whether request, version and score are the same in both, the score bit by bit."""
    score, version = (
        [np.asarray(cast("NumberColumn", each.fields[name]).values) for each in (scores, logged)]
        for name in ("score", "model_version")
    )
    ids = [cast("TextColumn", each.fields["request_id"]).to_bytes_list() for each in (scores, logged)]
    same_ids = np.array([one == other for one, other in zip(*ids, strict=True)])
    return same_ids & (version[0] == version[1]) & (score[0].view(np.int64) == score[1].view(np.int64))


async def _every(bench: Bench, topic: str, stride: int) -> list[bytes]:
    """Every ``stride``-th value of each partition, one partition after the other."""
    chosen: dict[int, list[bytes]] = {p: [] for p in range(PARTITIONS)}
    seen = [0] * PARTITIONS
    async for batch in _batches(bench, topic):
        first = -seen[batch.partition] % stride
        seen[batch.partition] += len(batch)
        chosen[batch.partition] += cast("list[bytes]", batch.values[first::stride])
    return [value for values in chosen.values() for value in values]


async def _batches(bench: Bench, topic: str) -> AsyncIterator[RecordBatch]:
    """All of a topic that is there now, from its beginning."""
    async with Ends(bench) as ends:
        left = await ends.of(topic)
    deadline_s = time.monotonic() + READ_TIMEOUT_S
    async with Reader(bench, topic, from_end=False) as reader:
        while left > 0:
            if time.monotonic() > deadline_s:
                msg = f"{left} records of {topic} are not read after {READ_TIMEOUT_S:.0f} s"
                raise TimeoutError(msg)
            for batch in await reader.fetch(1.0):
                left -= len(batch)
                yield batch
