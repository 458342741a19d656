"""A small model, its records on both topics, and partitions over real stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from monitors.join import JoinRule
from monitors.partition import PartitionMonitor, PartitionTools
from monitors.prediction_plans import PredictionPlans
from monitors.readers import OutcomeReader
from monitors.store import PartitionStore
from schemas.columnar import Constant, Encoder, ListColumn, NumberColumn, RecordColumn, TextColumn
from schemas.generate import FeatureField, prediction_schema
from schemas.records import RecordBatch
from schemas.registry import SchemaBook, load_schema
from schemas.wire import frame_header

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schemas.columns import Column

SCHEMAS = Path(__file__).parents[3] / "schemas"
FEATURES = [FeatureField("age", "number", "request"), FeatureField("town", "category", "request")]
START_US = 1_362_096_000_000_000
"""2013-03-01."""
HOUR_US = 3_600_000_000


@dataclass
class World:
    """Schemas and encoders of the model `demo`, and the frames they make."""

    book: SchemaBook = field(default_factory=lambda: SchemaBook(SCHEMAS))

    def __post_init__(self) -> None:
        """Register the prediction schema and build encoders."""
        self.schema = prediction_schema("demo", FEATURES)
        self.prediction_id = self.book.add("predictions-log", self.schema)
        self.outcome_id = self.book.add("outcomes", load_schema(SCHEMAS, "outcome"))
        self._predictions = Encoder(self.schema)
        self._outcomes = Encoder(load_schema(SCHEMAS, "outcome"))

    def predictions(
        self, ids: Sequence[str], event_us: Sequence[int], scores: Sequence[float], **changes: Column
    ) -> list[bytes]:
        """Values for the prediction log; `age` runs with the row, `town` alternates."""
        n = len(ids)
        columns: dict[str, Any] = {
            "request_id": TextColumn.from_values(list(ids)),
            "entity_id": TextColumn.from_values([f"e-{i}" for i in ids]),
            "features": RecordColumn({
                "age": NumberColumn(np.arange(n, dtype=np.float64)),
                "town": TextColumn.from_values(["ulm" if k % 2 else "bonn" for k in range(n)]),
            }, n),
            "feature_status": Constant("ff", n),
            "feature_age_ms": ListColumn(np.arange(n + 1) * 2, NumberColumn(np.zeros(2 * n, dtype=np.int32))),
            "raw_score": NumberColumn(np.array(scores)),
            "score": NumberColumn(np.array(scores)),
            "outputs": ListColumn(np.arange(n + 1), NumberColumn(np.array(scores))),
            "decision": Constant("yes", n), "threshold": Constant(0.5, n), "model_name": Constant("demo", n),
            "model_version": Constant(1, n), "artifact_sha256": Constant("a", n),
            "preprocess_sha256": Constant("p", n), "calibration_sha256": Constant("c", n),
            "batch_bucket": Constant(8, n), "device": Constant("cpu", n),
            "event_time": NumberColumn(np.array(event_us, dtype=np.int64)),
            "served_at": NumberColumn(np.array(event_us, dtype=np.int64) + 5000),
            **changes,
        }  # fmt: skip
        return self._predictions.encode(RecordColumn(columns, n), prefix=frame_header(self.prediction_id))

    def outcomes(
        self, ids: Sequence[str], labels: Sequence[float], times_us: Sequence[int],
        revisions: Sequence[int] | None = None, retracted: Sequence[bool] | None = None,
    ) -> list[bytes]:  # fmt: skip
        """Values for the topic of the outcomes."""
        n = len(ids)
        columns = {
            "request_id": TextColumn.from_values(list(ids)),
            "entity_id": TextColumn.from_values([f"e-{i}" for i in ids]),
            "label": NumberColumn(np.array(labels, dtype=np.float64)),
            "outcome_time": NumberColumn(np.array(times_us, dtype=np.int64)),
            "revision": NumberColumn(np.array(revisions or [0] * n, dtype=np.int32)),
            "retracted": NumberColumn(np.array(retracted or [False] * n, dtype=np.bool_)),
        }
        return self._outcomes.encode(RecordColumn(columns, n), prefix=frame_header(self.outcome_id))

    def tools(self, rule: JoinRule, reference: Path | None = None, sample_rows: int = 50) -> PartitionTools:
        """Shared parts of a worker's partitions."""
        reader = OutcomeReader(self.book, load_schema(SCHEMAS, "outcome"), rule.lateness_us)
        plans = PredictionPlans(self.book, "labelled-predictions")
        return PartitionTools(plans, reader, rule, lambda _name, _version: reference, sample_rows)


def batch_of(topic: str, ids: Sequence[str], values: list[bytes | None], start: int = 0) -> RecordBatch:
    """A record batch with consecutive offsets from `start`."""
    n = len(values)
    return RecordBatch(
        topic, 0, start, start + n, np.arange(start, start + n), np.full(n, 1_800_000_000_000),
        [f"e-{i}".encode() for i in ids], values,
    )  # fmt: skip


@pytest.fixture(scope="session")
def world() -> World:
    """The model `demo` and its records."""
    return World()


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., RecordBatch]:
    """Makes record batches."""
    return batch_of


@pytest.fixture
def rule() -> JoinRule:
    """Daily windows, horizon 7 days, maturity 2 days, lateness 1 hour."""
    return JoinRule.of_seconds("day", 7 * 86_400, 2 * 86_400, 3_600)


@pytest.fixture(scope="session")
def reference_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference frame of 1,000 rows for the model `demo`."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({
        "age": np.where(rng.random(1000) < 0.1, np.nan, rng.normal(100, 20, 1000)),
        "town": rng.choice(["ulm", "bonn", "jena"], 1000),
        "raw_score": rng.random(1000), "score": rng.random(1000), "label": (rng.random(1000) < 0.3).astype(float),
    })  # fmt: skip
    path = tmp_path_factory.mktemp("reference") / "reference.parquet"
    frame.to_parquet(path)
    return path


@pytest.fixture
def make_partition(
    tmp_path: Path, world: World, rule: JoinRule, reference_file: Path
) -> Callable[[str], PartitionMonitor]:
    """Opens partition monitors over real stores below the test's folder."""

    def make(name: str = "partition-0") -> PartitionMonitor:
        return PartitionMonitor(0, PartitionStore(tmp_path / name), world.tools(rule, reference_file))

    return make
