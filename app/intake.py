"""Record batches that wait to be decoded, and the slices of them that fire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from app.batcher import Slice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.requests import RequestDecoder, Requests
    from schemas.records import RecordBatch


@dataclass(slots=True, eq=False)
class Segment:
    """A record batch on its way; decoded when the first of its records fires."""

    batch: RecordBatch
    requests: Requests | None = None


def decode_slices(slices: Sequence[Slice], decoder: RequestDecoder) -> list[Slice]:
    """Slices of requests from slices of records; what is not decoded yet is decoded together.

    Args:
        slices: of ``Segment``, in records, as the batcher gives them.
        decoder: of the model.

    Returns:
        Slices of ``Requests``, in requests, for ``form``. Their parts cover the same offsets, except that dead letters
        at the edge of a slice go with the requests before them. A slice without a request of its own is left out,
        unless its whole batch has none.

    """
    segments = [cast("Segment", piece.segment) for piece in slices]
    new = [segment for segment in dict.fromkeys(segments) if segment.requests is None]
    if new:
        decoded = decoder.decode_together([segment.batch for segment in new])
        for segment, requests in zip(new, decoded, strict=True):
            segment.requests = requests
    return [cut for piece in slices if (cut := _in_requests(piece)) is not None]


def _in_requests(piece: Slice) -> Slice | None:
    segment = cast("Segment", piece.segment)
    requests = segment.requests
    assert requests is not None
    start, end = np.searchsorted(requests.rows, (piece.start, piece.end)).tolist()
    if start < end:
        return Slice(requests, start, end)
    is_all_dead = not len(requests) and piece.end == len(segment.batch)
    return Slice(requests, 0, 0) if is_all_dead else None


def offsets_left(piece: Slice) -> int:
    """Offsets that a slice to the end of its segment stands for and that no part before it has answered."""
    segment = cast("Segment", piece.segment)
    batch, requests = segment.batch, segment.requests
    if requests is None:
        return batch.next_offset - batch.start_offset
    row = int(np.searchsorted(requests.rows, piece.start))
    if row == len(requests) and len(requests):
        return 0  # only dead letters are left, and they go with the requests before them
    first = batch.start_offset if row == 0 else int(batch.offsets[requests.rows[row]])
    return batch.next_offset - first
