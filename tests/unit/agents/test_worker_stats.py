"""What workers tell each other: records made by the real codec, read by the real codec, nonsense ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agents.worker_stats import MAX_WORKERS, UNSEEN_AFTER_S, Neighbours, WorkerIdentity, WorkerStats, fit, plain
from app.producer import OutputProducer
from app.settings import SchemaSettings, Settings
from schemas.columnar import Decoder, Encoder
from schemas.columns import NumberColumn, RecordColumn, TextColumn
from schemas.registry import SchemaBook, load_schema
from schemas.wire import frame_header

FOLDER = Path(__file__).parents[3] / "schemas"
SCHEMA = load_schema(FOLDER, "worker_stats")
DECODER = Decoder(SCHEMA)


def record(worker_id: str, stats_json: str = '{"n": 1}', *, role: str = "scoring") -> bytes:
    """The value that a neighbour would publish."""
    texts = {"worker_id": worker_id, "role": role, "web_url": "http://127.0.0.1:6067", "stats_json": stats_json}
    columns: dict[str, Any] = {name: TextColumn.from_values([text]) for name, text in texts.items()}
    columns["published_at"] = NumberColumn(np.array([1_700_000_000_000_000]))
    return Encoder(SCHEMA).encode(RecordColumn(columns, 1), prefix=frame_header(7))[0]


class Clock:
    """A clock that stands still until it is told to move."""

    now_s = 100.0

    def __call__(self) -> float:
        """The present, monotonic seconds."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The clock of the neighbours under test."""
    return Clock()


@pytest.fixture
def neighbours(clock: Clock) -> Neighbours:
    """What worker ``me`` hears."""
    return Neighbours("me", now_s=clock)


def test_the_newest_record_of_each_worker_counts(neighbours: Neighbours) -> None:
    """A later record of a worker replaces the earlier one; workers do not mix."""
    neighbours.put(b"a", record("a", '{"n": 1}'), DECODER)
    neighbours.put(b"b", record("b", '{"n": 5}', role="monitor"), DECODER)
    neighbours.put(b"a", record("a", '{"n": 2}'), DECODER)
    documents = neighbours.documents()
    assert {name: found["stats"]["n"] for name, found in documents.items()} == {"a": 2, "b": 5}
    assert documents["b"] == {
        "role": "monitor",
        "web_url": "http://127.0.0.1:6067",
        "published_at": 1_700_000_000_000_000,
        "stats": {"n": 5},
    }


def test_own_records_are_ignored(neighbours: Neighbours) -> None:
    """A worker's own figures come from itself, never a second late over Kafka."""
    neighbours.put(b"me", record("me"), DECODER)
    assert neighbours.documents() == {}


def test_a_silent_worker_is_dropped(neighbours: Neighbours, clock: Clock) -> None:
    """After ten seconds without a record a worker is gone, by our clock, whatever its own says."""
    neighbours.put(b"a", record("a"), DECODER)
    clock.now_s += UNSEEN_AFTER_S
    assert set(neighbours.documents()) == {"a"}
    clock.now_s += 0.01
    assert neighbours.documents() == {}


def test_a_tombstone_removes_a_worker(neighbours: Neighbours) -> None:
    """A deleted key is gone at once."""
    neighbours.put(b"a", record("a"), DECODER)
    neighbours.put(b"a", None, None)
    assert neighbours.documents() == {}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"no frame",
        frame_header(7),
        record("someone-else"),
        record("a", "no json"),
        record("a", "[1, 2]"),
        record("a", "[" * 100_000),
        record("a") + b"left over",
    ],
)
def test_nonsense_is_not_shown_and_harms_nobody(neighbours: Neighbours, value: bytes) -> None:
    """Records that are cut, strange or filed under another's key leave the other workers alone."""
    neighbours.put(b"b", record("b"), DECODER)
    neighbours.put(b"a", value, DECODER)
    assert set(neighbours.documents()) == {"b"}


def test_records_of_an_unknown_schema_are_not_shown(neighbours: Neighbours) -> None:
    """A schema that nobody can look up has no decoder; its records are skipped."""
    neighbours.put(b"a", record("a"), None)
    neighbours.put(None, record("a"), DECODER)
    assert neighbours.documents() == {}


def test_memory_is_bounded(neighbours: Neighbours) -> None:
    """Of more workers than the bound the longest unheard go first."""
    for number in range(MAX_WORKERS + 20):
        neighbours.put(b"w%d" % number, record(f"w{number}"), DECODER)
    assert set(neighbours.documents()) == {f"w{number}" for number in range(20, MAX_WORKERS + 20)}


def test_nan_becomes_null() -> None:
    """A quality that is not defined reaches the page as null, for NaN is not JSON."""
    assert plain({"auc": np.float64("nan"), "psi": float("inf"), "n": np.int32(2)}) == {
        "auc": None,
        "psi": None,
        "n": 2,
    }


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(50, 5_000))
def test_a_published_document_fits(window_count: int, point_count: int, limit_bytes: int) -> None:
    """Whatever the figures, the text is JSON within the limit, and the newest windows stay."""
    stats: dict[str, Any] = {
        "windows": [{"label": f"w{number}"} for number in range(window_count)],
        "series": {"rate": list(range(point_count))},
    }
    text = fit(stats, limit_bytes)
    document = json.loads(text)
    assert len(text.encode()) <= limit_bytes
    kept = document.get("windows", [])
    assert kept == stats["windows"][window_count - len(kept) :]
    if "windows" in document:
        assert len(kept) + document.get("windows_left_out", 0) == window_count


def test_the_own_document_needs_no_kafka() -> None:
    """Before and without a broker ``/stats`` has this worker's figures; a failure in them is shown, not raised."""
    settings = Settings(schemas=SchemaSettings(folder=FOLDER))
    figures: dict[str, Any] = {"n": np.int64(1)}
    stats = WorkerStats(
        settings,
        SchemaBook(FOLDER),
        OutputProducer(settings.kafka),
        WorkerIdentity("scoring-1", "scoring", "http://127.0.0.1:6066"),
        lambda: figures,
    )
    document = stats.document()
    assert (document["worker"], document["role"]) == ("scoring-1", "scoring")
    shown = document["workers"]["scoring-1"]["stats"]
    assert shown.keys() == {"n", "event_loop_tasks", "open_files", "threads"}
    assert shown["n"] == 1
    figures["n"] = object()
    assert "object cannot be shown" in stats.document()["workers"]["scoring-1"]["stats"]["error"]
