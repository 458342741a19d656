"""Two workers that serve the same 1 GB bundle: its memory is there once.

The weights are mapped from the file, so both processes have the same pages. The proportional set size (PSS) of Linux
divides a page among those that map it: what is shared counts half for each, what is private in full.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from app.models.bundle_files import WEIGHTS
from bench.cold_start import with_requests
from bench.contenders import OURS, Running, wait_until_ready
from bench.sized_bundles import MODEL, make_sized_bundle, weights_mb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.stack import Bench

MEGABYTES, QUICK_MEGABYTES = 1000, 1
VERSION = 1


async def run(bench: Bench) -> dict[str, Any]:
    """RSS and PSS of one worker alone, then of two, whole and of the weights' mapping."""
    megabytes = QUICK_MEGABYTES if bench.is_quick else MEGABYTES
    bundle = await asyncio.to_thread(make_sized_bundle, bench.repository, VERSION, megabytes)
    await with_requests(bench, bundle)
    serve = {"SLUICE_MODELS__SERVE": f"{MODEL}@{VERSION}"}
    with Running(bench, OURS, MODEL, env=serve) as first:
        await wait_until_ready(first, bench)
        alone = memory_mb(first.processes[0].pid)
        with Running(bench, OURS, MODEL, env=serve) as second:
            await wait_until_ready(second, bench)
            both = [memory_mb(running.processes[0].pid) for running in (first, second)]
    print(f"  alone {alone}\n  both  {both}", flush=True)
    return {
        "weights_mb": weights_mb(bundle.folder),
        "alone": alone,
        "both": both,
        "weights_pss_mb": round(sum(each["weights_pss_mb"] for each in both), 1),
    }


def memory_mb(pid: int) -> dict[str, float]:
    """Resident and proportional set of a process, whole and of its mappings of weights, MB."""
    whole = _sum(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    weights = _sum(_mapping_lines(pid, WEIGHTS))
    return {
        "rss_mb": whole["Rss"],
        "pss_mb": whole["Pss"],
        "weights_rss_mb": weights.get("Rss", 0.0),
        "weights_pss_mb": weights.get("Pss", 0.0),
        "private_mb": round(psutil.Process(pid).memory_full_info().uss / 1e6, 1),
    }


def _mapping_lines(pid: int, suffix: str) -> Iterator[str]:
    """The lines of ``smaps`` below the heads of mappings of a file."""
    is_wanted = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            is_wanted = line.endswith(suffix)
        elif is_wanted:
            yield line


def _sum(lines: Iterator[str] | list[str]) -> dict[str, float]:
    total: dict[str, int] = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            total[name] = total.get(name, 0) + int(rest.split()[0])
    return {name: round(kib * 1024 / 1e6, 1) for name, kib in total.items()}
