"""One partition over a real store: exact whatever the boundaries, duplicates and crashes; honest about bad input."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from monitors.closing import Closing
from monitors.drift import drift
from monitors.quality import quality
from monitors.report_worker import sample_frame
from monitors.windows import CORE_CELLS, Layout, WindowCounts
from schemas.columnar import Decoder, NumberColumn
from schemas.wire import frame_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import World

    from monitors.partition import PartitionMonitor, Taken
    from schemas.records import RecordBatch

    Make = Callable[..., PartitionMonitor]
    MakeBatch = Callable[..., RecordBatch]

START_US, HOUR_US = 1_362_096_000_000_000, 3_600_000_000
ROWS = 240
IDS = [f"r{k:04d}" for k in range(ROWS)]
PREDICTIONS, OUTCOMES = "predictions-log", "outcomes"


class Log:
    """Both topics of a partition: 240 predictions of three days, and outcomes of every unpleasant kind."""

    def __init__(self, world: World, make_batch: MakeBatch) -> None:
        rng = np.random.default_rng(11)
        event_us = START_US + np.arange(ROWS) * (72 * HOUR_US // ROWS)
        ids = [*IDS, *IDS[::9]]
        order = np.argsort(np.concatenate((np.arange(ROWS), np.arange(0, ROWS, 9) + 30)), kind="stable")
        every = np.concatenate((event_us, event_us[::9]))[order]
        values = world.predictions([ids[k] for k in order], every.tolist(), rng.random(len(ids)).tolist())
        self.topics = {PREDICTIONS: ([ids[k] for k in order], values)}
        rows = []
        for k, request_id in enumerate(IDS):
            base = int(event_us[k])
            rows.append((k + 20, request_id, float(rng.integers(0, 2)), base + 2 * HOUR_US, 0, False))
            if k % 3 == 0:
                rows.append((k + 21, request_id, float(rng.integers(0, 2)), base + 3 * HOUR_US, 0, False))
            if k % 4 == 0:
                rows.append((k + 40, request_id, float(rng.integers(0, 2)), base + 5 * HOUR_US, 1, False))
            if k % 8 == 0:
                rows.append((k + 50, request_id, 1.0, base + 6 * HOUR_US, 2, True))
            if k % 5 == 0:
                rows.append((k + 60, request_id, 1.0, base + 90 * HOUR_US, 7, False))
            if k % 7 == 0:
                rows.append((k, f"unknown{k}", 1.0, base, 0, False))
        rows.sort(key=lambda row: row[0])
        _, ids_o, labels, times, revisions, retracted = zip(*rows, strict=True)
        values = world.outcomes(ids_o, labels, times, revisions, retracted)
        self.topics[OUTCOMES] = (list(ids_o), values)
        self._make_batch = make_batch

    def batch(self, topic: str, start: int, size: int) -> RecordBatch:
        """Records from an offset on."""
        ids, values = self.topics[topic]
        return self._make_batch(topic, ids[start : start + size], values[start : start + size], start)

    def size(self, topic: str) -> int:
        """Records of a topic."""
        return len(self.topics[topic][0])


@pytest.fixture(scope="module")
def log(world: World, make_batch: MakeBatch) -> Log:
    """The records of one partition."""
    return Log(world, make_batch)


def take(monitor: PartitionMonitor, batch: RecordBatch) -> Taken:
    """Compute a step."""
    return (monitor.take_predictions if batch.topic == PREDICTIONS else monitor.take_outcomes)(batch)


def play(
    monitor: PartitionMonitor, log: Log, seed: int, reopen: Callable[[], PartitionMonitor] | None = None
) -> tuple[PartitionMonitor, list[tuple[bytes, bytes]]]:
    """Play both topics with random boundaries, redeliveries and, given ``reopen``, crashes before the store is written.

    Returns:
        The monitor at the end, and mark and value of everything that was sent.

    """
    dice = random.Random(seed)
    at, sent = {PREDICTIONS: 0, OUTCOMES: 0}, []
    while any(at[topic] < log.size(topic) for topic in at):
        topic = dice.choice([t for t in at if at[t] < log.size(t)])
        start = max(0, at[topic] - dice.choice([0, 0, 0, 5]))
        batch = log.batch(topic, start, at[topic] - start + dice.randint(1, 40))
        taken = take(monitor, batch)
        sent += [(headers[0][1], value) for headers, value in
                 zip(taken.labelled.headers, taken.labelled.values, strict=True)]  # fmt: skip
        if reopen is not None and dice.random() < 0.15:
            monitor.store.close()  # sent, but not written: what a kill between the two leaves
            monitor = reopen()
            at = {PREDICTIONS: monitor.meta.predictions_offset, OUTCOMES: monitor.meta.outcomes_offset}
            continue
        monitor.commit(taken)
        at[topic] = batch.next_offset
    return monitor, sent


def state(monitor: PartitionMonitor) -> dict[Any, bytes]:
    """Windows and sampled rows, as bytes."""
    found: dict[Any, bytes] = {}
    for key in sorted(monitor.revisions):
        counts = monitor.window(key)
        assert counts is not None
        found[key] = counts.to_bytes()
        found |= {(key, member): row for member, row in monitor.sampled_rows(key)}
    return found


def canonical(make_partition: Make, log: Log) -> tuple[dict[Any, bytes], set[tuple[bytes, bytes]], dict[str, int]]:
    """State, outputs and counters of an undisturbed run, predictions first."""
    monitor = make_partition("canonical")
    sent = []
    for topic in (PREDICTIONS, OUTCOMES):
        taken = take(monitor, log.batch(topic, 0, log.size(topic)))
        monitor.commit(taken)
        sent += [(h[0][1], v) for h, v in zip(taken.labelled.headers, taken.labelled.values, strict=True)]
    assert len(sent) == len(set(sent))
    found = state(monitor), set(sent), dict(monitor.meta.tallies)
    monitor.store.close()
    return found


@pytest.mark.parametrize("seed", range(6))
def test_boundaries_redeliveries_and_order_of_topics_leave_no_trace(make_partition: Make, log: Log, seed: int) -> None:
    """Byte-equal windows and samples, the same outputs once each, the same counters."""
    windows, sent, tallies = canonical(make_partition, log)
    monitor, outputs = play(make_partition(), log, seed)
    assert state(monitor) == windows
    assert sorted(outputs) == sorted(sent)
    assert monitor.meta.tallies == tallies
    monitor.store.close()


@pytest.mark.parametrize("seed", range(100, 106))
def test_crashes_between_sending_and_writing_leave_no_trace_but_marked_repeats(
    make_partition: Make, log: Log, seed: int
) -> None:
    """Byte-equal windows; what is sent again is the same record under the same mark."""
    windows, sent, tallies = canonical(make_partition, log)
    monitor, outputs = play(make_partition(), log, seed, make_partition)
    assert len(outputs) > len(sent), "no crash came after a send: the test would show nothing"
    assert set(outputs) == sent
    assert state(monitor) == windows
    assert monitor.meta.tallies == tallies
    monitor.store.close()


def test_the_counters_are_those_of_the_log(make_partition: Make, log: Log) -> None:
    """Duplicates, corrections, retractions, late outcomes and parked ones are counted as they were made."""
    _, _, tallies = canonical(make_partition, log)
    late = sum(1 for k in range(0, ROWS, 5) if 72 * HOUR_US // ROWS * k % (24 * HOUR_US) + 90 * HOUR_US > 72 * HOUR_US)
    expected = {
        "predictions": ROWS, "duplicates_predictions": len(range(0, ROWS, 9)), "joined": ROWS,
        "duplicates_outcomes": ROWS // 3, "corrections": ROWS // 4 + ROWS // 8 + ROWS // 5, "retracted": ROWS // 8,
        "late": late, "parked": len(range(0, ROWS, 7)), "orphans": 0,
        "outcomes": log.size(OUTCOMES), "undecodable": 0, "undecodable_predictions": 0,
    }  # fmt: skip
    assert {name: tallies[name] for name in expected} == expected


def test_the_windows_are_those_of_counting_everything_at_once(make_partition: Make, log: Log, world: World) -> None:
    """Labels, delays and sums of every window equal those of the final labels, counted once without a join."""
    monitor, _ = play(make_partition(), log, 5)
    ids, values = log.topics[PREDICTIONS]
    fields: dict[str, Any] = dict(Decoder(world.schema).decode(values).columns.fields)
    rows = {i: k for k, i in reversed(list(enumerate(ids)))}  # the first of each id
    score, event_us = fields["score"].values, fields["event_time"].values
    told: dict[str, tuple[float, int, int, bool]] = {}
    reader = Decoder(world.book.schema(world.outcome_id) or {})
    decoded: dict[str, Any] = dict(reader.decode(log.topics[OUTCOMES][1]).columns.fields)
    columns = (decoded[n].values.tolist() for n in ("label", "outcome_time", "revision", "retracted"))
    for request_id, *outcome in zip(log.topics[OUTCOMES][0], *columns, strict=True):
        late = request_id in rows and outcome[1] > START_US + (
            (int(event_us[rows[request_id]]) - START_US) // (24 * HOUR_US) + 1 + 2) * 24 * HOUR_US  # fmt: skip
        if request_id in rows and not late and outcome[2] > told.get(request_id, (0, 0, -1, False))[2]:
            told[request_id] = tuple(outcome)
    for key in sorted(monitor.revisions):
        inside = [i for i, k in rows.items() if key.start_us <= event_us[k] < key.start_us + 24 * HOUR_US]
        labelled = [i for i in inside if i in told and not told[i][3]]
        at = np.array([rows[i] for i in labelled])
        expected = WindowCounts(Layout())
        expected.add_predictions(score[[rows[i] for i in inside]])
        labels, times = (np.array([told[i][k] for i in labelled], dtype=np.int64) for k in (0, 1))
        expected.add_labels(score[at], score[at] >= 0.5, labels, times - event_us[at])
        counts = monitor.window(key)
        assert counts is not None
        for name in ("late_outcomes", "retracted_outcomes"):
            expected.tally(name, counts.count(name))
        assert counts.cells[:CORE_CELLS].tolist() == expected.cells.tolist()
    monitor.store.close()


def test_labelled_predictions_hold_the_features_and_the_outcome(make_partition: Make, log: Log, world: World) -> None:
    """The training feed decodes under its own schema, with the model's features as used, for each revision."""
    _, sent, _ = canonical(make_partition, log)
    mark, value = min(sent)
    schema = world.book.schema(int.from_bytes(value[1:5], "big"))
    assert schema is not None
    assert mark.startswith(b"outcomes-0-")
    fields: dict[str, Any] = dict(Decoder(schema).decode([v for _, v in sorted(sent)]).columns.fields)
    assert set(fields["features"].fields) == {"age", "town"}
    assert set(fields["revision"].values.tolist()) == {0, 1, 2, 7}
    assert int(fields["retracted"].values.sum()) == ROWS // 8


