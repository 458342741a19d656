"""One round trip for all views of all rows, and what its answers mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.features import ViewCodec
from app.last_known import LastKnown
from app.lookup import NEVER, Lookup, ViewLookup, degraded_reasons, store_column
from app.metrics import Metrics
from app.models.spec import FeatureView, ViewColumn
from app.settings import BudgetSettings
from schemas.columns import NumberColumn, TextColumn, to_python
from tests.fakes import FakeClock, MemoryStore
from tests.samples import EVENT_TIME_US, PLANE, WEATHER, sample_spec, store_rows

if TYPE_CHECKING:
    from schemas.columns import Column

NOW = np.full(5, EVENT_TIME_US)
PLANES = ["N0", "N1", "N2", None, "N0"]
CARRIERS = ["AA", "AA", "B6", "UA", None]
_STATUSES = ("fresh", "stale", "missing", "default")
GATES = [1.0, 1.0, 9.0, 2.0, 0.0]


def _features() -> dict[str, Column]:
    return {
        "tailnum": TextColumn.from_values(PLANES),
        "carrier": TextColumn.from_values(CARRIERS),
        "gate": NumberColumn(np.array(GATES)),
    }


async def _looked_up(store: MemoryStore) -> Lookup:
    return await ViewLookup(sample_spec(), store).fetch(_features(), NOW)


def _letters(lookup: Lookup, view: str) -> str:
    return lookup.views[view].letters.tobytes().decode()


async def test_all_views_of_all_rows_take_one_round_trip() -> None:
    """Each key is asked for once, whatever the number of rows that need it; nulls in a key are not asked for."""
    store = MemoryStore(store_rows())
    await _looked_up(store)
    assert store.fetches == [
        [
            *("fs:plane:v1:N0", "fs:plane:v1:N1", "fs:plane:v1:N2"),
            *("fs:weather:v2:AA|1", "fs:weather:v2:B6|9", "fs:weather:v2:UA|2"),
        ]
    ]


async def test_letters_say_where_a_value_came_from() -> None:
    """Fresh, stale (older than the view allows), missing (unknown key, or a null in it); ages in ms, -1 for none."""
    lookup = await _looked_up(MemoryStore(store_rows()))
    assert lookup.error is None
    assert _letters(lookup, "plane") == "fsmmf"
    assert _letters(lookup, "weather") == "ffmfm"
    assert lookup.views["plane"].age_ms.tolist() == [0, 7_200_000, NEVER, NEVER, 0]
    assert to_python(store_column(lookup, "plane", "delay_min")) == [0.0, 9.0, None, None, 0.0]
    assert to_python(store_column(lookup, "weather", "gust")) == [6.0, 6.0, None, 7.0, None]


async def test_a_store_that_fails_gives_defaults_to_every_row() -> None:
    """Letter d for all rows of all views that were never read, no value, and why; a null in a key stays missing."""
    store = MemoryStore(store_rows())
    store.error = "redis: TimeoutError: too slow"
    lookup = await _looked_up(store)
    assert lookup.error == store.error
    assert (_letters(lookup, "plane"), _letters(lookup, "weather")) == ("dddmd", "ddddm")
    assert to_python(store_column(lookup, "plane", "delay_min")) == [None] * 5


async def test_rows_read_lately_answer_for_a_store_that_fails() -> None:
    """Stale, with their values and true ages, until they are too old; what the store never gave is a default."""
    store, clock = MemoryStore(store_rows()), FakeClock()
    known = LastKnown(entries_max=100, bytes_max=100_000, age_max_s=60)
    views = ViewLookup(sample_spec(), store, last_known=known, now_s=clock)
    healthy = await views.fetch(_features(), NOW)
    store.error = "redis: the breaker is open"
    clock.advance(60)
    lost = await views.fetch(_features(), NOW + 60_000_000)
    assert lost.error == store.error
    assert (_letters(healthy, "plane"), _letters(lost, "plane")) == ("fsmmf", "ssdms")
    assert (_letters(healthy, "weather"), _letters(lost, "weather")) == ("ffmfm", "ssdsm")
    assert lost.views["plane"].age_ms.tolist() == [60_000, 7_260_000, NEVER, NEVER, 60_000]
    assert to_python(store_column(lost, "plane", "delay_min")) == [0.0, 9.0, None, None, 0.0]
    clock.advance(0.1)
    assert _letters(await views.fetch(_features(), NOW), "plane") == "dddmd"
    store.error = None
    assert _letters(await views.fetch(_features(), NOW), "plane") == "fsmmf"


async def test_a_row_that_was_deleted_is_not_brought_back() -> None:
    """The store said that it has no such row: the last known one does not stand for it when the store goes."""
    store = MemoryStore(store_rows())
    views = ViewLookup(sample_spec(), store)
    await views.fetch(_features(), NOW)
    del store.rows["fs:plane:v1:N0"]
    assert _letters(await views.fetch(_features(), NOW), "plane") == "msmmm"
    store.error = "gone"
    assert _letters(await views.fetch(_features(), NOW), "plane") == "dsdmd"


async def test_a_foreign_value_costs_its_own_rows_and_no_other() -> None:
    """Missing in that view alone; and the row that was read before is still the last known good one."""
    store = MemoryStore(store_rows())
    metrics = Metrics(BudgetSettings(), now_s=FakeClock())
    views = ViewLookup(sample_spec(), store, metrics=metrics)
    await views.fetch(_features(), NOW)
    store.rows["fs:plane:v1:N0"] = b"set by hand"
    lookup = await views.fetch(_features(), NOW)
    assert lookup.error is None
    assert (_letters(lookup, "plane"), _letters(lookup, "weather")) == ("msmmm", "ffmfm")
    assert metrics.snapshot()["counters"]["feature_corrupt{view=plane}"] == 2
    store.error = "gone"
    assert to_python(store_column(await views.fetch(_features(), NOW), "plane", "delay_min"))[0] == 0.0


async def test_what_was_had_is_counted_by_view() -> None:
    """Rows by status, those of the last known among the stale; ages; the store's state; the memory held."""
    store = MemoryStore(store_rows())
    metrics = Metrics(BudgetSettings(), now_s=FakeClock())
    views = ViewLookup(sample_spec(), store, metrics=metrics)
    await views.fetch(_features(), NOW)
    assert metrics.snapshot()["gauges"]["feature_store_up"] == 1
    store.error = "gone"
    await views.fetch(_features(), NOW)
    figures = metrics.snapshot()
    rows = {status: figures["counters"][f"feature_rows{{status={status},view=plane}}"] for status in _STATUSES}
    assert rows == {"fresh": 2, "stale": 4, "missing": 3, "default": 1}
    assert figures["counters"]["feature_last_known{view=plane}"] == 3
    assert figures["durations"].keys() == {"feature_lookup_duration"}
    assert figures["gauges"]["feature_store_up"] == 0
    assert figures["gauges"]["last_known_entries"] == 4
    assert 4 * 160 < figures["gauges"]["last_known_bytes"] < 4 * 300
    assert metrics.feature_ages["plane"].counts.tolist() == [4, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]
    assert metrics.feature_ages["plane"].sum_ms == 2 * 7_200_000
    registry = CollectorRegistry()
    registry.register(metrics.collector())
    page = generate_latest(registry).decode()
    assert 'sluice_feature_age_seconds_bucket{le="21600",view="plane"} 6.0' in page
    assert 'sluice_feature_rows_total{status="default",view="plane"} 1.0' in page


