"""View rows packed and read back, the breaker on a clock that is set, and a real store, slow, broken or gone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import FeatureStoreError
from app.features import FeatureWriter, RedisFeatureStore, ViewCodec
from app.models.spec import FeatureView, ViewColumn
from app.settings import RedisSettings
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

VIEW = FeatureView(
    name="plane",
    version=3,
    key=("tailnum", "day"),
    columns=(
        ViewColumn(name="delay", type="f4"),
        ViewColumn(name="wind", type="f8"),
        ViewColumn(name="count", type="i8"),
    ),
)
CODEC = ViewCodec(VIEW)


def test_the_layout_on_the_wire_is_fixed() -> None:
    """Eight bytes of event time, two of version, the columns: little-endian, nothing between; writers rely on it."""
    packed = CODEC.pack(0x0102, {"delay": 1.0, "wind": 1.0, "count": 5})
    assert (
        packed.hex(" ") == "02 01 00 00 00 00 00 00 03 00 00 00 80 3f 00 00 00 00 00 00 f0 3f 05 00 00 00 00 00 00 00"
    )
    assert CODEC.key(["N1", "7"]) == "fs:plane:v3:N1|7"


@given(
    st.integers(1, 2**63 - 1),
    st.floats(width=32, allow_nan=False),
    st.floats(allow_nan=False),
    st.integers(-(2**63) + 1, 2**63 - 1),
)
def test_a_row_is_read_as_it_was_packed(event_ms: int, delay: float, wind: float, count: int) -> None:
    """All columns come back with all their bits, and a missing row beside it is missing."""
    table = CODEC.unpack([CODEC.pack(event_ms, {"delay": delay, "wind": wind, "count": count}), None])
    assert tuple(table[0].tolist()) == (event_ms, 3, delay, wind, count)
    assert table["event_ms"][1] == 0
    assert np.isnan(table["delay"][1])
    assert np.isnan(table["wind"][1])
    assert table["count"][1] == np.iinfo(np.int64).min


def test_a_column_that_is_not_given_is_missing() -> None:
    """A feature pipeline may know some columns only."""
    row = CODEC.unpack([CODEC.pack(5, {"wind": 2.0})])[0]
    assert math.isnan(row["delay"])
    assert row["wind"] == 2.0
    assert row["count"] == np.iinfo(np.int64).min


def test_a_column_that_the_view_lacks_is_refused() -> None:
    """A misspelt column must not silently be dropped."""
    with pytest.raises(ValueError, match="gust"):
        CODEC.pack(5, {"gust": 2.0})


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"short",
        CODEC.pack(1, {}) + b"\0",
        CODEC.pack(1, {})[:-1],
        bytes(CODEC.dtype.itemsize),
        b"\xff" * 8 + CODEC.pack(1, {"wind": 1.0})[8:],
        ViewCodec(VIEW.model_copy(update={"version": 4})).pack(1, {"wind": 1.0}),
    ],
    ids=["empty", "short", "longer", "truncated", "zeros", "no possible time", "another version"],
)
def test_a_foreign_value_is_no_row(value: bytes) -> None:
    """No numbers are made of what another wrote there; the rows beside it are read all the same."""
    table = CODEC.unpack([CODEC.pack(1, {"wind": 1.5}), value, CODEC.pack(2, {"wind": 2.5})])
    assert table["event_ms"].tolist() == [1, 0, 2]
    assert table["wind"][[0, 2]].tolist() == [1.5, 2.5]
    assert np.isnan(table["wind"][1])
    assert table["count"][1] == np.iinfo(np.int64).min


@given(st.binary(max_size=60))
def test_any_bytes_make_a_row_or_none(value: bytes) -> None:
    """Whatever lies under a key: the row's own bytes, or a missing row; nothing raises."""
    row = CODEC.unpack([value])[0]
    assert row.tobytes() == value or row["event_ms"] == 0


@pytest.mark.parametrize("event_ms", [0, -1, 2**63])
def test_a_time_that_could_not_be_read_is_not_written(event_ms: int) -> None:
    """A row at 0 would be no row."""
    with pytest.raises(ValueError, match="unix milliseconds"):
        CODEC.pack(event_ms, {})


class _Listener:
    """Accepts connections and answers each with the same bytes, or never."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self.connections = 0
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            while await reader.read(4096):
                if self._answer is not None:
                    writer.write(self._answer)
                    await writer.drain()
            writer.close()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[_Listener]:
        """The listener on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        try:
            yield self
        finally:
            server.close()


def _store(url: str, clock: FakeClock, **changes: float) -> RedisFeatureStore:
    settings = {"timeout_ms": 20, "connect_timeout_ms": 200, "breaker_calls": 4, "breaker_open_s": 5, **changes}
    return RedisFeatureStore(RedisSettings.model_validate({"url": url, **settings}), now_s=clock)


