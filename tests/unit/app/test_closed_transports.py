"""A Kafka connection on uvloop whose transport is closed: an error that the client expects."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from app.closed_transports import expect_closed_transports


@pytest.fixture
def plain_connections() -> Any:  # noqa: ANN401 - a generator
    """Connections of aiokafka as they are, and afterwards as they were."""
    before = {name: getattr(AIOKafkaConnection, name) for name in ("send", "_send_sasl_token")}
    for name, send in before.items():
        setattr(AIOKafkaConnection, name, getattr(send, "__wrapped__", send))
    yield
    for name, send in before.items():
        setattr(AIOKafkaConnection, name, send)


async def _send_on_a_closed_transport(kind: str) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    connection = AIOKafkaConnection(host, port)
    connection._reader, connection._writer = await asyncio.open_connection(host, port)
    connection._read_task = asyncio.create_task(asyncio.sleep(0))
    connection._versions = {3: (0, 1)}
    connection._writer.transport.abort()
    await asyncio.sleep(0.01)  # the transport is closed, the reader does not know it yet
    try:
        if kind == "request":
            connection.send(MetadataRequest([]))
        else:
            connection._send_sasl_token(b"token")
    finally:
        connection.close()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)


@pytest.mark.usefixtures("plain_connections")
@pytest.mark.parametrize("kind", ["request", "token"])
def test_a_closed_transport_is_a_broken_connection(kind: str) -> None:
    """Aiokafka connects again after it; without us it meets an error that ends its task."""
    with pytest.raises(RuntimeError, match="closed") as plain:
        uvloop.run(_send_on_a_closed_transport(kind))
    assert not isinstance(plain.value, KafkaConnectionError)
    expect_closed_transports()
    expect_closed_transports()
    with pytest.raises(KafkaConnectionError, match=r"127\.0\.0\.1:\d+ broken"):
        uvloop.run(_send_on_a_closed_transport(kind))


@pytest.mark.usefixtures("plain_connections")
async def test_errors_of_the_client_stay_what_they_are() -> None:
    """They are RuntimeErrors too."""
    expect_closed_transports()
    with pytest.raises(KafkaConnectionError, match="No connection to broker"):
        AIOKafkaConnection("127.0.0.1", 9).send(MetadataRequest([]))
