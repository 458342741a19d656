"""The embedded stack: Apache Kafka and Valkey as processes of this machine, started, watched, adopted and stopped.

    with Stack.start(Path(".sluice")) as stack:
        print(stack.info.bootstrap_servers, stack.info.redis_url)

The data directory holds ``kafka-N/`` (partitions), ``valkey/``, ``logs/``, ``layout.json`` (what it was made for),
``stack.json`` (what runs) and ``exits.jsonl`` (which server ended by itself). A second start from the same directory
adopts what runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import time
from typing import TYPE_CHECKING

import psutil

from app.embedded import jars, ports, readiness
from app.embedded.errors import ProcessDied, StackConflict
from app.embedded.servers import Server, kafka_servers, new_cluster_id, tail, valkey_server
from app.embedded.stack_file import Process, StackInfo, load, running
from app.embedded.supervised import Supervised
from app.embedded.supervisor import EXITS_FILE, STACK_FILE, STOP_GRACE_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["Process", "Stack", "StackInfo", "running"]

_LAYOUT_FILE = "layout.json"
_LOCK_FILE = "start.lock"
_START_TIMEOUT_S = 90.0
_ATTEMPTS = 3
_NOTE_PATIENCE_S = 2.0


class Stack:
    """A running stack; as a context manager it stops at the end what it started, and leaves alone what it adopted.

    Attributes:
        info: addresses and processes.
        is_owner: whether this object started the servers, which then end with this process.
    """

    info: StackInfo
    is_owner: bool

    def __init__(self, info: StackInfo, servers: dict[str, Server], supervised: Supervised | None) -> None:
        """Use `start` or `adopt` instead."""
        self.info = info
        self._servers = servers
        self._supervised = supervised
        self.is_owner = supervised is not None

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        brokers: int = 1,
        kafka_port: int | None = None,
        redis_port: int | None = None,
        throughput: bool = False,
        detours: Sequence[tuple[int, int]] = (),
        on_progress: Callable[[str], None] | None = None,
    ) -> Stack:
        """Start the servers and return when they do what clients need, or adopt those that run already.

        Args:
            data_dir: where everything is kept; made if missing.
            brokers: 1 or 3 (a cluster for fault tests).
            kafka_port: port of the first broker, the others take the next ones; default: free ones.
            redis_port: port of Valkey; default: a free one.
            throughput: JVM flags for benchmarks: 1 GB of heap and full compilation.
            detours: for fault tests, one for each broker: a second port for clients, and the port of the proxy in
                front of it, which is what those clients are told.
            on_progress: told what happens, one line a call.

        Raises:
            PortTaken: a port that was asked for is in use.
            JarsNotAvailable: Kafka is not cached and cannot be downloaded.
            JavaNotUsable: there is no fitting Java.
            ProcessDied: a server ended while starting.
            NotReady: a server did not get ready within 90 s.
            StackConflict: another kind of stack runs, or lies in ``data_dir``.
            ValueError: ``brokers`` is neither 1 nor 3, or there are fewer or more detours than brokers.
        """
        if brokers not in {1, 3}:
            message = f"brokers must be 1 or 3, not {brokers}"
            raise ValueError(message)
        if detours and len(detours) != brokers:
            message = f"{len(detours)} detours for {brokers} broker(s): give one for each"
            raise ValueError(message)
        data_dir = data_dir.absolute()
        progress = on_progress or _silent
        data_dir.mkdir(parents=True, exist_ok=True)
        with _start_lock(data_dir, progress):
            info = running(data_dir)
            if info is not None:
                _require_same(info, brokers, kafka_port, redis_port)
                progress(f"Adopted the stack that runs in {data_dir}")
                return cls(info, {}, None)
            _stop_leftovers(data_dir, progress)
            given = (kafka_port, redis_port)
            return cls._launch(data_dir, brokers, given, progress, throughput=throughput, detours=detours)

    @classmethod
    def adopt(cls, data_dir: Path) -> Stack | None:
        """Return the stack that runs from ``data_dir``, None if none does."""
        info = running(data_dir.absolute())
        return None if info is None else cls(info, {}, None)

    @classmethod
    def _launch(
        cls,
        data_dir: Path,
        brokers: int,
        given: tuple[int | None, int | None],
        progress: Callable[[str], None],
        *,
        throughput: bool,
        detours: Sequence[tuple[int, int]],
    ) -> Stack:
        (data_dir / "logs").mkdir(exist_ok=True)
        cluster_id = _layout(data_dir, brokers)
        class_path = jars.class_path(progress)
        for attempt in range(1, _ATTEMPTS + 1):
            kafka_ports, controller_ports, redis_port = _choose_ports(brokers, *given)
            servers = kafka_servers(
                data_dir,
                list(zip(kafka_ports, controller_ports, strict=True)),
                class_path,
                cluster_id=cluster_id,
                throughput=throughput,
                detours=detours,
            )
            servers.append(valkey_server(data_dir, redis_port))
            try:
                return cls._bring_up(data_dir, servers, progress)
            except ProcessDied as error:
                # Between our look and the server's, somebody else may have taken a port; choose again.
                chosen = [*kafka_ports, *controller_ports, redis_port]
                if attempt == _ATTEMPTS or not _lost_a_port(error, chosen):
                    raise
                progress("A port was taken meanwhile, choosing others")
                _require_given_free(brokers, *given)
        message = "unreachable: the last attempt returns or raises"
        raise AssertionError(message)

    @classmethod
    def _bring_up(cls, data_dir: Path, servers: list[Server], progress: Callable[[str], None]) -> Stack:
        (data_dir / EXITS_FILE).unlink(missing_ok=True)
        supervised = Supervised(data_dir, data_dir / "logs" / "supervisor.log")
        try:
            processes = [_process("supervisor", supervised.pid, 0, data_dir / "logs" / "supervisor.log")]
            for server in servers:
                progress(f"Starting {server.name} on 127.0.0.1:{server.port}")
                processes.append(_spawn(supervised, server))
            *kafka, valkey = servers
            info = StackInfo(
                bootstrap_servers=",".join(f"127.0.0.1:{each.port}" for each in kafka),
                redis_url=f"redis://127.0.0.1:{valkey.port}/0",
                data_dir=data_dir,
                processes=tuple(processes),
            )
            stack = cls(info, {each.name: each for each in servers}, supervised)
            # Named on disk before it is ready, so that whatever happens now can be cleaned up by the next start.
            info.save()
            readiness.wait_for_redis(info.redis_port, _START_TIMEOUT_S, stack.check)
            readiness.wait_for_cluster(info.bootstrap_servers, _START_TIMEOUT_S, stack.check)
        except BaseException:
            supervised.stop()
            (data_dir / STACK_FILE).unlink(missing_ok=True)
            raise
        progress("Ready")
        return stack

    def check(self) -> None:
        """Return if all processes of the stack live.

        Raises:
            ProcessDied: one ended; names it and its log file.
        """
        exits = exit_statuses(self.info.data_dir)
        for each in self.info.processes:
            if each.pid in exits:
                raise _died(each, exits[each.pid])
        for each in self.info.processes:
            if each.find() is None:
                raise _died(each, _await_exit_status(self.info, each))

    def restart(self, name: str) -> StackInfo:
        """Start a server that died, on its old port and data, and wait until it serves; returns the new `info`.

        Args:
            name: ``kafka-1``, … or ``valkey``.

        Raises:
            StackConflict: it still lives, there is no server of that name, or another process owns the stack.
            EmbeddedError: it cannot be started.
        """
        server = self._servers.get(name)
        if server is None or self._supervised is None:
            raise StackConflict(
                cause=f"{name} is not a server that this process started", next_step="restart it where it was started"
            )
        if any(each.name == name and each.find() for each in self.info.processes):
            raise StackConflict(cause=f"{name} still runs", next_step="kill it first")
        fresh = _spawn(self._supervised, server)
        processes = tuple(fresh if each.name == name else each for each in self.info.processes)
        self.info = StackInfo(self.info.bootstrap_servers, self.info.redis_url, self.info.data_dir, processes)
        self.info.save()
        if name == "valkey":
            readiness.wait_for_redis(server.port)
        else:
            readiness.wait_for_cluster(self.info.bootstrap_servers)
        return self.info

    def detach(self) -> None:
        """Let the servers outlive this process; a single broker's stack ends as a whole when one server dies."""
        if self._supervised is not None:
            self._supervised.detach(stop_on_exit=len(self.info.brokers) == 1)
            self._supervised = None
            self.is_owner = False

    def stop(self, *, clean: bool = False) -> None:
        """Stop every process of the stack, adopted or not: SIGTERM, up to 10 s, SIGKILL. Safe to call twice.

        Args:
            clean: also delete the data, logs and configuration that the stack made.
        """
        if self._supervised is not None:
            self._supervised.stop()
        stop_processes(self.info)
        if clean:
            remove_data(self.info.data_dir)

    def __enter__(self) -> Self:
        """Return the stack itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what this object started."""
        if self.is_owner:
            self.stop()


