"""Wait until servers do what clients need, not just until a port is open.

A broker that has just started, or a topic that has just been created, refuses work for a moment (not leader yet);
these functions ask the same questions a client would and return when every answer is good.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from typing import TYPE_CHECKING

from app.embedded import kafka_wire
from app.embedded.errors import NotReady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_POLL_S = 0.05
_REQUEST_TIMEOUT_S = 10.0
_TOPIC_TIMEOUT_MS = 10_000
_PROBE_TOPIC = "sluice-readiness-probe"
_CORRELATION = itertools.count(1)


def wait_for_leaders(bootstrap_servers: str, topics: Iterable[str], timeout_s: float = 30.0) -> None:
    """Wait until every partition of ``topics`` has a leader that answers as one.

    Args:
        bootstrap_servers: ``host:port`` of one or more plaintext brokers, joined by commas.
        topics: names of topics that exist or are being created.
        timeout_s: how long to wait in all.

    Raises:
        NotReady: some partition has no leader in time; the message names it.
    """
    wanted = sorted(set(topics))
    deadline = time.monotonic() + timeout_s
    _poll(lambda: _leaderless(_brokers(bootstrap_servers), wanted), deadline, "topics without leaders")


async def wait_for_leaders_async(bootstrap_servers: str, topics: Iterable[str], timeout_s: float = 30.0) -> None:
    """Do as `wait_for_leaders` does, without blocking the running event loop."""
    await asyncio.to_thread(wait_for_leaders, bootstrap_servers, list(topics), timeout_s)


def wait_for_cluster(bootstrap_servers: str, timeout_s: float = 60.0, check: Callable[[], None] | None = None) -> None:
    """Wait until every broker knows all the others, a new topic gets a leader, and both coordinators answer.

    Args:
        bootstrap_servers: every broker of the cluster.
        timeout_s: how long to wait in all.
        check: called between attempts; raises to end the wait, for instance because a broker died.

    Raises:
        NotReady: the cluster does not get there in time; the message says what is missing.
    """
    brokers = _brokers(bootstrap_servers)
    deadline = time.monotonic() + timeout_s
    _poll(lambda: _incomplete(brokers), deadline, "the cluster is not complete", check)
    _poll(lambda: _create_probe(brokers), deadline, "no topic can be created", check)
    _poll(lambda: _leaderless(brokers, [_PROBE_TOPIC]), deadline, "the probe topic has no leader", check)
    _poll(lambda: _coordinators_missing(brokers[0]), deadline, "a coordinator is missing", check)
    _request(brokers[0], kafka_wire.delete_topic_request(_PROBE_TOPIC, timeout_ms=_TOPIC_TIMEOUT_MS))


def wait_for_redis(port: int, timeout_s: float = 10.0, check: Callable[[], None] | None = None) -> None:
    """Wait until a Redis on 127.0.0.1 answers PING.

    Raises:
        NotReady: it does not in time.
    """
    _poll(lambda: _redis_problem(port), time.monotonic() + timeout_s, "Valkey does not answer", check)


def _poll(
    problem: Callable[[], str | None], deadline: float, meaning: str, check: Callable[[], None] | None = None
) -> None:
    """Ask ``problem`` until it returns None; connection errors count as a problem that may pass."""
    while True:
        if check is not None:
            check()
        try:
            found = problem()
        except (OSError, kafka_wire.Malformed) as error:
            found = f"{type(error).__name__}: {error}"
        if found is None:
            return
        if time.monotonic() > deadline:
            raise NotReady(cause=f"{meaning} ({found})", next_step="look into the broker's log and try again")
        time.sleep(_POLL_S)


def _incomplete(brokers: Sequence[tuple[str, int]]) -> str | None:
    for address in brokers:
        seen = _metadata(address, [])
        if len(seen.brokers) < len(brokers) or seen.controller_id < 0:
            return f"{address[0]}:{address[1]} sees {len(seen.brokers)} of {len(brokers)} brokers"
    return None


def _create_probe(brokers: Sequence[tuple[str, int]]) -> str | None:
    replicas = min(3, len(brokers))
    request = kafka_wire.create_topic_request(
        _PROBE_TOPIC, partitions=1, replicas=replicas, timeout_ms=_TOPIC_TIMEOUT_MS
    )
    error = kafka_wire.parse_topic_error(_request(brokers[0], request))
    return None if error in {0, kafka_wire.TOPIC_ALREADY_EXISTS} else f"error code {error}"


def _coordinators_missing(address: tuple[str, int]) -> str | None:
    """Ask for both coordinators, which makes the broker create their topics now instead of under the first worker."""
    for kind in (kafka_wire.GROUP_COORDINATOR, kafka_wire.TRANSACTION_COORDINATOR):
        answer = _request(address, kafka_wire.find_coordinator_request("sluice", kind))
        error = kafka_wire.parse_coordinator_error(answer)
        if error:
            return f"kind {kind}: error code {error}"
    return None


def _leaderless(brokers: Sequence[tuple[str, int]], topics: Sequence[str]) -> str | None:
    if not topics:
        return None
    seen = _first_answer(brokers, topics)
    for topic in topics:
        error, partitions = seen.topics.get(topic, (-1, ()))
        if error or not partitions:
            return f"{topic}: error code {error}" if error else f"{topic}: no partitions yet"
        waiting = [each.index for each in partitions if each.error or each.leader not in seen.brokers]
        if waiting:
            return f"{topic}: partitions {waiting} have no leader"
        problem = _not_in_office(seen, topic, partitions)
        if problem:
            return problem
    return None


def _not_in_office(seen: kafka_wire.Metadata, topic: str, partitions: Sequence[kafka_wire.Partition]) -> str | None:
    """Ask each leader itself: the metadata may name it before it has taken up its office."""
    for leader in sorted({each.leader for each in partitions}):
        led = [each.index for each in partitions if each.leader == leader]
        answer = _request(
            seen.brokers[leader],
            kafka_wire.list_offsets_request(topic, led),
        )
        refused = {index: error for index, error in kafka_wire.parse_offsets_errors(answer).items() if error}
        if refused:
            return f"{topic}: broker {leader} does not lead yet (partition: error code) {refused}"
    return None


def _first_answer(brokers: Sequence[tuple[str, int]], topics: Sequence[str]) -> kafka_wire.Metadata:
    """Return the metadata of the first broker that answers; a cluster with one broker down is still a cluster."""
    for address in brokers[:-1]:
        with contextlib.suppress(OSError):
            return _metadata(address, topics)
    return _metadata(brokers[-1], topics)


def _metadata(address: tuple[str, int], topics: Sequence[str]) -> kafka_wire.Metadata:
    return kafka_wire.parse_metadata(_request(address, kafka_wire.metadata_request(topics)))


def _request(address: tuple[str, int], request: kafka_wire.Request) -> bytes:
    """Send one request on a connection of its own and return the answer after its correlation id.

    Raises:
        OSError: no connection, no answer in time, or an answer to something else.
    """
    number = next(_CORRELATION) & 0x7FFFFFFF
    with socket.create_connection(address, timeout=_REQUEST_TIMEOUT_S) as connection:
        connection.sendall(request.framed(number))
        (length, answered) = struct.unpack(">ii", _receive(connection, 8))
        if answered != number:
            message = f"{address[0]}:{address[1]} answered request {answered} instead of {number}: not a Kafka broker?"
            raise ConnectionError(message)
        return _receive(connection, length - 4)


def _receive(connection: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            message = f"the connection closed after {len(received)} of {count} bytes"
            raise ConnectionError(message)
        received += piece
    return bytes(received)


def _redis_problem(port: int) -> str | None:
    with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        connection.sendall(b"*1\r\n$4\r\nPING\r\n")
        answer = connection.recv(64)
    return None if answer.startswith(b"+PONG") else f"it answers {answer!r}"


def _brokers(bootstrap_servers: str) -> list[tuple[str, int]]:
    """Split ``host:port,host:port``.

    Example:
        >>> _brokers("127.0.0.1:9092, [::1]:9093")
        [('127.0.0.1', 9092), ('::1', 9093)]
    """
    pairs = [each.strip().rpartition(":") for each in bootstrap_servers.split(",") if each.strip()]
    if not pairs or not all(host and port.isdigit() for host, _, port in pairs):
        message = f"bootstrap servers must read host:port[,host:port], not {bootstrap_servers!r}"
        raise ValueError(message)
    return [(host.strip("[]"), int(port)) for host, _, port in pairs]
