"""Findings of the monitor as records of ``monitor-events``."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import fastavro

from schemas.wire import HEADER_BYTES, frame_header

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from monitors.figures import WindowFigures
    from monitors.store import WindowKey


class EventCodec:
    """Writes and reads monitor events; a handful for each window, so record by record is fast enough.

    Args:
        schema: ``monitor_event.avsc``.
        schema_id: under which it is registered.

    """

    def __init__(self, schema: dict[str, Any], schema_id: int) -> None:
        self._schema: Any = fastavro.parse_schema(_without_logical_types(schema))
        self._prefix = frame_header(schema_id)

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """Frame and body of an event."""
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._schema, event)
        return self._prefix + out.getvalue()

    def decode(self, value: bytes) -> dict[str, Any] | None:
        """An event of the same schema; None for anything else."""
        if not value.startswith(self._prefix):
            return None
        body = io.BytesIO(value[HEADER_BYTES:])
        found: Any = fastavro.schemaless_reader(body, self._schema, None)
        return dict(found)


def _without_logical_types(node: Any) -> Any:  # noqa: ANN401 - any JSON
    """Times stay integers: fastavro would make datetimes of them, and round on the way."""
    if isinstance(node, dict):
        return {key: _without_logical_types(value) for key, value in node.items() if key != "logicalType"}
    return [_without_logical_types(value) for value in node] if isinstance(node, list) else node


def closing_events(
    key: WindowKey, figures: WindowFigures, *, final: bool, partitions: Sequence[int], emitted_us: int
) -> list[dict[str, Any]]:
    """The three events of a closing: that it closed (with its partitions), quality, drift."""
    base = {
        "model_name": key.model_name,
        "model_version": key.model_version,
        "partition": min(partitions),
        "window_start": key.start_us,
        "window_end": figures.end_us,
        "final": final,
        "emitted_at": emitted_us,
    }
    counted = {"predictions": float(figures.predictions), "labelled": float(figures.labelled)}
    named = {"label": figures.label, "partitions": ",".join(map(str, sorted(partitions)))}
    drifted = {"drifted": ",".join(figures.drifted), "confirmed": ",".join(figures.confirmed), **figures.drift_reasons}
    return [
        {**base, "kind": "WINDOW_CLOSED", "metrics": counted, "attributes": named},
        {**base, "kind": "QUALITY", "metrics": {**counted, **figures.metrics}, "attributes": figures.reasons},
        {**base, "kind": "DRIFT", "metrics": figures.drift_metrics, "attributes": drifted},
    ]
