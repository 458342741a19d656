"""Free and taken ports, with real sockets."""

from __future__ import annotations

import os
import socket

import pytest

from app.embedded import ports
from app.embedded.errors import PortTaken


def test_free_ports_differ_and_can_be_bound() -> None:
    """Ports given out together are different, and each can be bound at once."""
    found = ports.free_ports(5)
    assert len(set(found)) == 5
    assert [ports.require_free(port, "--kafka-port") for port in found] == found


def test_taken_port_names_its_holder() -> None:
    """A taken port is refused with the holder's pid, the flag and what to do; it answers, a free one does not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ports.answers(port)
        with pytest.raises(PortTaken, match=rf"port {port} .*pid {os.getpid()}.*Next: .*--redis-port") as taken:
            ports.require_free(port, "--redis-port")
        assert taken.value.port == port
    assert not ports.answers(port)
    assert ports.listener(port) is None
