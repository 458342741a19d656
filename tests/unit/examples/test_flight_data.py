"""Flights as they really were: counts, labels, and arrival times rebuilt from clock times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from examples.flights.data import DAY_MIN, HOUR_US, MINUTE_US, NEVER, arrival_us, load_flights

if TYPE_CHECKING:
    from pathlib import Path

    from examples.flights.data import FlightData


def test_label_counts_are_those_of_the_source(year: FlightData) -> None:
    """336,776 flights, 2.8 % without an outcome (cancelled or diverted), 24.5 % of the others late."""
    labels = year.flights["label"]
    assert len(labels) == 336_776
    assert int(labels.isna().sum()) == 9_430
    assert round(float(labels.mean()), 3) == 0.245
    assert ((year.flights["arrival_us"] == NEVER) == labels.isna()).all()


def test_request_ids_are_unique_and_time_is_in_order(year: FlightData) -> None:
    """Each flight has its own request id, and rows follow scheduled departure."""
    assert year.flights["request_id"].is_unique
    assert year.flights["departure_us"].is_monotonic_increasing
    assert year.weather["known_us"].is_monotonic_increasing


def test_arrivals_fit_schedule_and_air_time(year: FlightData) -> None:
    """The rebuilt arrival lies after take-off, gives back the known lags, and no flight is on its way for a day."""
    flights = year.flights[year.flights["arrival_us"] != NEVER]
    left_us = flights["departure_us"] + flights["departure_delay_min"] * MINUTE_US
    elapsed_h = (flights["arrival_us"] - left_us) / HOUR_US
    assert elapsed_h.between(0.3, 13).all()
    lag_h = (flights["arrival_us"] - flights["departure_us"]) / HOUR_US
    assert lag_h.median() == pytest.approx(2.83, abs=0.05)
    assert lag_h.max() == pytest.approx(32.7, abs=0.1)


def test_arrival_delay_is_the_one_of_the_source(year: FlightData) -> None:
    """The planned arrival of one route lies where its schedule has it: no time zone is off."""
    one = year.flights.query("carrier == 'UA' and route == 'EWR-IAH' and arrival_us != @NEVER and month == '2013-02'")
    planned_min = one["arrival_us"] / MINUTE_US - one["arrival_delay_min"]
    planned_h = (planned_min - one["departure_us"] / MINUTE_US) / 60
    assert planned_h.between(3.3, 4.8).all()


@pytest.mark.parametrize(
    ("departure_h", "clock", "offset_h", "expected_h"),
    [
        (4.0, 30, -6, 6.5),  # 00:30 in Chicago, past midnight
        (0.0, 2400, -5, 5.0),  # midnight is written 2400
        (4.0, 2345, -6, 5.75),  # before midnight there, although UTC's day is over
        (4.0, 900, -10, 19.0),  # Honolulu
    ],
)
def test_midnights_do_not_confuse_arrivals(departure_h: float, clock: int, offset_h: int, expected_h: float) -> None:
    """A clock time names the first such moment after take-off."""
    got = arrival_us(np.array([int(departure_h * HOUR_US)]), np.array([float(clock)]), np.array([offset_h * 60.0]))
    assert got.item() == int(expected_h * HOUR_US)


def test_arrival_is_less_than_a_day_away() -> None:
    """Every clock time of the day gives an arrival within a day after departure."""
    clocks = np.array([float(h * 100 + m) for h in range(24) for m in range(0, 60, 7)])
    departure = np.full(len(clocks), 5 * HOUR_US)
    elapsed = arrival_us(departure, clocks, np.full(len(clocks), -300.0)) - departure
    assert elapsed.min() >= 0
    assert elapsed.max() < DAY_MIN * MINUTE_US


def test_weather_is_known_when_its_hour_is_over(year: FlightData) -> None:
    """The first observations, of 06:00 UTC, are known at 07:00 UTC."""
    assert pd.Timestamp(int(year.weather["known_us"].iloc[0]), unit="us") == pd.Timestamp("2013-01-01 07:00")


def test_entity_is_the_plane_or_else_the_flight(year: FlightData) -> None:
    """2,512 flights have no tail number; their entity is carrier and flight number."""
    unknown = year.flights[year.flights["tailnum"].isna()]
    assert len(unknown) == 2_512
    assert all(tail is None for tail in unknown["tailnum"])
    assert year.flights["entity_id"].notna().all()
    assert all(e.startswith(c) for e, c in zip(unknown["entity_id"], unknown["carrier"], strict=True))


def test_cache_gives_the_same_tables(tmp_path: Path) -> None:
    """What comes from the cache equals what was parsed, Nones included."""
    parsed = load_flights(tmp_path)
    cached = load_flights(tmp_path)
    pd.testing.assert_frame_equal(cached.flights, parsed.flights)
    pd.testing.assert_frame_equal(cached.weather, parsed.weather)