async def _refused(store: RedisFeatureStore) -> str:
    """Why a call fails, which it must do well within the test's patience."""
    async with asyncio.timeout(5):
        with pytest.raises(FeatureStoreError, match="redis: ") as error:
            await store.fetch(["k"])
    return str(error.value)


async def _until_open(store: RedisFeatureStore) -> None:
    """Ask until the breaker is open."""
    for _ in range(500):
        if "breaker is open" in await _refused(store):
            return
        await asyncio.sleep(0.01)
    pytest.fail("the breaker does not open")


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["hangs", "is no Redis"])
async def test_a_server_that_does_not_answer_is_spared(answer: bytes | None) -> None:
    """After some failures it is not asked at all; after the pause one connection probes it, for which nobody waits."""
    clock = FakeClock()
    async with _Listener(answer).listening() as server:
        store = _store(server.url, clock)
        await _until_open(store)
        asked = server.connections
        assert 1 <= asked <= 4
        for _ in range(20):
            assert "breaker is open" in await _refused(store)
        assert server.connections == asked
        clock.advance(6.0)
        assert "a connection is being made" in await _refused(store)
        await _until_open(store)
        assert server.connections == asked + 1
        await store.close()


async def test_a_server_that_is_not_there_is_not_stormed() -> None:
    """A refused connection is reported like every other failure, and no more are tried than the breaker takes."""
    clock = FakeClock()
    store = _store("redis://127.0.0.1:1/0", clock)
    assert "onnect" in await _refused(store)
    await _until_open(store)
    assert "ConnectionError" in await _refused(store)
    await store.close()


class _Echo(asyncio.Protocol):
    """A Redis that knows PING and answers an MGET of n keys with n times the key's own name, when it is let."""

    def __init__(self, gate: asyncio.Event) -> None:
        self._gate = gate
        self.is_asked = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """Each command at once, MGET when the gate is open."""
        words = [word for word in data.split(b"\r\n") if word[:1] not in {b"*", b"$"}]
        if b"MGET" in words:
            keys = words[words.index(b"MGET") + 1 : -1]
            reply = b"*%d\r\n" % len(keys) + b"".join(b"$%d\r\n%b\r\n" % (len(key), key) for key in keys)
            self.is_asked.set()
            self._reply = asyncio.ensure_future(self._send(reply))
        else:
            self._transport.write(b"+OK\r\n" * max(words.count(b"SETINFO"), 1))

    async def _send(self, reply: bytes) -> None:
        await self._gate.wait()
        if not self._transport.is_closing():
            self._transport.write(reply)


async def test_a_late_answer_is_never_taken_for_the_next_ones() -> None:
    """A call that timed out, and one that was cancelled: the next are answered with their own keys."""
    gate, served = asyncio.Event(), []

    def serve() -> _Echo:
        served.append(_Echo(gate))
        return served[-1]

    server = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0)
    store = _store(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", FakeClock(), breaker_calls=100)
    assert "TimeoutError" in await _refused(store)
    gate.set()
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(FeatureStoreError):
                assert await store.fetch(["b", "c"]) == [b"b", b"c"]
                break
            await asyncio.sleep(0.01)
    gate.clear()
    served[-1].is_asked.clear()
    cancelled = asyncio.create_task(store.fetch(["d", "e"]))
    await served[-1].is_asked.wait()
    cancelled.cancel()
    await asyncio.wait({cancelled})
    gate.set()
    assert await store.fetch(["f", "g"]) == [b"f", b"g"]
    assert await store.fetch(["h"]) == [b"h"]
    await store.close()
    server.close()


@pytest.mark.integration
async def test_rows_written_are_rows_fetched(redis_url: str) -> None:
    """What a feature pipeline writes, one MGET reads: in order, None for a key that nobody wrote."""
    view = VIEW.model_copy(update={"name": f"v{uuid.uuid4().hex[:8]}"})
    codec = ViewCodec(view)
    writer = FeatureWriter(redis_url, [view])
    await writer.put(view.name, [(("N1", "1"), 1000, {"delay": 1.5}), (("N2", "1"), 2000, {"count": 7})])
    await writer.put(view.name, [])
    await writer.put(view.name, [(("N1", "1"), 3000, {"delay": 2.5})])
    with pytest.raises(KeyError):
        await writer.put("another", [(("N1",), 1, {})])
    await writer.close()
    store = _store(redis_url, FakeClock())
    values = await store.fetch([codec.key(("N2", "1")), codec.key(("N9", "9")), codec.key(("N1", "1"))])
    await store.close()
    table = codec.unpack(values)
    assert table["event_ms"].tolist() == [2000, 0, 3000]
    assert table["delay"][2] == 2.5
    assert table["count"][0] == 7
