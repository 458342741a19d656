"""One request from JSON features: checked field by field against a model's signature, then encoded."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import SluiceError
from schemas.columnar import Encoder
from schemas.columns import Column, NumberColumn, RecordColumn, TextColumn
from schemas.generate import request_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.models.spec import Feature, ModelSpec

INT64_MAX = 2**63 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DTYPES: dict[str, type[np.generic]] = {"number": np.float64, "time": np.int64, "flag": np.bool_}


class RequestError(SluiceError):
    """The features do not fit the model; one line for each that does not."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a request says apart from its features.

    Attributes:
        request_id: fresh.
        entity_id: whom it is about; the key of its record.
        event_time_us: UTC micros.
        model: name; None: the default model.
        unit_id: whom an experiment assigns; None: the entity.

    """

    request_id: str
    entity_id: str
    event_time_us: int
    model: str | None = None
    unit_id: str | None = None


def encode_request(spec: ModelSpec, features: Mapping[str, Any], envelope: Envelope, *, prefix: bytes) -> bytes:
    """The framed Avro value of one request.

    Args:
        spec: the model's signature.
        features: JSON values by name; a time is unix micros or an ISO text.
        envelope: the rest.
        prefix: frame header of the model's request schema.

    Raises:
        RequestError: a feature is unknown, missing, or of the wrong type.

    """
    values = check_features(spec, features)
    requested = [feature for feature in spec.features if feature.source == "request"]
    columns: dict[str, Column] = {f.name: _column(f.type, values.get(f.name)) for f in requested}
    record = RecordColumn({
        "request_id": TextColumn.from_values([envelope.request_id]),
        "entity_id": TextColumn.from_values([envelope.entity_id]),
        "unit_id": TextColumn.from_values([envelope.unit_id]),
        "event_time": _column("time", envelope.event_time_us),
        "model": TextColumn.from_values([envelope.model]),
        "features": RecordColumn(columns, 1),
    }, 1)  # fmt: skip
    return Encoder(request_schema(spec.name, spec.fields())).encode(record, prefix=prefix)[0]


def check_features(spec: ModelSpec, features: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the schema takes them; null and absent mean the same.

    Args:
        spec: the model's signature.
        features: JSON values by name.

    Raises:
        RequestError: one line for each feature that is unknown, missing, or of the wrong type.

    """
    known = {feature.name: feature for feature in spec.features}
    faults, values = [], {}
    for name, value in features.items():
        feature = known.get(name)
        try:
            if feature is None or feature.source != "request":
                raise RequestError(_unknown(name, feature, known))  # noqa: TRY301 - all faults are gathered alike
            if value is not None:
                values[name] = _checked(feature, value)
        except RequestError as exc:
            faults.append(str(exc))
    required = [f.name for f in spec.features if f.source == "request" and f.required]
    faults += [f"{name}: required, but missing" for name in required if features.get(name) is None]
    if faults:
        raise RequestError("\n".join(faults))
    return values


def _unknown(name: str, feature: Feature | None, known: Mapping[str, Feature]) -> str:
    if feature is not None:
        return f"{name}: it comes from the online store (view {feature.view}), not with the request; leave it out"
    requested = sorted(other for other, each in known.items() if each.source == "request")
    nearest = difflib.get_close_matches(name, requested, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(requested)}"
    return f"{name}: there is no such request feature; {hint}"


def _checked(feature: Feature, value: object) -> float | int | bool | str:
    if feature.type in {"category", "text"}:
        if isinstance(value, str):
            return value
        raise _wrong(feature, "a string", value)
    if feature.type == "flag":
        if isinstance(value, bool):
            return value
        raise _wrong(feature, "true or false", value)
    if feature.type == "time":
        return time_us(feature.name, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(feature, "a number", value)
    if abs(value) <= sys.float_info.max:  # false for NaN too; a JSON integer may be larger than any float
        return float(value)
    raise _wrong(feature, "a finite number", value)


def time_us(name: str, value: object) -> int:
    """Unix micros of a JSON value: a whole number of them, or an ISO text; without an offset it is UTC.

    Raises:
        RequestError: it is neither.

    Example:
        >>> time_us("at", "1970-01-01T00:00:01"), time_us("at", "1970-01-01T01:00:01+01:00"), time_us("at", 7)
        (1000000, 1000000, 7)

    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= INT64_MAX:
        return value
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None:
        msg = f"{name}: a time is expected, as unix micros or as an ISO text like 2013-03-01T09:30:00Z, not {value!r}"
        raise RequestError(msg)
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _wrong(feature: Feature, expected: str, value: object) -> RequestError:
    return RequestError(f"{feature.name}: {expected} is expected ({feature.type}), not {value!r}")


def _column(kind: str, value: Any) -> TextColumn | NumberColumn:  # noqa: ANN401 - a value of any feature type
    if kind in {"category", "text"}:
        return TextColumn.from_values([value])
    valid = None if value is not None else np.zeros(1, bool)
    return NumberColumn(np.array([value or 0], dtype=_DTYPES[kind]), valid)