def test_figures_follow_from_the_window(make_partition: Make, log: Log) -> None:
    """Quality and drift are computed from the stored counts, on the reference that was frozen in the store."""
    monitor = make_partition()
    play(monitor, log, 1)
    key = min(monitor.revisions)
    counts, reference = monitor.window(key), monitor.reference("demo", 1)
    assert counts is not None
    assert reference is not None
    assert quality(counts).values["coverage"] is not None
    assert set(drift(reference, counts).features) == {"age", "town"}
    monitor.store.close()


def test_entries_expire_and_unknown_outcomes_become_orphans(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """When both topics have moved on by the horizon, the store holds nothing of the old requests."""
    monitor = make_partition()
    old, new = [f"old{k}" for k in range(50)], ["new"]
    for start, ids, moment in ((0, old, START_US), (50, new, START_US + 400 * HOUR_US)):
        values = world.predictions(ids, [moment] * len(ids), [0.5] * len(ids))
        monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, ids, values, start)))
        told = [f"unknown-{i}" for i in ids]
        outcomes = world.outcomes(told, [1.0] * len(ids), [moment] * len(ids))
        monitor.commit(monitor.take_outcomes(make_batch(OUTCOMES, told, outcomes, start)))
    left = {key for key, _ in monitor.store.scan(b"e")}
    assert left == {b"new", b"unknown-new"}
    assert len(list(monitor.store.scan(b"x"))) == 2
    assert (monitor.meta.tallies["orphans"], monitor.meta.tallies["parked"]) == (50, 1)
    monitor.store.close()


