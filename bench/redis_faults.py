"""Latency while the feature store hangs or is dead, beside the steady state: open loop, one worker, one moderate rate.

The store is a Valkey of the run's own, which is frozen (SIGSTOP), thawed, killed and started again under the worker.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from app.embedded.ports import answers, free_ports
from app.embedded.servers import valkey_server
from bench.contenders import OURS, Running, wait_until_ready
from bench.latency import follow, quantiles
from bench.load import Generator
from bench.reader import Reader
from bench.stack import Bench, fresh_topics
from bench.workload import STORE_MODEL, fill_store, make_store_bundle
from schemas.topic_names import SCORES

if TYPE_CHECKING:
    from app.models.bundle import Bundle

RATE = 500.0
WARM_S = 3.0
PHASES = [
    *[("steady", 10.0), ("hung", 10.0), ("recovery", 3.0)] * 2,
    *[("steady", 5.0), ("killed", 10.0), ("recovery", 3.0)],
]
QUICK = [("steady", 1.0), ("hung", 1.0), ("recovery", 1.0), ("killed", 1.0), ("recovery", 1.0)]


async def run(bench: Bench) -> dict[str, Any]:
    """Quantiles of each phase, what the faults added, and how every request was answered."""
    bundle = make_store_bundle(bench.repository)
    phases = QUICK if bench.is_quick else PHASES
    await fresh_topics(bench)
    store = _Store(bench, bundle)
    await store.start()
    try:
        waits_s, due_s, stats = await _measured(bench, store, phases)
    finally:
        store.kill()
    ends_s = WARM_S + np.cumsum([seconds for _, seconds in phases])
    phase = np.searchsorted(ends_s, due_s, side="right")
    rows = {}
    for name in dict.fromkeys(name for name, _ in phases):
        wanted = (due_s >= WARM_S) & np.isin(phase, [i for i, (other, _) in enumerate(phases) if other == name])
        rows[name] = quantiles(waits_s[wanted]) | {"max_ms": round(float(waits_s[wanted].max()) * 1000, 2)}
        print(f"  {name:9} {rows[name]}", flush=True)
    return {
        "rate_per_s": RATE,
        "phases": phases,
        "latency": rows,
        "added_p99_hung_ms": round(rows["hung"]["p99_ms"] - rows["steady"]["p99_ms"], 2),
        "added_p99_killed_ms": round(rows["killed"]["p99_ms"] - rows["steady"]["p99_ms"], 2),
        "sent": len(due_s),
        "answered": int(np.isfinite(waits_s).sum()),
        "statuses": stats["statuses"],
        "counters": {name: n for name, n in stats["counters"].items() if "feature" in name or "store" in name},
        "micro_batches": stats["batches"]["executions"],
    }


async def _measured(
    bench: Bench, store: _Store, phases: list[tuple[str, float]]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Waits and due times of all requests in seconds, and the worker's own figures."""
    async with Reader(bench, SCORES, from_end=True) as reader:
        with Running(bench, OURS, STORE_MODEL, env={"REDIS_URL": store.url}) as running:
            url = await wait_until_ready(running, bench)
            seconds = WARM_S + sum(seconds for _, seconds in phases)
            generator = Generator(bench, STORE_MODEL, rate=RATE, seconds=seconds, seed=1)
            start_s = generator.start()
            faults = asyncio.create_task(_faults(store, phases))
            try:
                waits_s = await follow(reader, generator.due_s, start_s)
                await faults
            finally:
                generator.stop()
                faults.cancel()
            async with httpx.AsyncClient() as client:
                document = (await client.get(url + "/stats")).json()
    return waits_s, generator.due_s, document["workers"][document["worker"]]["stats"]


async def _faults(store: _Store, phases: list[tuple[str, float]]) -> None:
    await asyncio.sleep(WARM_S + 0.2)  # the generator starts 0.2 s after it is told
    for name, seconds in phases:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        if name == "hung":
            store.freeze()
        elif name == "killed":
            store.kill()
        elif name == "recovery":
            await store.recover()
        await asyncio.sleep(until_s - loop.time())


class _Store:
    """A Valkey with the benchmark's rows."""

    def __init__(self, bench: Bench, bundle: Bundle) -> None:
        port = free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{port}/0"
        self._port, self._bundle = port, bundle
        self._settings = bench.settings(redis={"url": self.url})
        self._argv = valkey_server(bench.folder / "faulty", port).argv
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, filled."""
        await asyncio.to_thread(self._spawn)
        await fill_store(self._settings, self._bundle)

    def _spawn(self) -> None:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not answers(self._port):
            time.sleep(0.02)

    def freeze(self) -> None:
        """SIGSTOP: its connections stay, and are silent."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    async def recover(self) -> None:
        """Thaw it, or start it again when it is dead."""
        if self._process is None:
            await self.start()
        else:
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
