"""The proxy on real sockets: it carries, delays, holds back and cuts, for everything or for produce requests alone."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING

import pytest

from app.embedded.ports import free_ports
from chaos.patience import until
from chaos.proxy import PRODUCE, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FETCH = 1


class Echo:
    """A server that notes each frame and sends it back."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.frames: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                size = await reader.readexactly(4)
                frame = await reader.readexactly(struct.unpack(">i", size)[0])
                self.frames.append(frame)
                writer.write(size + frame)
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """A server behind the link."""
    found = Echo()
    async with await asyncio.start_server(found.serve, "127.0.0.1", found.port):
        yield found


@pytest.fixture
async def link(echo: Echo) -> AsyncIterator[Link]:
    """A link that tells requests apart."""
    async with Link(free_ports(1)[0], echo.port, speaks_kafka=True) as found:
        yield found


def frame(api_key: int, body: bytes) -> bytes:
    """A request as Kafka frames it."""
    return struct.pack(">ih", len(body) + 2, api_key) + body


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, api_key: int, body: bytes) -> bytes:
    """Send a request; returns the body that came back."""
    writer.write(frame(api_key, body))
    size = struct.unpack(">i", await reader.readexactly(4))[0]
    return (await reader.readexactly(size))[2:]


async def test_a_healthy_link_carries_both_ways(link: Link) -> None:
    """What is sent comes back, frames of any size."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    for body in (b"", b"x", b"y" * 200_000):
        assert await ask(reader, writer, FETCH, body) == body
    writer.close()


async def test_held_produce_requests_arrive_when_the_link_heals(link: Link, echo: Echo) -> None:
    """A produce request waits, a fetch on another connection does not; after healing it is delivered late."""
    _, writer = await asyncio.open_connection("127.0.0.1", link.port)
    link.hold(PRODUCE)
    writer.write(frame(PRODUCE, b"write"))
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await ask(other_reader, other_writer, FETCH, b"read") == b"read"
    assert echo.frames == [struct.pack(">h", FETCH) + b"read"]
    writer.close()  # the client gives up; what it wrote is still under way
    link.heal()
    await until(lambda: len(echo.frames) == 2, "the late write")
    assert echo.frames[1] == struct.pack(">h", PRODUCE) + b"write"
    other_writer.close()


async def test_a_black_hole_holds_everything_until_it_heals(link: Link) -> None:
    """Nothing comes back while everything is held; afterwards it does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    link.hold()
    answer = asyncio.create_task(ask(reader, writer, FETCH, b"late"))
    done, _ = await asyncio.wait([answer], timeout=0.2)
    assert not done
    link.heal()
    assert await answer == b"late"
    writer.close()


async def test_reset_cuts_living_connections_alone(link: Link) -> None:
    """The client sees a reset; a new connection works."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await ask(reader, writer, FETCH, b"1") == b"1"
    assert link.reset() == 1
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await ask(reader, writer, FETCH, b"2")
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    assert await ask(reader, writer, FETCH, b"3") == b"3"
    writer.close()


async def test_a_delay_keeps_the_order(link: Link, echo: Echo) -> None:
    """Late is late for all alike: nothing overtakes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    link.delay_s = 0.05
    writer.write(frame(FETCH, b"first"))
    await asyncio.sleep(0)
    link.delay_s = 0.0
    writer.write(frame(FETCH, b"second"))
    assert (await reader.readexactly(11))[6:] == b"first"
    assert (await reader.readexactly(12))[6:] == b"second"
    assert [each[2:] for each in echo.frames] == [b"first", b"second"]
    writer.close()