def stop_processes(info: StackInfo) -> None:
    """Stop what ``info`` names and still lives: the supervisor stops its servers, then we kill what is left."""
    living = [process for each in info.processes if (process := each.find())]
    supervisor = info.supervisor.find() if info.processes else None
    for process in living if supervisor is None else [supervisor]:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(living, timeout=STOP_GRACE_S + 2.0)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5.0)
    (info.data_dir / STACK_FILE).unlink(missing_ok=True)


def remove_data(data_dir: Path) -> None:
    """Delete what a stack made in ``data_dir``, and the directory if nothing else is in it.

    Raises:
        StackConflict: no stack was ever started there; nothing is deleted.
    """
    if not (data_dir / _LAYOUT_FILE).exists():
        raise StackConflict(
            cause=f"{data_dir} was not made by a stack, so nothing was deleted", next_step="give the right --data-dir"
        )
    ours = [each for each in data_dir.iterdir() if re.fullmatch(r"kafka-\d|valkey|logs", each.name)]
    for directory in ours:
        shutil.rmtree(directory, ignore_errors=True)
    for name in (STACK_FILE, EXITS_FILE, "log4j2.properties", _LOCK_FILE, _LAYOUT_FILE):
        (data_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        data_dir.rmdir()


def _silent(_line: str) -> None:
    """Tell nobody."""


@contextlib.contextmanager
def _start_lock(data_dir: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time start a stack here; the kernel drops the lock when its holder dies."""
    path = data_dir / _LOCK_FILE
    while True:
        with path.open("a", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("Waiting for another start in the same data directory")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # `remove_data` may have deleted the file while we waited: then it guards nothing any more.
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return
            data_dir.mkdir(parents=True, exist_ok=True)


def _require_same(info: StackInfo, brokers: int, kafka_port: int | None, redis_port: int | None) -> None:
    asked = (brokers, kafka_port or info.kafka_ports[0], redis_port or info.redis_port)
    found = (len(info.brokers), info.kafka_ports[0], info.redis_port)
    if asked != found:
        raise StackConflict(
            cause=f"(brokers, Kafka port, Redis port) {found} run in {info.data_dir}, {asked} were asked for",
            next_step="`sluice down` first, or use another --data-dir",
        )


def _stop_leftovers(data_dir: Path, progress: Callable[[str], None]) -> None:
    info = load(data_dir)
    if info is None:
        return
    if any(each.find() for each in info.processes):
        progress("Stopping what an earlier stack left behind")
    stop_processes(info)


def _layout(data_dir: Path, brokers: int) -> str:
    """Return the cluster id of the data directory, made at the first start.

    Raises:
        StackConflict: the directory was made for another number of brokers.
    """
    path = data_dir / _LAYOUT_FILE
    if not path.exists():
        path.write_text(json.dumps({"brokers": brokers, "cluster_id": new_cluster_id()}) + "\n", encoding="utf-8")
    layout = json.loads(path.read_text(encoding="utf-8"))
    if layout["brokers"] != brokers:
        raise StackConflict(
            cause=f"{data_dir} was made for {layout['brokers']} broker(s), {brokers} were asked for",
            next_step="use another --data-dir, or `sluice down --clean` to delete its data",
        )
    return str(layout["cluster_id"])


def _choose_ports(brokers: int, kafka_port: int | None, redis_port: int | None) -> tuple[list[int], list[int], int]:
    """Return the client ports, the controller ports and Valkey's port.

    Raises:
        PortTaken: a given one is in use.
    """
    _require_given_free(brokers, kafka_port, redis_port)
    given = [] if kafka_port is None else list(range(kafka_port, kafka_port + brokers))
    taken = {*given, redis_port}
    free = [port for port in ports.free_ports(2 * brokers + 1 + len(taken)) if port not in taken]
    kafka = given or free[:brokers]
    return kafka, free[brokers : 2 * brokers], redis_port or free[2 * brokers]


def _require_given_free(brokers: int, kafka_port: int | None, redis_port: int | None) -> None:
    if kafka_port is not None:
        for port in range(kafka_port, kafka_port + brokers):
            ports.require_free(port, "--kafka-port")
    if redis_port is not None:
        ports.require_free(redis_port, "--redis-port")


def _lost_a_port(error: ProcessDied, chosen: list[int]) -> bool:
    """Tell whether a server ended because its port was taken: its log says so, or somebody still holds a port."""
    said_so = any(sign in str(error) for sign in ("BindException", "Address already in use", "Failed to bind"))
    return said_so or any(ports.answers(port) for port in chosen)


def _process(name: str, pid: int, port: int, log: Path) -> Process:
    try:
        started = psutil.Process(pid).create_time()
    except psutil.Error:
        started = 0.0  # it ended at once; `check` will say so
    return Process(name, pid, started, port, log)


def _spawn(supervised: Supervised, server: Server) -> Process:
    env = {**os.environ, **server.env}
    pid = supervised.spawn(server.name, server.argv, output=server.output, env=env, grace_s=server.grace_s)
    return _process(server.name, pid, server.port, server.log)


def exit_statuses(data_dir: Path) -> dict[int, int]:
    """Return pid to exit status of the servers that ended by themselves."""
    try:
        lines = (data_dir / EXITS_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {each["pid"]: each["returncode"] for each in map(json.loads, lines)}


def _await_exit_status(info: StackInfo, process: Process) -> int | None:
    """Give a living supervisor a moment to note how ``process`` ended; None if it does not know either."""
    deadline = time.monotonic() + _NOTE_PATIENCE_S
    while process.pid not in exit_statuses(info.data_dir) and time.monotonic() < deadline and info.supervisor.find():
        time.sleep(0.02)
    return exit_statuses(info.data_dir).get(process.pid)


def _died(process: Process, returncode: int | None) -> ProcessDied:
    if returncode is None:
        how = "it is gone"
    elif returncode < 0:
        how = f"killed by {signal.Signals(-returncode).name}"
    else:
        how = f"exit status {returncode}"
    last = "\n".join(filter(None, (tail(process.log), tail(process.log.with_suffix(".out"), 4))))
    return ProcessDied(f"{process.name} (pid {process.pid})", process.log, how, last, returncode)
