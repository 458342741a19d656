"""Make the start-up cache of the embedded broker: run one somewhere, end it, keep what its JVM learned."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.embedded import jars, ports, readiness, start_cache
from app.embedded.errors import EmbeddedError, NotReady
from app.embedded.java import find_java
from app.embedded.servers import kafka_servers, new_cluster_id
from app.embedded.supervised import Supervised
from app.embedded.supervisor import EXITS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMEOUT_S = 120.0


def prepare_fast_starts(on_progress: Callable[[str], None]) -> bool:
    """Make the start-up cache unless it is there; brokers that start later use it.

    Args:
        on_progress: told what happens, one line a call.

    Returns:
        Whether there is a cache now: False if this Java makes none or it could not be made, which is no failure.

    Raises:
        JarsNotAvailable: Kafka is not cached and cannot be downloaded.
        JavaNotUsable: there is no fitting Java.
    """
    class_path = jars.class_path(on_progress)
    file = start_cache.cache_file(find_java(), class_path)
    if file is None or file.exists():
        return file is not None
    on_progress("Preparing fast starts of Kafka, once for this machine (about 8 s)")
    with tempfile.TemporaryDirectory(prefix="sluice-warm-") as scratch, contextlib.suppress(EmbeddedError):
        recorded = _record(Path(scratch), class_path)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Copied next to its place first: a reader sees a whole cache or none.
        partial = file.with_suffix(f".{os.getpid()}")
        shutil.copyfile(recorded, partial)
        partial.replace(file)
    return file.exists()


def _record(home: Path, class_path: str) -> Path:
    """Run a broker in ``home`` until it serves, end it, and return the cache that its JVM wrote.

    Raises:
        EmbeddedError: the broker did not start, or its JVM wrote nothing.
    """
    (home / "logs").mkdir()
    output = home / "recorded.aot"
    kafka_port, controller_port = ports.free_ports(2)
    (broker,) = kafka_servers(
        home, [(kafka_port, controller_port)], class_path, cluster_id=new_cluster_id(), throughput=False
    )
    argv = [broker.argv[0], *start_cache.recording_flags(output), *broker.argv[1:]]
    supervised = Supervised(home, home / "logs" / "supervisor.log")
    try:
        pid = supervised.spawn(broker.name, argv, output=broker.output, env={**os.environ, **broker.env})
        readiness.wait_for_cluster(f"127.0.0.1:{broker.port}", _TIMEOUT_S)
        os.kill(pid, signal.SIGTERM)
        _wait_for(home / EXITS_FILE)
    finally:
        supervised.stop()
    if not output.exists():
        raise EmbeddedError(cause="the JVM wrote no start-up cache", next_step="go on without")
    return output


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise NotReady(
                cause="the broker's JVM took too long to write its start-up cache", next_step="go on without"
            )
        time.sleep(0.05)
