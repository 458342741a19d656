"""The embedded stack with its real processes: start, adopt, stop, and every way in which it can lose its owner."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.embedded import ports, start_cache
from app.embedded.errors import NotReady, PortTaken, ProcessDied, StackConflict
from app.embedded.jars import class_path
from app.embedded.java import find_java
from app.embedded.readiness import wait_for_leaders, wait_for_leaders_async
from app.embedded.stack import Stack, StackInfo, running
from app.embedded.warm import prepare_fast_starts

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0
OWNER = """
import json, sys, time
from pathlib import Path
from app.embedded.stack import Stack
stack = Stack.start(Path(sys.argv[1]))
print(json.dumps([each.pid for each in stack.info.processes]), flush=True)
if sys.argv[2] == "stay":
    time.sleep(300)
"""
CLI = "import typer; from app.embedded.commands import register; cli = typer.Typer(); register(cli); cli()"


@contextlib.contextmanager
def python(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``code`` in an interpreter of its own; kill it at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_pids(process: subprocess.Popen[str]) -> list[int]:
    """Return the pids that an owner prints when its stack is ready."""
    assert process.stdout is not None
    return [int(pid) for pid in json.loads(process.stdout.readline())]


def sluice(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line to its end."""
    return subprocess.run(
        [sys.executable, "-c", CLI, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def living(pids: list[int]) -> list[int]:
    """Return those of ``pids`` that still live; zombies have ended."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


def assert_all_end(pids: list[int]) -> None:
    """Wait, with a bound, until none of ``pids`` lives."""
    deadline = time.monotonic() + PATIENCE_S
    while living(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert living(pids) == []


def pids_of(info: StackInfo) -> list[int]:
    """Return all pids of a stack."""
    return [each.pid for each in info.processes]


async def create_topic(bootstrap_servers: str, name: str, *, partitions: int = 4, replicas: int = 1) -> None:
    """Create a topic and wait for its leaders."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, replicas)])
    finally:
        await admin.close()
    await wait_for_leaders_async(bootstrap_servers, [name])


async def test_records_and_keys_come_back(bootstrap_servers: str, redis_url: str) -> None:
    """A record sent to the session's Kafka and a key set in its Redis can be read again."""
    topic = f"round-trip-{os.getpid()}"
    await create_topic(bootstrap_servers, topic)
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", enable_idempotence=True) as producer:
        sent = await producer.send_and_wait(topic, b"value", key=b"key", timestamp_ms=1_357_000_000_000)
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=bootstrap_servers, group_id=topic, auto_offset_reset="earliest"
    ) as consumer:
        record = await consumer.getone()
    assert (record.partition, record.offset, record.key, record.value) == (
        sent.partition,
        sent.offset,
        b"key",
        b"value",
    )
    with redis.Redis.from_url(redis_url) as client:
        client.set(topic, "1", ex=60)
        assert client.get(topic) == b"1"


def test_missing_topic_is_named(bootstrap_servers: str) -> None:
    """Waiting for a topic that nobody creates ends with its name, and asking does not create it."""
    for _ in range(2):
        with pytest.raises(NotReady, match="no-such-topic"):
            wait_for_leaders(bootstrap_servers, ["no-such-topic"], timeout_s=0.2)


async def test_stop_leaves_nothing_and_keeps_data(tmp_path: Path) -> None:
    """Stop ends every process; a second start has the same topics; a stop with ``clean`` deletes all."""
    home = tmp_path / "home"
    stack = Stack.start(home)
    assert running(home) == stack.info
    await create_topic(stack.info.bootstrap_servers, "kept", partitions=2)
    stack.stop()
    stack.stop()
    assert living(pids_of(stack.info)) == []
    assert running(home) is None
    again = Stack.start(home)
    await wait_for_leaders_async(again.info.bootstrap_servers, ["kept"])
    again.stop(clean=True)
    assert not home.exists()


def test_starts_at_once_share_one_stack(tmp_path: Path) -> None:
    """Of two processes that start from one directory, one owns the stack, and the other's end does not touch it."""
    with python(OWNER, str(tmp_path), "stay") as first, python(OWNER, str(tmp_path), "stay") as second:
        pids = read_pids(first)
        assert read_pids(second) == pids
        owner = psutil.Process(pids[0]).ppid()
        adopter = second if owner == first.pid else first
        adopter.kill()
        adopter.wait()
        info = running(tmp_path)
        assert info is not None
        assert pids_of(info) == pids
        with pytest.raises(StackConflict, match="down"):
            Stack.start(tmp_path, brokers=3)
        with Stack.start(tmp_path) as adopted:
            assert not adopted.is_owner
        assert living(pids) == pids
    assert_all_end(pids)


def test_given_ports_are_used_and_taken_ones_refused(tmp_path: Path) -> None:
    """A given port that somebody holds is refused with the holder's name, before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        for wish in ({"kafka_port": port}, {"redis_port": port}):
            with pytest.raises(PortTaken, match=rf"{port}.*pid {os.getpid()}"):
                Stack.start(tmp_path, **wish)
    assert running(tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["kafka", "controller", "valkey"])
def test_port_that_is_lost_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    """When somebody takes a port between our look and the server's, others are chosen and the start succeeds."""
    real = ports.free_ports
    with socket.create_server(("127.0.0.1", 0)) as thief:
        stolen = thief.getsockname()[1]
        choices = iter([True])

        def free_ports(count: int) -> list[int]:
            found = real(count)
            if next(choices, False):
                found[["kafka", "controller", "valkey"].index(victim)] = stolen
            return found

        monkeypatch.setattr(ports, "free_ports", free_ports)
        told: list[str] = []
        with Stack.start(tmp_path, on_progress=told.append) as stack:
            stack.check()
            assert stolen not in {each.port for each in stack.info.processes}
    assert "A port was taken meanwhile, choosing others" in told


def test_owner_that_dies_leaves_no_orphan(tmp_path: Path) -> None:
    """When the owner is killed, supervisor, broker and store end too."""
    with python(OWNER, str(tmp_path), "stay") as owner:
        pids = read_pids(owner)
        assert living(pids) == pids
        owner.kill()
        owner.wait()
        assert_all_end(pids)


def test_supervisor_that_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    """Even when the supervisor itself is killed, the kernel ends its servers, and the next start works."""
    stack = Stack.start(tmp_path)
    os.kill(stack.info.supervisor.pid, signal.SIGKILL)
    assert_all_end(pids_of(stack.info))
    with pytest.raises(ProcessDied, match="supervisor"):
        stack.check()
    stack.stop()


def test_dead_servers_are_named_and_restarted(tmp_path: Path) -> None:
    """A killed broker is reported with signal and log file; it comes back on its port, and so does the store."""
    with Stack.start(tmp_path) as stack:
        stack.check()
        os.kill(stack.info.broker_pids[0], signal.SIGKILL)
        assert_all_end(list(stack.info.broker_pids))
        with pytest.raises(ProcessDied, match=r"kafka-1.*SIGKILL.*kafka-1\.log") as death:
            stack.check()
        assert death.value.log.stat().st_size > 0
        assert running(tmp_path) is None
        assert stack.restart("kafka-1").broker_pids != ()
        stack.check()
        assert running(tmp_path) == stack.info
        os.kill(stack.info.redis_pid, signal.SIGKILL)
        assert_all_end([stack.info.redis_pid])
        stack.restart("valkey")
        stack.check()
        with pytest.raises(StackConflict, match="still runs"):
            stack.restart("valkey")
        with pytest.raises(StackConflict, match="nobody"):
            stack.restart("nobody")


def test_broker_that_cannot_start_is_reported(tmp_path: Path) -> None:
    """A broker that ends while starting is an error that quotes its log, and nothing is left running."""
    Stack.start(tmp_path).stop()
    (tmp_path / "kafka-1" / "data" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=7\n")
    with pytest.raises(ProcessDied, match=r"(?s)kafka-1 .*exit status 1.*node id.*Next: "):
        Stack.start(tmp_path)
    assert running(tmp_path) is None
    assert not (tmp_path / "stack.json").exists()


def test_up_in_the_foreground_ends_with_ctrl_c(tmp_path: Path) -> None:
    """``sluice up`` says where everything is, and Ctrl-C stops it all with status 0."""
    with python(CLI, "up", "--data-dir", str(tmp_path)) as up:
        assert up.stdout is not None
        lines = list(iter(up.stdout.readline, "Running; Ctrl-C stops it.\n"))
        info = running(tmp_path)
        assert info is not None
        assert f"KAFKA_BOOTSTRAP_SERVERS={info.bootstrap_servers}\n" in lines
        up.send_signal(signal.SIGINT)
        assert up.wait() == 0
        assert living(pids_of(info)) == []


def test_up_notices_deaths_and_down(tmp_path: Path) -> None:
    """``sluice up`` ends with status 0 when ``sluice down`` stops the stack, and with 1 when the store dies."""
    for ending, expected in (("down", 0), ("death", 1)):
        with python(CLI, "up", "--data-dir", str(tmp_path)) as up:
            assert up.stdout is not None
            list(iter(up.stdout.readline, "Running; Ctrl-C stops it.\n"))
            info = running(tmp_path)
            assert info is not None
            if ending == "down":
                assert sluice("down", "--data-dir", str(tmp_path)).returncode == 0
            else:
                os.kill(info.redis_pid, signal.SIGKILL)
            assert up.wait() == expected
            assert living(pids_of(info)) == []


def test_detached_stack_lives_until_down(tmp_path: Path) -> None:
    """``up --detach`` leaves a stack that ``status`` shows and ``down --clean`` removes with its data."""
    home = tmp_path / "home"
    started = sluice("up", "--detach", "--data-dir", str(home))
    assert started.returncode == 0, started.stderr
    info = running(home)
    assert info is not None
    shown = sluice("status", "--data-dir", str(home))
    assert shown.returncode == 0
    assert all(str(pid) in shown.stdout for pid in pids_of(info))
    assert sluice("down", "--clean", "--data-dir", str(home)).returncode == 0
    assert living(pids_of(info)) == []
    assert not home.exists()


def test_detached_stack_ends_as_a_whole(tmp_path: Path) -> None:
    """When the broker of a detached stack dies the store ends too, ``status`` says who died, and ``up`` repairs it."""
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(sluice, "down", "--data-dir", str(tmp_path))
        stack = Stack.start(tmp_path)
        stack.detach()
        os.kill(stack.info.broker_pids[0], signal.SIGKILL)
        assert_all_end(pids_of(stack.info))
        shown = sluice("status", "--data-dir", str(tmp_path))
        assert shown.returncode == 3
        assert "died, status -9" in shown.stdout
        with Stack.start(tmp_path) as repaired:
            assert repaired.is_owner


@pytest.mark.slow
def test_start_cache_is_made_used_and_never_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged start-up cache does not keep a broker from starting; a missing one is made once and then used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = start_cache.cache_file(find_java(), class_path(print))
    assert file is not None
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not a cache")
    with Stack.start(tmp_path / "damaged") as stack:
        stack.check()
    file.unlink()
    told: list[str] = []
    assert prepare_fast_starts(told.append)
    assert prepare_fast_starts(told.append)
    assert len(told) == 1
    assert list(file.parent.iterdir()) == [file]
    with Stack.start(tmp_path / "fast") as stack:
        assert f"-XX:AOTCache={file}" in psutil.Process(stack.info.broker_pids[0]).cmdline()


@pytest.mark.slow
async def test_three_brokers_survive_the_loss_of_one(tmp_path: Path) -> None:
    """Three brokers form a cluster; with one killed, a replicated topic gets leaders again and takes records."""
    with Stack.start(tmp_path, brokers=3) as stack:
        servers = stack.info.bootstrap_servers
        await create_topic(servers, "replicated", partitions=6, replicas=3)
        os.kill(stack.info.broker_pids[2], signal.SIGKILL)
        await wait_for_leaders_async(servers, ["replicated"])
        async with AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True) as producer:
            for partition in range(6):
                await producer.send_and_wait("replicated", b"value", partition=partition)
        stack.restart("kafka-3")
        stack.check()


def test_other_numbers_of_brokers_are_refused(tmp_path: Path) -> None:
    """Two brokers lose their quorum with either, and a directory made for three is not taken for one."""
    with pytest.raises(ValueError, match="1 or 3"):
        Stack.start(tmp_path, brokers=2)
    (tmp_path / "layout.json").write_text('{"brokers": 3, "cluster_id": "x"}')
    with pytest.raises(StackConflict, match="made for 3"):
        Stack.start(tmp_path)
