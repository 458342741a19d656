"""What the live workers say of themselves, for a command that waits for them; read from ``worker-stats``."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agents.worker_stats import UNSEEN_AFTER_S, Neighbours
from app.topic_reader import find_cluster, open_reader
from schemas.registry import SchemaBook
from schemas.topic_names import WORKER_STATS
from schemas.wire import NOT_FRAMED, schema_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.settings import Settings
    from app.topic_reader import TopicReader
    from schemas.columnar import Decoder


class WorkerWatch:
    """The newest document of each live worker; made by ``watch_workers``."""

    def __init__(self, reader: TopicReader, book: SchemaBook) -> None:
        self._reader, self._book = reader, book
        self._neighbours = Neighbours(own_id="")
        self._position: int | None = None

    async def refresh(self) -> None:
        """Read what was published up to now; at first all of the last ``UNSEEN_AFTER_S``.

        Raises:
            TopicError: no broker answers, or a record cannot be read.

        """
        _, end = await self._reader.bounds(WORKER_STATS, 0)
        if self._position is None:
            since_ms = int((time.time() - UNSEEN_AFTER_S) * 1000)
            self._position = await self._reader.first_since(WORKER_STATS, 0, since_ms, end)
        async for records in self._reader.read(WORKER_STATS, 0, self._position, end):
            for record in records:
                self._neighbours.put(record.key, record.value, await self._decoder(record.value))
        self._position = max(self._position, end)

    def stats(self, role: str) -> dict[str, dict[str, Any]]:
        """Worker id to document (``web_url``, ``published_at``, ``stats``) of those of a role, sorted by id."""
        found = self._neighbours.documents()
        return {worker: found[worker] for worker in sorted(found) if found[worker]["role"] == role}

    async def _decoder(self, value: bytes | None) -> Decoder | None:
        schema_id = int(schema_ids([value])[0])
        return None if schema_id == NOT_FRAMED else await asyncio.to_thread(self._book.decoder, schema_id)


@asynccontextmanager
async def watch_workers(settings: Settings) -> AsyncIterator[WorkerWatch]:
    """A connected watch, already refreshed once.

    Raises:
        TopicError: no broker answers, or there is no such topic.

    """
    (await find_cluster(settings.kafka)).count(WORKER_STATS)
    book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
    async with open_reader(settings.kafka) as reader:
        watch = WorkerWatch(reader, book)
        await watch.refresh()
        yield watch
