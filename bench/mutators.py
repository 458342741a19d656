"""Hostile records made of valid requests: each mutator knows one way to be wrong, and is seeded."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fastavro

from bench.kafka_batches import varint
from schemas.generate import request_schema
from schemas.registry import local_id
from schemas.wire import HEADER_BYTES, frame_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from app.models.bundle import Bundle

MIB = 2**20
VARINT_BYTES = 10
POOL = 512
EVENT_US = 1_750_000_000_000_000
ENVELOPE = [
    {"name": "request_id", "type": "string"},
    {"name": "entity_id", "type": "string"},
    {"name": "event_time", "type": "long"},
]
FOREIGN_SCHEMAS: dict[str, dict[str, Any]] = {
    "stranger": {
        "type": "record", "name": "ScoreRequest", "namespace": "stranger", "fields": [
            *ENVELOPE,
            {"name": "features", "type": {"type": "record", "name": "F", "fields": [
                {"name": "amount", "type": "string"}, {"name": "country", "type": "double"}]}},
        ],
    },
    "nested": {
        "type": "record", "name": "Nested", "namespace": "stranger", "fields": [
            {"name": "next", "type": ["null", "Nested"]}],
    },
    "empty_items": {
        "type": "record", "name": "EmptyItems", "namespace": "stranger", "fields": [
            {"name": "items", "type": {"type": "array", "items": "null"}}],
    },
}  # fmt: skip
"""Schemas that the worker knows and that are no requests of the model's, or that its codec refuses."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """A record as it is sent.

    Attributes:
        key: of the record.
        value: of the record; None is a tombstone.
        headers: names are bytes, since a hostile producer is not held to UTF-8.

    """

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...] = ()

    @property
    def max_bytes(self) -> int:
        """Of the record in a batch, every number in it as long as it can be."""
        in_headers = sum(len(name) + len(value or b"") + 2 * VARINT_BYTES for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + in_headers + 7 * VARINT_BYTES


class Seeds:
    """Valid requests of a model, some of each kind that a mutator begins with.

    Args:
        bundle: of the model; its features are ``amount``, ``country``, ``seen_at`` and ``is_new``.
        chance: makes them.

    """

    def __init__(self, bundle: Bundle, chance: Random) -> None:
        schema = request_schema(bundle.spec.name, bundle.spec.fields())
        self._schema = fastavro.parse_schema(_plain(schema))
        self._header = frame_header(local_id(schema))
        self._chance = chance
        self.headers = {name: frame_header(local_id(foreign)) for name, foreign in FOREIGN_SCHEMAS.items()}
        stranger = fastavro.parse_schema(_plain(FOREIGN_SCHEMAS["stranger"]))
        self._of = {
            "valid": [self._request(i) for i in range(POOL)],
            "odd numbers": [self._request(i, amount=chance.choice(ODD_NUMBERS)) for i in range(POOL)],
            "nulls": [self._request(i, **{chance.choice(FEATURES): None}) for i in range(POOL)],
            "odd categories": [self._request(i, country=_odd_text(chance)) for i in range(POOL)],
            "stranger": [self._foreign(stranger, i) for i in range(POOL)],
        }

    def one(self, kind: str = "valid") -> tuple[bytes, bytes]:
        """Key and framed value of a request."""
        return self._chance.choice(self._of[kind])

    def _request(self, number: int, **changes: Any) -> tuple[bytes, bytes]:  # noqa: ANN401 - of every type
        features = {"amount": number / 7, "country": "fr", "seen_at": EVENT_US, "is_new": bool(number % 2), **changes}
        entity = f"e{number:04d}"
        record = {
            "request_id": f"r{number}", "entity_id": entity, "unit_id": None, "event_time": EVENT_US + number,
            "model": None, "features": features,
        }  # fmt: skip
        return entity.encode(), self._header + _encoded(self._schema, record)

    def _foreign(self, schema: Any, number: int) -> tuple[bytes, bytes]:  # noqa: ANN401 - fastavro's own type
        entity = f"e{number:04d}"
        record = {"request_id": f"r{number}", "entity_id": entity, "event_time": EVENT_US,
                  "features": {"amount": "12", "country": 1.5}}  # fmt: skip
        return entity.encode(), self.headers["stranger"] + _encoded(schema, record)


FEATURES = ("amount", "country", "seen_at", "is_new")
ODD_NUMBERS = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, -0.0)
HUGE = [2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -1, -(2**31), -(2**63)]
ODD_HEADERS: tuple[tuple[bytes, bytes | None], ...] = (
    (b"x-deadline-unix-ms", b"soon"), (b"x-deadline-unix-ms", None), (b"x-deadline-unix-ms", b"-9" * 40),
    (b"x-deadline-unix-ms", b"1"), (b"x-model-version", b"latest"), (b"x-model-label", b"\xff"), (b"traceparent", None),
    (b"\xff\xfe", b"1"), (b"", b""), (b"x-src", b"score-requests:0:0:0"), (b"__connect.errors.stage", b"mine"),
    (b"x" * 2000, b"y" * 2000), ("ünï".encode(), b"\0" * 30), (b"\xc3", None),
)  # fmt: skip


def valid(_: Random, seeds: Seeds) -> Hostile:
    """A good request: it must be scored whatever stands beside it."""
    return Hostile(*seeds.one())


def bit_flips(chance: Random, seeds: Seeds) -> Hostile:
    """One to eight bits changed, the frame included."""
    key, value = seeds.one()
    changed = bytearray(value)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return Hostile(key, bytes(changed))


def truncation(chance: Random, seeds: Seeds) -> Hostile:
    """The end is missing."""
    key, value = seeds.one()
    return Hostile(key, value[: chance.randrange(len(value))])


def extension(chance: Random, seeds: Seeds) -> Hostile:
    """Bytes after the end."""
    key, value = seeds.one()
    return Hostile(key, value + chance.randbytes(chance.randint(1, 300)))


def lying_length(chance: Random, seeds: Seeds) -> Hostile:
    """A huge or negative number where a length may be."""
    key, value = seeds.one()
    place = chance.randrange(HEADER_BYTES, len(value))
    return Hostile(key, value[:place] + varint(chance.choice(HUGE)) + value[place + 1 :])


def random_bytes(chance: Random, seeds: Seeds) -> Hostile:
    """Noise, with and without a good frame."""
    key, value = seeds.one()
    noise = chance.randbytes(chance.randint(1, 400))
    return Hostile(key, chance.choice((b"", value[:HEADER_BYTES])) + noise)


def deep_nesting(chance: Random, seeds: Seeds) -> Hostile:
    """Bytes that a recursive reader follows thousands of levels down."""
    key, value = seeds.one()
    header = chance.choice((value[:HEADER_BYTES], seeds.headers["nested"]))
    return Hostile(key, header + b"\x02" * chance.choice((100, 5000, 50_000)))


def empty_items(chance: Random, seeds: Seeds) -> Hostile:
    """Five bytes that announce millions of items without a byte each."""
    key, _ = seeds.one()
    return Hostile(key, seeds.headers["empty_items"] + varint(chance.choice(HUGE)) + b"\0")


def huge_counts(chance: Random, seeds: Seeds) -> Hostile:
    """A body that is nothing but huge numbers."""
    key, value = seeds.one()
    return Hostile(key, value[:HEADER_BYTES] + b"".join(varint(chance.choice(HUGE)) for _ in range(20)))


def wrong_schema(chance: Random, seeds: Seeds) -> Hostile:
    """A good body under the id of another schema, of none, or out of range."""
    key, value = seeds.one()
    header = chance.choice((
        *seeds.headers.values(), struct.pack(">bI", 0, chance.randrange(2**32)),
        struct.pack(">bI", 0, chance.randrange(99)), struct.pack(">bI", chance.randint(1, 127), 7),
    ))  # fmt: skip
    return Hostile(key, header + value[HEADER_BYTES:])


def wrong_types(_: Random, seeds: Seeds) -> Hostile:
    """A sound request of another schema, whose features have other types."""
    return Hostile(*seeds.one("stranger"))


def nulls(chance: Random, seeds: Seeds) -> Hostile:
    """No key, no value, or a null feature."""
    key, value = seeds.one("nulls")
    return chance.choice((Hostile(None, value), Hostile(key, None), Hostile(None, None), Hostile(key, value)))


def odd_numbers(_: Random, seeds: Seeds) -> Hostile:
    """NaN, infinities, the largest and the smallest."""
    return Hostile(*seeds.one("odd numbers"))


def odd_categories(_: Random, seeds: Seeds) -> Hostile:
    """Text that no vocabulary holds."""
    return Hostile(*seeds.one("odd categories"))


def emptiness(chance: Random, seeds: Seeds) -> Hostile:
    """Nothing, or a frame around nothing."""
    key, value = seeds.one()
    return Hostile(chance.choice((key, b"")), value[: chance.randint(0, HEADER_BYTES)])


def header_junk(chance: Random, seeds: Seeds) -> Hostile:
    """A good request under headers that lie, repeat or are no text."""
    key, value = seeds.one()
    return Hostile(key, value, tuple(chance.choice(ODD_HEADERS) for _ in range(chance.randint(1, 6))))


def wrong_key(chance: Random, seeds: Seeds) -> Hostile:
    """A good request under another entity's key."""
    _, value = seeds.one()
    return Hostile(chance.randbytes(chance.randint(0, 40)), value)


