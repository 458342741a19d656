"""The request features of one model: from decoded columns to the types that the model takes, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from schemas.columns import Column, EnumColumn, NumberColumn, RecordColumn, TextColumn, concat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from app.models.spec import Feature, ModelSpec

TEXTS = {"category", "text"}
OTHER_TIMES = {f"{stem}-{unit}" for stem in ("timestamp", "local-timestamp") for unit in ("millis", "nanos")} | {
    "local-timestamp-micros"
}
"""Read as UTC micros, these would be wrong by a factor or by an offset."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a record is a dead letter, or a request INVALID or ERROR."""

    stage: str
    error_class: str
    message: str


class Decoded(NamedTuple):
    """Records of one schema.

    Attributes:
        places: shape (n,), where they stand in their record batch.
        columns: as decoded.
        schema_id: theirs.
        types: feature name to the name of its type, null left out.

    """

    places: NDArray[np.int64]
    columns: RecordColumn
    schema_id: int
    types: Mapping[str, str]


class FeatureReader:
    """Reads the request features of a model from records of any schema.

    Args:
        spec: the model's signature.

    """

    def __init__(self, spec: ModelSpec) -> None:
        self._features = [f for f in spec.features if f.source == "request"]
        self._type_faults: dict[int, Fault | None] = {}

    def type_fault(self, schema_id: int, types: Mapping[str, str]) -> Fault | None:
        """Why the records of a schema do not fit the model, or None when they do."""
        if schema_id not in self._type_faults:
            if len(self._type_faults) >= 4096:
                self._type_faults.clear()
            self._type_faults[schema_id] = self._new_type_fault(types)
        return self._type_faults[schema_id]

    def _new_type_fault(self, types: Mapping[str, str]) -> Fault | None:
        for feature in self._features:
            found = types.get(feature.name)
            if found is not None and found not in _accepted(feature):
                message = f"feature {feature.name}: {found} in the schema, the model wants {feature.type}"
                return Fault("schema", "WrongType", message)
        return None

    def read(self, groups: Sequence[Decoded], order: NDArray[np.int64] | None) -> dict[str, Column]:
        """Columns by feature; those of a schema that does not fit are null.

        Args:
            groups: n records, at least one group.
            order: shape (n,), where each row of the result stands in the groups one after the other; None: as it is.

        """
        parts = [self._canonical(group) for group in groups]
        if order is None:
            return parts[0]
        return {f.name: concat([part[f.name] for part in parts]).take(order) for f in self._features}

    def _canonical(self, group: Decoded) -> dict[str, Column]:
        given: Mapping[str, Column] = {}
        if self.type_fault(group.schema_id, group.types) is None:
            record = group.columns.fields["features"]
            assert isinstance(record, RecordColumn)
            given = record.fields
        return {f.name: _canonical_column(f, given.get(f.name), len(group.places)) for f in self._features}

    def faults(self, features: Mapping[str, Column]) -> Iterator[tuple[NDArray[np.bool_], Fault]]:
        """Rows (shape (n,)) that the model cannot take, and why; a row may be named several times."""
        for feature in self._features:
            column = features[feature.name]
            valid = column.valid if isinstance(column, NumberColumn | TextColumn) else None
            if feature.required and valid is not None:
                message = f"feature {feature.name} is required and null or absent"
                yield ~valid, Fault("schema", "MissingFeature", message)
            if isinstance(column, NumberColumn) and column.values.dtype.kind == "f":
                odd = ~np.isfinite(column.values)
                if valid is not None:
                    odd &= valid
                message = f"feature {feature.name} is NaN or infinite; send null for unknown"
                yield odd, Fault("schema", "NotFinite", message)


def value_type(avro_type: object) -> str:
    """Type of a field, null left out; a time in another unit than micros is named by that unit.

    Example:
        >>> value_type(["null", {"type": "long", "logicalType": "timestamp-millis"}]), value_type(["null", "string"])
        ('timestamp-millis', 'string')

    """
    if isinstance(avro_type, list):
        inner = [t for t in avro_type if t != "null"]
        return value_type(inner[0]) if len(inner) == 1 else "union"
    if isinstance(avro_type, dict):
        unit = avro_type.get("logicalType")
        return str(unit if unit in OTHER_TIMES else avro_type["type"])
    return str(avro_type)


def _accepted(feature: Feature) -> set[str]:
    return {
        "number": {"int", "long", "float", "double"} | OTHER_TIMES,
        "category": {"string", "enum"},
        "text": {"string", "enum"},
        "time": {"long"},
        "flag": {"boolean"},
    }[feature.type]


def _canonical_column(feature: Feature, column: Column | None, count: int) -> Column:
    if column is None:
        return null_text(count) if feature.type in TEXTS else NumberColumn(
            np.zeros(count, _dtype(feature)), np.zeros(count, bool)
        )  # fmt: skip
    if isinstance(column, EnumColumn):
        text = TextColumn.from_codes(column.codes, column.symbols)
        return TextColumn(text.data, text.starts, text.lengths, column.valid)
    if isinstance(column, NumberColumn):
        return NumberColumn(column.values.astype(_dtype(feature), copy=False), column.valid)
    return column


def null_text(count: int) -> TextColumn:
    """A text column of nulls."""
    zeros = np.zeros(count, np.int64)
    return TextColumn(np.zeros(0, np.uint8), zeros, zeros, np.zeros(count, bool))


def _dtype(feature: Feature) -> type[np.generic]:
    return {"time": np.int64, "flag": np.bool_}.get(feature.type, np.float64)