def test_a_redelivery_that_brings_more_leaves_nothing_behind(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """Two batches that start at the same offset index their entries apart: both expire."""
    monitor = make_partition()
    ids = [f"r{k}" for k in range(7)]
    times = [START_US] * 6 + [START_US + 400 * HOUR_US]
    values = world.predictions(ids, times, [0.5] * 7)
    unknown = [f"x{k}" for k in range(7)]
    outcomes = world.outcomes(unknown, [1.0] * 7, times)
    for size in (3, 6, 7):
        monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, ids[:size], values[:size])))
        monitor.commit(monitor.take_outcomes(make_batch(OUTCOMES, unknown[:size], outcomes[:size])))
    assert {key for key, _ in monitor.store.scan(b"e")} == {b"r6", b"x6"}
    monitor.store.close()


def test_an_old_outcome_that_comes_after_its_time_still_becomes_an_orphan(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """Its expiry lies behind what was looked at already, and is looked at again."""
    monitor = make_partition()
    for start, moment in enumerate((START_US, START_US + 200 * HOUR_US, START_US + 400 * HOUR_US)):
        values = world.predictions([f"r{start}"], [moment], [0.5])
        monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, [f"r{start}"], values, start)))
        outcomes = world.outcomes([f"r{start}"], [1.0], [moment])
        monitor.commit(monitor.take_outcomes(make_batch(OUTCOMES, [f"r{start}"], outcomes, start)))
    for start, name in ((3, "late"), (4, "later")):
        outcomes = world.outcomes([name], [1.0], [START_US + start])
        monitor.commit(monitor.take_outcomes(make_batch(OUTCOMES, [name], outcomes, start)))
    assert monitor.meta.tallies["orphans"] == 1
    assert {key for key, _ in monitor.store.scan(b"e")} == {b"r2", b"later"}
    monitor.store.close()


