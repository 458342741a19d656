"""The year's flights, parsed once for all tests of the demo."""

from __future__ import annotations

import pytest

from examples.flights.data import FlightData, parse_flights


@pytest.fixture(scope="session")
def year() -> FlightData:
    """All flights and weather of 2013."""
    return parse_flights()


@pytest.fixture(scope="session")
def january(year: FlightData) -> FlightData:
    """The first ten days, as if nothing later were known."""
    end_us = int(year.flights["departure_us"].iloc[0]) + 10 * 86_400_000_000
    flights = year.flights[year.flights["departure_us"] < end_us]
    weather = year.weather[year.weather["known_us"] < end_us]
    return FlightData(flights.reset_index(drop=True), weather.reset_index(drop=True))
