"""Reads the monitors' topics again, and makes evidence of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chaos.outcome_verdict import Closing, MonitorEvidence, counters_of
from chaos.workload import request_id
from monitors.events import EventCodec
from schemas import topic_names
from schemas.columnar import Decoder
from schemas.columns import to_python
from schemas.generate import labelled_schema, prediction_schema
from schemas.registry import SchemaBook, load_schema
from schemas.wire import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka.structs import ConsumerRecord

    from chaos.judge_client import JudgeClient
    from chaos.load import Load
    from chaos.service_process import ServiceProcess
    from chaos.workload import Workload


async def gather(
    judge: JudgeClient, load: Load, workload: Workload, monitors: Sequence[ServiceProcess]
) -> MonitorEvidence:
    """Everything that stands on the topics of the monitors, and what their stores have counted."""
    spec = workload.bundle.spec
    predicted = _ids(await judge.read(topic_names.PREDICTIONS), Decoder(prediction_schema(spec.name, spec.fields())))
    labelled = await judge.read(topic_names.LABELLED)
    ids = _ids(labelled, Decoder(labelled_schema(spec.name, spec.fields()))) if labelled else []
    marks = [dict(record.headers)["x-src"] for record in labelled]
    return MonitorEvidence(
        expected=frozenset(map(request_id, load.outcome_places.values())) & frozenset(predicted),
        labelled=list(zip(marks, ids, strict=True)),
        closings=_closings(await judge.read(topic_names.MONITOR_EVENTS), workload),
        dead_letters=len(await judge.read(topic_names.OUTCOMES_DLQ)),
        counters=counters_of([await monitor.figures() for monitor in monitors if monitor.is_running]),
    )


def _ids(records: Sequence[ConsumerRecord], decoder: Decoder) -> list[str]:
    columns: Any = decoder.decode([record.value for record in records], skip_bytes=HEADER_BYTES).columns
    return to_python(columns.fields["request_id"])


def _closings(records: Sequence[ConsumerRecord], workload: Workload) -> list[Closing]:
    schema = load_schema(workload.schemas, "monitor_event")
    codec = EventCodec(schema, SchemaBook(workload.schemas).add(topic_names.MONITOR_EVENTS, schema))
    events = [codec.decode(record.value) for record in records]
    return [
        (
            event["model_name"], event["model_version"], event["window_start"], event["kind"], event["final"],
            event["attributes"].get("partitions", ""),
        )
        for event in events if event is not None and event["kind"] == "WINDOW_CLOSED"
    ]  # fmt: skip
