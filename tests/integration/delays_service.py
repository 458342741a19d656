"""The small model that the tests of the scoring worker share, its requests, and a deployment of their own."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import pandas as pd
import torch

from agents import topics
from app.calibration import Calibration
from app.features import FeatureWriter
from app.models.architectures import build
from app.models.bundle import open_bundle
from app.models.packing import pack_bundle
from app.models.spec import Architecture, Feature, FeatureView, ModelSpec, Standardise, ViewColumn
from app.settings import load_settings
from schemas.generate import prediction_schema, request_schema
from schemas.registry import SchemaBook
from schemas.wire import HEADER_BYTES, frame_header, schema_ids
from tests.integration.kafka_client import KafkaClient, Message
from tests.integration.worker_process import ROOT, WorkerProcess, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.models.bundle import Bundle
    from app.settings import Settings

MODEL = "delays"
PARTITIONS = 4
EVENT_US = 1_750_000_000_000_000
ORIGINS = ("EWR", "JFK", "LGA")
FEATURES = (
    Feature(name="distance_mi", required=True, standardise=Standardise(mean=1000, scale=700)),
    Feature(name="origin", type="category", vocabulary=ORIGINS),
    Feature(name="tailnum", type="category", model_input=False),
    Feature(name="departs_at", type="time", parts=("hour_of_day",)),
    Feature(name="is_wet", type="flag"),
    Feature(name="temp_c", source="store", view="weather", standardise=Standardise(mean=15, scale=10)),
)
WEATHER = FeatureView(name="weather", key=("origin",), columns=(ViewColumn(name="temp_c"),), stale_after_s=3600)

SMALL_STEPS = {
    "SLUICE_BATCHING__MAX_BATCH_SIZE": "16",
    "SLUICE_BATCHING__MAX_IN_FLIGHT_BATCHES": "1",
    "SLUICE_BATCHING__MAX_QUEUED_ROWS": "256",
    "SLUICE_KAFKA__MAX_POLL_RECORDS": "64",
    "SLUICE_DELIVERY__COMMIT_INTERVAL_MS": "300",
}
"""So slow, and so little taken at a time, that a stream of thousands has a middle, and a kill repeats some answers."""


def model_spec(*, is_temp_required: bool = False) -> ModelSpec:
    """Six features of every type, one of them from the store.

    Args:
        is_temp_required: whether a request without a temperature is an ERROR.

    """
    features = (*FEATURES[:-1], FEATURES[-1].model_copy(update={"required": is_temp_required}))
    return ModelSpec(
        name=MODEL,
        version=1,
        architecture=Architecture(name="tabular_mlp", arguments={"hidden": [16, 8], "embedding_dim": 4}),
        features=features,
        views=(WEATHER,),
        buckets=(1, 2, 4, 8, 16, 32, 64),
    )


def pack_model(repository: Path, spec: ModelSpec) -> Bundle:
    """A bundle with weights from a fixed seed."""
    torch.manual_seed(1)
    rows = 100
    reference = pd.DataFrame({
        "distance_mi": np.linspace(100, 3000, rows), "origin": np.resize(ORIGINS, rows), "tailnum": "N1",
        "departs_at": EVENT_US, "is_wet": False, "temp_c": 15.0, "raw_score": 0.5, "score": 0.5, "label": 0.0,
    })  # fmt: skip
    calibration = Calibration("platt", a=0.8, b=-0.1)
    return open_bundle(pack_bundle(repository, spec, build(spec), calibration, reference))


def put_weather(redis_url: str, rows: dict[str, tuple[int, float]]) -> None:
    """Write rows of the view: origin to event time (unix micros) and temperature."""

    async def put() -> None:
        writer = FeatureWriter(redis_url, [WEATHER])
        try:
            await writer.put("weather", [((o,), us // 1000, {"temp_c": temp_c}) for o, (us, temp_c) in rows.items()])
        finally:
            await writer.close()

    asyncio.run(put())


def features(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - values of every feature type
    """The features of an ordinary request, some of them changed."""
    ordinary = {"distance_mi": 1400.0, "origin": "JFK", "tailnum": "N14228", "departs_at": EVENT_US, "is_wet": True}
    return {**ordinary, **changes}


@dataclass
class Deployment:
    """Topics, folders and settings of one module's workers.

    Attributes:
        name: the deployment's; its group is ``<name>-scoring``.
        folder: everything on disk.
        kafka: connected.
        bootstrap_servers: of the broker.
        redis_url: of the store.
        spec: of the model that is packed.
        environment: further settings of its workers.
        writers: further schemas that the workers shall know, by name.

    """

    name: str
    folder: Path
    kafka: KafkaClient
    bootstrap_servers: str
    redis_url: str
    spec: ModelSpec = field(default_factory=model_spec)
    environment: dict[str, str] = field(default_factory=dict)
    writers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Pack the model, copy the schemas."""
        self.bundle = pack_model(self.folder / "models", self.spec)
        schemas = self.folder / "schemas"
        schemas.mkdir()
        for path in (ROOT / "schemas").glob("*.avsc"):
            shutil.copy(path, schemas)
        for name, schema in self.writers.items():
            (schemas / f"{name}.avsc").write_text(json.dumps(schema))
        fields = self.spec.fields()
        self.book = SchemaBook(schemas)
        self.request_schema = request_schema(MODEL, fields)
        self._request_header = frame_header(self.book.add(topics.REQUESTS, self.request_schema))
        self.book.add(topics.PREDICTIONS, prediction_schema(MODEL, fields))

    @property
    def variables(self) -> dict[str, str]:
        """Environment of its processes."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "REDIS_URL": self.redis_url,
            "SLUICE_DEPLOYMENT": self.name,
            "SLUICE_SCHEMAS__FOLDER": str(self.folder / "schemas"),
            "SLUICE_MODELS__REPOSITORY": str(self.folder / "models"),
            "SLUICE_MODELS__NAME": MODEL,
            "SLUICE_KAFKA__PARTITIONS": str(PARTITIONS),
            "SLUICE_KAFKA__SESSION_TIMEOUT_S": "2",
            "SLUICE_KAFKA__HEARTBEAT_S": "0.5",
            "SLUICE_DELIVERY__REMEMBERED_ANSWERS": "0",  # the tests send a request again to see it scored again,
            "SLUICE_DELIVERY__POISON_SHARE": "1",  # and almost nothing but poison
            **self.environment,
        }

    @property
    def settings(self) -> Settings:
        """What its workers make of the environment."""
        return load_settings(toml=self.folder / "none.toml", environ=self.variables)

    @property
    def group(self) -> str:
        """Consumer group of its scoring workers."""
        return f"{self.name}-scoring"

    def worker(self, name: str = "worker", **changes: str) -> WorkerProcess:
        """A scoring worker, not started yet.

        Args:
            name: of its log.
            changes: further variables.

        """
        return WorkerProcess(self.folder, {**self.variables, **changes}, name=name)

    def request(self, request_id: str, entity_id: str, *, event_us: int = EVENT_US, **changes: Any) -> bytes:  # noqa: ANN401
        """A framed request, encoded by fastavro as a stranger's producer would.

        Args:
            request_id: its id.
            entity_id: whom it is about.
            event_us: event time, unix micros.
            changes: of features, or ``model``.

        """
        record = {"request_id": request_id, "entity_id": entity_id, "unit_id": None, "event_time": event_us,
                  "model": changes.pop("model", None), "features": features(**changes)}  # fmt: skip
        return self._request_header + encode(self.request_schema, record)

    def numbered(self, count: int, *, first: int = 0) -> list[Message]:
        """Requests of a hundred entities in turn, each with another distance."""
        numbers = range(first, first + count)
        return [Message(b"e%02d" % (i % 100), self._numbered(i)) for i in numbers]

    def _numbered(self, i: int) -> bytes:
        return self.request(f"r{i:06d}", f"e{i % 100:02d}", distance_mi=100.0 + i, origin=ORIGINS[i % 3])

    def decode(self, value: bytes) -> dict[str, Any]:
        """A record of any topic, decoded by fastavro; timestamps stay micros."""
        schema_id = int(schema_ids([value])[0])
        return decode(_parsed_reader(self.book, schema_id), value[HEADER_BYTES:])

    def wait_answered(self, *workers: WorkerProcess, timeout_s: float = 90.0) -> None:
        """Wait until the group has committed every request; workers that end meanwhile are started again."""

        def is_done() -> bool:
            for worker in workers:
                worker.keep_alive()
            return self.kafka.lag(self.group) == 0

        until(is_done, f"everything answered; lag {self.kafka.lag(self.group)}", timeout_s=timeout_s)


@dataclass
class Service:
    """A deployment with one running worker."""

    deployment: Deployment
    worker: WorkerProcess

    @property
    def kafka(self) -> KafkaClient:
        """Its client."""
        return self.deployment.kafka


@contextmanager
def running_service(
    name: str,
    folder: Path,
    bootstrap_servers: str,
    redis_url: str,
    **options: Any,  # noqa: ANN401 - fields of Deployment
) -> Iterator[Service]:
    """A ready worker on fresh topics; gone at the end."""
    with KafkaClient(bootstrap_servers) as kafka:
        deployment = Deployment(name, folder, kafka, bootstrap_servers, redis_url, **options)
        kafka.fresh_topics(deployment.settings)
        with deployment.worker() as worker:
            yield Service(deployment, worker.start().wait_ready())


def encode(schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    """The bare Avro body."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _parsed(json.dumps(schema)), record)
    return out.getvalue()


def decode(schema: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The record of a bare Avro body."""
    record = fastavro.schemaless_reader(io.BytesIO(body), schema, None)
    assert isinstance(record, dict)
    return record


@functools.cache
def _parsed(schema: str) -> Any:  # noqa: ANN401 - fastavro's own type
    return fastavro.parse_schema(json.loads(schema))


@functools.cache
def _parsed_reader(book: SchemaBook, schema_id: int) -> Any:  # noqa: ANN401 - fastavro's own type
    schema = book.schema(schema_id)
    assert schema is not None, f"schema id {schema_id} is unknown"
    return fastavro.parse_schema(json.loads(json.dumps(schema), object_hook=_without_logical_type))


def _without_logical_type(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != "logicalType"}
