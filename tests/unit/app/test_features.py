"""View rows packed and read back, the breaker on a clock that is set, and a real store, slow, broken or gone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import FeatureStoreError
from app.features import Breaker, FeatureWriter, RedisFeatureStore, ViewCodec
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
    "value", [b"", b"short", CODEC.pack(1, {}) + b"\0", ViewCodec(VIEW.model_copy(update={"version": 4})).pack(1, {})]
)
def test_a_foreign_value_is_refused(value: bytes) -> None:
    """Another length or version under our key means that somebody else writes there: no numbers are made of it."""
    with pytest.raises(FeatureStoreError, match=r"view plane: a value .* version"):
        CODEC.unpack([CODEC.pack(1, {}), value])


def test_the_breaker_opens_after_failures_in_a_row() -> None:
    """A success between failures starts the count again."""
    breaker = Breaker(failures_to_open=3, open_s=1.0)
    for ok in (False, False, True, False, False):
        breaker.record(ok=ok, now_s=10.0)
        assert not breaker.is_open(10.0)
    breaker.record(ok=False, now_s=10.0)
    assert breaker.is_open(10.0)
    assert breaker.is_open(10.999)
    assert not breaker.is_open(11.0)


def test_one_failed_probe_opens_it_again() -> None:
    """After the pause a single call decides: failed, it opens for another pause; done, it is closed."""
    breaker = Breaker(failures_to_open=3, open_s=1.0)
    for _ in range(3):
        breaker.record(ok=False, now_s=10.0)
    breaker.record(ok=False, now_s=11.5)
    assert breaker.is_open(12.4)
    breaker.record(ok=True, now_s=12.6)
    breaker.record(ok=False, now_s=12.7)
    assert not breaker.is_open(12.7)


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


def _store(url: str, clock: FakeClock) -> RedisFeatureStore:
    settings = RedisSettings(url=url, timeout_ms=20, connect_timeout_ms=200, breaker_failures=2, breaker_open_s=5)
    return RedisFeatureStore(settings, now_s=clock)


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["hangs", "is no Redis"])
async def test_a_server_that_does_not_answer_costs_a_timeout_and_then_nothing(answer: bytes | None) -> None:
    """Each call fails within the test's patience; after two the breaker spares the server, then lets one probe by."""
    clock = FakeClock()
    async with _Listener(answer).listening() as server:
        store = _store(server.url, clock)
        for _ in range(2):
            async with asyncio.timeout(5):
                with pytest.raises(FeatureStoreError, match="redis: "):
                    await store.fetch(["k"])
        asked = server.connections
        assert asked >= 1
        for _ in range(20):
            with pytest.raises(FeatureStoreError, match="breaker is open"):
                await store.fetch(["k"])
        assert server.connections == asked
        clock.advance(6.0)
        async with asyncio.timeout(5):
            with pytest.raises(FeatureStoreError, match="redis: "):
                await store.fetch(["k"])
        with pytest.raises(FeatureStoreError, match="breaker is open"):
            await store.fetch(["k"])
        await store.close()


async def test_a_server_that_is_not_there_is_an_error_of_the_store() -> None:
    """A refused connection is reported like every other failure."""
    store = _store("redis://127.0.0.1:1/0", FakeClock())
    with pytest.raises(FeatureStoreError, match="redis: ConnectionError"):
        await store.fetch(["k"])
    await store.close()


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
