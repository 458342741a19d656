"""The configuration files of the brokers."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.embedded.kafka_config import Node, server_properties

NODES = [Node(number, 9000 + number, 9100 + number, Path(f"/data/kafka-{number}")) for number in (1, 2, 3)]


def settings(node: Node, nodes: list[Node]) -> dict[str, str]:
    """Parse what is written for ``node``."""
    return dict(line.split("=", 1) for line in server_properties(node, nodes).splitlines())


def test_single_broker() -> None:
    """One broker listens on 127.0.0.1 alone, votes for itself and replicates nothing."""
    found = settings(NODES[0], NODES[:1])
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:9001,CONTROLLER://127.0.0.1:9101"
    assert found["controller.quorum.voters"] == "1@127.0.0.1:9101"
    assert found["log.dirs"] == "/data/kafka-1"
    factors = [
        value for key, value in found.items() if key.endswith(("replication.factor", "min.isr", "insync.replicas"))
    ]
    assert factors == ["1"] * 7


def test_three_brokers() -> None:
    """Three brokers know each other, keep three replicas and accept a write with two."""
    found = [settings(node, NODES) for node in NODES]
    assert {each["controller.quorum.voters"] for each in found} == {
        "1@127.0.0.1:9101,2@127.0.0.1:9102,3@127.0.0.1:9103"
    }
    assert [each["node.id"] for each in found] == ["1", "2", "3"]
    assert {each["offsets.topic.replication.factor"] for each in found} == {"3"}
    assert {each["transaction.state.log.min.isr"] for each in found} == {"2"}


def test_a_detour_is_a_second_port_that_names_its_proxy() -> None:
    """Clients of the second port are told the proxy's port; brokers speak with each other by the first one."""
    found = settings(node := Node(1, 9001, 9101, Path("/data/kafka-1"), detour=(9201, 9301)), [node])
    assert "DETOUR://127.0.0.1:9201" in found["listeners"].split(",")
    assert found["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9001,DETOUR://127.0.0.1:9301"
    assert found["inter.broker.listener.name"] == "PLAINTEXT"


def test_rules_of_the_contract() -> None:
    """Topics are never made by accident, old timestamps never deleted, and a dead letter of 2 MiB fits."""
    found = settings(NODES[0], NODES[:1])
    assert found["auto.create.topics.enable"] == "false"
    assert found["log.retention.ms"] == "-1"
    assert int(found["message.max.bytes"]) > 2 * 1024 * 1024
    assert int(found["replica.fetch.max.bytes"]) >= int(found["message.max.bytes"])


def test_stranger_is_refused() -> None:
    """A broker that is not part of the cluster has no configuration in it."""
    with pytest.raises(ValueError, match="broker 3 is not part"):
        server_properties(NODES[2], NODES[:2])
