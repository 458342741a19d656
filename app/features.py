"""The online store: feature views in Redis, one packed value a row, one MGET a micro-batch.

Key ``fs:{view}:v{version}:{key features joined by |}``; value ``<Q event_ms><H version>`` and the columns,
little-endian. The event time inside the value tells how old a feature is.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import redis.asyncio
from redis.asyncio.connection import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError
from redis.retry import Retry

from app.breaker import Breaker
from app.connections import store_arguments
from app.errors import FeatureStoreError
from app.settings import RedisSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from redis.asyncio.connection import AbstractConnection

    from app.models.spec import FeatureView

NUMPY_TYPES = {"f4": "<f4", "f8": "<f8", "i8": "<i8"}
SEPARATOR = "|"
FAILURES = (RedisError, OSError, TimeoutError)
"""What a store in trouble makes redis-py raise."""
LATE_TURNS = 10
"""Of the event loop after a deadline; an answer of 100 kB takes about five."""
EVENT_MS_MAX = 2**63 - 1
T = TypeVar("T")


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
            ValueError: ``row`` has a column that the view lacks, or ``event_ms`` is not in 1 .. 2**63 - 1.

        """
        if not 0 < event_ms <= EVENT_MS_MAX:
            msg = f"view {self.view.name}: event time {event_ms} ms is not after 1970; give unix milliseconds"
            raise ValueError(msg)
        packed = self._template.copy()
        packed["event_ms"] = event_ms
        for name, value in row.items():
            packed[name] = value
        return packed.tobytes()

    def unpack(self, values: Sequence[bytes | None]) -> NDArray[np.void]:
        """Structured array of n rows; a missing row has event_ms 0 and missing columns.

        A value of another length or version, or without a possible event time, is missing too: somebody else writes to
        the view, and no numbers are made of that. The caller knows it by a value that is there and a row that is not.
        """
        size = self.dtype.itemsize
        rows = [self._missing if value is None else value for value in values]
        if set(map(len, rows)) - {size}:
            rows = [row if len(row) == size else self._missing for row in rows]
        table = np.frombuffer(b"".join(rows), dtype=self.dtype)
        foreign = (table["version"] != self.view.version) | (table["event_ms"] > EVENT_MS_MAX)
        if foreign.any():
            table = table.copy()
            table[foreign] = self._template
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


