"""Every worker's figures on every worker: published once a second, followed without a group.

The topic ``worker-stats`` is compacted and has one partition. A worker reads it from ``UNSEEN_AFTER_S`` before
its start on, for whoever was silent longer counts as gone. Nothing here may stop a worker: without Kafka, or with
a neighbour that writes nonsense, ``document`` still has the worker's own figures.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiokafka
import numpy as np
from aiokafka.errors import KafkaError

from agents.topics import WORKER_STATS
from app.connections import connection_arguments
from app.errors import DeliveryError
from app.process_figures import process_figures
from schemas.columnar import Encoder
from schemas.columns import NumberColumn, RecordColumn, TextColumn, to_python
from schemas.registry import load_schema
from schemas.wire import NOT_FRAMED, frame_header, schema_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.producer import OutputProducer
    from app.settings import Settings
    from schemas.columnar import Decoder
    from schemas.registry import SchemaBook

PUBLISH_EVERY_S = 1.0
UNSEEN_AFTER_S = 10.0
"""A worker that nobody heard of for so long is dropped."""
MAX_WORKERS = 512
"""Neighbours that are kept; a bound, because the topic comes from outside."""
MAX_DOCUMENT_BYTES = 262_144
RETRY_AFTER_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who publishes.

    Attributes:
        worker_id: unique among the workers of a cluster; the key of the records.
        role: ``scoring`` or ``monitor``.
        web_url: where this worker's page is, ``http://host:port``.

    """

    worker_id: str
    role: str
    web_url: str


