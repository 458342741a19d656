"""Requests with known ids, an outcome for each, and hostile records between them."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fastavro
import numpy as np

from bench.workload import ACCOUNTS, START_US, make_store_bundle
from schemas import topic_names
from schemas.columnar import Encoder
from schemas.columns import Constant, NumberColumn, RecordColumn, TextColumn
from schemas.generate import request_schema
from schemas.registry import SchemaBook, load_schema
from schemas.wire import frame_header

if TYPE_CHECKING:
    from pathlib import Path

PARTITIONS = 4
ENTITIES = 400
"""A multiple of the partitions, so that an entity always has the same one."""
EVENT_STEP_US = 10_000
"""Between two requests: a window of ten seconds of event time holds a thousand."""
SCHEMAS = "schemas"


@dataclass(frozen=True, slots=True)
class Numbered:
    """One request with its place in the sequence.

    Attributes:
        number: 0 for the first.
        value: as it is put on the topic; None is a tombstone.
        is_poison: nobody can decode it.

    """

    number: int
    value: bytes | None
    is_poison: bool = False

    @property
    def partition(self) -> int:
        """Where it goes."""
        return self.number % PARTITIONS

    @property
    def key(self) -> bytes:
        """Of its entity."""
        return entity(self.number)


def entity(number: int) -> bytes:
    """Whom a request is about.

    Example:
        >>> entity(405)
        b'e005'

    """
    return b"e%03d" % (number % ENTITIES)


def request_id(number: int) -> str:
    """Id of a request.

    Example:
        >>> request_id(7)
        'r00000007'

    """
    return f"r{number:08d}"


class Workload:
    """Makes requests and outcomes of the store model.

    Args:
        repository: where the model is packed.
        root: folder that holds ``schemas``.
        seed: of the features and of the hostile records.
        poison_share: of all records.

    """

    def __init__(self, repository: Path, root: Path, seed: int, *, poison_share: float = 0.0) -> None:
        self.bundle = make_store_bundle(repository)
        self.schemas = root / SCHEMAS
        book = SchemaBook(self.schemas)
        self._seed, self._poison_share = seed, poison_share
        self._fields = self.bundle.spec.fields()
        schema = request_schema(self.bundle.spec.name, self._fields)
        self._encoder = Encoder(schema)
        self._prefix = frame_header(book.add(topic_names.REQUESTS, schema))
        outcome = load_schema(self.schemas, "outcome")
        self._outcome_prefix = frame_header(book.add(topic_names.OUTCOMES, outcome))
        self._outcome: Any = fastavro.parse_schema(_without_logical_types(outcome))

    def requests(self, first: int, count: int) -> list[Numbered]:
        """Requests ``first .. first + count - 1``, some of them hostile; the same for the same seed."""
        numbers = range(first, first + count)
        values = self._encoder.encode(self._columns(numbers), prefix=self._prefix)
        return [self._perhaps_poison(number, value) for number, value in zip(numbers, values, strict=True)]

    def outcome(self, number: int) -> bytes:
        """What became of a request, one second of event time later."""
        record = {
            "request_id": request_id(number), "entity_id": entity(number).decode(), "label": float(number % 3 == 0),
            "outcome_time": START_US + number * EVENT_STEP_US + 1_000_000, "revision": 0, "retracted": False,
        }  # fmt: skip
        out = io.BytesIO()
        fastavro.schemaless_writer(out, self._outcome, record)
        return self._outcome_prefix + out.getvalue()

    def _columns(self, numbers: range) -> RecordColumn:
        count = len(numbers)
        rng = np.random.default_rng((self._seed, numbers.start))
        return RecordColumn({
            "request_id": TextColumn.from_values([request_id(n).encode() for n in numbers]),
            "entity_id": TextColumn.from_values([entity(n) for n in numbers]),
            "unit_id": Constant(None, count),
            "event_time": NumberColumn(START_US + np.arange(numbers.start, numbers.stop) * EVENT_STEP_US),
            "model": Constant(None, count),
            "features": RecordColumn({
                f.name: TextColumn.from_values([b"a%d" % (n * 7919 % ACCOUNTS) for n in numbers])
                if f.type == "category" else NumberColumn(rng.normal(size=count))
                for f in self.bundle.spec.features if f.source == "request"
            }, count),
        }, count)  # fmt: skip

    def _perhaps_poison(self, number: int, value: bytes) -> Numbered:
        rng = random.Random(self._seed * 1_000_003 + number)
        if rng.random() >= self._poison_share:
            return Numbered(number, value)
        kinds = (None, b"", b"{}", value[: len(value) // 2], rng.randbytes(200), b"\0\0\0\0\x07" + rng.randbytes(60))
        return Numbered(number, rng.choice(kinds), is_poison=True)


def _without_logical_types(node: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(node, dict):
        return {key: _without_logical_types(value) for key, value in node.items() if key != "logicalType"}
    return [_without_logical_types(value) for value in node] if isinstance(node, list) else node
