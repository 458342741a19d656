"""A repository over HTTP that breaks off in the middle of the weights: what a worker makes of it, start by start.

The first start ends with the reason, for there is nothing to serve; whoever supervises the worker starts it again. The
second one asks for the rest of the file; from a server without ranges it fetches the whole again. The third one has the
bundle in its cache.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from bench.breaking_server import BreakingServer
from bench.cold_start import compiled_python, measured_start, with_requests
from bench.contenders import OURS, START_TIMEOUT_S, Running
from bench.sized_bundles import MODEL, make_sized_bundle, weights_mb

if TYPE_CHECKING:
    from app.models.bundle import Bundle
    from bench.stack import Bench

MEGABYTES, QUICK_MEGABYTES = 100, 8
VERSION = 1


async def run(bench: Bench) -> dict[str, Any]:
    """Three starts with a server that knows ranges, three with one that does not."""
    megabytes = QUICK_MEGABYTES if bench.is_quick else MEGABYTES
    bundle = await asyncio.to_thread(make_sized_bundle, bench.repository, VERSION, megabytes)
    await with_requests(bench, bundle)
    starts: dict[str, Any] = {}
    if not bench.is_quick:  # one that compiles Python's modules, and does not count
        await measured_start(bench, VERSION)
    for has_ranges in (True,) if bench.is_quick else (True, False):
        with BreakingServer(bench.repository, has_ranges=has_ranges) as server:
            starts["ranges" if has_ranges else "no ranges"] = await _three_starts(bench, server, bundle)
    return {"weights_mb": weights_mb(bundle.folder), "starts": starts}


async def _three_starts(bench: Bench, server: BreakingServer, bundle: Bundle) -> list[dict[str, Any]]:
    cache = bench.folder / f"cache-{server.has_ranges}"
    env = {
        **compiled_python(bench),
        "SLUICE_MODELS__REPOSITORY": server.url,
        "SLUICE_MODELS__CACHE": str(cache),
        "SLUICE_MODELS__SERVE": f"{MODEL}@{VERSION}",
    }
    server.breaks_next = True
    rows = [{"start": "breaks off", **await _broken_start(bench, env)} | _sent(server)]
    for name in ("again", "cached"):
        await with_requests(bench, bundle)
        start = await measured_start(bench, VERSION, env=env)
        rows.append(
            {"start": name, "outcome": "served", "seconds": round(start.first_score_s, 2)}
            | {"fetch_s": round(start.stages["fetch"], 3)}
            | _sent(server)
        )
    for row in rows:
        print(f"  {row}", flush=True)
    return rows


def _sent(server: BreakingServer) -> dict[str, Any]:
    megabytes, first_byte = server.take_count()
    return {"sent_mb": megabytes, "from_byte": first_byte}


async def _broken_start(bench: Bench, env: dict[str, str]) -> dict[str, Any]:
    """A start that must end by itself; its reason is the last line of its log.

    Raises:
        RuntimeError: it goes on, so it must have served something.

    """
    began_s = time.monotonic()
    with Running(bench, OURS, MODEL, env=env) as running:
        code = await asyncio.to_thread(running.processes[0].wait, START_TIMEOUT_S)
        took_s = time.monotonic() - began_s
        try:
            running.check()
        except RuntimeError as exc:
            reason = str(exc).rstrip().splitlines()[-1]
    return {"outcome": f"ended with {code}", "reason": reason, "seconds": round(took_s, 2), "fetch_s": None}
