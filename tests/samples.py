"""A small model with every kind of feature, its bundle, and requests for it as they lie on Kafka."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
import yaml

from app.calibration import Calibration
from app.features import ViewCodec
from app.models.architectures import build
from app.models.bundle_files import PARITY, SPEC, sha256_of
from app.models.packing import pack_bundle
from app.models.spec import Architecture, Feature, FeatureView, ModelSpec, Output, Standardise, ViewColumn
from schemas.generate import request_schema
from schemas.records import RecordBatch
from schemas.wire import frame_header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from schemas.records import Headers

TOPIC = "score-requests"
EVENT_TIME_US = 1_365_000_000_000_000
PLANE = FeatureView(
    name="plane", key=("tailnum",), columns=(ViewColumn(name="delay_min", type="f8"),), stale_after_s=3600.0
)
WEATHER = FeatureView(name="weather", version=2, key=("carrier", "gate"), columns=(ViewColumn(name="gust"),))
FEATURES = (
    Feature(name="departure", type="time", required=True, parts=("hour_of_day", "day_of_week")),
    Feature(name="distance", required=True, standardise=Standardise(mean=1000.0, scale=500.0)),
    Feature(name="carrier", type="category", vocabulary=("AA", "B6", "UA")),
    Feature(name="tailnum", type="category", model_input=False),
    Feature(name="gate", default=1.0),
    Feature(name="night", type="flag", missing_indicator=True),
    Feature(name="delay", source="store", view="plane", column="delay_min", missing_indicator=True),
    Feature(name="gust", source="store", view="weather", default=0.0),
)


def sample_spec(*, version: int = 3, **changes: Any) -> ModelSpec:  # noqa: ANN401 - fields of ModelSpec
    """The specification, with changes."""
    fields: dict[str, Any] = {
        "name": "sample",
        "version": version,
        "architecture": Architecture(name="tabular_mlp", arguments={"hidden": [8], "embedding_dim": 4}),
        "features": FEATURES,
        "views": (PLANE, WEATHER),
        "output": Output(name="late", labels=("on_time", "late"), threshold=0.4),
        "buckets": (1, 2, 4, 8, 16),
    }
    return ModelSpec(**{**fields, **changes})


def sample_module(spec: ModelSpec, seed: int = 7) -> torch.nn.Module:
    """Its network with weights that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    module = build(spec)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def pack_sample(repository: Path, spec: ModelSpec | None = None) -> Path:
    """The bundle's folder."""
    spec = spec or sample_spec()
    calibration = Calibration("platt", a=0.7, b=-0.1)
    reference = pd.DataFrame({"raw_score": [0.25], "score": [0.2], "label": [0.0]})
    return pack_bundle(repository, spec, sample_module(spec), calibration, reference)


def training_frame(rows: int, seed: int = 7) -> pd.DataFrame:
    """Rows of raw features as a training script has them, some of each missing."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "departure": EVENT_TIME_US + random.integers(0, 7 * 86_400_000_000, rows),
        "distance": random.normal(1000.0, 500.0, rows),
        "carrier": random.choice(["AA", "B6", "UA", "ZZ"], rows).astype(object),
        "tailnum": "N1",
        "gate": random.integers(0, 3, rows).astype(np.float64),
        "night": (random.random(rows) < 0.5).astype(object),
        "delay": random.normal(10.0, 20.0, rows),
        "gust": random.random(rows),
    })  # fmt: skip
    for i, name in enumerate(("carrier", "gate", "night", "delay", "gust")):
        frame.loc[frame.index % 7 == i, name] = None
    return frame


def change_parity(folder: Path, **columns: object) -> None:
    """Change columns of the rows that a bundle keeps for parity, and vouch for the file."""
    table = pq.read_table(folder / PARITY)
    frame = table.to_pandas().assign(**columns)
    changed = table.from_pandas(frame, preserve_index=False).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, folder / PARITY)
    document = yaml.safe_load((folder / SPEC).read_text())
    document["files"][PARITY] = sha256_of(folder / PARITY)
    (folder / SPEC).write_text(yaml.safe_dump(document))


def request(number: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field of a request
    """Request ``number`` as a record; keys of ``changes`` are envelope fields or features."""
    features = {
        "departure": EVENT_TIME_US + 60_000_000 * number,
        "distance": 100.0 + number,
        "carrier": ("AA", "B6", "UA", "ZZ")[number % 4],
        "tailnum": f"N{number % 5}",
        "gate": float(number % 3),
        "night": number % 2 == 0,
    }
    envelope = {
        "request_id": f"r-{number}",
        "entity_id": f"e-{number % 7}",
        "unit_id": None,
        "event_time": EVENT_TIME_US + number,
        "model": None,
    }
    envelope |= {name: value for name, value in changes.items() if name in envelope}
    features |= {name: value for name, value in changes.items() if name not in envelope}
    return {**envelope, "features": features}


def framed(schema: dict[str, Any], schema_id: int, record: dict[str, Any]) -> bytes:
    """The record as fastavro writes it, framed."""
    out = io.BytesIO()
    out.write(frame_header(schema_id))
    fastavro.schemaless_writer(out, fastavro.parse_schema(dict(schema)), record)
    return out.getvalue()


def sample_request_schema(spec: ModelSpec | None = None) -> dict[str, Any]:
    """The schema that belongs to the sample."""
    spec = spec or sample_spec()
    return request_schema(spec.name, spec.fields())


def record_batch(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    *,
    partition: int = 0,
    first: int = 100,
    step: int = 1,
    headers: Sequence[Headers] = (),
    received_s: float = 0.0,
) -> RecordBatch:
    """Records as the transport hands them over, with offsets ``first``, ``first + step``, ..."""
    offsets = first + step * np.arange(len(values), dtype=np.int64)
    return RecordBatch(
        topic=TOPIC,
        partition=partition,
        start_offset=first,
        next_offset=int(offsets[-1]) + 1,
        offsets=offsets,
        timestamps_ms=np.full(len(values), 1_700_000_000_000, dtype=np.int64),
        keys=list(keys),
        values=list(values),
        headers=list(headers),
        received_s=received_s,
    )


def store_rows() -> dict[str, bytes]:
    """Rows for some of the planes and all gates: plane N1 is stale, plane N2 unknown."""
    plane, weather = ViewCodec(PLANE), ViewCodec(WEATHER)
    now_ms = EVENT_TIME_US // 1000
    rows = {plane.key([f"N{i}"]): plane.pack(now_ms - 1000 * i, {"delay_min": 3.0 * i}) for i in (0, 3, 4)}
    rows[plane.key(["N1"])] = plane.pack(now_ms - 7_200_000, {"delay_min": 9.0})
    for carrier in ("AA", "B6", "UA", "ZZ"):
        for gate in ("0", "1", "2"):
            rows[weather.key([carrier, gate])] = weather.pack(now_ms, {"gust": 5.0 + int(gate)})
    return rows
