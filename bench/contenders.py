"""Contenders as processes: started, measured from the outside, killed by their pid."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from app.embedded.ports import free_ports
from schemas.topic_names import PREDICTIONS, SCORES

if TYPE_CHECKING:
    from typing import Self

    from bench.stack import Bench, Ends

POLL_S = 0.05
START_TIMEOUT_S = 90.0
RUN_TIMEOUT_S = 180.0
WARM_SHARE = 0.05
"""Share of the requests that pass before the measurement begins."""
_runs = count()


@dataclass(frozen=True, slots=True)
class Kind:
    """One contender.

    Attributes:
        name: as the tables call it.
        module: run with ``python -m``.
        needs: the package that must be there.
        slowness: its requests are the run's divided by this, so that a slow one takes as long as a fast one.

    """

    name: str
    module: str
    needs: str
    slowness: int

    @property
    def is_installed(self) -> bool:
        """Whether it can run here."""
        return self.needs in sys.modules or importlib.util.find_spec(self.needs) is not None


OURS = Kind("sluice", "app.cli", "faust", 1)
KINDS = (
    OURS,
    Kind("confluent loop", "bench.peers.confluent_loop", "confluent_kafka", 2),
    Kind("bytewax", "bench.peers.bytewax_flow", "bytewax", 4),
    Kind("faststream", "bench.peers.faststream_batch", "faststream", 8),
    Kind("quix", "bench.peers.quix", "quixstreams", 8),
    Kind("aiokafka loop", "bench.peers.aiokafka_loop", "aiokafka", 8),
    Kind("faust take", "bench.peers.faust_take", "faust", 32),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one contender.

    Attributes:
        requests_per_s: answers over wall time.
        cpu_us: CPU microseconds of the process and its children, for each answer.
        rss_mb: largest resident set of one process.
        evidence_share: records on ``predictions-log`` for each on ``scores``; about 1.

    """

    requests_per_s: float
    cpu_us: float
    rss_mb: float
    evidence_share: float


class Running:
    """Processes of one contender, in a group of their own."""

    def __init__(
        self, bench: Bench, kind: Kind, model: str, *, workers: int = 1, env: dict[str, str] | None = None
    ) -> None:
        self.group = f"bench-{os.getpid()}-{next(_runs)}"
        self.kafka_group = f"{self.group}-scoring" if kind is OURS else self.group
        ports = free_ports(workers)
        self.url = f"http://127.0.0.1:{ports[0]}"
        self._kind = kind
        self._log = bench.folder / f"{self.group}.log"
        mine = {
            "KAFKA_BOOTSTRAP_SERVERS": bench.servers, "REDIS_URL": bench.redis_url, "OMP_NUM_THREADS": "1",
            "BENCH_GROUP": self.group, "BENCH_REPOSITORY": str(bench.repository), "BENCH_MODEL": model,
            "SLUICE_DEPLOYMENT": self.group, "SLUICE_MODELS__REPOSITORY": str(bench.repository),
            "SLUICE_MODELS__NAME": model,
        }  # fmt: skip
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "KAFKA_", "REDIS_", "SCHEMA_"))
        }
        command = [sys.executable, "-m", kind.module, *(["worker", "scoring"] if kind is OURS else [])]
        with self._log.open("ab") as log:
            self.processes = [
                subprocess.Popen(
                    command, env={**inherited, **mine, "SLUICE_WEB__PORT": str(port), **(env or {})},
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                )
                for port in ports
            ]  # fmt: skip
        self._views = [psutil.Process(p.pid) for p in self.processes]

    def check(self) -> None:
        """Raise when one of them has ended.

        Raises:
            RuntimeError: with the end of its log.

        """
        for process in self.processes:
            if process.poll() is not None:
                msg = f"{self._kind.name} ended with {process.returncode}:\n{self._log.read_text()[-3000:]}"
                raise RuntimeError(msg)

    def cpu_s(self) -> float:
        """CPU seconds of all processes and their children so far."""
        return sum(sum(each.cpu_times()[:2]) for view in self._views for each in [view, *view.children(recursive=True)])

    def rss_mb(self) -> float:
        """Resident set of the largest process."""
        return max(float(view.memory_info().rss) for view in self._views) / 2**20

    def stop(self) -> None:
        """Kill them all."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def __enter__(self) -> Self:
        """The processes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        self.stop()


async def measure(
    bench: Bench,
    ends: Ends,
    kind: Kind,
    model: str,
    requests: int,
    *,
    workers: int = 1,
    env: dict[str, str] | None = None,
) -> Sample:
    """Run a contender from the start of the topic until it has given ``requests`` answers.

    Raises:
        RuntimeError: it ended by itself.
        TimeoutError: it is too slow.

    """
    before, log_before = await ends.of(SCORES), await ends.of(PREDICTIONS)
    with Running(bench, kind, model, workers=workers, env=env) as running:
        started = {"answers": before, "at_s": time.monotonic(), "cpu_s": running.cpu_s()}
        first = await _reached(running, ends, before + max(1, int(requests * WARM_SHARE)), START_TIMEOUT_S)
        last = await _reached(running, ends, before + requests, RUN_TIMEOUT_S)
        evidence = await ends.of(PREDICTIONS) - log_before
    if first["answers"] == last["answers"]:  # a smoke run: all came between two looks, so the start counts too
        first = started
    answers = last["answers"] - first["answers"]
    return Sample(
        requests_per_s=answers / (last["at_s"] - first["at_s"]),
        cpu_us=(last["cpu_s"] - first["cpu_s"]) * 1e6 / answers,
        rss_mb=last["rss_mb"],
        evidence_share=evidence / (last["answers"] - before),
    )


async def wait_until_ready(running: Running, bench: Bench) -> str:
    """Wait until a contender has its partitions; returns the address of our worker's web server.

    Raises:
        TimeoutError: it does not get there.

    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bench.servers)
    await admin.start()
    deadline_s = time.monotonic() + START_TIMEOUT_S
    try:
        while time.monotonic() < deadline_s:
            running.check()
            if await _is_stable(admin, running.kafka_group):
                await asyncio.sleep(1.0)  # the first fetch is under way
                return running.url
            await asyncio.sleep(0.1)
    finally:
        await admin.close()
    msg = f"group {running.kafka_group} is not stable after {START_TIMEOUT_S:.0f} s"
    raise TimeoutError(msg)


async def _is_stable(admin: AIOKafkaAdminClient, group: str) -> bool:
    with contextlib.suppress(KafkaError):
        for response in await admin.describe_consumer_groups([group]):
            return any(g[2] == "Stable" and g[5] for g in response.groups)
    return False


async def _reached(running: Running, ends: Ends, wanted: int, timeout_s: float) -> dict[str, Any]:
    deadline_s = time.monotonic() + timeout_s
    rss_mb = 0.0
    while True:
        running.check()
        rss_mb = max(rss_mb, running.rss_mb())
        answers = await ends.of(SCORES)
        if answers >= wanted:
            return {"answers": answers, "at_s": time.monotonic(), "cpu_s": running.cpu_s(), "rss_mb": rss_mb}
        if time.monotonic() > deadline_s:
            msg = f"{answers} of {wanted} answers after {timeout_s:.0f} s"
            raise TimeoutError(msg)
        await asyncio.sleep(POLL_S)


def repository_root() -> Path:
    """Where the processes must run: schemas are found from here."""
    return Path(__file__).resolve().parents[1]
