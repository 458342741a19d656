"""A TCP proxy on one link that can be slow, cut, or swallow everything; for Kafka also produce requests alone.

What a black hole swallows is not lost: like the segments that a real network drops, it is sent again when the link
heals, even when the client has given up meanwhile. So a late write of a worker that is thought dead does arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Self

PRODUCE = 0
"""Kafka's API key of a produce request."""
ANYTHING = -1
_CHUNK_BYTES = 65_536
_QUEUED_CHUNKS = 256
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends a reset instead of an orderly end."""


class Link:
    """A port that leads to another port, and what is wrong with the way.

    Args:
        port: where it listens, on 127.0.0.1.
        target_port: where it leads to, on 127.0.0.1.
        speaks_kafka: requests are told apart by their API key.

    """

    def __init__(self, port: int, target_port: int, *, speaks_kafka: bool) -> None:
        self.port = port
        self.delay_s = 0.0
        self.connection_count = 0
        self.held_count = 0
        self._target_port, self._speaks_kafka = target_port, speaks_kafka
        self._held: set[int] = set()
        self._healed = asyncio.Event()
        self._healed.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    def hold(self, *api_keys: int) -> None:
        """Swallow requests of these API keys, and what follows them on the same connection; none: everything."""
        self._held = set(api_keys) or {ANYTHING}
        self._healed.clear()

    def heal(self) -> None:
        """Deliver at once, and what was swallowed first."""
        self.delay_s = 0.0
        self._held = set()
        self._healed.set()

    def reset(self) -> int:
        """Cut every connection with a TCP reset; returns how many."""
        writers = list(self._writers)
        for writer in writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            writer.transport.abort()
        return len(writers) // 2

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self.connection_count += 1
        ends = {writer, up_writer}
        self._writers |= ends
        try:
            there = self._carry(self._requests(reader), up_writer)
            back = self._carry(_chunks(up_reader), writer)
            await asyncio.gather(there, back)
        finally:
            self._writers -= ends
            for each in ends:
                each.close()

    async def _requests(self, reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
        if not self._speaks_kafka:
            async for chunk in _chunks(reader):
                yield chunk
            return
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await reader.readexactly(6)
                size, api_key = struct.unpack(">ih", head)
                yield api_key, head + await reader.readexactly(size - 2)

    async def _carry(self, pieces: AsyncIterator[tuple[int, bytes]], writer: asyncio.StreamWriter) -> None:
        """Read on while earlier pieces are on their way, so that a delay does not lower the throughput."""
        under_way: asyncio.Queue[tuple[float, int, bytes] | None] = asyncio.Queue(_QUEUED_CHUNKS)
        delivery = asyncio.create_task(self._deliver(under_way, writer), name="deliver")
        try:
            async for api_key, data in pieces:
                await under_way.put((time.monotonic() + self.delay_s, api_key, data))
            await under_way.put(None)
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, int, bytes] | None], writer: asyncio.StreamWriter
    ) -> None:
        while (piece := await under_way.get()) is not None:
            due_s, api_key, data = piece
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            while self._held & {api_key, ANYTHING}:
                self.held_count += 1
                await self._healed.wait()
            with contextlib.suppress(OSError):  # the other side is gone; the reader will notice too
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        assert self._server is not None
        self._server.close()
        self.heal()
        self.reset()
        await self._server.wait_closed()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            yield ANYTHING - 1, data
