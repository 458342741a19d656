"""A micro-batch on its way: the rows that fired together, what each stage added, and how long it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from app.request_features import Fault
from app.requests import Requests, Share
from schemas.columns import Column, TextColumn, concat
from schemas.records import FireReason, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from app.batcher import Slice
    from app.lookup import Lookup
    from app.postprocess import Scored
    from app.recent import AnsweredBatch, Original


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``start .. end - 1`` of one fetch, and the offsets they stand for."""

    requests: Requests
    start: int
    end: int
    first_offset: int
    next_offset: int
    dead: dict[int, Fault]

    def __len__(self) -> int:
        """Number of requests."""
        return self.end - self.start


@dataclass(slots=True)
class Predictions:
    """What the model said about the live rows of a micro-batch.

    Attributes:
        scored: m rows, after calibration and thresholds.
        bucket: shape (m,), int32, padded size of the device batch that a row was in.
        device: where they were computed.

    """

    scored: Scored
    bucket: NDArray[np.int32]
    device: str

    def take(self, rows: NDArray[np.int64]) -> Predictions:
        """Those of some rows."""
        return Predictions(self.scored.take(rows), self.bucket[rows], self.device)


@dataclass(slots=True)
class MicroBatch:
    """n requests, of one or several partitions.

    What fires together may be for several live models: ``divide`` makes one of these for each, and ``gather`` brings
    their statuses back. When one model answers all, as is usual, the parted and the whole are the same object.

    Attributes:
        parts: where they came from, in order; their rows stand one after the other.
        request_id: n ids.
        entity_id: n ids.
        event_time_us: shape (n,).
        status: shape (n,), int8.
        faults: row to why it is neither OK nor DEGRADED.
        live: rows that go to the device, increasing.
        features: request features of the live rows; empty while several models share the batch.
        shares: the rows by live model, with the request features of all of them.
        model: the live model that answers; None while several share the batch, and for one without requests.
        rows: places in the batch that it was divided from; None: it is whole.
        deadline_ms: shape (n,).
        reason: why it fired.
        fired_s: monotonic seconds.
        planned_s: when the device should be done with it.
        marks_s: monotonic seconds at the end of each stage.
        entered: stands for it among the recent answers.
        duplicates: row to the request whose answer it gets; it does not go to the device.

    """

    parts: list[Part]
    request_id: TextColumn
    entity_id: TextColumn
    event_time_us: NDArray[np.int64]
    status: NDArray[np.int8]
    faults: dict[int, Fault]
    live: NDArray[np.int64]
    features: dict[str, Column]
    shares: list[Share]
    model: Any
    deadline_ms: NDArray[np.int64]
    reason: FireReason
    fired_s: float
    planned_s: float
    marks_s: dict[str, float] = field(default_factory=dict)
    lookup: Lookup | None = None
    predictions: Predictions | None = None
    device_rows: int = 0
    entered: AnsweredBatch | None = None
    duplicates: dict[int, Original] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.status)

    def drop(self, gone: NDArray[np.bool_], status: Status, fault: Fault) -> None:
        """Take live rows off the device and give them a status.

        Args:
            gone: shape (m,) over the live rows.
            status: theirs from now on.
            fault: why.

        """
        if not gone.any():
            return
        for row in self.live[gone].tolist():
            self.status[row] = status
            self.faults[row] = fault
        self._keep(np.flatnonzero(~gone))

    def set_duplicates(self, originals: dict[int, Original]) -> None:
        """Take live rows off the device that get the answer of an earlier request."""
        is_duplicate = np.isin(self.live, np.fromiter(originals, np.int64, len(originals)))
        self.duplicates = {row: originals[row] for row in self.live[is_duplicate].tolist()}
        self._keep(np.flatnonzero(~is_duplicate))

    def _keep(self, kept: NDArray[np.int64]) -> None:
        self.live = self.live[kept]
        self.features = {name: column.take(kept) for name, column in self.features.items()}
        if self.lookup is not None:
            self.lookup = self.lookup.take(kept)
        if self.predictions is not None:
            self.predictions = self.predictions.take(kept)


