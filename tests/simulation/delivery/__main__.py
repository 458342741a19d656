"""``python -m tests.simulation.delivery --seeds 1000000 --processes 2``, or ``--seed 7 --trace``."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.delivery.run import Tally, advice, problem_of, run_campaign, trace


def main() -> int:
    """Run what the command line asks for; 1 when a seed fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.delivery", description="Simulate delivery.")
    parser.add_argument("--seeds", type=int, default=100_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--trace", action="store_true", help="with --seed: tell everything")
    wanted = parser.parse_args()
    if wanted.seed is not None:
        lines = trace(wanted.seed) if wanted.trace else [problem_of(wanted.seed) or "nothing is wrong"]
        sys.stdout.write("\n".join(lines) + "\n")
        return int(problem_of(wanted.seed) is not None)
    if wanted.seeds < 1 or wanted.processes < 1:
        parser.error("--seeds and --processes must be at least 1")
    return _campaign(wanted.first, wanted.seeds, wanted.processes)


def _campaign(first: int, seeds: int, processes: int) -> int:
    started_s = told_s = time.monotonic()
    tally = Tally()
    for tally in run_campaign(first, seeds, processes):
        if time.monotonic() > told_s + 10:
            told_s = time.monotonic()
            sys.stdout.write(f"{tally}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{tally}, in {time.monotonic() - started_s:.0f} s\n")
    if tally.failures:
        sys.stdout.write(advice(tally.failures) + "\n")
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
