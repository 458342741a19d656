"""What was promised, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEERS = ("quix", "bytewax", "faststream")


@dataclass(frozen=True, slots=True)
class Target:
    """One promise.

    Attributes:
        what: the figure.
        limit: what was promised.
        found: what was measured.
        is_floor: whether ``found`` must reach the limit, else must not exceed it.

    """

    what: str
    limit: float
    found: float
    is_floor: bool

    def row(self) -> tuple[str, str, str, str]:
        """Cells of the table.

        Example:
            >>> Target("goodput", 0.9, 0.8, is_floor=True).row()
            ('goodput', 'at least 0.9', '0.8', 'missed by 0.1')

        """
        met = self.found >= self.limit if self.is_floor else self.found <= self.limit
        bound = "at least" if self.is_floor else "at most"
        verdict = "met" if met else f"missed by {_text(abs(self.found - self.limit))}"
        return self.what, f"{bound} {_text(self.limit)}", _text(self.found), verdict


def targets(figures: dict[str, dict[str, Any]]) -> list[Target]:
    """Those whose part was run; ``figures`` by part."""
    judges: dict[str, Callable[[dict[str, Any]], Iterator[Target]]] = {
        "throughput": _throughput,
        "features": _features,
        "memory": _memory,
        "memory-10m": _memory,
        "latency": _latency,
        "overload": _overload,
        "delivery": _delivery,
        "measuring": _measuring,
        "replay": _replay,
        "hostile": _hostile,
        "redis_faults": _redis_faults,
        "swaps": _swaps,
        "mapped": _mapped,
    }
    return [target for part, judge in judges.items() if part in figures for target in judge(figures[part])]


def _throughput(figures: dict[str, Any]) -> Iterator[Target]:
    ratio = {name: row["times_our_cpu"] for name, row in figures["contenders"].items()}
    for name, limit in (("faust take", 45), ("confluent loop", 2)):
        if name in ratio:
            yield Target(f"CPU of {name} over ours", limit, ratio[name], is_floor=True)
    yield from _best(ratio, "features off", 3.5)


def _features(figures: dict[str, Any]) -> Iterator[Target]:
    yield from _best({name: row["times_our_cpu"] for name, row in figures["contenders"].items()}, "features on", 2.0)


def _best(ratio: dict[str, float], which: str, limit: float) -> Iterator[Target]:
    found = [ratio[name] for name in PEERS if name in ratio]
    if found:
        yield Target(
            f"CPU of the best of Quix, Bytewax, FastStream over ours, {which}", limit, min(found), is_floor=True
        )


def _memory(figures: dict[str, Any]) -> Iterator[Target]:
    count = f"{figures['requests']:,} requests"
    growth = figures["end_mb"] / figures["after_a_quarter_mb"]
    yield Target(f"largest resident set, MB, {count}", 1000, figures["largest_mb"], is_floor=False)
    yield Target(f"resident set at the end over that after a quarter, {count}", 1.05, growth, is_floor=False)


def _latency(figures: dict[str, Any]) -> Iterator[Target]:
    light = figures["rates"]["light, 100/s"]
    yield Target("added p50 at light load, ms", 3, light["added_p50_ms"], is_floor=False)
    yield Target("added p99 at light load, ms", 10, light["added_p99_ms"], is_floor=False)


def _overload(figures: dict[str, Any]) -> Iterator[Target]:
    over = figures["overload"]
    scored = max(over["scored_rows"], 1)
    yield Target("goodput at 2x over the best", 0.9, figures["goodput_share_of_peak"], is_floor=True)
    yield Target("answered over sent at 2x", 1, over["answered"] / over["sent"], is_floor=True)
    started_in_time = over["device_rows"] - over["expired_after_device"]
    yield Target("rows on the device in time over rows scored at 2x", 1, started_in_time / scored, is_floor=False)
    growth = over["rss_mb"][-1] / over["rss_mb"][len(over["rss_mb"]) // 4]
    yield Target("resident set at 2x, at the end over that after a quarter", 1.05, growth, is_floor=False)


def _delivery(figures: dict[str, Any]) -> Iterator[Target]:
    yield Target("throughput of exactly_once over at_least_once", 0.9, figures["throughput_share"], is_floor=True)
    yield Target("added p50 of exactly_once at light load, ms", 6, figures["light_added_p50_ms"], is_floor=False)


def _measuring(figures: dict[str, Any]) -> Iterator[Target]:
    yield Target("share of CPU for all measuring", 0.02, figures["cost_share"], is_floor=False)


def _replay(figures: dict[str, Any]) -> Iterator[Target]:
    yield Target("bit-equal rows", figures["rows"], figures["bit_equal"], is_floor=True)


def _hostile(figures: dict[str, Any]) -> Iterator[Target]:
    count = f"{figures['requests']:,} hostile records"
    for what in ("crashes", "lost", "doubled", "misplaced", "altered_dead_letters", "valid_not_scored"):
        yield Target(f"{what.replace('_', ' ')}, {count}", 0, figures[what], is_floor=False)
    yield Target(f"longest stall of the event loop, s, {count}", 1, figures["stall_s"], is_floor=False)
    yield Target(f"growth of the resident set after a quarter, MB, {count}", 64, figures["growth_mb"], is_floor=False)


def _redis_faults(figures: dict[str, Any]) -> Iterator[Target]:
    yield Target("added p99 while the store hangs, ms", 25, figures["added_p99_hung_ms"], is_floor=False)
    yield Target("added p99 while the store is dead, ms", 25, figures["added_p99_killed_ms"], is_floor=False)
    yield Target("answered over sent, store faults", 1, figures["answered"] / figures["sent"], is_floor=True)


def _swaps(figures: dict[str, Any]) -> Iterator[Target]:
    ratios, evidence = figures["ratios"], figures["evidence"]
    for name in ("windows of swaps", "phases of swaps"):
        yield Target(f"p99 over steady p99, {name}", 1.25, ratios[name]["p99_ms"], is_floor=False)
    count = f"{figures['answers']:,} answers"
    yield Target(f"by the old version after the command, {count}", 0, figures["old_after_command"], is_floor=False)
    yield Target("rows bit-equal to the version they name", evidence["rows"], evidence["bit_equal"], is_floor=True)


def _mapped(figures: dict[str, Any]) -> Iterator[Target]:
    share = figures["weights_pss_mb"] / figures["weights_mb"]
    yield Target("memory of weights that two workers map, over their size", 1.05, share, is_floor=False)


def _text(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
