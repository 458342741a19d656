"""Results on disk, and the page made from them."""

from __future__ import annotations

import json
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
        ("scenario", "mode", "seeds", "requests", "lost", "doubled", "by the mark", "out of order",
         "of two attempts", "bit-equal", "kept"),
        [row for stage in SCENARIOS for mode in ("at_least_once", "exactly_once")
         if (row := _row(stage.name, mode, results))],
    )  # fmt: skip
    lines += ["", "*doubled*: records on `scores` beyond one a request, as a reader sees them that looks at no mark.",
              "*by the mark*: what is left of them for a reader that drops by `x-src`.",
              "*of two attempts*: answers whose evidence a later attempt wrote, when the store had other rows; only",
              "`exactly_once` excludes them."]  # fmt: skip
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
        ", ".join(str(each["seed"]) for each in mine),
        f"{sum(each['requests'] for each in figures):,}",
        sum(each["lost"] for each in scores),
        f"{sum(each['doubled'] for each in scores):,}",
        sum(each["doubled_by_mark"] for each in scores),
        sum(each["out_of_order"] for each in scores),
        f"{sum(each['of_two_attempts'] for each in figures):,}",
        f"{bit_equal:,} of {logged:,}",
        f"{sum(not each['problems'] for each in mine)} of {len(mine)}",
    )


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
