"""Times to points on circles, against angles worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from app.models.spec import Feature
from app.preprocess_times import cyclic_width, fill_cyclic
from schemas.columns import NumberColumn

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US


def _rows(feature: Feature, micros: list[int], valid: list[bool] | None = None) -> list[list[float]]:
    into = np.full((len(micros), cyclic_width(feature)), np.nan, np.float32)
    fill_cyclic(into, feature, NumberColumn(np.array(micros), None if valid is None else np.array(valid)))
    rows: list[list[float]] = into.tolist()
    return rows


def test_a_time_becomes_a_point_on_a_circle_for_each_part() -> None:
    """Sine and cosine of hour and weekday in local time; 1970-01-01 was a Thursday."""
    feature = Feature(name="t", type="time", parts=("hour_of_day", "day_of_week"), utc_offset_minutes=-300)
    six_utc = _rows(feature, [11 * HOUR_US])[0]  # 6:00 on Thursday, local
    angle = 2 * math.pi * 3 / 7
    assert six_utc == pytest.approx([1.0, 0.0, math.sin(angle), math.cos(angle)], abs=1e-6)
    before_midnight = _rows(feature, [4 * HOUR_US])[0]  # 23:00 on Wednesday, local: before the epoch
    angle = 2 * math.pi * 2 / 7
    assert before_midnight[2:] == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


def test_the_day_of_the_year_counts_from_the_first_of_january() -> None:
    """A leap year's last day is day 365, counted from 0."""
    feature = Feature(name="t", type="time", parts=("day_of_year",))
    start_of_2012_us = int(pd.Timestamp("2012-01-01").value // 1000)
    rows = _rows(feature, [start_of_2012_us, start_of_2012_us + 365 * DAY_US])
    angle = 2 * math.pi * 365 / 365.2425
    assert rows[0] == pytest.approx([0.0, 1.0], abs=1e-6)
    assert rows[1] == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


def test_a_missing_time_is_the_centre_of_its_circle() -> None:
    """No hour is as far from all hours as from any other."""
    feature = Feature(name="t", type="time", parts=("hour_of_day",), missing_indicator=True)
    assert _rows(feature, [5, 5], [True, False])[1] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("date", ["1969-12-31", "1970-01-01", "2000-02-29", "2013-12-31"])
def test_the_month_and_the_minute_are_those_of_the_calendar(date: str) -> None:
    """January is angle 0, before 1970 too; a minute is a sixtieth of the circle, its seconds count."""
    feature = Feature(name="t", type="time", parts=("month_of_year", "minute_of_hour"))
    stamp = pd.Timestamp(f"{date} 13:45:30")
    month, minute = 2 * math.pi * (stamp.month - 1) / 12, 2 * math.pi * 45.5 / 60
    expected = [math.sin(month), math.cos(month), math.sin(minute), math.cos(minute)]
    assert _rows(feature, [int(stamp.value) // 1000])[0] == pytest.approx(expected, abs=1e-6)
