"""From JSON features to one request: what fits is encoded as by a stranger, what does not is named by its field."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest

from app.models.spec import Architecture, Feature, FeatureView, ModelSpec, ViewColumn
from app.score_request import Envelope, RequestError, check_features, encode_request, time_us
from schemas.generate import request_schema
from schemas.wire import HEADER_BYTES, frame_header

SPEC = ModelSpec(
    name="delays",
    version=1,
    architecture=Architecture(name="tabular_mlp"),
    features=(
        Feature(name="distance_mi", required=True),
        Feature(name="origin", type="category", vocabulary=("EWR", "JFK")),
        Feature(name="departs_at", type="time", parts=("hour_of_day",)),
        Feature(name="is_wet", type="flag"),
        Feature(name="temp_c", source="store", view="weather"),
    ),
    views=(FeatureView(name="weather", key=("origin",), columns=(ViewColumn(name="temp_c"),)),),
)
GOOD: dict[str, Any] = {"distance_mi": 1400, "origin": "JFK", "departs_at": "1970-01-01T00:00:01Z", "is_wet": False}


def decoded(features: dict[str, Any]) -> dict[str, Any]:
    """The request as fastavro reads it, times as micros."""
    value = encode_request(SPEC, features, Envelope("r1", "e1", 5_000_000, "delays"), prefix=frame_header(7))
    assert value[:HEADER_BYTES] == frame_header(7)
    schema = json.loads(json.dumps(request_schema("delays", SPEC.fields())).replace('"logicalType"', '"was"'))
    record = fastavro.schemaless_reader(io.BytesIO(value[HEADER_BYTES:]), schema, None)
    assert isinstance(record, dict)
    return record


def test_features_of_every_type_are_encoded() -> None:
    """Another Avro library reads the envelope and the features, each of its type; what is absent is null."""
    record = decoded(GOOD)
    assert record.pop("features") == {"distance_mi": 1400.0, "origin": "JFK", "departs_at": 1_000_000, "is_wet": False}
    assert record == {
        "request_id": "r1",
        "entity_id": "e1",
        "unit_id": None,
        "event_time": 5_000_000,
        "model": "delays",
    }
    absent = decoded({"distance_mi": 0, "origin": None})["features"]
    assert absent == {"distance_mi": 0.0, "origin": None, "departs_at": None, "is_wet": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": 3}, "distance: there is no such request feature; did you mean distance_mi?"),
        ({"zzz": 3}, "zzz: there is no such request feature; there are departs_at, distance_mi, is_wet, origin"),
        ({"temp_c": 3}, "temp_c: it comes from the online store (view weather), not with the request; leave it out"),
        ({"distance_mi": "3"}, "distance_mi: a number is expected (number), not '3'"),
        ({"distance_mi": True}, "distance_mi: a number is expected (number), not True"),
        ({"distance_mi": float("nan")}, "distance_mi: a finite number is expected (number), not nan"),
        ({"distance_mi": 10**400}, "distance_mi: a finite number is expected"),
        ({"distance_mi": None}, "distance_mi: required, but missing"),
        ({"origin": 3}, "origin: a string is expected (category), not 3"),
        ({"is_wet": 1}, "is_wet: true or false is expected (flag), not 1"),
        ({"departs_at": "noon"}, "departs_at: a time is expected"),
        ({"departs_at": 1.5}, "departs_at: a time is expected"),
        ({"departs_at": 2**63}, "departs_at: a time is expected"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    """The field, what is expected, what was there, and the nearest name."""
    with pytest.raises(RequestError) as caught:
        check_features(SPEC, GOOD | change)
    assert message in str(caught.value)


def test_all_faults_are_named_at_once() -> None:
    """One line each, so that a reader mends them in one go."""
    with pytest.raises(RequestError) as caught:
        check_features(SPEC, {"origin": 3, "distnce_mi": 1})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "origin",
        "distnce_mi",
        "distance_mi",
    ]


def test_times_are_exact_to_the_microsecond() -> None:
    """No float stands between an ISO text and its micros."""
    assert time_us("at", "2262-04-11T23:47:16.854775") == 9_223_372_036_854_775
    assert time_us("at", "1969-12-31T23:59:59.999999Z") == -1
