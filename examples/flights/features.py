"""What the online store knows about flights, kept up to date from arrivals and weather, and the tick of event time.

A feature may use only what was known at the scheduled departure. The rule that makes it so, for training (`simulate`)
and for the stream (the replay) alike: event time is cut into ticks; the requests of a tick see the state after all
outcomes that arrived, and all weather hours that ended, before the tick began. `timeline` is that rule.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from app.models.spec import FeatureView, ViewColumn

from .data import HOUR_US, MINUTE_US, NEVER, WEATHER_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from .data import FlightData

TICK_US = 15 * MINUTE_US

# A rolling mean starts from these, so that the first late flight of a day is not "100 % late".
USUAL_LATE_SHARE = 0.22
USUAL_DELAY_MIN = 5.0
USUAL_WEIGHT = 2.0
DELAY_BOUNDS_MIN = (-30.0, 180.0)


def _view(name: str, key: str, columns: Iterable[str], stale_after_s: float | None = None) -> FeatureView:
    return FeatureView(
        name=name, key=(key,), columns=tuple(ViewColumn(name=c) for c in columns), stale_after_s=stale_after_s
    )


VIEWS: tuple[FeatureView, ...] = (
    _view("origin_weather", "origin", WEATHER_COLUMNS.values(), stale_after_s=8 * 3600.0),
    _view("carrier_delays", "carrier", ("carrier_late_2h", "carrier_late_7d", "carrier_delay_2h_min")),
    _view("route_delays", "route", ("route_late_14d", "route_delay_14d_min", "route_delay_6h_min")),
    _view("origin_delays", "origin", ("origin_late_1h", "origin_departure_delay_1h_min")),
    _view("plane_delays", "tailnum", ("plane_last_delay_min", "plane_delay_6h_min")),
)
STORE_FEATURES: tuple[str, ...] = tuple(c.name for v in VIEWS for c in v.columns)


class Arrival(NamedTuple):
    """An outcome, as the feature state takes it.

    Attributes:
        arrival_us: real arrival, UTC micros.
        carrier: two letters.
        origin: airport.
        route: ``EWR-IAH``.
        tailnum: of the plane; None: unknown.
        departure_delay_min: minutes.
        arrival_delay_min: minutes.
        label: 1.0: late.

    """

    arrival_us: int
    carrier: str
    origin: str
    route: str
    tailnum: str | None
    departure_delay_min: float
    arrival_delay_min: float
    label: float


class WeatherHour(NamedTuple):
    """What was observed at an airport in an hour; ``values`` in the order of the view's columns, NaN: not observed."""

    known_us: int
    origin: str
    values: tuple[float, ...]


class Row(NamedTuple):
    """A row of a view: the event time of its last update (UTC micros) and its columns."""

    event_us: int
    values: tuple[float, ...]


@dataclass(slots=True)
class Rolling:
    """A mean in which an observation weighs half as much every half-life, with a start value.

    The mean as of its last update needs no correction later: all weights shrink alike.

    Example:
        >>> r = Rolling(half_life_us=HOUR_US, usual=0.0, usual_weight=1.0)
        >>> r.update(1.0, at_us=0), r.update(1.0, at_us=HOUR_US)   # weights 1 (usual), then 1 and 0.5 + 1
        (0.5, 0.6)

    """

    half_life_us: int
    usual: float
    usual_weight: float = USUAL_WEIGHT
    at_us: int = 0
    weight: float = 0.0
    total: float = 0.0

    def update(self, value: float, at_us: int) -> float:
        """Takes one observation in and returns the mean; observations must come in the order of time."""
        kept = 0.5 ** ((at_us - self.at_us) / self.half_life_us)
        self.at_us = at_us
        self.weight = self.weight * kept + 1.0
        self.total = self.total * kept + value
        return (self.total + self.usual * self.usual_weight) / (self.weight + self.usual_weight)


