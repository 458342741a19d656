"""Ports on 127.0.0.1: find free ones, and name who holds a taken one."""

from __future__ import annotations

import contextlib
import socket

import psutil

from app.embedded.errors import PortTaken


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports that nobody listens on at this moment.

    Another process may take one before we bind it; the stack then chooses again.
    """
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def require_free(port: int, flag: str) -> int:
    """Return ``port`` if it can be bound on 127.0.0.1.

    Args:
        port: 1 to 65535.
        flag: the option that chose it, for the message.

    Raises:
        PortTaken: somebody listens on it, or it needs rights that we lack.
    """
    with socket.socket() as probe:
        # As servers do, so that connections of an earlier server in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise PortTaken(port, listener(port), flag) from None
    return port


def listener(port: int) -> str | None:
    """Return "name (pid N)" of the process that listens on ``port``, or None if that cannot be told."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            is_it = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if is_it and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None


def answers(port: int, timeout_s: float = 1.0) -> bool:
    """Tell whether something accepts connections on ``port`` of 127.0.0.1."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s):
            return True
    except OSError:
        return False
