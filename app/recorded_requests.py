"""The newest requests of a model, read from the end of the prediction log: what a new version is warmed up with."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, cast

import numpy as np

from app.errors import SluiceError
from app.topic_reader import find_cluster, open_reader
from schemas.columnar import Decoder, SchemaNotSupported
from schemas.columns import concat
from schemas.generate import prediction_schema
from schemas.topic_names import PREDICTIONS
from schemas.wire import HEADER_BYTES, schema_ids

if TYPE_CHECKING:
    from app.models.spec import ModelSpec
    from app.settings import KafkaSettings
    from schemas.columns import Column, RecordColumn
    from schemas.registry import SchemaBook

log = logging.getLogger(__name__)

ROWS = 512
"""Rows that are looked at, over all partitions; a warm-up repeats them where a bucket takes more."""
TIMEOUT_S = 5.0
"""A model is warmed up without them rather than late."""


async def recorded_requests(kafka: KafkaSettings, book: SchemaBook, spec: ModelSpec) -> dict[str, Column] | None:
    """Columns by feature as they were used, of at most ``ROWS`` requests; None: there are none, or none can be had.

    Args:
        kafka: connection.
        book: knows the schemas of the log.
        spec: the model; records of its other versions count, features that they lack are null.

    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            values = await _newest(kafka)
    except (SluiceError, TimeoutError) as exc:
        log.warning("no recorded requests to warm up with: %s", exc)
        return None
    found = [columns for columns in _decoded(values, book, spec) if columns.count]
    if not found:
        return None
    return {
        feature.name: concat([cast("RecordColumn", each.fields["features"]).fields[feature.name] for each in found])
        for feature in spec.features
    }


async def _newest(kafka: KafkaSettings) -> list[bytes]:
    cluster = await find_cluster(kafka)
    count = cluster.partitions.get(PREDICTIONS, 0)
    values: list[bytes] = []
    async with open_reader(kafka) as reader:
        ranges: dict[int, tuple[int, int]] = {}
        for partition in range(count):
            start, end = await reader.bounds(PREDICTIONS, partition)
            ranges[partition] = max(start, end - max(ROWS // count, 1)), end
        async for records in reader.read_together(PREDICTIONS, ranges):
            values += [record.value for record in records if record.value]
    return values


def _decoded(values: list[bytes], book: SchemaBook, spec: ModelSpec) -> list[RecordColumn]:
    """The records of the model, by schema, read as this version's."""
    wanted = prediction_schema(spec.name, spec.fields())
    ids = schema_ids(values) if values else np.zeros(0, np.int64)
    found = []
    for schema_id in np.unique(ids).tolist():
        schema = book.schema(schema_id, may_ask=False)
        if schema is None or schema.get("namespace") != wanted["namespace"]:
            continue
        try:
            decoder = Decoder(schema, wanted)
        except SchemaNotSupported:
            continue
        decoded = decoder.decode(
            [values[i] for i in np.flatnonzero(ids == schema_id).tolist()], skip_bytes=HEADER_BYTES
        )
        if not decoded.errors:
            found.append(decoded.columns)
    return found
