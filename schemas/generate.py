"""The schemas that belong to a model: request, prediction log and labelled prediction.

The envelope is the same for all models; the ``features`` record is made from the bundle's signature,
each field nullable with default null, so that it evolves (a feature added or dropped stays FULL-compatible).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

FeatureType = Literal["number", "category", "text", "time", "flag"]

AVRO_TYPES: dict[str, Any] = {
    "number": "double",
    "category": "string",
    "text": "string",
    "time": {"type": "long", "logicalType": "timestamp-micros"},
    "flag": "boolean",
}
TIMESTAMP = {"type": "long", "logicalType": "timestamp-micros"}
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class FeatureField:
    """One feature as the schemas see it.

    Attributes:
        name: ``[a-z][a-z0-9_]{0,63}``.
        type: number, category, text, time or flag.
        source: request (the producer sends it) or store (the online store has it).

    """

    name: str
    type: FeatureType
    source: Literal["request", "store"]


def check_name(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: it is not ``[a-z][a-z0-9_]{0,63}`` (Avro allows no hyphen).

    Example:
        >>> check_name("flight_delays")
        'flight_delays'

    """
    if NAME_PATTERN.fullmatch(name) is None:
        msg = f"name {name!r} must match [a-z][a-z0-9_]{{0,63}}: lower-case letters, digits and underscores"
        raise ValueError(msg)
    return name


def request_schema(model: str, features: Sequence[FeatureField]) -> dict[str, Any]:
    """Schema of a request for ``model``, record ``sluice.<model>.ScoreRequest``.

    Example:
        >>> s = request_schema("demo", [FeatureField("age", "number", "request")])
        >>> [f["name"] for f in s["fields"]]
        ['request_id', 'entity_id', 'unit_id', 'event_time', 'model', 'features']

    """
    return {
        "type": "record",
        "name": "ScoreRequest",
        "namespace": f"sluice.{check_name(model)}",
        "doc": f"A request to score with the model {model}.",
        "fields": [
            {"name": "request_id", "type": "string"},
            {"name": "entity_id", "type": "string", "doc": "The record's key must be these bytes."},
            _nullable("unit_id", "string", "Unit of randomisation; null: entity_id."),
            {"name": "event_time", "type": TIMESTAMP},
            _nullable("model", "string", "Null: the default model."),
            {"name": "features", "type": _features_record([f for f in features if f.source == "request"])},
        ],
    }


def prediction_schema(model: str, features: Sequence[FeatureField]) -> dict[str, Any]:
    """Schema of the whole evidence of one scored request, record ``sluice.<model>.Prediction``."""
    return {
        "type": "record",
        "name": "Prediction",
        "namespace": f"sluice.{check_name(model)}",
        "doc": f"Everything needed to explain, join, replay and train on one answer of {model}.",
        "fields": _prediction_fields(features),
    }


def labelled_schema(model: str, features: Sequence[FeatureField]) -> dict[str, Any]:
    """Schema of a prediction with its outcome, record ``sluice.<model>.LabelledPrediction``."""
    kept = {
        "request_id", "entity_id", "features", "feature_status", "raw_score", "score", "decision", "threshold",
        "model_name", "model_version", "artifact_sha256", "experiment_id", "arm", "event_time", "served_at",
    }  # fmt: skip
    return {
        "type": "record",
        "name": "LabelledPrediction",
        "namespace": f"sluice.{check_name(model)}",
        "doc": f"A prediction of {model} with its outcome, once per request and revision: the training feed.",
        "fields": [
            *(f for f in _prediction_fields(features) if f["name"] in kept),
            {"name": "label", "type": "double"},
            {"name": "outcome_time", "type": TIMESTAMP},
            {"name": "revision", "type": "int"},
            {"name": "retracted", "type": "boolean"},
        ],
    }


def _prediction_fields(features: Sequence[FeatureField]) -> list[dict[str, Any]]:
    return [
        {"name": "request_id", "type": "string"},
        {"name": "entity_id", "type": "string"},
        {"name": "features", "doc": "The values as used, before preprocessing.", "type": _features_record(features)},
        {"name": "feature_status", "type": "string",
         "doc": "One letter a feature, in the order of `features`: f fresh, s stale, d default because the store "
                "could not be had, m missing (null in the request, or a key that the store does not know)."},
        {"name": "feature_age_ms", "type": {"type": "array", "items": "int"},
         "doc": "Age of each store feature at event_time, in the order of `features`; -1: none was had."},
        {"name": "raw_score", "type": "double", "doc": "The thresholded output before calibration, in [0, 1]."},
        {"name": "score", "type": "double", "doc": "The same after calibration."},
        {"name": "outputs", "type": {"type": "array", "items": "double"}},
        {"name": "decision", "type": "string"},
        {"name": "threshold", "type": "double"},
        {"name": "model_name", "type": "string"},
        {"name": "model_version", "type": "int"},
        {"name": "artifact_sha256", "type": "string"},
        {"name": "preprocess_sha256", "type": "string"},
        {"name": "calibration_sha256", "type": "string"},
        {"name": "batch_bucket", "type": "int", "doc": "Padded rows of the device batch: a replay in it is bit-equal."},
        {"name": "assignment_bucket", "type": ["null", "int"], "default": None},
        {"name": "device", "type": "string"},
        _nullable("experiment_id", "string"),
        _nullable("arm", "string"),
        {"name": "rollout_epoch", "type": ["null", "long"], "default": None},
        {"name": "shadow_scores", "type": {"type": "map", "values": "double"}, "default": {}},
        {"name": "degraded", "type": {"type": "array", "items": "string"}, "default": []},
        {"name": "event_time", "type": TIMESTAMP},
        {"name": "served_at", "type": TIMESTAMP},
    ]  # fmt: skip


def _features_record(features: Sequence[FeatureField]) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "Features",
        "fields": [_nullable(check_name(f.name), AVRO_TYPES[f.type]) for f in features],
    }


def _nullable(name: str, avro_type: object, doc: str = "") -> dict[str, Any]:
    field: dict[str, Any] = {"name": name, "type": ["null", avro_type], "default": None}
    return {**field, "doc": doc} if doc else field
