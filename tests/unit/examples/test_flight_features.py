"""Features know nothing of the future: recomputed the slow way from raw outcomes, and cut off at every point."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.flights.data import HOUR_US, NEVER, WEATHER_COLUMNS, FlightData
from examples.flights.features import (
    STORE_FEATURES,
    TICK_US,
    USUAL_WEIGHT,
    VIEWS,
    Facts,
    FlightState,
    Rolling,
    as_stored,
    simulate,
    timeline,
    view_rows,
)

HALF_LIFE_H = {"1h": 1, "2h": 2, "6h": 6, "7d": 168, "14d": 336}


def _naive_mean(values: pd.Series[float], at_us: pd.Series[int], half_life_h: float, usual: float) -> float:
    """The rolling mean from first principles: all weights written out, as of the last observation."""
    weights = 0.5 ** ((at_us.iloc[-1] - at_us) / (half_life_h * HOUR_US))
    return float(((values * weights).sum() + usual * USUAL_WEIGHT) / (weights.sum() + USUAL_WEIGHT))


def _naive_features(data: FlightData, flight: int) -> dict[str, float]:
    """Every store feature of one flight, from nothing but the outcomes that arrived before its tick."""
    row = data.flights.loc[flight]
    tick_us = row["departure_us"] // TICK_US * TICK_US
    known = data.flights[data.flights["arrival_us"] < tick_us].sort_values("arrival_us", kind="stable")
    delay = known["arrival_delay_min"].clip(-30, 180)
    left = known["departure_delay_min"].clip(-30, 180)
    weather = data.weather[(data.weather["known_us"] <= tick_us) & (data.weather["origin"] == row["origin"])]
    found = dict.fromkeys(STORE_FEATURES, math.nan)
    if len(weather):
        found |= weather.iloc[-1][list(WEATHER_COLUMNS.values())].to_dict()
    key_of = {"carrier": "carrier", "route": "route", "origin": "origin", "plane": "tailnum"}
    for name in STORE_FEATURES[len(WEATHER_COLUMNS) :]:
        prefix, suffix = name.split("_")[0], name.removesuffix("_min").split("_")[-1]
        rows = known[key_of[prefix]] == row[key_of[prefix]]
        if not rows.any():
            continue
        values, usual = (known["label"], 0.22) if "_late_" in name else (left if "_departure_" in name else delay, 5.0)
        if name == "plane_last_delay_min":
            found[name] = float(values[rows].iloc[-1])
        else:
            found[name] = _naive_mean(values[rows], known["arrival_us"][rows], HALF_LIFE_H[suffix], usual)
    return found


def test_no_feature_knows_the_future(year: FlightData) -> None:
    """Recomputed from raw outcomes that arrived before the tick, every feature of sampled flights is the same."""
    simulated = simulate(year, until_us=year.flights["departure_us"].iloc[60_000])
    sample = np.random.default_rng(7).choice(len(simulated), 40, replace=False)
    for flight in [0, 30, *sample.tolist()]:
        naive = pd.Series(_naive_features(year, flight))[list(STORE_FEATURES)].to_numpy(np.float64)
        np.testing.assert_allclose(simulated.loc[flight].to_numpy(), as_stored(naive), rtol=2e-6, err_msg=str(flight))


def test_cutting_off_the_future_changes_nothing(january: FlightData) -> None:
    """Erase all that comes after a tick began: features of that tick stay the same, exactly."""
    whole = simulate(january)
    for flight in (1_000, 4_321, 8_000):
        tick_us = january.flights["departure_us"].iloc[flight] // TICK_US * TICK_US
        flights = january.flights.copy()
        late = flights["arrival_us"] >= tick_us
        flights.loc[late, ["arrival_us", "arrival_delay_min", "departure_delay_min", "label"]] = [NEVER, *[np.nan] * 3]
        past = FlightData(flights, january.weather[january.weather["known_us"] <= tick_us].reset_index(drop=True))
        due = flights["departure_us"].between(tick_us, tick_us + TICK_US - 1)
        pd.testing.assert_frame_equal(simulate(past).loc[due], whole.loc[due], check_exact=True)


def test_simulation_repeats_itself(january: FlightData) -> None:
    """Two simulations give the same numbers, bit for bit."""
    pd.testing.assert_frame_equal(simulate(january), simulate(january), check_exact=True)


def test_timeline_gives_everything_once_and_in_order(january: FlightData) -> None:
    """Each flight departs once; each outcome and hour of weather is given once, never before it is known."""
    departed: list[int] = []
    arrived: list[int] = []
    observed: list[int] = []
    for tick in timeline(january):
        departures = january.flights["departure_us"].to_numpy()[tick.departures]
        assert ((departures >= tick.start_us) & (departures < tick.start_us + TICK_US)).all()
        assert (january.flights["arrival_us"].to_numpy()[tick.arrivals] < tick.start_us).all()
        if len(tick.departures):
            assert (january.weather["known_us"].to_numpy()[tick.weather] <= tick.start_us).all()
        departed += tick.departures.tolist()
        arrived += tick.arrivals.tolist()
        observed += tick.weather.tolist()
    arrival_us = january.flights["arrival_us"].to_numpy()
    assert departed == list(range(len(january.flights)))
    assert sorted(arrived) == np.flatnonzero(arrival_us != NEVER).tolist()
    assert (np.diff(arrival_us[arrived]) >= 0).all()
    assert observed == list(range(len(january.weather)))


def test_only_rows_that_changed_are_written(january: FlightData) -> None:
    """Rows written tick by tick add up to the state itself."""
    state, facts = FlightState(), Facts(january)
    written: dict[str, dict[str, object]] = {view.name: {} for view in VIEWS}
    for tick in timeline(january):
        changed = state.advance(facts.arrivals(tick.arrivals), facts.weather(tick.weather))
        carriers = {january.flights["carrier"].iloc[row] for row in tick.arrivals.tolist()}
        assert set(changed.get("carrier_delays", {})) == carriers
        for view, rows in changed.items():
            written[view] |= rows
    assert written == state.rows


def test_view_rows_carry_event_time_in_ms_and_all_columns(january: FlightData) -> None:
    """A feature writer gets key parts, unix ms and every column of the view."""
    state, facts = FlightState(), Facts(january)
    for tick in timeline(january):
        changed = state.advance(facts.arrivals(tick.arrivals), facts.weather(tick.weather))
    columns = {view.name: {c.name for c in view.columns} for view in VIEWS}
    seen = {}
    for view, rows in view_rows(changed):
        seen[view] = len(rows)
        for (key,), event_ms, values in rows:
            assert event_ms == state.rows[view][key].event_us // 1000
            assert set(values) == columns[view]
    assert seen


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(-30, 180), st.integers(0, 200)), min_size=1, max_size=30))
def test_rolling_mean_equals_the_sum_written_out(pairs: list[tuple[float, int]]) -> None:
    """The incremental mean equals the weighted sum over all observations."""
    rolling = Rolling(half_life_us=2 * HOUR_US, usual=0.3)
    at_us, got = 0, math.nan
    for value, gap_h in pairs:
        at_us += gap_h * HOUR_US
        got = rolling.update(value, at_us)
    at = np.cumsum([gap for _, gap in pairs])
    weights = 0.5 ** ((at[-1] - at) / 2.0)
    expected = (np.array([v for v, _ in pairs]) @ weights + 0.3 * USUAL_WEIGHT) / (weights.sum() + USUAL_WEIGHT)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)
