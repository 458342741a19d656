"""The five Kafka requests that readiness needs, as bytes (a pure module).

A client library would do, but each needs an event loop or threads of its own; readiness is asked for from plain code,
from running loops and from the command line alike, so it speaks the protocol itself: one socket, one answer.

Source: https://kafka.apache.org/protocol (the non-flexible versions that Kafka 3.7 to 4.x all accept).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

CLIENT_ID = "sluice-readiness"
TOPIC_ALREADY_EXISTS = 36
GROUP_COORDINATOR = 0
TRANSACTION_COORDINATOR = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A request before it is numbered; keys and versions are those of the protocol."""

    api_key: int
    api_version: int
    body: bytes

    def framed(self, correlation_id: int) -> bytes:
        r"""Return the whole request: length, header version 1, body.

        Args:
            correlation_id: 0 to 2^31 - 1; the answer repeats it.

        Example:
            >>> Request(18, 0, b"").framed(7)
            b'\x00\x00\x00\x1a\x00\x12\x00\x00\x00\x00\x00\x07\x00\x10sluice-readiness'
        """
        header = struct.pack(">hhi", self.api_key, self.api_version, correlation_id) + _string(CLIENT_ID)
        return struct.pack(">i", len(header) + len(self.body)) + header + self.body


@dataclass(frozen=True, slots=True)
class Partition:
    """State of one partition as a broker sees it; ``leader`` is -1 while there is none."""

    index: int
    error: int
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """A broker's view of the cluster.

    Attributes:
        brokers: node id to (host, port).
        controller_id: node id, -1 while there is none.
        topics: name to (error code, partitions); an error code of 0 is success.
    """

    brokers: Mapping[int, tuple[str, int]]
    controller_id: int
    topics: Mapping[str, tuple[int, tuple[Partition, ...]]]


class Malformed(ValueError):
    """An answer is not what the protocol says."""


def metadata_request(topics: Sequence[str]) -> Request:
    """Ask for the brokers and for ``topics`` (none of them is created by asking)."""
    return Request(3, 4, _array([_string(topic) for topic in topics]) + b"\x00")


def create_topic_request(topic: str, *, partitions: int, replicas: int, timeout_ms: int) -> Request:
    """Ask for a new topic."""
    one = _string(topic) + struct.pack(">ihii", partitions, replicas, 0, 0)
    return Request(19, 2, _array([one]) + struct.pack(">ib", timeout_ms, 0))


def delete_topic_request(topic: str, *, timeout_ms: int) -> Request:
    """Ask for the end of a topic."""
    return Request(20, 1, _array([_string(topic)]) + struct.pack(">i", timeout_ms))


def find_coordinator_request(key: str, kind: int) -> Request:
    """Ask who coordinates a group (``kind`` 0) or a transactional id (1); the first ask creates the internal topic."""
    return Request(10, 1, _string(key) + struct.pack(">b", kind))


def list_offsets_request(topic: str, partitions: Sequence[int]) -> Request:
    """Ask a leader for the end of its partitions: only one that has taken up its office answers without an error."""
    each = [struct.pack(">iq", index, -1) for index in partitions]
    return Request(2, 1, struct.pack(">i", -1) + _array([_string(topic) + _array(each)]))


def parse_metadata(answer: bytes) -> Metadata:
    """Read the answer to `metadata_request` (without its length and correlation id).

    Raises:
        Malformed: the answer ends early.
    """
    reader = _Reader(answer)
    reader.int32()  # throttle time
    brokers = {}
    for _ in range(reader.int32()):
        node_id = reader.int32()
        brokers[node_id] = (reader.string() or "", reader.int32())
        reader.string()  # rack
    reader.string()  # cluster id
    controller_id = reader.int32()
    topics = {}
    for _ in range(reader.int32()):
        error = reader.int16()
        name = reader.string() or ""
        reader.int8()  # is internal
        topics[name] = (error, tuple(reader.array(_partition)))
    return Metadata(brokers, controller_id, topics)


def parse_topic_error(answer: bytes) -> int:
    """Read the error code of the one topic in the answer to a create or delete request.

    Raises:
        Malformed: the answer ends early or speaks of no topic.
    """
    reader = _Reader(answer)
    reader.int32()  # throttle time
    if reader.int32() < 1:
        message = "the answer speaks of no topic"
        raise Malformed(message)
    reader.string()
    return reader.int16()


def parse_coordinator_error(answer: bytes) -> int:
    """Read the error code of the answer to `find_coordinator_request`.

    Raises:
        Malformed: the answer ends early.
    """
    reader = _Reader(answer)
    reader.int32()  # throttle time
    return reader.int16()


def parse_offsets_errors(answer: bytes) -> dict[int, int]:
    """Read partition to error code from the answer to `list_offsets_request`.

    Raises:
        Malformed: the answer ends early.
    """
    reader = _Reader(answer)
    errors: dict[int, int] = {}
    for _ in range(reader.int32()):
        reader.string()
        for _ in range(reader.int32()):
            index = reader.int32()
            errors[index] = reader.int16()
            reader.take(16)  # timestamp, offset
    return errors


class _Reader:
    """A cursor over an answer's big-endian fields."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if count < 0 or end > len(self._data):
            message = f"the answer ends at byte {len(self._data)}, {end} were expected"
            raise Malformed(message)
        piece = self._data[self._at : end]
        self._at = end
        return piece

    def int8(self) -> int:
        return int.from_bytes(self.take(1), "big", signed=True)

    def int16(self) -> int:
        return int.from_bytes(self.take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self.take(4), "big", signed=True)

    def string(self) -> str | None:
        length = self.int16()
        return None if length < 0 else self.take(length).decode("utf-8", errors="replace")

    def array(self, read: Callable[[_Reader], T]) -> list[T]:
        return [read(self) for _ in range(self.int32())]


def _partition(reader: _Reader) -> Partition:
    error, index, leader = reader.int16(), reader.int32(), reader.int32()
    replicas = tuple(reader.array(_Reader.int32))
    return Partition(index, error, leader, replicas, tuple(reader.array(_Reader.int32)))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">h", len(encoded)) + encoded


def _array(items: Sequence[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)
