"""Reading a range of a topic again, without a group: how a lost or stale store catches up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from schemas.records import RecordBatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

POLL_MS = 500
STALL_S = 60.0
"""Without progress for so long the broker cannot be read: better to fail and start again than to wait in silence."""


class RebuildError(RuntimeError):
    """A range of a topic could not be read to its end."""


async def read_ranges(
    connection: Mapping[str, Any],
    ranges: Mapping[tuple[str, int], tuple[int, int]],
    handle: Callable[[RecordBatch], Awaitable[None]],
    *,
    max_records: int = 4096,
) -> None:
    """Hand over the records of ranges of offsets, in order for each partition, the partitions taking turns.

    Args:
        connection: arguments of a consumer that say where the brokers are, and who we are.
        ranges: topic and partition to first offset and end (exclusive). A start that retention has deleted moves up.
        handle: awaited for each batch.
        max_records: records of one batch at most.

    Raises:
        RebuildError: no progress for ``STALL_S``.

    """
    ends = {TopicPartition(*tp): end for tp, (start, end) in ranges.items() if start < end}
    if not ends:
        return
    consumer = AIOKafkaConsumer(**connection, group_id=None, enable_auto_commit=False, isolation_level="read_committed")
    await consumer.start()
    try:
        consumer.assign(list(ends))
        first = await consumer.beginning_offsets(list(ends))
        last = await consumer.end_offsets(list(ends))
        for tp, end in list(ends.items()):
            ends[tp] = min(end, last[tp])
            consumer.seek(tp, max(first[tp], ranges[tp.topic, tp.partition][0]))
        await _read_all(consumer, ends, handle, max_records)
    finally:
        await consumer.stop()


async def _read_all(
    consumer: AIOKafkaConsumer,
    ends: dict[TopicPartition, int],
    handle: Callable[[RecordBatch], Awaitable[None]],
    max_records: int,
) -> None:
    positions = {tp: await consumer.position(tp) for tp in ends}
    open_ones = {tp for tp in ends if positions[tp] < ends[tp]}
    moved_s = time.monotonic()
    while open_ones:
        fetched = await consumer.getmany(*open_ones, timeout_ms=POLL_MS, max_records=max_records)
        for tp, records in fetched.items():
            wanted = [r for r in records if r.offset < ends[tp]]
            if wanted:
                await handle(_as_batch(tp, wanted, positions[tp]))
        for tp in list(open_ones):
            position = await consumer.position(tp)
            if position > positions[tp]:
                positions[tp], moved_s = position, time.monotonic()
            if position >= ends[tp]:
                open_ones.discard(tp)
        if time.monotonic() - moved_s > STALL_S:
            msg = f"no progress at {sorted(open_ones)} for {STALL_S:.0f} s; look at the broker, then start again"
            raise RebuildError(msg)


def _as_batch(tp: TopicPartition, records: list[Any], position: int) -> RecordBatch:
    return RecordBatch(
        topic=tp.topic,
        partition=tp.partition,
        start_offset=position,
        next_offset=records[-1].offset + 1,
        offsets=np.array([r.offset for r in records], dtype=np.int64),
        timestamps_ms=np.array([r.timestamp for r in records], dtype=np.int64),
        keys=[r.key for r in records],
        values=[r.value for r in records],
        headers=[tuple(r.headers) for r in records],
    )