def form(slices: Sequence[Slice], reason: FireReason, *, now_s: float, planned_s: float, in_time_ms: int) -> MicroBatch:
    """The micro-batch of some slices; requests that cannot meet their deadline become EXPIRED here, at no cost.

    Args:
        slices: of ``Requests``, as the batcher gives them; at least one.
        reason: why it fires.
        now_s: monotonic seconds.
        planned_s: when the device should be done with it.
        in_time_ms: unix milliseconds; a deadline up to this cannot be met.

    """
    parts = [part_of(piece) for piece in slices]
    full = [p for p in parts if len(p)] or parts[:1]
    status = np.concatenate([p.requests.status[p.start : p.end] for p in parts])
    faults: dict[int, Fault] = {}
    base = 0
    for part in parts:
        for row, fault in part.requests.faults.items():
            if part.start <= row < part.end:
                faults[base + row - part.start] = fault
        base += len(part)
    shares = _shares(parts)
    only = shares[0] if len(shares) == 1 else None
    batch = MicroBatch(
        parts=parts,
        request_id=cast("TextColumn", _joined([p.requests.request_id for p in full], full)),
        entity_id=cast("TextColumn", _joined([p.requests.entity_id for p in full], full)),
        event_time_us=np.concatenate([p.requests.event_time_us[p.start : p.end] for p in parts]),
        status=status,
        faults=faults,
        live=np.arange(len(status)),
        features={} if only is None else only.features,
        shares=shares,
        model=None if only is None else only.model,
        deadline_ms=np.concatenate([p.requests.deadline_ms[p.start : p.end] for p in parts]),
        reason=reason,
        fired_s=now_s,
        planned_s=planned_s,
    )
    live = np.flatnonzero(status == Status.OK)
    if len(live) < len(status):
        batch._keep(live)  # noqa: SLF001 - the constructor of this module
    expire(batch, in_time_ms)
    return batch


def divide(batch: MicroBatch) -> list[MicroBatch]:
    """One micro-batch for each live model that answers some of it; the batch itself when one answers all."""
    if batch.model is not None:
        return [batch]
    return [_divided(batch, share) for share in batch.shares]


def gather(batch: MicroBatch, parted: Sequence[MicroBatch]) -> None:
    """Bring back what became of the rows since ``divide``: status, faults, and which went to a device."""
    if batch.model is not None or not parted:
        return
    for piece in parted:
        assert piece.rows is not None
        batch.status[piece.rows] = piece.status
        batch.faults |= {int(piece.rows[row]): fault for row, fault in piece.faults.items()}
    batch.live = np.sort(np.concatenate([cast("NDArray[np.int64]", piece.rows)[piece.live] for piece in parted]))


def _divided(batch: MicroBatch, share: Share) -> MicroBatch:
    rows = share.rows
    live = np.flatnonzero(np.isin(rows, batch.live, assume_unique=True))
    at = {int(row): i for i, row in enumerate(rows.tolist())} if batch.faults else {}
    return MicroBatch(
        parts=batch.parts,
        request_id=batch.request_id.take(rows),
        entity_id=batch.entity_id.take(rows),
        event_time_us=batch.event_time_us[rows],
        status=batch.status[rows],
        faults={at[row]: fault for row, fault in batch.faults.items() if row in at},
        live=live,
        features={name: column.take(live) for name, column in share.features.items()},
        shares=[share],
        model=share.model,
        deadline_ms=batch.deadline_ms[rows],
        reason=batch.reason,
        fired_s=batch.fired_s,
        planned_s=batch.planned_s,
        marks_s=dict(batch.marks_s),
        rows=rows,
    )


def _shares(parts: Sequence[Part]) -> list[Share]:
    """The rows of all parts by live model, in the order in which the models come up."""
    found: dict[int, list[Share]] = {}
    base = 0
    for part in parts:
        for share in part.requests.shares:
            cut = share.cut(part.start, part.end)
            if len(cut.rows):
                found.setdefault(id(cut.model), []).append(cut._replace(rows=cut.rows + base))
        base += len(part)
    return [shares[0] if len(shares) == 1 else _joined_shares(shares) for shares in found.values()]


def _joined_shares(shares: Sequence[Share]) -> Share:
    features = {name: concat([share.features[name] for share in shares]) for name in shares[0].features}
    return Share(shares[0].model, np.concatenate([share.rows for share in shares]), features)


def expire(batch: MicroBatch, in_time_ms: int) -> None:
    """Answer live rows with EXPIRED whose deadline is not after ``in_time_ms``, unix milliseconds."""
    late = batch.deadline_ms[batch.live] <= in_time_ms
    batch.drop(late, Status.EXPIRED, Fault("queue", "Expired", "it could not be answered before its deadline"))


def part_of(piece: Slice) -> Part:
    """The part that a slice of ``Requests`` stands for.

    Offsets between the rows of two parts (dead letters among them) belong to the earlier part.
    """
    requests, start, end = cast("Requests", piece.segment), piece.start, piece.end
    offsets = requests.batch.offsets
    first = requests.batch.start_offset if start == 0 else int(offsets[requests.rows[start]])
    last = requests.batch.next_offset if end == len(requests) else int(offsets[requests.rows[end]])
    first_place = 0 if start == 0 else int(requests.rows[start])
    last_place = len(requests.batch) if end == len(requests) else int(requests.rows[end])
    dead = {place: fault for place, fault in requests.dead.items() if first_place <= place < last_place}
    return Part(requests, start, end, first, last, dead)


def _joined(columns: Sequence[Column], parts: Sequence[Part]) -> Column:
    cut = [c.take(slice(p.start, p.end)) for c, p in zip(columns, parts, strict=True)]
    return cut[0] if len(cut) == 1 else concat(cut)
