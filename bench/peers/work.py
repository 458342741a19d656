"""What every peer does with a list of request values: decode, infer, encode the answer and its evidence.

Written as a careful person would write it by hand with fastavro: schemas parsed once, logical types stripped (fastavro
would build a datetime a record), one call of the model and one MGET a batch. Redelivery marks, stage timings and the
ledger are left out, which favours the peers.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np
import torch

from app.features import ViewCodec
from app.models.bundle import open_bundle
from app.models.runtime import ScoringModel
from app.postprocess import sigmoid
from bench.peers.place import Contender
from schemas.generate import prediction_schema, request_schema
from schemas.registry import SchemaBook, load_schema
from schemas.topic_names import PREDICTIONS, REQUESTS, SCORES
from schemas.wire import HEADER_BYTES, frame_header

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PREDICTIONS", "REQUESTS", "SCORES", "Answers", "Contender", "Work"]

BATCH = 2048
"""As large as the service's own micro-batches."""
TIMINGS = dict.fromkeys(
    (f"{s}_us" for s in ("ingest", "queue", "features", "preprocess", "inference", "postprocess", "emit", "total")), 0
)


@dataclass(frozen=True, slots=True)
class Answers:
    """Records for ``scores`` and ``predictions-log``, in the order of the requests."""

    keys: list[bytes]
    scores: list[bytes]
    predictions: list[bytes]


class Work:
    """Scores lists of framed requests.

    Args:
        contender: which bundle, from where.

    """

    def __init__(self, contender: Contender) -> None:
        torch.set_num_threads(1)
        self.bundle = open_bundle(contender.repository / contender.model / "1")
        self.spec = self.bundle.spec
        self.model = ScoringModel(self.bundle)
        self.model.warm_up()
        book, fields = SchemaBook(), self.spec.fields()
        score = load_schema(Path("schemas"), "score")
        prediction = prediction_schema(self.spec.name, fields)
        self._score_frame = frame_header(book.add(SCORES, score))
        self._prediction_frame = frame_header(book.add(PREDICTIONS, prediction))
        self._request = fastavro.parse_schema(_plain(request_schema(self.spec.name, fields)))
        self._score = fastavro.parse_schema(_plain(score))
        self._prediction = fastavro.parse_schema(_plain(prediction))
        self._codec = ViewCodec(self.spec.views[0]) if self.spec.views else None
        self._inputs = [f for f in self.spec.features if f.model_input]
        self._evidence = {
            "threshold": self.spec.output.threshold, "model_name": self.spec.name, "model_version": self.spec.version,
            "artifact_sha256": self.bundle.sha256, "preprocess_sha256": self.bundle.preprocess_sha256,
            "calibration_sha256": self.bundle.calibration_sha256, "device": "cpu", "shadow_scores": {}, "degraded": [],
        }  # fmt: skip
        self._answer = {
            "status": "OK", "threshold": self.spec.output.threshold, "model_name": self.spec.name,
            "model_version": self.spec.version, "degraded": [], "timings": TIMINGS, "fire_reason": "NONE",
        }  # fmt: skip

    def decode(self, values: Sequence[bytes]) -> list[dict[str, Any]]:
        """Requests as dictionaries."""
        read, schema = fastavro.schemaless_reader, self._request
        return [read(io.BytesIO(value[HEADER_BYTES:]), schema, None) for value in values]  # type: ignore[misc]

    def store_keys(self, requests: Sequence[dict[str, Any]]) -> list[str]:
        """Keys of one MGET; empty when the model needs no store."""
        if self._codec is None:
            return []
        prefix, name = self._codec.prefix, self._codec.view.key[0]
        return [prefix + r["features"][name] for r in requests]

    def answer(self, requests: Sequence[dict[str, Any]], rows: Sequence[Any] = ()) -> Answers:
        """Infer and encode; ``rows`` are what the MGET gave."""
        numbers = np.empty((len(requests), len(self._inputs)), np.float32)
        table = self._codec.unpack(rows) if self._codec is not None else None
        for i, feature in enumerate(self._inputs):
            if feature.source == "store" and table is not None:
                numbers[:, i] = table[feature.column or feature.name]
            else:
                numbers[:, i] = [r["features"][feature.name] for r in requests]
        logits, bucket = self.model.predict({"numbers": numbers, "codes": np.zeros((len(requests), 0), np.int64)})
        raw = sigmoid(logits)
        score = self.bundle.calibration.apply(raw)
        ages = None
        if table is not None:
            event_ms = np.array([r["event_time"] for r in requests]) // 1000
            ages = np.maximum(event_ms - table["event_ms"].astype(np.int64), 0).tolist()
        return self._encode(requests, numbers, raw.tolist(), score.tolist(), bucket, ages)

    def _encode(
        self,
        requests: Sequence[dict[str, Any]],
        numbers: Any,  # noqa: ANN401
        raw: list[float],
        score: list[float],
        bucket: int,
        ages: list[int] | None,
    ) -> Answers:
        labels, threshold = self.spec.output.labels, self.spec.output.threshold
        served_at = time.time_ns() // 1000
        keys, scores, predictions = [], [], []
        store = [(i, f.name) for i, f in enumerate(self._inputs) if f.source == "store"]
        letters = "f" * len(self.spec.features)
        for i, request in enumerate(requests):
            features = request["features"]
            for column, name in store:
                features[name] = float(numbers[i, column])
            value = score[i]
            shared = {
                "request_id": request["request_id"], "entity_id": request["entity_id"],
                "outputs": [value], "score": value,
                "decision": labels[value >= threshold], "event_time": request["event_time"], "served_at": served_at,
            }  # fmt: skip
            out = io.BytesIO()
            out.write(self._score_frame)
            fastavro.schemaless_writer(out, self._score, {**self._answer, **shared, "batch_rows": len(requests)})
            scores.append(out.getvalue())
            out = io.BytesIO()
            out.write(self._prediction_frame)
            fastavro.schemaless_writer(out, self._prediction, {
                **self._evidence, **shared, "features": features, "feature_status": letters,
                "feature_age_ms": [ages[i]] * len(store) if ages is not None else [],
                "raw_score": raw[i], "batch_bucket": bucket,
            })  # fmt: skip
            predictions.append(out.getvalue())
            keys.append(request["entity_id"].encode())
        return Answers(keys, scores, predictions)


def _plain(node: Any) -> Any:  # noqa: ANN401 - any JSON
    """The schema without logical types; a type that has nothing else left becomes its name."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _plain(value) for key, value in node.items() if key != "logicalType"}
    return kept["type"] if kept.keys() == {"type"} else kept
