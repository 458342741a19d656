"""One partition of the monitor: what a record batch changes, and writing that down."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from monitors.closing import Closing
from monitors.drift import Reference
from monitors.join import NOTHING, JoinRule, Pair, Step, expire, join_outcomes, join_predictions
from monitors.readers import OutcomeReader, OutcomeRows, PredictionRows, read_predictions
from monitors.sample import SmallestHashes
from monitors.store import NO_CLOCK, PartitionStore, WindowKey, index_entry
from monitors.windows import Layout, WindowCounts
from schemas.columns import NumberColumn, RecordColumn
from schemas.deadletter import dead_letter_headers
from schemas.wire import schema_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from monitors.prediction_plans import PredictionPlan, PredictionPlans
    from schemas.records import Headers, RecordBatch

logger = logging.getLogger(__name__)

EXPIRE_LIMIT = 20_000
"""Entries looked at for expiry with one batch: bounds what a jump of event time can cost at once."""
WINDOWS_IN_MEMORY = 256
"""Window counts kept as arrays, about 20 KB each; others are read from the store when they are touched."""
NO_LABEL = 255


@dataclass(slots=True)
class Records:
    """Records for one topic, as parallel lists."""

    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)


@dataclass(slots=True)
class Taken:
    """What one record batch leads to: records to send first, then puts and deletes for the store.

    Attributes:
        labelled: for ``labelled-predictions``.
        dead: for ``outcomes.dlq``.
        puts: for the store, by key.
        deletes: for the store.

    """

    labelled: Records = field(default_factory=Records)
    dead: Records = field(default_factory=Records)
    puts: dict[bytes, bytes] = field(default_factory=dict)
    deletes: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class PartitionTools:
    """What all partitions of a worker share.

    Attributes:
        plans: schemas of the prediction log.
        outcomes: reader of the outcomes.
        rule: times of the join.
        reference_of: path of the reference frame of a model version, or None.
        sample_rows: rows of a window kept for reports, per partition.

    """

    plans: PredictionPlans
    outcomes: OutcomeReader
    rule: JoinRule
    reference_of: Callable[[str, int], Path | None]
    sample_rows: int


class PartitionMonitor:
    """Join, windows and samples of one partition over its store.

    ``take_predictions`` and ``take_outcomes`` compute; their result is sent, then ``commit`` writes it. When a send
    fails the object must not be used any more: its memory is ahead of its store.

    Args:
        partition: number of the partition.
        store: its state.
        tools: shared by the worker's partitions.

    """

    def __init__(self, partition: int, store: PartitionStore, tools: PartitionTools) -> None:
        self.partition = partition
        self.store = store
        self.meta = store.meta()
        self._tools = tools
        self._windows: dict[WindowKey, WindowCounts] = {}
        self._dirty: set[WindowKey] = set()
        self._samples: dict[WindowKey, SmallestHashes] = {}
        self._references: dict[tuple[str, int], Reference | None] = {}
        self._layouts: dict[tuple[str, int], Layout] = {}
        self.outcomes_idle = False
        self.revisions: dict[WindowKey, int] = {WindowKey.unpack(key): 0 for key, _ in store.scan(b"w")}
        self.closings = {WindowKey.unpack(key): Closing(value[0]) for key, value in store.scan(b"c")}
        for key, _ in store.scan(b"s"):
            window, member = _split_sample_key(key)
            self._sample(window).offer([member])

    # ------------------------------------------------------------------ taking in

    def take_predictions(self, batch: RecordBatch, *, silent: bool = False) -> Taken:
        """Join a batch of the prediction log.

        Args:
            batch: records below the store's offset are skipped.
            silent: build no records to send (a rebuild).

        Cost: about 15 us a row.
        """
        rule, taken = self._tools.rule, Taken()
        rows = read_predictions(batch, self.meta.predictions_offset, self._tools.plans)
        # A time from the future would close every window and expire every entry: it moves the clock only to its
        # own serving time.
        believed = np.minimum(rows.event_us, rows.served_us + rule.lateness_us)
        clocks = np.maximum.accumulate(np.concatenate(([self.meta.predictions_clock_us], believed)))
        entries = self.store.entries(rows.request_ids) if rows.request_ids else {}
        step = join_predictions(entries, rows.request_ids, rows.event_us, rows.values, clocks[:-1], rule)
        step.tally("undecodable_predictions", rows.bad_count)
        self._count_accepted(rows, step, taken)
        self._settle(step, taken, silent=silent)
        self.meta.predictions_clock_us = int(clocks[-1])
        first, self.meta.predictions_offset = _advance(self.meta.predictions_offset, batch)
        self._finish(step, taken, b"p", first)
        return taken

    def take_outcomes(self, batch: RecordBatch, *, silent: bool = False) -> Taken:
        """Join a batch of outcomes; arguments and cost as for ``take_predictions``."""
        taken = Taken()
        rows = self._tools.outcomes.read(batch, self.meta.outcomes_offset)
        entries = self.store.entries(rows.request_ids) if rows.request_ids else {}
        step = join_outcomes(entries, rows.request_ids, rows.outcomes, self._tools.rule)
        step.tally("undecodable", len(rows.faults))
        if not silent:
            _bury(batch, rows, taken)
        self._settle(step, taken, silent=silent)
        self.meta.outcomes_clock_us = max(self.meta.outcomes_clock_us, rows.clock_us)
        first, self.meta.outcomes_offset = _advance(self.meta.outcomes_offset, batch)
        self._finish(step, taken, b"o", first)
        return taken

    def commit(self, taken: Taken) -> None:
        """Write a step: all of it, or nothing."""
        for key in self._dirty:
            taken.puts[b"w" + key.pack()] = self._windows[key].to_bytes()
            self.revisions[key] = self.revisions.get(key, 0) + 1
        self._dirty.clear()
        self.store.write(taken.puts.items(), taken.deletes, self.meta)
        while len(self._windows) > WINDOWS_IN_MEMORY:
            del self._windows[next(iter(self._windows))]

    # ------------------------------------------------------------------ windows

    def window(self, key: WindowKey) -> WindowCounts | None:
        """Counts of a window, or None when this partition has none."""
        counts = self._windows.get(key)
        if counts is None and key in self.revisions:
            data = self.store.get(b"w" + key.pack())
            if data is not None:
                counts = WindowCounts.from_bytes(data, self._layout(key.model_name, key.model_version))
        return counts

    def reference(self, model_name: str, model_version: int) -> Reference | None:
        """The frozen reference of a model version, as this partition counts on it."""
        self._layout(model_name, model_version)
        return self._references.get((model_name, model_version))

    def record_closings(self, closings: dict[WindowKey, Closing]) -> None:
        """Remember that windows were published."""
        self.closings.update(closings)
        puts = [(b"c" + key.pack(), bytes([state])) for key, state in closings.items()]
        self.store.write(puts, (), self.meta)

    def sampled_rows(self, key: WindowKey) -> list[tuple[bytes, bytes]]:
        """Request id with label byte and raw value of the rows kept for a report."""
        return list(self.store.scan(b"s" + key.pack()))

    def drop_sample(self, key: WindowKey) -> None:
        """Forget the rows kept for reports of a window."""
        self._samples.pop(key, None)
        prefix = b"s" + key.pack()
        self.store.write((), [prefix + member for member, _ in self.store.scan(prefix)], self.meta)

    def expiry_clock_us(self) -> int:
        """Event time that both topics have passed; while outcomes are idle the predictions' clock rules alone."""
        clock, outcomes, rule = self.meta.predictions_clock_us, self.meta.outcomes_clock_us, self._tools.rule
        if self.outcomes_idle:
            return clock - rule.horizon_us - rule.lateness_us
        return min(clock, outcomes) - rule.lateness_us

    # ------------------------------------------------------------------ counting

    def _count_accepted(self, rows: PredictionRows, step: Step, taken: Taken) -> None:
        accepted = np.zeros(len(rows.request_ids), dtype=np.bool_)
        accepted[step.accepted] = True
        for group in rows.groups:
            keep = accepted[group.rows]
            columns = group.columns if keep.all() else group.columns.take(np.flatnonzero(keep))
            places = group.rows[keep]
            for key, at in self._by_window(group.plan.model_name, columns):
                part = columns if len(at) == len(places) else columns.take(at)
                self._count_window(key, part, taken)
                self._keep_sample(key, places[at].tolist(), rows, taken)

    def _count_window(self, key: WindowKey, columns: RecordColumn, taken: Taken) -> None:
        counts = self._touch(key, taken)
        fields: dict[str, Any] = dict(columns.fields)
        is_judged = _is_judged(columns)
        scores, unjudged = fields["score"].values[is_judged], int((~is_judged).sum())
        reference = self._references.get(key[:2])
        if reference is None or counts.layout != self._layouts[key[:2]]:
            counts.add_predictions(scores, unjudged=unjudged)
            return
        inputs = fields["features"].fields
        bins = [f.assign(inputs.get(f.name), columns.count) for f in reference.features]
        score_bins = reference.score.assign(fields["score"], columns.count)
        counts.add_predictions(scores, score_bins, bins, unjudged=unjudged)

    def _keep_sample(self, key: WindowKey, places: list[int], rows: PredictionRows, taken: Taken) -> None:
        if self.closings.get(key) is Closing.FINAL:
            return
        prefix = b"s" + key.pack()
        ids = [rows.request_ids[place] for place in places]
        kept, evicted = self._sample(key).offer(ids)
        for at in kept:
            taken.puts[prefix + ids[at]] = bytes([NO_LABEL]) + rows.values[places[at]]
        for member in evicted:
            taken.puts.pop(prefix + member, None)
            taken.deletes.add(prefix + member)

    def _settle(self, step: Step, taken: Taken, *, silent: bool) -> None:
        """Count the pairs of a step, and write them as labelled predictions."""
        if not step.pairs:
            return
        outputs: dict[int, tuple[bytes, bytes]] = {}
        ids = schema_ids([pair.prediction.value for pair in step.pairs])
        for schema_id in np.unique(ids).tolist():
            plan = self._tools.plans.plan(schema_id)
            places = np.flatnonzero(ids == schema_id).tolist()
            if plan is None:
                logger.error("schema %d of %d stored predictions is no longer known", schema_id, len(places))
                step.tally("undecodable_predictions", len(places))
                continue
            pairs = [step.pairs[place] for place in places]
            columns = plan.decoder.decode([pair.prediction.value for pair in pairs]).columns
            self._count_pairs(plan, pairs, columns, taken)
            if not silent:
                outputs.update(zip(places, _labelled(plan, pairs, columns), strict=True))
        for place in sorted(outputs):
            key, value = outputs[place]
            taken.labelled.keys.append(key)
            taken.labelled.values.append(value)
            taken.labelled.headers.append(self._source_mark(step.pairs[place]))

    def _source_mark(self, pair: Pair) -> Headers:
        return (("x-src", f"outcomes-{self.partition}-{pair.outcome.offset}".encode()),)

    def _count_pairs(self, plan: PredictionPlan, pairs: list[Pair], columns: RecordColumn, taken: Taken) -> None:
        fields: dict[str, Any] = dict(columns.fields)
        scores, is_judged = fields["score"].values, _is_judged(columns)
        thresholds = fields["threshold"].values
        is_decided = ~np.isnan(thresholds)
        decisions = scores >= thresholds
        event_us = fields["event_time"].values
        removed = np.array([pair.removed for pair in pairs], dtype=np.int64)
        added = np.array([pair.added for pair in pairs], dtype=np.int64)
        removed_us = np.array([pair.prediction.counted_us for pair in pairs], dtype=np.int64)
        added_us = np.array([pair.outcome.time_us for pair in pairs], dtype=np.int64)
        late = np.array([pair.late for pair in pairs])
        other = np.array([pair.outcome.label not in (0.0, 1.0) for pair in pairs])
        retracted = np.array([pair.outcome.retracted for pair in pairs])
        for key, at in self._by_window(plan.model_name, columns):
            counts = self._touch(key, taken)
            for labels, times_us, sign in ((removed, removed_us, -1), (added, added_us, 1)):
                use = at[is_judged[at] & (labels[at] != NOTHING)]
                counts.add_labels(scores[use], decisions[use], labels[use], times_us[use] - event_us[use], sign=sign)
                counts.tally("undecided", sign * int((~is_decided[use]).sum()))
            counts.tally("late_outcomes", int(late[at].sum()))
            counts.tally("retracted_outcomes", int(retracted[at].sum()))
            counts.tally("other_labels", int(other[at].sum()))
            self._label_samples(key, [pairs[place] for place in at[is_judged[at]].tolist()], taken)

    def _label_samples(self, key: WindowKey, pairs: list[Pair], taken: Taken) -> None:
        sample = self._samples.get(key)
        if sample is None:
            return
        for pair in pairs:
            if pair.request_id in sample.members and not pair.late:
                label = NO_LABEL if pair.added == NOTHING else pair.added
                taken.puts[b"s" + key.pack() + pair.request_id] = bytes([label]) + pair.prediction.value

    def _by_window(self, model_name: str, columns: RecordColumn) -> Iterator[tuple[WindowKey, NDArray[np.int64]]]:
        if columns.count == 0:
            return
        fields: dict[str, Any] = dict(columns.fields)
        starts, start_of = np.unique(self._tools.rule.window.starts(fields["event_time"].values), return_inverse=True)
        versions, version_of = np.unique(fields["model_version"].values, return_inverse=True)
        cells = start_of * len(versions) + version_of
        for cell in np.unique(cells).tolist():
            start, version = divmod(cell, len(versions))
            key = WindowKey(model_name, int(versions[version]), int(starts[start]))
            yield key, np.flatnonzero(cells == cell)

    # ------------------------------------------------------------------ the rest of a step

    def _finish(self, step: Step, taken: Taken, topic: bytes, offset: int) -> None:
        for bucket, request_ids in step.expiry.items():
            key, value = index_entry(bucket, topic, offset, request_ids)
            taken.puts[key] = value
        self._expire(step, taken)
        for request_id, data in step.changes.items():
            taken.puts[b"e" + request_id] = data
        for request_id in [key[1:] for key in taken.deletes if key.startswith(b"e")]:
            taken.puts.pop(b"e" + request_id, None)
        if step.expiry:
            self.store.reopen_bucket(min(step.expiry))
        for name, count in step.tallies.items():
            self.meta.tallies[name] += count

    def _expire(self, step: Step, taken: Taken) -> None:
        clock = self.expiry_clock_us()
        ids, keys = self.store.due(clock // self._tools.rule.bucket_us, EXPIRE_LIMIT)
        if not keys:
            return
        taken.deletes.update(keys)
        stored = self.store.entries(ids)
        for request_id in set(ids):
            data = step.changes.get(request_id) or stored.get(request_id)
            gone, orphans = (False, 0) if data is None else expire(data, clock, self._tools.rule)
            if gone:
                taken.deletes.add(b"e" + request_id)
                step.tally("orphans", orphans)
                step.tally("parked", -orphans)

    def _touch(self, key: WindowKey, taken: Taken) -> WindowCounts:
        counts = self._windows.pop(key, None) or self.window(key)
        if counts is None:
            counts = WindowCounts(self._layout(key.model_name, key.model_version, taken))
        self._windows[key] = counts
        self._dirty.add(key)
        self.revisions.setdefault(key, 0)
        return counts

    def _sample(self, key: WindowKey) -> SmallestHashes:
        if key not in self._samples:
            self._samples[key] = SmallestHashes(self._tools.sample_rows)
        return self._samples[key]

    def _layout(self, model_name: str, model_version: int, taken: Taken | None = None) -> Layout:
        """The layout of new windows; the reference is frozen in the store when it is first seen."""
        version = (model_name, model_version)
        if self._references.get(version) is None:
            key = b"r" + WindowKey(*version, 0).pack()
            data = self.store.get(key)
            reference = Reference.from_json(data.decode()) if data is not None else None
            if reference is None and taken is not None:
                reference = _load_reference(self._tools.reference_of(*version))
                if reference is not None:
                    taken.puts[key] = reference.to_json().encode()
            self._references[version] = reference
            self._layouts[version] = reference.layout() if reference is not None else Layout()
        return self._layouts[version]


def has_seen_predictions(monitor: PartitionMonitor) -> bool:
    """Whether the partition's clock has started."""
    return monitor.meta.predictions_clock_us != NO_CLOCK


def _advance(position: int, batch: RecordBatch) -> tuple[int, int]:
    """First offset that was really taken in (unique for each step, so it names its index keys), and the next one."""
    return max(position, batch.start_offset), max(position, batch.next_offset)


def _is_judged(columns: RecordColumn) -> NDArray[np.bool_]:
    """Rows whose score is the probability of one thing, so that a label 0 or 1 says how good it was, shape (n,).

    Several outputs are those of a softmax or of several labels; a score outside [0, 1] is that of a regression.
    """
    fields: dict[str, Any] = dict(columns.fields)
    scores = fields["score"].values
    is_judged: NDArray[np.bool_] = (np.diff(fields["outputs"].offsets) == 1) & (scores >= 0.0) & (scores <= 1.0)
    return is_judged


def _load_reference(path: Path | None) -> Reference | None:
    if path is None:
        return None
    try:
        return Reference.from_frame(pd.read_parquet(path))
    except (OSError, ValueError):
        # Drift is then not judged for this version; the join and the quality go on.
        logger.exception("the reference %s cannot be read; no drift for its windows", path)
        return None


def _labelled(plan: PredictionPlan, pairs: list[Pair], columns: RecordColumn) -> Iterator[tuple[bytes, bytes]]:
    outcomes = [pair.outcome for pair in pairs]
    fields = dict(columns.fields)
    fields["label"] = NumberColumn(np.array([o.label for o in outcomes], dtype=np.float64))
    fields["outcome_time"] = NumberColumn(np.array([o.time_us for o in outcomes], dtype=np.int64))
    fields["revision"] = NumberColumn(np.array([o.revision for o in outcomes], dtype=np.int32))
    fields["retracted"] = NumberColumn(np.array([o.retracted for o in outcomes], dtype=np.bool_))
    keys = fields["entity_id"].to_bytes_list()  # type: ignore[union-attr]
    values = plan.encoder.encode(RecordColumn(fields, columns.count), prefix=plan.prefix)
    return zip(keys, values, strict=True)


def _bury(batch: RecordBatch, rows: OutcomeRows, taken: Taken) -> None:
    for fault in rows.faults:
        headers = dead_letter_headers(
            batch, fault.row, stage=fault.stage, error_class=fault.error_class, message=fault.message
        )
        taken.dead.keys.append(batch.keys[fault.row])
        taken.dead.values.append(batch.values[fault.row])
        taken.dead.headers.append(headers)


def _split_sample_key(key: bytes) -> tuple[WindowKey, bytes]:
    end = key.index(b"\0") + 1 + 12
    return WindowKey.unpack(key[:end]), key[end:]