def test_outcomes_that_lag_far_behind_the_predictions_still_join(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """Reading one topic a year ahead of the other expires nothing, until the outcomes are said to be idle."""
    monitor = make_partition()
    for start, moment in enumerate((START_US, START_US + 9000 * HOUR_US)):
        values = world.predictions([f"r{start}"], [moment], [0.5])
        monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, [f"r{start}"], values, start)))
        outcomes = world.outcomes([f"x{start}"], [1.0], [START_US + start])
        monitor.commit(monitor.take_outcomes(make_batch(OUTCOMES, [f"x{start}"], outcomes, start)))
    outcomes = world.outcomes(["r0"], [1.0], [START_US + HOUR_US])
    monitor.commit(monitor.take_outcomes(make_batch(OUTCOMES, ["r0"], outcomes, 2)))
    assert monitor.meta.tallies["joined"] == 1
    monitor.outcomes_idle = True
    values = world.predictions(["r2"], [START_US + 9000 * HOUR_US], [0.5])
    monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, ["r2"], values, 2)))
    assert {key for key, _ in monitor.store.scan(b"e")} == {b"r1", b"r2"}
    assert monitor.meta.tallies["orphans"] == 2
    monitor.store.close()


def test_one_prediction_from_the_future_expires_nothing(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """An event time far after the serving time does not move the clock beyond the serving time."""
    monitor = make_partition()
    served = NumberColumn(np.array([START_US, START_US]))
    values = world.predictions(["a", "b"], [START_US, START_US + 9000 * HOUR_US], [0.5, 0.5], served_at=served)
    monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, ["a", "b"], values)))
    assert monitor.meta.predictions_clock_us == START_US + HOUR_US
    monitor.store.close()


