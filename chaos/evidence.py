"""Reads all topics again when the stream is quiet, and makes evidence of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.replay import Replayer
from chaos.verdict import Answer, Commit, Evidence
from chaos.workload import request_id
from schemas import topic_names
from schemas.columnar import Decoder
from schemas.columns import to_python
from schemas.generate import prediction_schema
from schemas.registry import load_schema
from schemas.wire import HEADER_BYTES, parse_source_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka.structs import ConsumerRecord

    from chaos.judge_client import JudgeClient
    from chaos.load import Load
    from chaos.workload import Workload

SLICE = 4096


async def gather(judge: JudgeClient, load: Load, workload: Workload, commits: Sequence[Commit]) -> Evidence:
    """Everything that stands on the topics of the scoring workers."""
    spec = workload.bundle.spec
    requests: dict[tuple[int, int], str | None] = {}
    for record in await judge.read(topic_names.REQUESTS):
        sent = load.acknowledged.get((record.partition, record.offset))
        requests[record.partition, record.offset] = None if sent is None or sent.is_poison else request_id(sent.number)
    score_decoder = Decoder(load_schema(workload.schemas, "score"))
    prediction_decoder = Decoder(prediction_schema(spec.name, spec.fields()))
    predictions = await judge.read(topic_names.PREDICTIONS)
    return Evidence(
        requests=requests,
        acknowledged=frozenset(load.acknowledged),
        scores=_answers(await judge.read(topic_names.SCORES), score_decoder),
        predictions=_answers(predictions, prediction_decoder),
        dead_letters=[
            Answer(source_of(record), record.partition, record.offset)
            for record in await judge.read(topic_names.REQUESTS_DLQ)
        ],
        commits=commits,
        bit_equal=_bit_equal(workload, predictions),
    )


async def last_answers(judge: JudgeClient, workload: Workload, count: int) -> list[Answer]:
    """The newest answers, so many of each partition."""
    decoder = Decoder(load_schema(workload.schemas, "score"))
    return _answers(await judge.read(topic_names.SCORES, last=count), decoder)


async def served_span_s(judge: JudgeClient, workload: Workload) -> float:
    """Seconds between the earliest and the latest wall clock time that stands in an answer."""
    records = await judge.read(topic_names.SCORES)
    decoder = Decoder(load_schema(workload.schemas, "score"))
    columns: Any = decoder.decode([record.value for record in records], skip_bytes=HEADER_BYTES).columns
    served_us = columns.fields["served_at"].values
    return float(served_us.max() - served_us.min()) / 1e6


def source_of(record: ConsumerRecord) -> tuple[int, int]:
    """Partition and offset of the request that a record answers, from its last ``x-src``."""
    _, partition, offset, _ = parse_source_mark(dict(record.headers)["x-src"])
    return partition, offset


def _answers(records: Sequence[ConsumerRecord], decoder: Decoder) -> list[Answer]:
    found: list[Answer] = []
    for start in range(0, len(records), SLICE):
        part = records[start : start + SLICE]
        columns: Any = decoder.decode([record.value for record in part], skip_bytes=HEADER_BYTES).columns
        ids, scores = to_python(columns.fields["request_id"]), to_python(columns.fields["score"])
        statuses = to_python(columns.fields["status"]) if "status" in columns.fields else [""] * len(part)
        found += [
            Answer(source_of(record), record.partition, record.offset, named, status, score, record.timestamp)
            for record, named, status, score in zip(part, ids, statuses, scores, strict=True)
        ]
    return found


def _bit_equal(workload: Workload, records: Sequence[ConsumerRecord]) -> int:
    """Every record, repeated ones too: whichever a reader keeps must be true."""
    replayer = Replayer(workload.bundle)
    values = [record.value for record in records]
    return sum(replayer.equal_rows(values[start : start + SLICE]) for start in range(0, len(values), SLICE))
