"""``RESULTS.md`` and ``MODELS.md`` from the saved results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import model_sections
from bench.markdown import table
from bench.results import FOLDER
from bench.targets import targets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Section = Callable[[dict[str, Any]], list[str]]

PAGE = Path(__file__).parent / "RESULTS.md"
MODELS_PAGE = Path(__file__).parent / "MODELS.md"


def write() -> None:
    """Write the pages."""
    saved = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    _write_page(PAGE, "Results", saved, {
        "throughput": _throughput,
        "features": _throughput,
        "latency": _latency,
        "overload": _overload,
        "delivery": _delivery,
        "replay": _replay,
        "hostile": _hostile,
        "redis_faults": _redis_faults,
        "codec": _codec,
        "measuring": _measuring,
        "memory": _memory,
        "memory-10m": _memory,
        "gpu": _gpu,
    })  # fmt: skip
    _write_page(MODELS_PAGE, "Models", saved, model_sections.SECTIONS)


def _write_page(page: Path, title: str, saved: dict[str, Any], sections: Mapping[str, Section]) -> None:
    parts = {name: saved[name] for name in sections if name in saved}
    lines = [f"# {title}", "", "Written by `make bench` from `results/*.json`; do not edit.", ""]
    promised = targets({name: part["figures"] for name, part in parts.items()})
    lines += table(("figure", "wanted", "measured", ""), [target.row() for target in promised])
    for name, part in parts.items():
        lines += ["", f"## {name}", "", *_origin(part), "", *sections[name](part["figures"])]
    page.write_text("\n".join(lines) + "\n")


def _origin(part: dict[str, Any]) -> list[str]:
    machine, versions = part["machine"], part["versions"]
    named = ", ".join(f"{name} {v}" for name, v in versions.items() if v != "not installed")
    return [
        f"`{part['command']}`, {part['date']}, commit {part['commit']}.",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB;",
        f"load average {machine['load_before']} before and {machine['load_average'][0]} after.",
        f"Python {machine['python']}, {named}.",
    ]


def _throughput(figures: dict[str, Any]) -> list[str]:
    rows = sorted(figures["contenders"].items(), key=lambda item: item[1]["cpu_us"])
    return [
        f"{figures['requests']:,} requests preloaded, {figures['rounds']} rounds, interleaved; medians.",
        "",
        *table(
            ("contender", "requests/s", "CPU us/request", "low-high", "times ours", "RSS MB"),
            [
                (
                    name,
                    f"{r['requests_per_s']:,}",
                    r["cpu_us"],
                    f"{r['cpu_us_low']}-{r['cpu_us_high']}",
                    r["times_our_cpu"],
                    r["rss_mb"],
                )
                for name, r in rows
            ],
        ),
    ]


def _latency(figures: dict[str, Any]) -> list[str]:
    cells = []
    for name, row in figures["rates"].items():
        for who in ("raw echo", "sluice"):
            q = row[who]
            cells.append((name, f"{row['rate_per_s']:,}", who, q["p50_ms"], q["p95_ms"], q["p99_ms"], q["p99.9_ms"]))
        cells.append((name, "", "added", row["added_p50_ms"], "", row["added_p99_ms"], ""))
    return [
        f"Capacity {figures['capacity_per_s']:,}/s; open loop, {figures['seconds']} s each,",
        f"window {figures['window_ms']} ms;",
        "milliseconds from when a request was due. Generator, broker, worker and reader share the cores.",
        "",
        *table(("load", "requests/s", "", "p50", "p95", "p99", "p99.9"), cells),
    ]


def _overload(figures: dict[str, Any]) -> list[str]:
    rows = [*figures["sweep"].items(), ("2x the best", figures["overload"])]
    over = figures["overload"]
    return [
        f"{len(figures['hidden'])} hidden layers of {figures['hidden'][0]}, deadline {figures['deadline_ms']} ms.",
        f"Undisturbed, from a full topic, the worker gets through {figures['capacity_per_s']:,}/s; loads are shares of",
        "that, beside generator, broker and reader on the same cores. At twice the rate of the best goodput it is",
        f"{figures['goodput_share_of_peak']:.1%} of the best. Resident set there {over['rss_mb']} MB.",
        "",
        *table(
            (
                "load",
                "sent",
                "answered",
                "goodput/s",
                "in time",
                "scored",
                "rows on device",
                "largest lag s",
                "statuses",
            ),
            [
                (
                    name,
                    f"{r['sent']:,}",
                    f"{r['answered']:,}",
                    f"{r['goodput_per_s']:,}",
                    f"{r['in_time_share']:.1%}",
                    f"{r['scored_rows']:,}",
                    f"{r['device_rows']:,}",
                    r["lag_largest_s"],
                    r["statuses"],
                )
                for name, r in rows
            ],
        ),
    ]


def _replay(figures: dict[str, Any]) -> list[str]:
    return [
        f"{figures['bit_equal']:,} of {figures['rows']:,} rows bit-equal,",
        f"buckets {figures['buckets']}, {figures['seconds']} s.",
    ]


def _hostile(figures: dict[str, Any]) -> list[str]:
    outcomes = ("OK", "DEGRADED", "INVALID", "EXPIRED", "ERROR", "dead letter")
    return [
        f"{figures['requests']:,} records, seed {figures['seed']}, {figures['requests_per_s']:,}/s:",
        f"{figures['lost']} lost, {figures['doubled']} doubled,",
        f"{figures['altered_dead_letters']} of {figures['dead_letters']:,} dead letters altered;",
        f"longest wait for the health page {figures['stall_s']} s (the worker's CPU time in one wait",
        f"{figures['stall_cpu_s']} s at most); resident set {figures['after_a_quarter_mb']} MB",
        f"after a quarter, {figures['end_mb']} MB at the end, {figures['largest_mb']} MB at most.",
        "",
        *table(
            ("mutator", "sent", *outcomes),
            [
                (name, f"{row['sent']:,}", *(f"{row.get(outcome, 0):,}" for outcome in outcomes))
                for name, row in figures["mutators"].items()
            ],
        ),
    ]


def _redis_faults(figures: dict[str, Any]) -> list[str]:
    names = ("p50_ms", "p95_ms", "p99_ms", "p99.9_ms", "max_ms")
    return [
        f"Open loop, {figures['rate_per_s']:,.0f}/s; {figures['answered']:,} of {figures['sent']:,} answered,",
        f"{figures['statuses']}.",
        "",
        *table(
            ("store", "p50", "p95", "p99", "p99.9", "largest, ms"),
            [(name, *(row[n] for n in names)) for name, row in figures["latency"].items()],
        ),
    ]


def _codec(figures: dict[str, Any]) -> list[str]:
    head = ("record", "decode us", "fastavro", "ratio", "encode us", "fastavro", "ratio")
    names = ("decode_us", "fastavro_decode_us", "decode_ratio", "encode_us", "fastavro_encode_us", "encode_ratio")
    return table(head, [(record, *(row[n] for n in names)) for record, row in figures["records"].items()])


def _measuring(figures: dict[str, Any]) -> list[str]:
    return [
        f"{figures['pairs']} interleaved pairs of {figures['rows']:,} requests fed from memory:",
        f"{figures['cpu_us_on']} us of CPU a request,",
        f"{figures['cpu_us_off']} without stage times, histograms and counters: {figures['cost_share']:.2%}.",
    ]


def _delivery(figures: dict[str, Any]) -> list[str]:
    modes = list(figures["requests_per_s"])
    return [
        f"{figures['requests']:,} requests preloaded, {figures['rounds']} rounds, interleaved; medians.",
        f"Light load: {figures['light_rate_per_s']:.0f}/s,",
        "milliseconds until a read_committed reader has the answer.",
        "",
        *table(
            ("mode", "requests/s", "CPU us/request", "light p50", "p95", "p99"),
            [
                (
                    mode,
                    f"{figures['requests_per_s'][mode]:,}",
                    figures["cpu_us"][mode],
                    *(figures["light"][mode][name] for name in ("p50_ms", "p95_ms", "p99_ms")),
                )
                for mode in modes
            ],
        ),
    ]


def _memory(figures: dict[str, Any]) -> list[str]:
    return [
        f"{figures['requests']:,} requests: {figures['after_a_quarter_mb']} MB after a quarter,",
        f"{figures['end_mb']} MB at the end, {figures['largest_mb']} MB at most.",
    ]


def _gpu(figures: dict[str, Any]) -> list[str]:
    return [
        f"On {figures['device']}, batches of {figures['batch']}.",
        "",
        *table(
            ("model", "pipeline/s", "bare loop/s", "share", "device busy", "CPU us/request"),
            [
                (
                    n,
                    f"{r['pipeline_per_s']:,}",
                    f"{r['bare_loop_per_s']:,}",
                    r["share_of_bare_loop"],
                    r["device_busy_share"],
                    r["cpu_us"],
                )
                for n, r in figures["models"].items()
            ],
        ),
    ]
