"""The configuration files of an embedded broker, as text (a pure module).

One process is broker and controller at once (KRaft combined mode); three of them form a cluster for fault tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# The largest record of ours is the 2 MiB dead letter; the rest is room for headers and batch framing.
LARGEST_BATCH_BYTES = 2 * 1024 * 1024 + 64 * 1024


@dataclass(frozen=True, slots=True)
class Node:
    """One embedded broker.

    Attributes:
        node_id: 1 for the first broker.
        kafka_port: where clients connect, on 127.0.0.1.
        controller_port: where the brokers hold their quorum, on 127.0.0.1.
        log_dir: directory of its partitions.
        detour: a second client port, and the port that clients who come by it are told to use: a proxy in front of
            the first of the two sees everything that such a client sends. None: no second port.
    """

    node_id: int
    kafka_port: int
    controller_port: int
    log_dir: Path
    detour: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """The name that logs, status and errors use, such as ``kafka-1``."""
        return f"kafka-{self.node_id}"


def server_properties(node: Node, nodes: Sequence[Node]) -> str:
    """Return the ``server.properties`` of one broker of a cluster.

    Args:
        node: the broker to configure.
        nodes: all brokers of the cluster, ``node`` among them; their number sets the replication factors.

    Returns:
        Lines of ``key=value``, with a newline at the end.

    Raises:
        ValueError: ``node`` is not one of ``nodes``.
    """
    if node not in nodes:
        message = f"broker {node.node_id} is not part of the cluster {[each.node_id for each in nodes]}"
        raise ValueError(message)
    settings = _addresses(node, nodes) | _replication(len(nodes)) | _SMALL | _OURS
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _addresses(node: Node, nodes: Sequence[Node]) -> dict[str, str]:
    client = f"PLAINTEXT://127.0.0.1:{node.kafka_port}"
    listeners, advertised, protocols = client, client, "PLAINTEXT:PLAINTEXT"
    if node.detour is not None:
        port, told = node.detour
        listeners += f",DETOUR://127.0.0.1:{port}"
        advertised += f",DETOUR://127.0.0.1:{told}"
        protocols += ",DETOUR:PLAINTEXT"
    return {
        "process.roles": "broker,controller",
        "node.id": str(node.node_id),
        "controller.quorum.voters": ",".join(f"{each.node_id}@127.0.0.1:{each.controller_port}" for each in nodes),
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": advertised,
        "listener.security.protocol.map": f"{protocols},CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(node.log_dir),
    }


def _replication(broker_count: int) -> dict[str, str]:
    replicas = str(min(3, broker_count))
    in_sync = str(max(1, min(3, broker_count) - 1))
    return {
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


# A laptop's broker: fewer threads and partitions than a data centre's; the log cleaner's buffer is 128 MB otherwise.
_SMALL = {
    "num.partitions": "4",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "4",
    "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
}

_OURS = {
    # A misspelled topic must be an error, not a new topic with the wrong partition count.
    "auto.create.topics.enable": "false",
    # Replays carry old event times; nothing may be deleted because of its timestamp.
    "log.retention.ms": "-1",
    "message.max.bytes": str(LARGEST_BATCH_BYTES),
    "replica.fetch.max.bytes": str(2 * LARGEST_BATCH_BYTES),
    # Join at once instead of after 3 s, and let tests ask for short sessions.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    # A killed broker is noticed after 3 s instead of 9.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # A transaction that begins before the one before it is marked everywhere is tried again after 1 ms, not 20.
    "add.partitions.to.txn.retry.backoff.ms": "1",
}

# INFO tells what a broker did; its 400 lines of settings at every start are only worth a warning.
LOG4J2_PROPERTIES = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:sluice.log}
appender.file.filePattern = ${sys:sluice.log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{yyyy-MM-dd HH:mm:ss.SSS} %-5p %c{1} %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 10MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
"""
