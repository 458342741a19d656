"""Score requests as the bytes that go on the wire, encoded in columns, all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agents.topics import REQUESTS
from app.preprocess import Preprocessor
from schemas.columnar import Encoder
from schemas.columns import Column, Constant, NumberColumn, RecordColumn, TextColumn
from schemas.generate import request_schema
from schemas.wire import frame_header

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from app.models.spec import ModelSpec
    from schemas.registry import SchemaBook


@dataclass(frozen=True, slots=True)
class Messages:
    """One message a row, in the order of the rows they were made from; a key is the UTF-8 entity_id."""

    keys: list[bytes]
    values: list[bytes]


def encode_requests(
    rows: pd.DataFrame, features: pd.DataFrame, spec: ModelSpec, book: SchemaBook, *, folder: Path | None = None
) -> Messages:
    """A score request for each row, with the schema that belongs to the model.

    Args:
        rows: ``request_id``, ``entity_id`` and ``event_us`` (UTC micros).
        features: the request features of the same rows.
        spec: the model's signature.
        book: gives the schema its id.
        folder: of the bundle, for models with text.

    """
    schema = request_schema(spec.name, spec.fields())
    count = len(rows)
    columns: dict[str, Column] = {
        "request_id": TextColumn.from_values(rows["request_id"].tolist()),
        "entity_id": TextColumn.from_values(rows["entity_id"].tolist()),
        "unit_id": Constant(None, count),
        "event_time": NumberColumn(rows["event_us"].to_numpy(np.int64)),
        "model": Constant(None, count),
        "features": RecordColumn(Preprocessor(spec, folder).from_frame(features), count),
    }
    header = frame_header(book.add(REQUESTS, schema))
    values = Encoder(schema).encode(RecordColumn(columns, count), prefix=header)
    return Messages(keys_of(rows), values)


def keys_of(rows: pd.DataFrame) -> list[bytes]:
    """The Kafka key of each row."""
    return [entity.encode() for entity in rows["entity_id"]]
