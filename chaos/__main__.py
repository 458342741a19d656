"""``python -m chaos [NAME ...]``: run scenarios, tell what happens, write results and ``bench/RELIABILITY.md``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.embedded.warm import prepare_fast_starts
from chaos import results
from chaos.catalogue import SCENARIOS, named
from chaos.runner import run

if TYPE_CHECKING:
    from chaos.scenario import Profile

SEEDS = (1, 2, 3)


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, or all; returns 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(each.name for each in SCENARIOS))
    parser.add_argument("--seed", type=int, action="append", help=f"may be given several times; none: {SEEDS}")
    parser.add_argument("--mode", choices=("at_least_once", "exactly_once"), default="at_least_once")
    parser.add_argument("--short", action="store_true", help="less harm, seed 1 alone")
    parser.add_argument("--keep", type=Path, help="folder for the logs of every run")
    parser.add_argument("--report", action="store_true", help="only write the page anew from the saved results")
    given = parser.parse_args(arguments)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the judge's own client says every retry of an outage
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped
    try:
        stages = [named(name) for name in given.names] or [each for each in SCENARIOS if not each.is_by_hand]
    except KeyError as exc:
        parser.error(str(exc.args[0]))
    seeds = given.seed or (SEEDS[:1] if given.short else SEEDS)
    failed = 0
    if not given.report:
        prepare_fast_starts(_say)
        for stage in stages:
            for seed in seeds:
                failed += _run_one(stage.name, seed, given)
    results.write_page()
    return int(failed > 0)


def _run_one(name: str, seed: int, given: argparse.Namespace) -> bool:
    _say(f"{name}, seed {seed}, {given.mode} ...")
    keep = given.keep / f"{name}-{given.mode}-{seed}" if given.keep else None
    profile: Profile = "short" if given.short else "long"
    result = asyncio.run(run(named(name), seed=seed, mode=given.mode, profile=profile, say=_say, keep=keep))
    results.save(result)
    _say(f"{name}, seed {seed}: {'kept' if result.has_passed else 'BROKEN'} after {result.seconds} s; {result.figures}")
    for problem in result.problems:
        _say(f"  {problem}")
    return not result.has_passed


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
