"""Frozen values that cross the rooms: a batch of raw records, and the statuses of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Headers = tuple[tuple[str, bytes], ...]
"""Kafka record headers, in wire order; names may repeat."""


class Status(IntEnum):
    """Status of an answer; the numbers are the symbol indices of ``Status`` in ``score.avsc``."""

    OK = 0
    DEGRADED = 1
    INVALID = 2
    EXPIRED = 3
    SHED = 4
    ERROR = 5


class FireReason(IntEnum):
    """Why a micro-batch fired; the numbers are the symbol indices of ``FireReason`` in ``score.avsc``."""

    FULL = 0
    DEADLINE = 1
    IDLE = 2
    WINDOW = 3
    SHUTDOWN = 4
    REBALANCE = 5
    NONE = 6


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """All records that one fetch returned for one partition, as parallel lists.

    ``start_offset <= offsets[0]`` and ``next_offset > offsets[-1]``: the range covers compacted
    gaps and transaction markers, so consecutive batches of a partition touch without holes.

    Attributes:
        topic: name of the topic.
        partition: number of the partition, >= 0.
        start_offset: first offset that the batch stands for.
        next_offset: first offset that it does not stand for.
        offsets: shape (n,), int64, strictly increasing, n >= 1.
        timestamps_ms: shape (n,), int64, Kafka's record timestamps (wall clock, unix ms).
        keys: n keys; None where the record has none.
        values: n values; None is a tombstone.
        headers: n header tuples, or an empty list when no record of the batch has any.
        received_s: monotonic seconds at which the batch was handed over.
    """

    topic: str
    partition: int
    start_offset: int
    next_offset: int
    offsets: NDArray[np.int64]
    timestamps_ms: NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Headers] = field(default_factory=list)
    received_s: float = 0.0

    def __len__(self) -> int:
        """Number of records."""
        return len(self.values)
