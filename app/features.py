"""The online store: feature views in Redis, one packed value a row, one MGET a micro-batch.

Key ``fs:{view}:v{version}:{key features joined by |}``; value ``<Q event_ms><H version>`` and the columns,
little-endian. The event time inside the value tells how old a feature is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from app.errors import FeatureStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from app.models.spec import FeatureView
    from app.settings import RedisSettings

NUMPY_TYPES = {"f4": "<f4", "f8": "<f8", "i8": "<i8"}
SEPARATOR = "|"


class ViewCodec:
    """Keys and packed rows of one view.

    Example:
        >>> from app.models.spec import FeatureView
        >>> codec = ViewCodec(FeatureView(name="w", key=("origin",), columns=({"name": "temp"},)))
        >>> codec.key(["JFK"])
        'fs:w:v1:JFK'
        >>> codec.unpack([codec.pack(1000, {"temp": 21.5}), None])["temp"].tolist()
        [21.5, nan]

    """

    def __init__(self, view: FeatureView) -> None:
        self.view = view
        self.prefix = f"fs:{view.name}:v{view.version}:"
        columns = [(c.name, NUMPY_TYPES[c.type]) for c in view.columns]
        self.dtype = np.dtype([("event_ms", "<u8"), ("version", "<u2"), *columns])
        template = np.zeros(1, dtype=self.dtype)
        for column in view.columns:
            template[column.name] = np.iinfo(np.int64).min if column.type == "i8" else np.nan
        template["version"] = view.version
        self._template = template
        self._missing = template.tobytes()

    def key(self, parts: Sequence[str]) -> str:
        """The row's key; in a key of several parts ``|`` and ``%`` are percent-encoded, so that no two rows share it.

        Example:
            >>> from app.models.spec import FeatureView
            >>> codec = ViewCodec(FeatureView(name="w", key=("a", "b"), columns=({"name": "x"},)))
            >>> codec.key(["1|2", "3"]) == codec.key(["1", "2|3"])
            False

        """
        if len(parts) == 1:
            return self.prefix + parts[0]
        return self.prefix + SEPARATOR.join(part.replace("%", "%25").replace(SEPARATOR, "%7C") for part in parts)

    def pack(self, event_ms: int, row: Mapping[str, float]) -> bytes:
        """A row's value; a column that ``row`` lacks is missing.

        Raises:
            ValueError: ``row`` has a column that the view lacks.

        """
        packed = self._template.copy()
        packed["event_ms"] = event_ms
        for name, value in row.items():
            packed[name] = value
        return packed.tobytes()

    def unpack(self, values: Sequence[bytes | None]) -> NDArray[np.void]:
        """Structured array of n rows; a missing row has event_ms 0 and missing columns.

        Raises:
            FeatureStoreError: a value has another length or version: somebody else writes to the view.

        """
        size = self.dtype.itemsize
        rows = [self._missing if value is None else value for value in values]
        if any(len(row) != size for row in rows):
            name = self.view.name
            msg = f"view {name}: a value is not {size} bytes long; give the view a new version when its columns change"
            raise FeatureStoreError(msg)
        table = np.frombuffer(b"".join(rows), dtype=self.dtype)
        if (table["version"] != self.view.version).any():
            msg = f"view {self.view.name}: a value of another version lies under a key of version {self.view.version}"
            raise FeatureStoreError(msg)
        return table


class FeatureStore(Protocol):
    """What the pipeline needs of an online store."""

    async def fetch(self, keys: list[str]) -> list[bytes | None]:
        """Values of all keys in one round trip.

        Raises:
            FeatureStoreError: not within the budget, or not in kind.

        """
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


@dataclass(slots=True)
class Breaker:
    """Opens after some failures in a row; while open nobody waits for the store; then one probe; pure.

    Attributes:
        failures_to_open: in a row.
        open_s: how long it stays open before a probe.

    """

    failures_to_open: int
    open_s: float
    failure_count: int = 0
    open_until_s: float = 0.0

    def is_open(self, now_s: float) -> bool:
        """Whether to spare the call."""
        return now_s < self.open_until_s

    def record(self, *, ok: bool, now_s: float) -> None:
        """The outcome of a call."""
        self.failure_count = 0 if ok else self.failure_count + 1
        if self.failure_count >= self.failures_to_open:
            self.open_until_s = now_s + self.open_s


class RedisFeatureStore:
    """One MGET for each call, no retries, time-out and breaker.

    redis-py's defaults would wait 59 s for a server that hangs: ten retries of five seconds.
    """

    def __init__(self, settings: RedisSettings, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._client = redis.asyncio.Redis.from_url(
            settings.url,
            socket_timeout=settings.timeout_ms / 1000,
            socket_connect_timeout=settings.connect_timeout_ms / 1000,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_open_s)
        self._now_s = now_s

    async def fetch(self, keys: list[str]) -> list[bytes | None]:
        """See ``FeatureStore.fetch``."""
        if self._breaker.is_open(self._now_s()):
            msg = "the breaker is open after failures in a row"
            raise FeatureStoreError(msg)
        try:
            values = cast("list[bytes | None]", await self._client.mget(keys))
        except (RedisError, OSError, TimeoutError) as exc:
            self._breaker.record(ok=False, now_s=self._now_s())
            msg = f"redis: {type(exc).__name__}: {exc}"
            raise FeatureStoreError(msg) from exc
        self._breaker.record(ok=True, now_s=self._now_s())
        return values

    async def close(self) -> None:
        """Disconnect."""
        await self._client.aclose()


class FeatureWriter:
    """Writes rows of views; for feature pipelines, not for the hot path.

    Args:
        redis_url: of the store.
        views: those that will be written.

    """

    def __init__(self, redis_url: str, views: Sequence[FeatureView]) -> None:
        self._client = redis.asyncio.Redis.from_url(redis_url)
        self._codecs = {view.name: ViewCodec(view) for view in views}

    async def put(self, view: str, rows: Sequence[tuple[Sequence[str], int, Mapping[str, float]]]) -> None:
        """Write rows (key parts, event time in unix ms, columns) in one MSET.

        Raises:
            KeyError: the view was not named at construction.

        """
        codec = self._codecs[view]
        if rows:
            await self._client.mset({codec.key(parts): codec.pack(event_ms, row) for parts, event_ms, row in rows})

    async def close(self) -> None:
        """Disconnect."""
        await self._client.aclose()
