"""``python -m bench [PART ...] [--quick]``: run benchmarks, print tables, write ``bench/results/*.json``."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import (
    codec,
    cold_start,
    delivery,
    device,
    hostile,
    latency,
    mapped,
    measuring,
    memory,
    overload,
    precision,
    redis_faults,
    remote,
    replay,
    report,
    results,
    swaps,
    throughput,
)
from bench.contenders import repository_root
from bench.stack import Bench, no_stack, running_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Part = Callable[[Bench], Coroutine[Any, Any, dict[str, Any]]]

PARTS: dict[str, Part] = {
    "throughput": throughput.run,
    "features": partial(throughput.run, with_store=True),
    "latency": latency.run,
    "overload": overload.run,
    "delivery": delivery.run,
    "replay": replay.run,
    "hostile": hostile.run,
    "redis_faults": redis_faults.run,
    "codec": codec.run,
    "measuring": measuring.run,
    "memory": partial(memory.run, requests=2_000_000),
    "memory-10m": partial(memory.run, requests=10_000_000),
    "gpu": device.run,
    "swaps": swaps.run,
    "cold_start": cold_start.run,
    "mapped": mapped.run,
    "remote": remote.run,
    "precision": precision.run,
}
WITHOUT_BROKER = {"codec", "measuring", "precision", "gpu"}
DEFAULT = [part for part in PARTS if part not in {"memory-10m", "gpu"}]


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, or everything but ``memory-10m`` and ``gpu``."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: {', '.join(DEFAULT)}")
    parser.add_argument("--quick", action="store_true", help="a smoke run: nothing is saved, its figures mean nothing")
    parser.add_argument("--report", action="store_true", help="only write RESULTS.md anew from the saved results")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    os.chdir(repository_root())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped
    for part in [] if given.report else given.parts or DEFAULT:
        _run(part, is_quick=given.quick)
    if not given.quick:
        report.write()
    return 0


def _run(part: str, *, is_quick: bool) -> None:
    started_s, load = time.monotonic(), os.getloadavg()
    print(f"{part} ...", flush=True)
    stack = no_stack if part in WITHOUT_BROKER else running_stack
    with stack(is_quick=is_quick) as bench:
        figures: dict[str, Any] = asyncio.run(PARTS[part](bench))
        settings = bench.settings().model_dump(
            mode="json", include={"kafka", "redis", "batching", "budget", "delivery"}
        )
        settings["kafka"].pop("bootstrap_servers")
        settings["redis"].pop("url")
    if not is_quick:
        command = f"python -m bench {part}"
        results.save(part, figures, command=command, settings=settings, load_before=load[0])
    print(f"{part}: {time.monotonic() - started_s:.0f} s\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