def test_bad_outcomes_are_dead_letters_and_their_neighbours_are_not(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """Each bad row leaves with its original bytes and its reason; the good row of the same batch is joined."""
    monitor = make_partition()
    values = world.predictions(["a"], [START_US], [0.7])
    monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, ["a"], values)))
    good, nan, minus, early = world.outcomes(
        ["a", "b", "c", "d"], [1.0, float("nan"), 1.0, 1.0], [START_US, START_US, START_US, -5], [0, 0, -1, 0]
    )
    rows: list[tuple[str, bytes | None, bytes]] = [
        ("x", b"", b"NotFramed"), ("a", good, b""), ("x", b"{}", b"NotFramed"), ("x", None, b"Tombstone"),
        ("x", frame_header(7) + b"?", b"UnknownSchema"), ("a", good[:-3], b"MalformedRecord"),
        ("other", good, b"KeyMismatch"), ("b", nan, b"OutOfRange"), ("c", minus, b"OutOfRange"),
        ("d", early, b"OutOfRange"), ("x", values[0], b"UnknownSchema"),
    ]  # fmt: skip
    batch = make_batch(OUTCOMES, [i for i, _, _ in rows], [v for _, v, _ in rows])
    batch.keys[0] = None
    taken = monitor.take_outcomes(batch)
    monitor.commit(taken)
    assert len(taken.labelled.values) == 1
    bad = [(value, reason) for _, value, reason in rows if reason]
    found = zip(taken.dead.values, taken.dead.headers, strict=True)
    assert [(v, dict(h)["__connect.errors.exception.class.name"]) for v, h in found] == bad
    assert taken.dead.keys[0] is None
    assert dict(taken.dead.headers[0])["__connect.errors.topic"] == b"outcomes"
    assert monitor.meta.tallies["undecodable"] == len(bad)
    monitor.store.close()


def test_bad_predictions_are_counted_and_their_neighbours_joined(
    make_partition: Make, world: World, make_batch: MakeBatch
) -> None:
    """Unknown schemas, damaged records and scores that are not finite cost their own row only."""
    monitor = make_partition()
    scores = [0.5, float("inf"), float("nan"), 0.25]
    values = world.predictions(["a", "b", "c", "d"], [START_US] * 4, scores)
    rows = [*values, values[0][:-2], None, b"", frame_header(7) + b"?"]
    monitor.commit(monitor.take_predictions(make_batch(PREDICTIONS, ["x"] * len(rows), rows)))
    assert (monitor.meta.tallies["predictions"], monitor.meta.tallies["undecodable_predictions"]) == (2, 6)
    assert monitor.meta.predictions_offset == len(rows)
    monitor.store.close()


def test_the_sample_is_bounded_labelled_and_dropped(make_partition: Make, log: Log) -> None:
    """At most so many rows of a window are kept, they carry their labels, and dropping leaves none."""
    monitor = make_partition()
    play(monitor, log, 2)
    key = min(monitor.revisions)
    rows = monitor.sampled_rows(key)
    counts = monitor.window(key)
    assert counts is not None
    assert len(rows) == 50 < counts.count("predictions")
    frame = sample_frame([row for _, row in rows], monitor._tools.plans)
    assert list(frame.columns) == ["age", "town", "raw_score", "score", "label"]
    assert set(frame["label"].dropna()) == {0.0, 1.0}
    monitor.record_closings({key: Closing.FINAL})
    monitor.drop_sample(key)
    assert monitor.sampled_rows(key) == []
    monitor.store.close()


def test_a_reopened_partition_goes_on_where_it_stood(make_partition: Make, log: Log) -> None:
    """Positions, closings and the members of samples come back with the store."""
    monitor = make_partition()
    play(monitor, log, 3)
    key = min(monitor.revisions)
    monitor.record_closings({key: Closing.PROVISIONAL})
    members = {k: set(s.members) for k, s in monitor._samples.items()}
    meta = replace(monitor.meta)
    monitor.store.close()
    again = make_partition()
    assert again.meta == meta
    assert again.closings == {key: Closing.PROVISIONAL}
    assert {k: set(s.members) for k, s in again._samples.items()} == members
    assert set(again.revisions) == set(members)
    again.store.close()


def test_windows_beyond_the_memory_limit_are_read_from_the_store(
    make_partition: Make, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one window in memory the result is the same."""
    windows, _, _ = canonical(make_partition, log)
    monkeypatch.setattr("monitors.partition.WINDOWS_IN_MEMORY", 1)
    monitor, _ = play(make_partition(), log, 4)
    assert len(monitor._windows) <= 1
    assert state(monitor) == windows
    monitor.store.close()
