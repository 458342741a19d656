"""The Kafka requests and answers of readiness, against bytes written down by hand."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from app.embedded import kafka_wire
from app.embedded.kafka_wire import Malformed, Metadata, Partition

if TYPE_CHECKING:
    from collections.abc import Callable

# Throttle 0; one broker 1 at "h":9092 without rack; no cluster id; controller 1; topic "t": partition 0 led by 1.
METADATA = bytes.fromhex(
    "00000000 00000001 00000001 000168 00002384 ffff ffff 00000001"
    "00000001 0000 000174 00 00000001 0000 00000000 00000001 00000001 00000001 00000001 00000001"
)
OFFSETS = bytes.fromhex("00000001 000174 00000002") + b"".join(
    struct.pack(">ihqq", index, error, -1, 5) for index, error in ((0, 0), (1, 6))
)
CREATED = bytes.fromhex("00000000 00000001 000174 0024 ffff")
COORDINATOR = bytes.fromhex("00000000 000f ffff ffffffff 0000 ffffffff")


def test_metadata() -> None:
    """Brokers, controller and partitions are read from an answer."""
    expected = Metadata({1: ("h", 9092)}, 1, {"t": (0, (Partition(0, 0, 1, (1,), (1,)),))})
    assert kafka_wire.parse_metadata(METADATA) == expected


def test_error_codes() -> None:
    """Error codes of offsets, topics and coordinators are read from their places."""
    assert kafka_wire.parse_offsets_errors(OFFSETS) == {0: 0, 1: 6}
    assert kafka_wire.parse_topic_error(CREATED) == kafka_wire.TOPIC_ALREADY_EXISTS
    assert kafka_wire.parse_coordinator_error(COORDINATOR) == 15


def test_requests() -> None:
    """Requests have the bytes that the protocol asks for."""
    framed = kafka_wire.metadata_request(["t"]).framed(2)
    assert framed == bytes.fromhex("00000022 0003 0004 00000002 0010") + b"sluice-readiness" + bytes.fromhex(
        "00000001 000174 00"
    )
    created = kafka_wire.create_topic_request("t", partitions=4, replicas=3, timeout_ms=1)
    assert created.body == bytes.fromhex("00000001 000174 00000004 0003 00000000 00000000 00000001 00")
    assert kafka_wire.delete_topic_request("t", timeout_ms=1).body == bytes.fromhex("00000001 000174 00000001")
    assert kafka_wire.find_coordinator_request("g", 1).body == bytes.fromhex("000167 01")
    offsets = kafka_wire.list_offsets_request("t", [7])
    assert offsets.body == bytes.fromhex("ffffffff 00000001 000174 00000001 00000007 ffffffffffffffff")


@pytest.mark.parametrize(
    ("parse", "answer"),
    [
        (kafka_wire.parse_metadata, METADATA),
        (kafka_wire.parse_offsets_errors, OFFSETS),
        (kafka_wire.parse_topic_error, CREATED[:-2]),
        (kafka_wire.parse_coordinator_error, COORDINATOR[:6]),
    ],
)
def test_truncated_answers_are_malformed(parse: Callable[[bytes], object], answer: bytes) -> None:
    """An answer cut anywhere is refused, never half believed."""
    parse(answer)
    for length in range(len(answer)):
        with pytest.raises(Malformed):
            parse(answer[:length])


def test_answer_without_a_topic_is_malformed() -> None:
    """An answer to a create request that names no topic is refused."""
    with pytest.raises(Malformed, match="no topic"):
        kafka_wire.parse_topic_error(bytes(8))