class RedisFeatureStore:
    """One MGET a call, on one connection; no call waits longer than its budget, and few wait for a store in trouble.

    A call that overruns its budget loses its connection, for the late answer would be taken for the next one's. A new
    one is made in the background, and until it is there calls are refused at once: a store that hangs costs one call
    its budget, not each. Once the breaker is open, such a connection is its probe too, so no request waits for a probe.
    A connection that the server has closed, as at a restart, is made anew within the budget of the same call.

    Calls queue for the connection. redis-py's own defaults would wait 59 s for a server that hangs: ten retries of five
    seconds.

    Args:
        settings: where the store is, the budgets, when the breaker opens.
        now_s: monotonic seconds, for the breaker; the budgets run on the event loop's clock.

    """

    def __init__(self, settings: RedisSettings, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = settings.timeout_ms / 1000
        self._connect_timeout_s = settings.connect_timeout_ms / 1000
        self._pool = ConnectionPool.from_url(settings.url, protocol=2, **store_arguments(settings))
        self._pool.connection_kwargs |= {
            "socket_timeout": None,
            "socket_connect_timeout": self._connect_timeout_s,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "decode_responses": False,
        }
        self._breaker = Breaker(
            calls=settings.breaker_calls, failed_share=settings.breaker_failed_share, open_s=settings.breaker_open_s
        )
        self._now_s = now_s
        self._turn = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._latest_failure = "none"

    async def fetch(self, keys: list[str]) -> list[bytes | None]:
        """See ``FeatureStore.fetch``."""
        async with self._turn:
            if self._breaker.is_open(self._now_s()):
                msg = f"redis: not asked, the breaker is open; the latest failure was {self._latest_failure}"
                await asyncio.sleep(0)  # a caller without pause must not keep the loop from the connection
                raise FeatureStoreError(msg)
            deadline_s = asyncio.get_running_loop().time() + self._timeout_s
            try:
                return await self._read(keys, deadline_s)
            except FAILURES as exc:
                msg = f"redis: {_text(exc)}"
                raise FeatureStoreError(msg) from exc

    async def close(self) -> None:
        """Disconnect."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._connection is not None:
            await self._connection.disconnect()
            self._connection = None

    async def _read(self, keys: list[str], deadline_s: float) -> list[bytes | None]:
        if self._connection is not None:
            try:
                return await self._exchange(self._connection, keys, deadline_s)
            except FAILURES as exc:
                await self._disconnect()
                if isinstance(exc, TimeoutError) or not isinstance(exc, (RedisConnectionError, OSError)):
                    self._count_failure(exc)
                    if not self._breaker.is_open(self._now_s()):
                        self._connect()
                    raise
            # Here the server has closed the connection since the last call; reading again does no harm.
        connection = await self._connected(deadline_s)
        try:
            return await self._exchange(connection, keys, deadline_s)
        except FAILURES as exc:
            await self._disconnect()
            self._count_failure(exc)
            raise

    async def _exchange(self, connection: AbstractConnection, keys: list[str], deadline_s: float) -> list[bytes | None]:
        """One round trip; a call that is cancelled in it leaves no connection behind."""
        reply: asyncio.Future[object] | None = None
        try:
            async with asyncio.timeout_at(deadline_s):
                await _send(connection, "MGET", *keys)  # at once, unless the socket is full: before other tasks
            reply = asyncio.ensure_future(connection.read_response())
            values = await _result_by(deadline_s, reply)
        except asyncio.CancelledError:
            await self._disconnect()
            raise
        finally:
            if reply is not None:
                reply.cancel()
        if not isinstance(values, list) or len(values) != len(keys):
            msg = f"{len(keys)} keys were answered with something else"
            raise InvalidResponse(msg)
        self._breaker.record(ok=True, now_s=self._now_s())
        return values

    async def _connected(self, deadline_s: float) -> AbstractConnection:
        """The connection; waits for one only when nothing has failed yet.

        Raises:
            TimeoutError: it is not there in time; it is still being made.
            FeatureStoreError: it cannot be made; or calls before failed, so that this one does not wait.

        """
        is_first = self._connecting is None and not self._breaker.last_failed
        connecting = self._connect()
        if not is_first:
            msg = f"redis: not asked, a connection is being made; the latest failure was {self._latest_failure}"
            await asyncio.sleep(0)
            raise FeatureStoreError(msg)
        await _result_by(deadline_s, connecting)
        if self._connection is None:
            msg = f"redis: {self._latest_failure}"
            raise FeatureStoreError(msg)
        return self._connection

    def _connect(self) -> asyncio.Task[None]:
        """Make a connection in the background; one at a time."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._open(), name="feature store connection")
        return self._connecting

    async def _open(self) -> None:
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        greeting = asyncio.ensure_future(_greet(connection))
        try:
            await _result_by(asyncio.get_running_loop().time() + self._connect_timeout_s, greeting)
        except FAILURES as exc:
            self._count_failure(exc)
        else:
            if self._breaker.awaits_probe:
                self._breaker.record(ok=True, now_s=self._now_s())
            self._connection = connection
        finally:
            self._connecting = None
            if self._connection is not connection:
                greeting.cancel()
                await connection.disconnect(nowait=True)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _count_failure(self, exc: BaseException) -> None:
        self._latest_failure = _text(exc)
        self._breaker.record(ok=False, now_s=self._now_s())


async def _greet(connection: AbstractConnection) -> None:
    """Connect, and see that there is a server that answers: an operating system accepts for one that hangs."""
    await connection.connect()  # type: ignore[no-untyped-call]
    await _send(connection, "PING")
    await connection.read_response()


async def _send(connection: AbstractConnection, *command: str) -> None:
    """Send a command; uvloop says of a connection that was reset that its handler is closed."""
    try:
        await connection.send_command(*command)
    except RuntimeError as exc:
        raise RedisConnectionError(str(exc)) from exc


async def _result_by(deadline_s: float, future: asyncio.Future[T]) -> T:
    """What comes of a future that goes on if it is not done by then.

    The event loop may itself be late, and find the timer due before it has looked at its sockets: then a few more turns
    of it tell whether the answer has been there in time. They cost microseconds.

    Raises:
        TimeoutError: it is not done by ``deadline_s`` on the loop's clock.

    """
    await asyncio.wait({future}, timeout=max(deadline_s - asyncio.get_running_loop().time(), 0))
    for _ in range(LATE_TURNS):
        if future.done():
            break
        await asyncio.sleep(0)
    if not future.done():
        msg = "no answer in time"
        raise TimeoutError(msg)
    return future.result()


def _text(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


class FeatureWriter:
    """Writes rows of views; for feature pipelines, not for the hot path.

    Args:
        redis_url: of the store.
        views: those that will be written.
        ssl_ca_file: who may vouch for a store at ``rediss://``; None: the system's authorities.

    Raises:
        SettingsError: ``ssl_ca_file`` for an address that does not encrypt.

    """

    def __init__(self, redis_url: str, views: Sequence[FeatureView], *, ssl_ca_file: Path | None = None) -> None:
        settings = RedisSettings(url=redis_url, ssl_ca_file=ssl_ca_file)
        self._client = redis.asyncio.Redis.from_url(settings.url, **store_arguments(settings))
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
