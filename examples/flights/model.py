"""The signature of the two models: with store features, and the same without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.models.spec import Architecture, Feature, ModelSpec, Output, Standardise

from .features import VIEWS

if TYPE_CHECKING:
    import pandas as pd

MODEL = "flight_delays"
STATIC_MODEL = "flight_delays_static"
EASTERN_STANDARD_MIN = -300
BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CLIPPED_SHARE = 0.001
"""Numbers are clipped to what the middle 99.8 % of the training rows span: a network does not extrapolate well."""

REQUEST_FEATURES = (
    "scheduled_departure",
    "departure_hour",
    "carrier",
    "origin",
    "dest",
    "route",
    "tailnum",
    "distance_mi",
)


def request_frame(flights: pd.DataFrame) -> pd.DataFrame:
    """The request features of some flights, one column a feature, index kept."""
    return flights.rename(columns={"departure_us": "scheduled_departure"})[list(REQUEST_FEATURES)]


def make_spec(training: pd.DataFrame, *, version: int, with_store: bool) -> ModelSpec:
    """The model's declaration, with vocabularies and scales taken from the training rows.

    Args:
        training: request features, and store features when ``with_store``.
        version: of the bundle.
        with_store: False: the model that has to do without the online store, for comparison.

    """
    features = [
        # By the sun's clock: no flight leaves in the hour in which the two would name different days.
        Feature(name="scheduled_departure", type="time", required=True, parts=("day_of_week",),
                utc_offset_minutes=EASTERN_STANDARD_MIN),
        _number("departure_hour", training, required=True),
        *(_category(name, training) for name in ("carrier", "origin", "dest")),
        Feature(name="route", type="category", model_input=False),
        Feature(name="tailnum", type="category", model_input=False),
        _number("distance_mi", training, log1p=True),
    ]  # fmt: skip
    if with_store:
        features += [_store_number(view.name, c.name, training) for view in VIEWS for c in view.columns]
    return ModelSpec(
        name=MODEL if with_store else STATIC_MODEL,
        version=version,
        description="Probability, at scheduled departure, that a flight from New York arrives 15 minutes late or more.",
        architecture=Architecture(name="tabular_mlp", arguments={"hidden": [64, 32], "embedding_dim": 8}),
        features=tuple(features),
        views=VIEWS if with_store else (),
        output=Output(name="late", labels=("on_time", "late")),
        buckets=BUCKETS,
    )


def _store_number(view: str, name: str, training: pd.DataFrame) -> Feature:
    # No gust was measured in three hours of four: then there was none.
    gust: dict[str, Any] = {"default": 0.0} if name == "wind_gust_mph" else {}
    indicator: dict[str, Any] = {"missing_indicator": True} if name == "plane_last_delay_min" else {}
    return _number(name, training, source="store", view=view, **gust, **indicator)


def _number(name: str, training: pd.DataFrame, *, log1p: bool = False, **rest: Any) -> Feature:  # noqa: ANN401
    import numpy as np  # noqa: PLC0415

    values = training[name].fillna(rest["default"]) if "default" in rest else training[name].dropna()
    low, high = float(values.quantile(CLIPPED_SHARE)), float(values.quantile(1 - CLIPPED_SHARE))
    used = values.clip(low, high)
    used = np.log1p(used) if log1p else used
    scale = Standardise(mean=float(used.mean()), scale=float(used.std(ddof=0)) or 1.0)
    return Feature(name=name, range=(low, high), log1p=log1p, standardise=scale, **rest)


def _category(name: str, training: pd.DataFrame) -> Feature:
    return Feature(name=name, type="category", vocabulary=tuple(sorted(training[name].dropna().unique())))
