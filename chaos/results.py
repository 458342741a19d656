"""Results on disk, and the page made from them."""

from __future__ import annotations

import json
import signal
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.results import current_commit, machine, versions
from chaos.catalogue import SCENARIOS

if TYPE_CHECKING:
    from chaos.runner import Result

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "bench" / "RELIABILITY.md"


def save(result: Result) -> Path:
    """Write ``results/<name>-<mode>-<seed>.json``; an earlier result of the same run is replaced."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{result.name}-{result.mode}-{result.seed}.json"
    document = {
        **result.as_json(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": current_commit(),
        "machine": machine(),
        "versions": versions(),
    }
    path.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    return path


def write_page() -> None:
    """Write ``bench/RELIABILITY.md`` from all saved results."""
    PAGE.write_text(page([json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]))


def page(results: list[dict[str, Any]]) -> str:
    """The page as Markdown, scenarios in the order of the catalogue, failures spelt out.

    Args:
        results: documents that `save` wrote.

    """
    passed = sum(not each["problems"] for each in results)
    lines = [
        "# Reliability under faults", "",
        "Written by `make chaos` from `chaos/results/*.json`; do not edit. Every run starts brokers, store and workers",
        "of its own, does the harm, heals, waits for rest, then reads every topic again with `read_committed`.",
        "", f"{passed} of {len(results)} runs kept every promise.", "",
    ]  # fmt: skip
    lines += _table(
        ("scenario", "mode", "seeds", "kills", "requests", "lost", "doubled", "by the mark", "out of order",
         "of two attempts", "work repeated", "bit-equal", "slowest stop", "kept"),
        [row for stage in SCENARIOS for mode in ("at_least_once", "exactly_once")
         if (row := _row(stage.name, mode, results))],
    )  # fmt: skip
    lines += ["", "*kills*: workers ended by `kill -9`; servers are killed besides.",
              "*doubled*: records on `scores` beyond one a request, as a reader sees them that looks at no mark.",
              "*by the mark*: what is left of them for a reader that drops by `x-src`.",
              "*of two attempts*: answers whose evidence a later attempt wrote, when the store had other rows; only",
              "`exactly_once` excludes them.",
              "*work repeated*: how often answers were repeated, and how many seconds of work, median and longest:",
              "what was answered and not yet committed, every 100 ms unless no commit gets through.",
              "*slowest stop*: of workers that were asked to end (SIGTERM), the longest time to the end, of how many;",
              "the drain, the farewell to the group and the end of the interpreter are in it."]  # fmt: skip
    lines += ["", "## What each scenario does", "", *(f"* `{s.name}`: {s.sentence}" for s in SCENARIOS)]
    broken = [each for each in results if each["problems"]]
    if broken:
        lines += ["", "## Promises that were not kept", ""]
    for each in broken:
        lines.append(f"* `python -m chaos {each['name']} --seed {each['seed']} --mode {each['mode']}`")
        lines += [f"    * {' '.join(problem.split())[:400]}" for problem in each["problems"]]
    lines += ["", *_origin(results)]
    return "\n".join(lines) + "\n"


def _row(name: str, mode: str, results: list[dict[str, Any]]) -> tuple[object, ...] | None:
    mine = [each for each in results if each["name"] == name and each["mode"] == mode]
    if not mine:
        return None
    figures = [each["figures"] for each in mine if "scores" in each["figures"]]
    scores = [each["scores"] for each in figures]
    logged = sum(each["predictions-log"]["records"] for each in figures)
    bit_equal = sum(each["bit_equal"] for each in figures)
    return (
        f"`{name}`",
        mode.replace("_", " "),
        _ranges([each["seed"] for each in mine]),
        sum(codes.count(-signal.SIGKILL) for each in mine for codes in each["figures"].get("exits", {}).values()),
        f"{sum(each['requests'] for each in figures):,}",
        sum(each["lost"] for each in scores),
        f"{sum(each['doubled'] for each in scores):,}",
        sum(each["doubled_by_mark"] for each in scores),
        sum(each["out_of_order"] for each in scores),
        f"{sum(each['of_two_attempts'] for each in figures):,}",
        _repeated([each["repeated_work"] for each in figures if "repeated_work" in each]),
        f"{bit_equal:,} of {logged:,}",
        _slowest([s for each in mine for many in each["figures"].get("stop_seconds", {}).values() for s in many]),
        f"{sum(not each['problems'] for each in mine)} of {len(mine)}",
    )


def _ranges(seeds: list[int]) -> str:
    """Runs of seeds that follow one another as ``first-last``."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _repeated(works: list[dict[str, float]]) -> str:
    times = sum(work["times"] for work in works)
    if not times:
        return ""
    median = statistics.median(work["median_s"] for work in works if work["times"])
    return f"{times:.0f} times, {median:.2f} and {max(work['longest_s'] for work in works):.2f} s"


def _slowest(seconds: list[float]) -> str:
    return f"{max(seconds):.1f} s of {len(seconds)}" if seconds else ""


def _origin(results: list[dict[str, Any]]) -> list[str]:
    if not results:
        return []
    newest = max(results, key=lambda each: str(each["date"]))
    profiles = " and ".join(sorted({each["profile"] for each in results}))
    box, found = newest["machine"], newest["versions"]
    software = f"Python {box['python']}, aiokafka {found['aiokafka']}, faust-streaming {found['faust-streaming']}."
    return [
        f"Newest run {newest['date']}, commit {newest['commit']}; profiles {profiles};",
        f"{box['cpu']}, {box['cores']} cores, {box['memory_gb']} GB, {software}",
    ]


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]
