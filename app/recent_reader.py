"""Filling the recent answers of partitions that a worker takes over, from the end of their ``scores``."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from app.errors import SluiceError
from app.topic_reader import open_reader
from schemas.records import Status
from schemas.wire import HEADER_BYTES, parse_source_mark, schema_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.recent import RecentAnswers
    from app.settings import Settings
    from schemas.columns import EnumColumn, RecordColumn, TextColumn
    from schemas.registry import SchemaBook

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
"""A worker starts without them rather than late."""


async def remember_tail(
    recent: RecentAnswers, settings: Settings, book: SchemaBook, topic: str, committed: Mapping[int, int]
) -> None:
    """Enter the newest answers of some partitions.

    Args:
        recent: to be filled; empty.
        settings: connection, and how much is remembered.
        book: decodes them.
        topic: ``scores``.
        committed: for each partition the offset up to which requests are answered in full. Later answers may stand
            there without their evidence, left by a worker that was killed: their requests are scored again.

    """
    if not committed or not recent.is_on:
        return
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _read_tails(recent, settings, book, topic, committed)
    except (SluiceError, TimeoutError) as exc:
        log.warning("answers of before are not remembered (%s); a request that comes again is scored again", exc)


async def _read_tails(
    recent: RecentAnswers, settings: Settings, book: SchemaBook, topic: str, committed: Mapping[int, int]
) -> None:
    delivery = settings.delivery
    since_ms = int((time.time() - delivery.remembered_s) * 1000)
    share = max(delivery.remembered_answers // len(committed), 1)
    async with open_reader(settings.kafka) as reader:
        ranges: dict[int, tuple[int, int]] = {}
        for partition in (p for p, offset in committed.items() if offset):
            start, end = await reader.bounds(topic, partition)
            start = max(start, end - share)
            if start < end:
                ranges[partition] = max(start, await reader.first_since(topic, partition, since_ms, end)), end
        async for records in reader.read_together(topic, ranges):
            _enter([r for r in records if _request_offset(r) < committed[r.partition]], recent, book)


def _request_offset(record: Any) -> float:  # noqa: ANN401 - aiokafka's record
    """Offset of the request that a record of ``scores`` answers; infinity when it does not say."""
    marks = [value for name, value in record.headers if name == "x-src"]
    try:
        return parse_source_mark(marks[-1])[2] if marks else np.inf
    except ValueError:  # a stranger's
        return np.inf


def _enter(records: list[Any], recent: RecentAnswers, book: SchemaBook) -> None:
    values = [record.value for record in records]
    ids = schema_ids(values) if values else np.zeros(0, np.int64)
    for schema_id in np.unique(ids).tolist():
        decoder = book.decoder(schema_id)
        if decoder is None:
            continue
        mine = [values[i] for i in np.flatnonzero(ids == schema_id).tolist()]
        decoded = decoder.decode(mine, skip_bytes=HEADER_BYTES)
        request_ids, statuses = _ids_and_statuses(decoded.columns)
        statuses[list(decoded.errors)] = Status.ERROR
        batch, _ = recent.enter(request_ids, statuses, now_s=time.monotonic())
        recent.answered(batch, mine, statuses)


def _ids_and_statuses(columns: RecordColumn) -> tuple[TextColumn, Any]:
    status = cast("EnumColumn", columns.fields["status"])
    known = np.array([Status[name] if name in Status.__members__ else Status.ERROR for name in status.symbols], np.int8)
    return cast("TextColumn", columns.fields["request_id"]), known[status.codes]
