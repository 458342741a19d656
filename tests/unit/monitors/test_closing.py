"""The watermark, the states of a window, events, and the sample of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.closing import Closing, closing, watermark
from monitors.events import EventCodec, closing_events
from monitors.figures import as_json, confirm_drift, figures_of
from monitors.sample import SmallestHashes
from monitors.store import WindowKey
from monitors.windows import Layout, WindowCounts, WindowRule
from schemas.registry import load_schema
from schemas.wire import frame_header

KEY = WindowKey("demo", 3, 1_362_096_000_000_000)


@pytest.mark.parametrize(
    ("clocks", "previous", "expected"),
    [
        ([], None, None),
        ([(None, False)], None, None),
        ([(100, False), (None, False)], None, None),
        ([(100, False), (None, False)], 30, 30),
        ([(100, False), (None, True)], None, 90),
        ([(100, False), (60, False)], None, 50),
        ([(100, False), (60, True)], None, 90),
        ([(100, True), (60, True)], None, 90),
        ([(None, True)], None, None),
        ([(40, False)], 80, 80),
    ],
)
def test_the_watermark_is_held_by_the_slowest_partition_that_is_not_idle(
    clocks: list[tuple[int | None, bool]], previous: int | None, expected: int | None
) -> None:
    """Idle partitions do not hold it, silent ones do until they are idle, and it never goes back."""
    assert watermark(clocks, 10, previous) == expected


def test_a_window_closes_when_the_watermark_passes_its_end_and_again_when_it_is_mature() -> None:
    """Without a watermark everything is open."""
    states = [closing(100, w, 50) for w in (None, 99, 100, 149, 150)]
    assert states == [Closing.OPEN, Closing.OPEN, Closing.PROVISIONAL, Closing.PROVISIONAL, Closing.FINAL]


@given(st.lists(st.integers(0, 300).map(lambda k: b"%d" % k), unique=True, max_size=80), st.integers(1, 12), st.data())
def test_the_sample_does_not_depend_on_order_or_batches(ids: list[bytes], capacity: int, data: st.DataObject) -> None:
    """The same ids are kept whatever the order they come in, and a resumed sample goes on as the first would have."""
    whole = SmallestHashes(capacity)
    whole.offer(ids)
    shuffled = data.draw(st.permutations(ids))
    cut = data.draw(st.integers(0, len(ids)))
    first = SmallestHashes(capacity)
    rows, evicted = first.offer(shuffled[:cut])
    assert {shuffled[row] for row in rows} == first.members
    assert evicted == []
    second = SmallestHashes(capacity, first.members)
    rows, evicted = second.offer(shuffled[cut:])
    assert first.members - set(evicted) | {shuffled[cut:][row] for row in rows} == second.members == whole.members
    assert len(whole.members) == min(capacity, len(ids))


def test_events_keep_their_integers() -> None:
    """An event is read as it was written, times as micros; other bytes are none."""
    schema = load_schema(Path(__file__).parents[3] / "schemas", "monitor_event")
    codec = EventCodec(schema, 77)
    counts = WindowCounts(Layout())
    counts.add_predictions(np.array([0.25, 0.5]))
    figures = figures_of(KEY, counts, None, WindowRule.parse("day"))
    events = closing_events(KEY, figures, final=True, partitions=[2, 1], emitted_us=5)
    assert [e["kind"] for e in events] == ["WINDOW_CLOSED", "QUALITY", "DRIFT"]
    values = [codec.encode(event) for event in events]
    assert values[0].startswith(frame_header(77))
    assert [codec.decode(value) for value in values] == events
    assert events[0]["attributes"] == {"label": "2013-03-01", "partitions": "1,2"}
    assert events[1]["metrics"]["mean_score"] == 0.375
    assert events[1]["attributes"]["auc"] == "no labelled prediction yet"
    assert events[2]["attributes"]["status"] == "no reference for this version"
    assert codec.decode(b"something else") is None


def test_the_document_of_a_window_has_null_for_what_is_undefined() -> None:
    """Pages and `/stats` see every metric, defined or not, and why not."""
    figures = figures_of(KEY, WindowCounts(Layout()), None, WindowRule.parse("month"))
    confirm_drift([figures])
    document = as_json(KEY, figures, Closing.PROVISIONAL)
    names = ("coverage", "precision", "recall", "auc", "brier", "base_rate", "mean_score", "calibration_z", "score_psi")
    assert [document[name] for name in names] == [None] * len(names)
    assert (document["label"], document["final"], document["closing"]) == ("2013-03", False, "provisional")
    assert (document["drifted"], document["features"]) == ([], {})
    assert "auc" in document["reasons"]