class Neighbours:
    """The newest record of each other worker, decoded when somebody looks.

    Args:
        own_id: records of this worker are ignored, it knows its own figures better.
        now_s: monotonic seconds; a neighbour's own clock decides nothing.

    """

    def __init__(self, own_id: str, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._own_key = own_id.encode()
        self._now_s = now_s
        self._latest: dict[bytes, tuple[float, bytes, Decoder]] = {}

    def put(self, key: bytes | None, value: bytes | None, decoder: Decoder | None) -> None:
        """Take a record; a tombstone, or a value that nobody can read, removes the worker."""
        if key is None or key == self._own_key:
            return
        self._latest.pop(key, None)
        if value is not None and decoder is not None:
            self._latest[key] = (self._now_s(), value, decoder)  # newest last
        self._drop_unseen()

    def documents(self) -> dict[str, dict[str, Any]]:
        """What each neighbour said last: role, web_url, published_at (micros), stats; the unreadable are left out."""
        self._drop_unseen()
        found = {}
        for key, (_, value, decoder) in self._latest.items():
            document = _read(key, value, decoder)
            if document is not None:
                found[key.decode()] = document
        return found

    def _drop_unseen(self) -> None:
        oldest_s = self._now_s() - UNSEEN_AFTER_S
        gone = [key for key, (seen_s, *_) in self._latest.items() if seen_s < oldest_s]
        gone += list(self._latest)[: max(0, len(self._latest) - MAX_WORKERS)]
        for key in gone:
            self._latest.pop(key, None)


class WorkerStats:
    """Publishes this worker's figures and follows those of the others.

    Args:
        settings: brokers, schema folder, size of a produce batch.
        book: where the record's schema is registered, and decoders come from.
        producer: started by its owner.
        identity: who this worker is.
        stats: this worker's figures, plain values; called once a second and whenever the page asks.

    """

    def __init__(
        self,
        settings: Settings,
        book: SchemaBook,
        producer: OutputProducer,
        identity: WorkerIdentity,
        stats: Callable[[], dict[str, Any]],
    ) -> None:
        self._settings, self._book, self._producer = settings, book, producer
        self._identity, self._stats = identity, stats
        schema = load_schema(settings.schemas.folder, "worker_stats")
        self._header = frame_header(book.add(WORKER_STATS, schema))
        self._encoder = Encoder(schema)
        self._limit_bytes = min(MAX_DOCUMENT_BYTES, settings.kafka.producer_batch_bytes // 2)
        self._neighbours = Neighbours(identity.worker_id)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start publishing and following; the topic must exist."""
        self._tasks = [
            asyncio.create_task(self._publish(), name="worker-stats: publish"),
            asyncio.create_task(self._follow(), name="worker-stats: follow"),
        ]
        for task in self._tasks:
            task.add_done_callback(_log_failure)

    async def stop(self) -> None:
        """Stop both; the others drop this worker after ``UNSEEN_AFTER_S``."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def document(self) -> dict[str, Any]:
        """What ``/stats`` answers: this worker and all that it hears of, its own figures fresh."""
        own = self._identity
        mine = {"role": own.role, "web_url": own.web_url, "published_at": _now_us(), "stats": self._own_stats()}
        return {
            "worker": own.worker_id,
            "role": own.role,
            "workers": {own.worker_id: mine, **self._neighbours.documents()},
        }

    def _own_stats(self) -> dict[str, Any]:
        """Figures of this worker and its process as plain JSON; what goes wrong in counting is shown in their place."""
        try:
            return plain({**process_figures(), **self._stats()})
        except Exception as exc:  # noqa: BLE001 - a page must not stop a worker, whatever its figures do
            _log.exception("worker-stats: the figures of this worker cannot be had")
            return {"error": f"{type(exc).__name__}: {exc}"}

    async def _publish(self) -> None:
        under_way: asyncio.Future[None] | None = None
        while True:
            if under_way is None or under_way.done():
                try:
                    under_way = await self._send(self._own_stats())
                except DeliveryError as exc:  # the worker's other sends fail too, and it restarts for their sake
                    _log.warning("worker-stats: publishing stops: %s", exc)
                    return
            await asyncio.sleep(PUBLISH_EVERY_S)

    async def _send(self, stats: dict[str, Any]) -> asyncio.Future[None]:
        own = self._identity
        columns = RecordColumn(
            {
                "worker_id": TextColumn.from_values([own.worker_id]),
                "role": TextColumn.from_values([own.role]),
                "web_url": TextColumn.from_values([own.web_url]),
                "published_at": NumberColumn(np.array([_now_us()], dtype=np.int64)),
                "stats_json": TextColumn.from_values([fit(stats, self._limit_bytes)]),
            },
            1,
        )
        values = self._encoder.encode(columns, prefix=self._header)
        return await self._producer.send(WORKER_STATS, 0, [own.worker_id.encode()], values)

    async def _follow(self) -> None:
        while True:
            try:
                await self._follow_until_error()
            except KafkaError as exc:
                _log.warning("worker-stats: following again in %.0f s: %r", RETRY_AFTER_S, exc)
            await asyncio.sleep(RETRY_AFTER_S)

    async def _follow_until_error(self) -> None:
        partition = aiokafka.TopicPartition(WORKER_STATS, 0)
        consumer = aiokafka.AIOKafkaConsumer(
            **connection_arguments(self._settings.kafka),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
        )
        try:
            await consumer.start()
            consumer.assign([partition])
            await self._seek_to_recent(consumer, partition)
            while True:
                batches = await consumer.getmany(timeout_ms=1000)
                for record in batches.get(partition, []):
                    self._neighbours.put(record.key, record.value, await self._decoder_of(record.value))
        finally:
            await consumer.stop()

    async def _seek_to_recent(self, consumer: aiokafka.AIOKafkaConsumer, partition: aiokafka.TopicPartition) -> None:
        since_ms = int((time.time() - UNSEEN_AFTER_S) * 1000)
        found = (await consumer.offsets_for_times({partition: since_ms})).get(partition)
        if found is None:
            await consumer.seek_to_end(partition)
        else:
            consumer.seek(partition, found.offset)

    async def _decoder_of(self, value: bytes | None) -> Decoder | None:
        """Decoder of a record's schema; in a thread, for the registry may be asked."""
        schema_id = int(schema_ids([value])[0])
        return None if schema_id == NOT_FRAMED else await asyncio.to_thread(self._book.decoder, schema_id)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s ended; this worker's page shows only what it has", task.get_name(), exc_info=error)


def plain(stats: dict[str, Any]) -> dict[str, Any]:
    """The same figures as plain JSON values: numpy numbers become Python's, NaN and infinity become null.

    Raises:
        TypeError: a value is neither JSON nor a numpy number or array.

    Example:
        >>> plain({"auc": float("nan"), "n": np.int64(3), "rows": np.array([1, 2])})
        {'auc': None, 'n': 3, 'rows': [1, 2]}

    """
    document: dict[str, Any] = json.loads(json.dumps(stats, default=_plain_value), parse_constant=lambda _: None)
    return document


def _plain_value(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    msg = f"{type(value).__name__} cannot be shown in /stats; give numbers, texts, lists and dictionaries"
    raise TypeError(msg)


def fit(stats: dict[str, Any], limit_bytes: int) -> str:
    """The figures as JSON of at most ``limit_bytes`` UTF-8 bytes, for one too large record would fail the producer.

    What goes first: the older half of the windows, again and again down to one; then the series; then all but an
    explanation. ``windows_left_out`` says how many are missing.

    Example:
        >>> fit({"windows": list(range(100)), "n": 1}, 60)
        '{"windows":[96,97,98,99],"n":1,"windows_left_out":96}'
        >>> fit({"n": "x" * 100}, 60)
        '{"error":"figures too large to publish"}'

    """
    document, left_out = dict(stats), 0
    while len(text := _compact(document)) > limit_bytes:
        windows = document.get("windows")
        if isinstance(windows, list) and len(windows) > 1:
            dropped = len(windows) // 2
            left_out += dropped
            document |= {"windows": windows[dropped:], "windows_left_out": left_out}
        elif "series" in document:
            del document["series"]
        else:
            return _compact({"error": "figures too large to publish"})
    return text


def _compact(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))  # ASCII: as many bytes as characters


def _read(key: bytes, value: bytes, decoder: Decoder) -> dict[str, Any] | None:
    """What a record says, or None when it says nothing that can be shown under its key."""
    decoded = decoder.decode([value])
    if decoded.errors:
        return None
    (record,) = to_python(decoded.columns)
    try:
        if record["worker_id"].encode() != key:
            return None
        stats = json.loads(record["stats_json"], parse_constant=lambda _: None)
        fields = {name: str(record[name]) for name in ("role", "web_url")}
        return (
            {**fields, "published_at": int(record["published_at"]), "stats": stats} if isinstance(stats, dict) else None
        )
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None  # another schema, or no JSON


def _now_us() -> int:
    return time.time_ns() // 1000
