"""Sections of ``MODELS.md``, one a part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.markdown import table

if TYPE_CHECKING:
    from collections.abc import Callable

REASON_SHOWN = 160


def _swaps(figures: dict[str, Any]) -> list[str]:
    plan, evidence = figures["plan"], figures["evidence"]
    names = ("p50_ms", "p95_ms", "p99_ms", "p99.9_ms", "max_ms", "second_p99_ms")
    rows = [
        (name, f"{row['requests']:,}", *(row[n] for n in names), *_ratio(figures["ratios"].get(name)))
        for name, row in figures["latency"].items()
    ]
    swaps = [
        (swap["kind"], swap["version"], swap["seconds"], swap["p50_ms"], swap["p99_ms"]) for swap in figures["swaps"]
    ]
    gaps = figures["largest_gap_ms"]
    return [
        f"Capacity {figures['capacity_per_s']:,}/s, load {figures['rate_per_s']:,}/s, open loop,",
        f"{plan['megabytes']} MB of weights, {len(swaps)} swaps, one every {plan['every_s']:.0f} s; milliseconds from",
        "when a request was due. `label`: between two loaded versions; `load`: a version from the repository, not in",
        "the page cache, is loaded and warmed before, and the one before it unloaded after.",
        "",
        *table(
            ("when", "requests", "p50", "p95", "p99", "p99.9", "largest", "p99 of the median second", "p99 over steady",
             "likewise, median second"),
            rows,
        ),
        "",
        f"Longest time without any answer: {gaps['phases']} ms in the phases, {gaps['steady']} ms outside of them.",
        f"Of {figures['answers']:,} answers, {figures['old_after_command']} came by another version than the champion",
        "after `sluice model label` had returned and before the next swap began.",
        f"{evidence['rows']:,} rows of all versions, spread over the run: {evidence['answer_is_evidence']:,} answers",
        f"are what the prediction log says, {evidence['bit_equal']:,} are bit-equal to an offline run of the version",
        "that they name.",
        "",
        *table(("swap", "to version", "seconds of commands", "p50 of its window", "p99"), swaps),
    ]  # fmt: skip


def _ratio(ratio: dict[str, float] | None) -> tuple[Any, Any]:
    return ("", "") if ratio is None else (ratio["p99_ms"], ratio["second_p99_ms"])


def _cold_start(figures: dict[str, Any]) -> list[str]:
    sizes = figures["sizes"]
    stages = list(next(iter(sizes.values()))["cold"]["stages_s"])
    rows = [
        (
            size,
            row["weights_mb"],
            f"{cache} ({row['cached_before'][cache]:.0%} cached)",
            row[cache]["first_score_s"],
            *(f"{row[cache]['stages_s'][stage]:.3f}" for stage in stages),
        )
        for size, row in sizes.items()
        for cache in ("cold", "warm")
    ]
    return [
        "Seconds from before the process was made to the first answer at a consumer, medians; requests were waiting.",
        "`fetch` reads every file and compares its digest, `map` maps the weights and looks for NaN, `models` is what",
        "is left of loading, `first score` what comes after the worker has its partitions.",
        "",
        *table(("bundle", "MB", "page cache", "first score after", *stages), rows),
    ]


def _mapped(figures: dict[str, Any]) -> list[str]:
    names = ("rss_mb", "pss_mb", "private_mb", "weights_rss_mb", "weights_pss_mb")
    workers = [("alone", figures["alone"]), *(("beside the other", each) for each in figures["both"])]
    return [
        f"Two scoring workers, weights of {figures['weights_mb']:,} MB: the proportional set of both mappings together",
        f"is {figures['weights_pss_mb']:,} MB.",
        "",
        *table(
            ("worker", "RSS, MB", "PSS", "private", "RSS of the weights", "PSS of the weights"),
            [(name, *(f"{row[n]:,}" for n in names)) for name, row in workers],
        ),
    ]


def _remote(figures: dict[str, Any]) -> list[str]:
    rows = [
        (
            server,
            row["start"],
            row["outcome"],
            row["seconds"],
            "" if row["fetch_s"] is None else row["fetch_s"],
            row["sent_mb"],
            "" if row["from_byte"] is None else f"{row['from_byte']:,}",
        )
        for server, starts in figures["starts"].items()
        for row in starts
    ]
    reason = next(iter(figures["starts"].values()))[0]["reason"].partition("BundleError: ")[2]
    return [
        f"{figures['weights_mb']} MB of weights over HTTP; the connection breaks after half of them. Seconds to the",
        "first score, or to the end of the process.",
        "",
        *table(("server", "start", "outcome", "seconds", "fetch s", "weights sent, MB", "from byte"), rows),
        "",
        f"What the first start says: `{reason[:REASON_SHOWN]}...`",
    ]


def _precision(figures: dict[str, Any]) -> list[str]:
    buckets = next(list(row["us_by_bucket"]) for row in figures["rows"] if row["is_run"])
    rows = []
    for row in figures["rows"]:
        cells: tuple[Any, ...] = ("not run: no such device", "", *[""] * len(buckets))
        if row["is_run"]:
            error = "" if row["precision"] == "fp32" else f"{row['score_error']:.2g}"
            cells = (error, row["memory_mb"], *row["us_by_bucket"].values())
        rows.append((row["network"], row["device"], row["precision"], *cells))
    return [
        f"Largest difference of a score to fp32 over {figures['error_rows']:,} rows; median microseconds of a batch,",
        f"{figures['threads']} thread on the CPU.",
        "",
        *table(
            ("network", "device", "precision", "score error", "MB", *(f"us, bucket {bucket}" for bucket in buckets)),
            rows,
        ),
    ]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "swaps": _swaps,
    "cold_start": _cold_start,
    "mapped": _mapped,
    "remote": _remote,
    "precision": _precision,
}