def oversized(chance: Random, seeds: Seeds) -> Hostile:
    """As much as the topic takes: noise, zeros, or one endless text."""
    key, value = seeds.one()
    room = chance.randint(MIB // 8, MIB - 100)
    body = chance.choice((bytes(room), value + bytes(room), b"\x02" * room, varint(room) + b"a" * room))
    return Hostile(key, (value[:HEADER_BYTES] + body)[: MIB - 100])


MUTATORS: dict[str, Callable[[Random, Seeds], Hostile]] = {
    f.__name__.replace("_", " "): f
    for f in (
        valid, bit_flips, truncation, extension, lying_length, random_bytes, deep_nesting, empty_items, huge_counts,
        wrong_schema, wrong_types, nulls, odd_numbers, odd_categories, emptiness, header_junk, wrong_key,
    )
}  # fmt: skip
RARE: dict[str, Callable[[Random, Seeds], Hostile]] = {"oversized": oversized}
"""Made for one record in ``RARE_ONE_IN``: they are a thousand times as large as the others."""
RARE_ONE_IN = 1000


def hostile_record(chance: Random, seeds: Seeds) -> tuple[str, Hostile]:
    """Name of a mutator, and what it made."""
    table = MUTATORS if chance.randrange(RARE_ONE_IN) else RARE
    name = chance.choice(tuple(table))
    return name, table[name](chance, seeds)


def _odd_text(chance: Random) -> str:
    return chance.choice(("", "FR", "x" * 500, "日本", "\0", "fr ", "'; --", "\u202e", "🛰"))


def _encoded(schema: Any, record: dict[str, Any]) -> bytes:  # noqa: ANN401 - fastavro's own type
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def _plain(schema: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    def without_logical_type(node: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in node.items() if key != "logicalType"}

    return json.loads(json.dumps(schema), object_hook=without_logical_type)
