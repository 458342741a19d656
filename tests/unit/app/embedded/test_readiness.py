"""Readiness against things that are not what they should be; the real broker is in the integration tests."""

from __future__ import annotations

import socketserver
import threading
from typing import TYPE_CHECKING

import pytest

from app.embedded.errors import NotReady
from app.embedded.ports import free_ports
from app.embedded.readiness import wait_for_cluster, wait_for_leaders, wait_for_redis

if TYPE_CHECKING:
    from collections.abc import Iterator


class WebServer(socketserver.BaseRequestHandler):
    """Answers everything as a web server would."""

    def handle(self) -> None:
        """Read a little, then send a status line."""
        self.request.recv(16)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def web_port() -> Iterator[int]:
    """Return the port of something that speaks neither Kafka nor Redis."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), WebServer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_stranger_is_not_taken_for_a_broker(web_port: int) -> None:
    """A web server on the port is told apart from a Kafka broker and from a Redis."""
    with pytest.raises(NotReady, match="not a Kafka broker"):
        wait_for_leaders(f"127.0.0.1:{web_port}", ["t"], timeout_s=0.1)
    with pytest.raises(NotReady, match="HTTP"):
        wait_for_redis(web_port, timeout_s=0.1)


def test_nobody_there() -> None:
    """A closed port ends with the reason when the time is over."""
    (port,) = free_ports(1)
    with pytest.raises(NotReady, match=r"Connection\w*Error"):
        wait_for_cluster(f"127.0.0.1:{port}", timeout_s=0.1)


def test_check_ends_the_wait() -> None:
    """What ``check`` raises ends the wait at once, however long it could have been."""

    def check() -> None:
        raise RuntimeError

    (port,) = free_ports(1)
    with pytest.raises(RuntimeError):
        wait_for_redis(port, timeout_s=3600, check=check)


@pytest.mark.parametrize("servers", ["", "localhost", "host:port", "a:1,b"])
def test_addresses_must_be_host_and_port(servers: str) -> None:
    """Bootstrap servers that are not ``host:port`` are refused with the text itself."""
    with pytest.raises(ValueError, match="host:port"):
        wait_for_leaders(servers, ["t"])