@dataclass(slots=True)
class FlightState:
    """All rows of all views, as of what has been given to it.

    Attributes:
        rows: view name to key to row.

    Cost: about 6 us an outcome; memory: one row per carrier, route, airport and plane.

    """

    rows: dict[str, dict[str, Row]] = field(default_factory=lambda: {v.name: {} for v in VIEWS})
    _rolling: dict[tuple[str, str], Rolling] = field(default_factory=dict)
    _changed: dict[str, set[str]] = field(default_factory=lambda: {v.name: set() for v in VIEWS})

    def advance(self, arrivals: Iterable[Arrival], weather: Iterable[WeatherHour]) -> dict[str, dict[str, Row]]:
        """Takes in what became known, in the order of time; returns the rows that changed, by view and key."""
        for arrival in arrivals:
            self.on_outcome(arrival)
        for hour in weather:
            self._put("origin_weather", hour.origin, hour.known_us, *hour.values)
        changed = {view: {key: self.rows[view][key] for key in sorted(keys)} for view, keys in self._changed.items()}
        for keys in self._changed.values():
            keys.clear()
        return {view: rows for view, rows in changed.items() if rows}

    def on_outcome(self, arrival: Arrival) -> None:
        """Takes in one arrival; arrivals must come in the order of time."""
        at, late = arrival.arrival_us, arrival.label
        delay = _bounded(arrival.arrival_delay_min)
        self._put(
            "carrier_delays", arrival.carrier, at,
            self._share("carrier_late_2h", arrival.carrier, 2 * HOUR_US, late, at),
            self._share("carrier_late_7d", arrival.carrier, 7 * 24 * HOUR_US, late, at),
            self._minutes("carrier_delay_2h_min", arrival.carrier, 2 * HOUR_US, delay, at),
        )  # fmt: skip
        self._put(
            "route_delays", arrival.route, at,
            self._share("route_late_14d", arrival.route, 14 * 24 * HOUR_US, late, at),
            self._minutes("route_delay_14d_min", arrival.route, 14 * 24 * HOUR_US, delay, at),
            self._minutes("route_delay_6h_min", arrival.route, 6 * HOUR_US, delay, at),
        )  # fmt: skip
        left = _bounded(arrival.departure_delay_min)
        self._put(
            "origin_delays", arrival.origin, at,
            self._share("origin_late_1h", arrival.origin, HOUR_US, late, at),
            self._minutes("origin_departure_delay_1h_min", arrival.origin, HOUR_US, left, at),
        )  # fmt: skip
        if arrival.tailnum is not None:
            recent = self._minutes("plane_delay_6h_min", arrival.tailnum, 6 * HOUR_US, delay, at)
            self._put("plane_delays", arrival.tailnum, at, delay, recent)

    def _put(self, view: str, key: str, event_us: int, *values: float) -> None:
        self.rows[view][key] = Row(event_us, values)
        self._changed[view].add(key)

    def _share(self, name: str, key: str, half_life_us: int, late: float, at_us: int) -> float:
        return self._roll(name, key, half_life_us, USUAL_LATE_SHARE).update(late, at_us)

    def _minutes(self, name: str, key: str, half_life_us: int, delay_min: float, at_us: int) -> float:
        return self._roll(name, key, half_life_us, USUAL_DELAY_MIN).update(delay_min, at_us)

    def _roll(self, name: str, key: str, half_life_us: int, usual: float) -> Rolling:
        rolling = self._rolling.get((name, key))
        if rolling is None:
            rolling = self._rolling[name, key] = Rolling(half_life_us, usual)
        return rolling


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick of event time in which flights are due.

    Attributes:
        start_us: begin of the tick, UTC micros.
        arrivals: rows of ``flights`` whose outcome came since the tick yielded before and before ``start_us``.
        weather: rows of ``weather`` that became known since then, at ``start_us`` at the latest.
        departures: rows of ``flights`` with scheduled departure in [start_us, start_us + tick).

    """

    start_us: int
    arrivals: NDArray[np.int64]
    weather: NDArray[np.int64]
    departures: NDArray[np.int64]


def timeline(data: FlightData, tick_us: int = TICK_US) -> Iterator[Tick]:
    """The year, tick by tick; ticks without departures are left out and what came in them goes to the next one.

    Args:
        data: flights and weather.
        tick_us: length of a tick, micros.

    Yields:
        Ticks in the order of time; the last one has no departures and brings all outcomes that are left.

    """
    departure_us = data.flights["departure_us"].to_numpy()
    arrival_us = data.flights["arrival_us"].to_numpy()
    known_us = data.weather["known_us"].to_numpy()
    by_arrival = np.argsort(arrival_us, kind="stable")
    arrival_sorted = arrival_us[by_arrival]
    starts, first = np.unique(departure_us // tick_us * tick_us, return_index=True)
    ends = np.append(first[1:], len(departure_us))
    arrived = np.searchsorted(arrival_sorted, starts, side="left")
    observed = np.searchsorted(known_us, starts, side="right")
    arrived_before = observed_before = 0
    for tick, start in enumerate(starts.tolist()):
        yield Tick(
            start,
            by_arrival[arrived_before : arrived[tick]],
            np.arange(observed_before, observed[tick]),
            np.arange(first[tick], ends[tick]),
        )
        arrived_before, observed_before = int(arrived[tick]), int(observed[tick])
    left = int(np.searchsorted(arrival_sorted, NEVER, side="left"))
    end = int(arrival_sorted[left - 1]) + 1 if left > arrived_before else int(starts[-1]) + tick_us
    nothing = np.arange(0)
    yield Tick(end, by_arrival[arrived_before:left], np.arange(observed_before, len(known_us)), nothing)


class Facts:
    """The rows of ``FlightData`` as the plain tuples that the state takes."""

    def __init__(self, data: FlightData) -> None:
        """Converts all columns once; a list's items are read some twenty times faster than a frame's cells."""
        flights = data.flights
        columns = [flights[name].tolist() for name in Arrival._fields]
        self._arrivals = [Arrival(*cells) for cells in zip(*columns, strict=True)]
        values = data.weather[list(WEATHER_COLUMNS.values())].to_numpy(np.float64).tolist()
        heads = zip(data.weather["known_us"].tolist(), data.weather["origin"].tolist(), strict=True)
        self._weather = [WeatherHour(at, origin, tuple(v)) for (at, origin), v in zip(heads, values, strict=True)]

    def arrivals(self, rows: NDArray[np.int64]) -> list[Arrival]:
        """The outcomes of some flights, in the order given."""
        return [self._arrivals[row] for row in rows.tolist()]

    def weather(self, rows: NDArray[np.int64]) -> list[WeatherHour]:
        """Some hours of weather, in the order given."""
        return [self._weather[row] for row in rows.tolist()]


def simulate(data: FlightData, tick_us: int = TICK_US, *, until_us: int = NEVER) -> pd.DataFrame:
    """The store features of every flight as the stream would see them.

    Args:
        data: flights and weather.
        tick_us: length of a tick, micros; must be the replay's.
        until_us: flights due at or after it are left out (they need not be known).

    Returns:
        One row a flight (index as in ``data.flights``), the columns of ``STORE_FEATURES``, float64 that went through
        the store's float32; NaN where the store has no row or no value.

    Cost: about 15 us a flight.

    """
    state, facts = FlightState(), Facts(data)
    keys = [data.flights[view.key[0]].tolist() for view in VIEWS]
    tables = [state.rows[view.name] for view in VIEWS]
    unknown = [(math.nan,) * len(view.columns) for view in VIEWS]
    collected: deque[tuple[float, ...]] = deque()
    index: list[int] = []
    for tick in timeline(data, tick_us):
        if tick.start_us >= until_us:
            break
        state.advance(facts.arrivals(tick.arrivals), facts.weather(tick.weather))
        departures = tick.departures.tolist()
        index += departures
        for flight in departures:
            values: tuple[float, ...] = ()
            for table, key, missing in zip(tables, keys, unknown, strict=True):
                row = table.get(key[flight])
                values += missing if row is None else row.values
            collected.append(values)
    cells = np.array(collected, dtype=np.float64).reshape(len(index), len(STORE_FEATURES))
    return pd.DataFrame(as_stored(cells), columns=list(STORE_FEATURES), index=index)


def as_stored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers after their way through the store's 4-byte floats.

    Example:
        >>> as_stored(np.array([0.1])).item()
        0.10000000149011612

    """
    return values.astype(np.float32).astype(np.float64)


def view_rows(
    changed: dict[str, dict[str, Row]],
) -> Iterator[tuple[str, Sequence[tuple[tuple[str, ...], int, dict[str, float]]]]]:
    """Changed rows as a feature writer takes them: view name, then (key parts, event_ms, columns) a row."""
    columns = {view.name: tuple(c.name for c in view.columns) for view in VIEWS}
    for view, rows in changed.items():
        names = columns[view]
        yield (
            view,
            [((key,), row.event_us // 1000, dict(zip(names, row.values, strict=True))) for key, row in rows.items()],
        )


def _bounded(delay_min: float) -> float:
    low, high = DELAY_BOUNDS_MIN
    return min(max(delay_min, low), high)
