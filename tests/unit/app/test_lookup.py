"""One round trip for all views of all rows, and what its answers mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from app.features import ViewCodec
from app.lookup import NEVER, Lookup, ViewLookup, degraded_reasons, store_column
from app.models.spec import FeatureView, ViewColumn
from schemas.columns import NumberColumn, TextColumn, to_python
from tests.fakes import MemoryStore
from tests.samples import EVENT_TIME_US, PLANE, WEATHER, sample_spec, store_rows

if TYPE_CHECKING:
    from schemas.columns import Column

NOW = np.full(5, EVENT_TIME_US)
PLANES = ["N0", "N1", "N2", None, "N0"]
CARRIERS = ["AA", "AA", "B6", "UA", None]
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
    """Letter d for all rows of all views, no value, and why; nothing raises."""
    store = MemoryStore(store_rows())
    store.error = "redis: TimeoutError: too slow"
    lookup = await _looked_up(store)
    assert lookup.error == store.error
    assert {_letters(lookup, view) for view in ("plane", "weather")} == {"ddddd"}
    assert to_python(store_column(lookup, "plane", "delay_min")) == [None] * 5


async def test_a_foreign_value_counts_as_a_store_that_failed() -> None:
    """One value of another layout is reason enough to trust none of them."""
    rows = store_rows()
    rows["fs:plane:v1:N0"] = b"set by hand"
    lookup = await _looked_up(MemoryStore(rows))
    assert "view plane" in (lookup.error or "")
    assert _letters(lookup, "weather") == "ddddd"


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
