"""An open-loop generator in a process of its own: requests leave on a schedule, whatever becomes of the earlier ones.

The schedule follows from rate, duration and seed, so the harness knows when each request was due without being told;
latencies count from then, not from when a late generator got round to sending (no coordinated omission).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.models.bundle import open_bundle
from app.producer import OutputProducer
from app.settings import load_settings
from bench.workload import make_requests
from schemas.topic_names import REQUESTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.stack import Bench
    from schemas.records import Headers

POOL = 16_384
TICK_S = 0.0005
ID_BYTES = 10
"""``make_requests`` writes ids as ``r`` and nine digits."""


def due_s(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Poisson arrivals, seconds from the start; request i goes to partition ``i % partitions``.

    Example:
        >>> bool(abs(len(due_s(1000, 10, 1)) - 10_000) < 500)
        True

    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds * 1.1) + 100)
    arrivals = np.cumsum(gaps)
    return arrivals[arrivals < seconds]


class Generator:
    """The process; ready when the constructor returns."""

    def __init__(
        self, bench: Bench, model: str, *, rate: float, seconds: float, seed: int, deadline_ms: int = 0
    ) -> None:
        values = {
            "servers": bench.servers, "bundle": bench.repository / model / "1", "rate": rate, "seconds": seconds,
            "seed": seed, "deadline-ms": deadline_ms,
        }  # fmt: skip
        self.due_s = due_s(rate, seconds, seed)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load", *(f"--{name}={value}" for name, value in values.items())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            msg = "the load generator did not start; its error is above"
            raise RuntimeError(msg)

    def start(self) -> float:
        """Monotonic second at which the schedule starts."""
        assert self._process.stdin is not None
        start_s = time.monotonic() + 0.2
        self._process.stdin.write(f"{start_s!r}\n")
        self._process.stdin.flush()
        return start_s

    def stop(self) -> None:
        """End it, whether it is done or not."""
        self._process.kill()
        self._process.communicate()


async def _send(options: Any, start_s: float, keys: list[bytes], values: list[bytes], producer: OutputProducer) -> None:  # noqa: ANN401
    due = due_s(options.rate, options.seconds, options.seed) + start_s
    wall_s = time.time() - time.monotonic()
    deadlines = ((due + wall_s) * 1000).astype(np.int64) + options.deadline_ms
    sent, partitions = 0, options.partitions
    place = values[0].index(b"r%09d" % 0)
    while sent < len(due):
        now_s = time.monotonic()
        end = int(np.searchsorted(due, now_s, side="right"))
        for p in range(partitions):
            rows = range(sent + (p - sent) % partitions, end, partitions)
            if rows:
                headers: list[Headers] | None = (
                    [(("x-deadline-unix-ms", b"%d" % deadlines[i]),) for i in rows] if options.deadline_ms else None
                )
                chosen = [i % POOL for i in rows]
                fresh = [_with_number(values[i % POOL], place, i) for i in rows]
                await producer.send(REQUESTS, p, [keys[i] for i in chosen], fresh, headers)
        sent = max(sent, end)
        if sent < len(due):
            await asyncio.sleep(max(due[sent] - time.monotonic(), TICK_S))
    await producer.flush()


def _with_number(value: bytes, place: int, number: int) -> bytes:
    """The request with another id, for one that comes again would get its answer from memory."""
    return b"%br%09d%b" % (value[:place], number, value[place + ID_BYTES :])


async def _main(options: Any) -> None:  # noqa: ANN401 - argparse's namespace
    keys, values = make_requests(open_bundle(Path(options.bundle)), 0, POOL)
    settings = load_settings({"kafka": {"bootstrap_servers": options.servers}}, environ={}, toml=Path("none"))
    producer = OutputProducer(settings.kafka, client_id="load")
    await producer.start()
    gc.freeze()
    print("ready", flush=True)
    start_s = float(await asyncio.to_thread(sys.stdin.readline))
    await _send(options, start_s, keys, values, producer)
    await producer.stop()


def main() -> None:
    """The process's own entry."""
    import uvloop

    parser = argparse.ArgumentParser()
    for name in ("servers", "bundle"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("rate", "seconds"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--deadline-ms", type=int, default=0)
    parser.add_argument("--partitions", type=int, default=4)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
