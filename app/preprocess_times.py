"""Times to points on circles: a sine and a cosine for each part of the calendar, so that midnight has no gap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas.columns import Column, NumberColumn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.spec import Feature

MICROS_A_MINUTE = 60_000_000
MICROS_AN_HOUR = 60 * MICROS_A_MINUTE
MICROS_A_DAY = 24 * MICROS_AN_HOUR
EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday; Monday is 0."""
PERIODS = {
    "minute_of_hour": 60.0,
    "hour_of_day": 24.0,
    "day_of_week": 7.0,
    "day_of_year": 365.2425,
    "month_of_year": 12.0,
}


def cyclic_width(feature: Feature) -> int:
    """How many columns a time takes: two for each part, one more for its missing indicator."""
    return 2 * len(feature.parts or ()) + feature.missing_indicator


def fill_cyclic(into: NDArray[np.float32], feature: Feature, column: Column) -> None:
    """Write sine and cosine of each part, then the missing indicator.

    Args:
        into: shape (n, cyclic_width); a missing time becomes zeros, the centre of each circle.
        feature: of type time.
        column: n times, micros since 1970 in UTC.

    """
    assert isinstance(column, NumberColumn), feature.name
    local = column.values.astype(np.int64) + feature.utc_offset_minutes * MICROS_A_MINUTE
    for i, part in enumerate(feature.parts or ()):
        angle = _phase(part, local) * (2 * np.pi / PERIODS[part])
        into[:, 2 * i], into[:, 2 * i + 1] = np.sin(angle), np.cos(angle)
    missing = None if column.valid is None else ~column.valid
    if missing is not None:
        into[missing] = 0.0
    if feature.missing_indicator:
        into[:, -1] = 0.0 if missing is None else missing


def _phase(part: str, micros: NDArray[np.int64]) -> NDArray[np.float64]:
    if part == "minute_of_hour":
        return (micros % MICROS_AN_HOUR) / MICROS_A_MINUTE
    if part == "hour_of_day":
        return (micros % MICROS_A_DAY) / MICROS_AN_HOUR
    days = micros // MICROS_A_DAY
    if part == "day_of_week":
        return ((days + EPOCH_WEEKDAY) % 7).astype(np.float64)
    stamps = days.astype("datetime64[D]")
    if part == "month_of_year":
        return (stamps.astype("datetime64[M]").astype(np.int64) % 12).astype(np.float64)
    day_of_year: NDArray[np.float64] = (stamps - stamps.astype("datetime64[Y]")).astype(np.float64)
    return day_of_year
