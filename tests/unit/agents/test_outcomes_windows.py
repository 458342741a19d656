"""Windows merged over a worker's partitions: figures, closings, and what is computed again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agents.window_closing import WindowBook
from monitors.closing import Closing
from monitors.join import JoinRule
from monitors.partition import PartitionMonitor, PartitionTools, Taken
from monitors.prediction_plans import PredictionPlans
from monitors.readers import OutcomeReader
from monitors.store import PartitionStore, WindowKey
from schemas.registry import SchemaBook, load_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMAS = Path(__file__).parents[3] / "schemas"
DAY_US = 86_400_000_000
RULE = JoinRule.of_seconds("day", 7 * 86_400, 86_400, 0)
FIRST, SECOND = WindowKey("demo", 1, 0), WindowKey("demo", 1, DAY_US)


@pytest.fixture
def partitions(tmp_path: Path) -> Iterator[dict[int, PartitionMonitor]]:
    """Two partitions without windows."""
    book = SchemaBook(SCHEMAS)
    reader = OutcomeReader(book, load_schema(SCHEMAS, "outcome"), 0)
    tools = PartitionTools(PredictionPlans(book, "labelled-predictions"), reader, RULE, lambda _n, _v: None, 10)
    made = {p: PartitionMonitor(p, PartitionStore(tmp_path / str(p)), tools) for p in (0, 1)}
    yield made
    for monitor in made.values():
        monitor.store.close()


def add(monitor: PartitionMonitor, key: WindowKey, count: int) -> None:
    """Count predictions in a window."""
    taken = Taken()
    monitor._touch(key, taken).add_predictions(np.full(count, 0.5))
    monitor.commit(taken)


def test_figures_are_merged_and_computed_again_only_after_a_change(partitions: dict[int, PartitionMonitor]) -> None:
    """Counts of partitions add up; the same object comes back until a partition has committed."""
    book = WindowBook(RULE)
    assert book.figures(partitions, FIRST) is None
    add(partitions[0], FIRST, 3)
    add(partitions[1], FIRST, 4)
    figures = book.figures(partitions, FIRST)
    assert figures is not None
    assert figures.predictions == 7
    assert book.figures(partitions, FIRST) is figures
    add(partitions[1], FIRST, 1)
    again = book.figures(partitions, FIRST)
    assert again is not None
    assert again.predictions == 8


def test_a_window_is_due_once_for_each_state(partitions: dict[int, PartitionMonitor]) -> None:
    """Provisional at its end, final when mature; what is recorded on all partitions is not due again."""
    book = WindowBook(RULE)
    add(partitions[0], FIRST, 1)
    add(partitions[1], FIRST, 1)
    add(partitions[1], SECOND, 1)
    assert book.due(partitions, None) == {}
    assert book.due(partitions, DAY_US) == {FIRST: Closing.PROVISIONAL}
    partitions[0].record_closings({FIRST: Closing.PROVISIONAL})
    assert book.due(partitions, DAY_US) == {FIRST: Closing.PROVISIONAL}, "partition 1 does not know of it yet"
    partitions[1].record_closings({FIRST: Closing.PROVISIONAL})
    assert book.due(partitions, DAY_US) == {}
    assert book.due(partitions, 2 * DAY_US) == {FIRST: Closing.FINAL, SECOND: Closing.PROVISIONAL}


def test_the_document_lists_windows_in_order_and_bounds_them(
    partitions: dict[int, PartitionMonitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oldest first, the newest so many of each version."""
    monkeypatch.setattr("agents.window_closing.SHOWN_WINDOWS", 2)
    book = WindowBook(RULE)
    for day in (2, 0, 1):
        add(partitions[day % 2], WindowKey("demo", 1, day * DAY_US), 1)
    add(partitions[0], WindowKey("demo", 2, 0), 1)
    listed = [(w["model_version"], w["label"]) for w in book.as_json(partitions)]
    assert listed == [(1, "1970-01-02"), (1, "1970-01-03"), (2, "1970-01-01")]


def test_a_resting_window_is_reported_until_nothing_changes(partitions: dict[int, PartitionMonitor]) -> None:
    """The newest window of a version is wanted when it is large enough, once for each state of its counts."""
    book = WindowBook(RULE)
    add(partitions[0], FIRST, 500)
    add(partitions[0], SECOND, 199)
    assert book.unreported(partitions) == []
    add(partitions[1], SECOND, 1)
    assert book.unreported(partitions) == [SECOND]
    book.mark_reported(partitions, SECOND)
    assert book.unreported(partitions) == []
    add(partitions[1], SECOND, 1)
    assert book.unreported(partitions) == [SECOND]