async def test_a_value_from_the_future_is_fresh_and_has_no_negative_age() -> None:
    """Replays and skewed clocks see rows that were written after the event."""
    codec = ViewCodec(PLANE)
    lookup = await _looked_up(
        MemoryStore({codec.key(["N0"]): codec.pack(EVENT_TIME_US // 1000 + 5, {"delay_min": 1.0})})
    )
    assert _letters(lookup, "plane")[0] == "f"
    assert lookup.views["plane"].age_ms[0] == 0


@pytest.mark.parametrize(("age_ms", "letter"), [(3_600_000, "f"), (3_600_001, "s")])
async def test_the_limit_itself_is_fresh(age_ms: int, letter: str) -> None:
    """``stale_after_s`` is what may still be used without a word."""
    codec = ViewCodec(PLANE)
    rows = {codec.key(["N0"]): codec.pack(EVENT_TIME_US // 1000 - age_ms, {"delay_min": 1.0})}
    assert _letters(await _looked_up(MemoryStore(rows)), "plane")[0] == letter


async def test_numbers_make_keys_as_people_write_them() -> None:
    """Whole numbers without a fraction, others in full; a null number makes no key."""
    view = FeatureView(name="g", key=("gate",), columns=(ViewColumn(name="x", type="i8"),))
    spec = sample_spec(features=tuple(f for f in sample_spec().features if f.source == "request"), views=(view,))
    store = MemoryStore({"fs:g:v1:-3": ViewCodec(view).pack(1, {"x": 8})})
    gate = NumberColumn(np.array([-3.0, 0.1, 1e21, 0.0]), np.array([True, True, True, False]))
    lookup = await ViewLookup(spec, store).fetch({"gate": gate}, NOW[:4])
    assert store.fetches == [["fs:g:v1:-3", "fs:g:v1:0.1", "fs:g:v1:1000000000000000000000"]]
    assert to_python(store_column(lookup, "g", "x")) == [8.0, None, None, None]


async def test_without_keys_the_store_is_not_asked() -> None:
    """All keys null: nothing to fetch, every row missing; no rows: nothing at all."""
    store = MemoryStore()
    lookup = ViewLookup(sample_spec(), store)
    assert lookup.is_needed
    nothing: dict[str, Column] = {n: c.take(slice(0, 0)) for n, c in _features().items()}
    assert len((await lookup.fetch(nothing, NOW[:0])).views["plane"].letters) == 0
    nulls = {
        **_features(),
        "tailnum": TextColumn.from_values([None] * 5),
        "carrier": TextColumn.from_values([None] * 5),
    }
    assert _letters(await lookup.fetch(nulls, NOW), "plane") == "mmmmm"
    assert store.fetches == []


async def test_taking_rows_keeps_them_together() -> None:
    """Letters, ages and values of the chosen rows, and the error."""
    lookup = await _looked_up(MemoryStore(store_rows()))
    taken = lookup.take(np.array([4, 1]))
    assert _letters(taken, "plane") == "fs"
    assert to_python(store_column(taken, "plane", "delay_min")) == [0.0, 9.0]


@pytest.mark.parametrize(
    ("plane", "weather", "expected"),
    [
        ("ff", "fm", ["", ""]),
        ("fs", "ff", ["", "plane:stale"]),
        ("sf", "ss", ["plane:stale,weather:stale", "weather:stale"]),
        ("dd", "dd", ["plane:default,weather:default"] * 2),
        ("dm", "sd", ["plane:default,weather:stale", "weather:default"]),
    ],
)
def test_degraded_names_each_view_that_was_not_fresh(plane: str, weather: str, expected: list[str]) -> None:
    """In the order of the views; a missing row is no degradation."""
    lookup = _lookup_of({"plane": plane, "weather": weather})
    codes, texts = degraded_reasons((PLANE, WEATHER), lookup)
    assert [texts[code] for code in codes] == expected
    assert texts[0] == ""
    assert (codes > 0).tolist() == [bool(text) for text in expected]


def test_many_views_are_told_apart() -> None:
    """With as many views as a model may have, the last is still named as exactly as the first."""
    views = tuple(PLANE.model_copy(update={"name": f"v{i}"}) for i in range(32))
    letters = {view.name: "ffd" for view in views} | {"v0": "sfd", "v31": "dfd"}
    codes, texts = degraded_reasons(views, _lookup_of(letters))
    assert [texts[code] for code in codes] == [
        "v0:stale,v31:default",
        "",
        ",".join(f"v{i}:default" for i in range(32)),
    ]


def _lookup_of(letters: dict[str, str]) -> Lookup:
    from app.lookup import ViewRows

    rows = {
        name: ViewRows(
            np.zeros(len(text), ViewCodec(PLANE).dtype),
            np.frombuffer(text.encode(), np.uint8),
            np.zeros(len(text), np.int64),
        )
        for name, text in letters.items()
    }
    return Lookup(rows)
