"""The work that all benchmarks share: a model with twelve numbers, its requests, and the topics filled with them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

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
from app.producer import OutputProducer
from schemas.columnar import Encoder
from schemas.columns import Constant, NumberColumn, RecordColumn, TextColumn
from schemas.generate import request_schema
from schemas.registry import SchemaBook
from schemas.wire import frame_header

if TYPE_CHECKING:
    from pathlib import Path

    from app.models.bundle import Bundle
    from app.settings import Settings

MODEL = "bench"
STORE_MODEL = "bench_store"
FEATURES = 12
STORE_FEATURES = 4
ACCOUNTS = 20_000
CHUNK = 4096
START_US = 1_750_000_000_000_000


def make_bundle(
    repository: Path, *, name: str = MODEL, hidden: tuple[int, ...] = (64, 32), max_bucket: int = 2048
) -> Bundle:
    """The benchmark's bundle, packed when it is not there yet."""
    folder = repository / name / "1"
    if not folder.exists():
        spec = ModelSpec(
            name=name,
            version=1,
            architecture=Architecture(name="tabular_mlp", arguments={"hidden": list(hidden)}),
            features=tuple(Feature(name=f"f{i}", standardise=Standardise(mean=0, scale=1)) for i in range(FEATURES)),
            buckets=tuple(2**i for i in range(max_bucket.bit_length())),
        )
        torch.manual_seed(0)
        frame = pd.DataFrame(
            np.random.default_rng(0).normal(size=(1000, FEATURES)), columns=[f.name for f in spec.features]
        )
        reference = frame.assign(raw_score=0.5, score=0.5, label=0.0)
        pack_bundle(repository, spec, build(spec), Calibration(), reference)
    return open_bundle(folder)


def make_store_bundle(repository: Path) -> Bundle:
    """The same network on eight numbers of the request and four of the store, found by ``account``."""
    folder = repository / STORE_MODEL / "1"
    if not folder.exists():
        scale = Standardise(mean=0, scale=1)
        numbers = [Feature(name=f"f{i}", standardise=scale) for i in range(FEATURES - STORE_FEATURES)]
        stored = [
            Feature(name=f"g{i}", source="store", view="profile", standardise=scale) for i in range(STORE_FEATURES)
        ]
        spec = ModelSpec(
            name=STORE_MODEL,
            version=1,
            architecture=Architecture(name="tabular_mlp", arguments={"hidden": [64, 32]}),
            features=(Feature(name="account", type="category", model_input=False), *numbers, *stored),
            views=(
                FeatureView(name="profile", key=("account",), columns=tuple(ViewColumn(name=f.name) for f in stored)),
            ),
        )
        torch.manual_seed(0)
        reference = pd.DataFrame({"raw_score": [0.5], "score": [0.5], "label": [0.0], "account": ["a0"]})
        pack_bundle(repository, spec, build(spec), Calibration(), reference.assign(**dict.fromkeys(
            [f.name for f in (*numbers, *stored)], 0.0)))  # fmt: skip
    return open_bundle(folder)


async def fill_store(settings: Settings, bundle: Bundle) -> None:
    """A row for every account."""
    writer = FeatureWriter(settings.redis.url, bundle.spec.views)
    rng = np.random.default_rng(0)
    for start in range(0, ACCOUNTS, CHUNK):
        rows = [
            ((f"a{i}",), START_US // 1000, {f"g{c}": float(v) for c, v in enumerate(rng.normal(size=STORE_FEATURES))})
            for i in range(start, min(start + CHUNK, ACCOUNTS))
        ]
        await writer.put("profile", rows)
    await writer.close()


def make_requests(bundle: Bundle, start: int, count: int) -> tuple[list[bytes], list[bytes]]:
    """Keys and framed values of requests ``start .. start + count - 1``."""
    schema = request_schema(bundle.spec.name, bundle.spec.fields())
    rng = np.random.default_rng(start)
    keys = [b"e%06d" % (i % 100_000) for i in range(start, start + count)]
    columns = RecordColumn({
        "request_id": TextColumn.from_values([b"r%09d" % i for i in range(start, start + count)]),
        "entity_id": TextColumn.from_values(keys),
        "unit_id": Constant(None, count),
        "event_time": NumberColumn(START_US + np.arange(start, start + count)),
        "model": Constant(None, count),
        "features": RecordColumn({
            f.name: TextColumn.from_values([b"a%d" % (i * 7919 % ACCOUNTS) for i in range(start, start + count)])
            if f.type == "category" else NumberColumn(rng.normal(size=count))
            for f in bundle.spec.features if f.source == "request"
        }, count),
    }, count)  # fmt: skip
    return keys, Encoder(schema).encode(columns, prefix=frame_header(SchemaBook().add(topics.REQUESTS, schema)))


async def preload(settings: Settings, bundle: Bundle, count: int, partitions: int) -> float:
    """Fill the requests topic evenly over its partitions; returns the seconds it took."""
    producer = OutputProducer(settings.kafka, client_id="preload")
    await producer.start()
    started_s = time.monotonic()
    for chunk, start in enumerate(range(0, count, CHUNK)):
        keys, values = make_requests(bundle, start, min(CHUNK, count - start))
        await producer.send(topics.REQUESTS, chunk % partitions, list(keys), values)
        await asyncio.sleep(0)
    await producer.flush()
    await producer.stop()
    return time.monotonic() - started_s
