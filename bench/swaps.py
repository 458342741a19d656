"""Latency during ten hot swaps at half of a worker's capacity, beside the steady state of the same run.

Swaps are of two kinds, in turn: the champion's label moves between two versions that are loaded, or a version that
nobody has seen is loaded from the repository, warmed, made the champion, and the one before it unloaded. Its weights
are not in the page cache. Latencies count from the moment at which a request was due (see ``latency``).

The window of a swap is the second around the first answer by the new version; its phase is all the time in which the
commands ran. Windows halfway between two swaps, in which nothing happens, say how much the p99 of so few seconds
varies by itself; the p99 of the median second hardly feels a neighbour that takes the processor for a moment.
Afterwards every answer is looked at: which version gave it, whether one of another version came after the command had
ended, and, for a sample, whether an offline run of the version named in it gives the same bits.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.contenders import OURS, Running, measure, wait_until_ready
from bench.latency import follow, quantiles
from bench.load import Generator
from bench.operator import Done, Operator
from bench.reader import Reader
from bench.sized_bundles import MODEL, evict, make_sized_bundle
from bench.stack import PARTITIONS, Bench, Ends, fresh_topics
from bench.swap_evidence import answered_versions, bit_equal
from bench.workload import preload
from schemas.topic_names import SCORES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

CHAMPION = "champion"
LOADED = (1, 2)
"""Versions that are there from the start; of these the newer one is the champion then."""
WINDOW_S = 1.0
FIGURES = ("p50_ms", "p95_ms", "p99_ms", "p99.9_ms", "max_ms", "second_p99_ms")
CLEAR_S = 1.0
"""Steady is what is so far from any phase."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how many, how large.

    Attributes:
        share: of the capacity.
        requests: from which the capacity is measured; 0: it is not, and taken to be ``QUICK_CAPACITY``.
        warm_s: not counted.
        swaps: even; every second one loads a new version.
        every_s: from the beginning of a swap to that of the next.
        megabytes: of each version's weights.
        sample: rows scored again.

    """

    share: float = 0.5
    requests: int = 400_000
    warm_s: float = 8.0
    swaps: int = 10
    every_s: float = 12.0
    megabytes: int = 100
    sample: int = 20_000

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.warm_s + self.swaps * self.every_s + self.every_s / 2


QUICK_CAPACITY = 400.0
QUICK = Plan(requests=0, warm_s=1.0, swaps=2, every_s=5.0, megabytes=1, sample=500)


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap that took place.

    Attributes:
        kind: ``label`` between two loaded versions, ``load`` of one from the repository.
        version: the champion since.
        commands: that were run, in order.
        moved: the one of them that moved the label.

    """

    kind: str
    version: int
    commands: tuple[Done, ...]
    moved: Done

    def span(self, start_s: float) -> tuple[float, float]:
        """When its commands ran, seconds from the start."""
        return self.commands[0].began_s - start_s, self.commands[-1].ended_s - start_s


async def run(bench: Bench) -> dict[str, Any]:
    """Quantiles of the phases and their ratios to the steady state, and what the answers say."""
    plan = QUICK if bench.is_quick else Plan()
    for version in range(1, len(LOADED) + plan.swaps // 2 + 1):
        await asyncio.to_thread(make_sized_bundle, bench.repository, version, plan.megabytes)
    capacity = await _capacity(bench, plan)
    print(f"  capacity {capacity:,.0f}/s", flush=True)
    await fresh_topics(bench)
    rate = capacity * plan.share
    async with Reader(bench, SCORES, from_end=True) as reader:
        with Running(bench, OURS, MODEL, env=_serve()) as running, Operator(bench, running.group) as operator:
            await wait_until_ready(running, bench)
            generator = Generator(bench, MODEL, rate=rate, seconds=plan.seconds, seed=1)
            start_s = generator.start()
            swapping = asyncio.create_task(_swap_all(bench, plan, operator, start_s))
            try:
                waits_s = await follow(reader, generator.due_s, start_s)
                swaps = await swapping
            finally:
                generator.stop()
                swapping.cancel()
    versions = await answered_versions(bench, len(waits_s))
    result = figures(plan, swaps, Measured(generator.due_s, waits_s, versions, start_s))
    result |= {"evidence": await bit_equal(bench, plan.sample)}
    for name in ("ratios", "old_after_command", "largest_gap_ms", "evidence"):
        print(f"  {name} {result[name]}", flush=True)
    return {"capacity_per_s": round(capacity), "rate_per_s": round(rate), **result}


def _serve() -> dict[str, str]:
    return {"SLUICE_MODELS__SERVE": f"{MODEL}@{'+'.join(map(str, LOADED))}"}


async def _capacity(bench: Bench, plan: Plan) -> float:
    if not plan.requests:
        return QUICK_CAPACITY
    bundle = make_sized_bundle(bench.repository, LOADED[-1], plan.megabytes)
    await fresh_topics(bench)
    await preload(bench.settings(), bundle, plan.requests, PARTITIONS)
    async with Ends(bench) as ends:
        return (await measure(bench, ends, OURS, MODEL, plan.requests, env=_serve())).requests_per_s


async def _swap_all(bench: Bench, plan: Plan, operator: Operator, start_s: float) -> list[Swap]:
    swaps: list[Swap] = []
    for i in range(plan.swaps):
        await asyncio.sleep(max(start_s + plan.warm_s + (i + 0.5) * plan.every_s - time.monotonic(), 0))
        if i % 2:
            swaps.append(await _load(bench, operator, LOADED[-1] + 1 + i // 2))
        else:
            wanted = LOADED[i // 2 % 2]
            done = await operator.sluice_model("label", MODEL, CHAMPION, str(wanted))
            swaps.append(Swap("label", wanted, (done,), done))
    return swaps


async def _load(bench: Bench, operator: Operator, version: int) -> Swap:
    """Load a version, make it the champion, and unload the one that was loaded before it."""
    await asyncio.to_thread(evict, bench.repository / MODEL / str(version))
    loaded = await operator.sluice_model("load", MODEL, str(version))
    moved = await operator.sluice_model("label", MODEL, CHAMPION, str(version))
    commands = (loaded, moved)
    if version - 1 not in LOADED:
        commands = (*commands, await operator.sluice_model("unload", MODEL, str(version - 1)))
    return Swap("load", version, commands, moved)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of all requests, in the order in which they were due.

    Attributes:
        due_s: seconds from the start.
        waits_s: until the answer was there.
        versions: that answered.
        start_s: monotonic.

    """

    due_s: NDArray[np.float64]
    waits_s: NDArray[np.float64]
    versions: NDArray[np.int64]
    start_s: float

    def row(self, mask: Mask) -> dict[str, Any]:
        """Quantiles of some requests together, and the p99 of the median second."""
        waits_s, seconds = self.waits_s[mask], self.due_s[mask].astype(np.int64)
        if not len(waits_s):
            return {"requests": 0} | dict.fromkeys(FIGURES, float("nan"))
        by_second = [np.quantile(waits_s[seconds == second], 0.99) * 1000 for second in np.unique(seconds)]
        return {
            "requests": len(waits_s),
            **quantiles(waits_s),
            "max_ms": round(float(waits_s.max()) * 1000, 2),
            "second_p99_ms": round(float(np.median(by_second)), 2),
        }


def figures(plan: Plan, swaps: list[Swap], found: Measured) -> dict[str, Any]:
    """Latencies of each part of the run, their ratios to the steady state, and the promises that were kept."""
    centres = [first_answer_s(swap, found) for swap in swaps]
    spans = [swap.span(found.start_s) for swap in swaps]
    rows = {name: found.row(mask) for name, mask in _masks(plan, swaps, found.due_s, centres, spans).items()}
    steady = rows["steady"]
    return {
        "plan": {name: getattr(plan, name) for name in ("share", "swaps", "every_s", "megabytes")},
        "latency": rows,
        "ratios": {
            name: {figure: round(row[figure] / steady[figure], 3) for figure in ("p99_ms", "second_p99_ms")}
            for name, row in rows.items()
            if name != "steady"
        },
        "swaps": [
            {"kind": swap.kind, "version": swap.version, "seconds": round(high - low, 2)}
            | found.row(within(found.due_s, _around([centre])))
            for swap, centre, (low, high) in zip(swaps, centres, spans, strict=True)
        ],
        "old_after_command": sum(
            old_after_command(swap, following, found.versions)
            for swap, following in zip(swaps, [*swaps[1:], None], strict=True)
        ),
        "largest_gap_ms": _largest_gaps_ms(np.sort(found.due_s + found.waits_s), plan, spans),
        "answers": len(found.waits_s),
        "answers_by_version": {
            str(version): int(count)
            for version, count in zip(*np.unique(found.versions, return_counts=True), strict=True)
        },
    }


def _masks(
    plan: Plan, swaps: list[Swap], due_s: NDArray[np.float64], centres: list[float], spans: list[tuple[float, float]]
) -> dict[str, Mask]:
    steady = (due_s > plan.warm_s) & ~within(due_s, [(low - CLEAR_S, high + CLEAR_S) for low, high in spans])
    masks = {
        "steady": steady,
        "quiet windows": steady & within(due_s, _around([centre - plan.every_s / 2 for centre in centres])),
        "windows of swaps": within(due_s, _around(centres)),
        "phases of swaps": within(due_s, spans),
    }
    for kind in ("label", "load"):
        chosen = [i for i, swap in enumerate(swaps) if swap.kind == kind]
        masks[f"windows, {kind}"] = within(due_s, _around([centres[i] for i in chosen]))
        masks[f"phases, {kind}"] = within(due_s, [spans[i] for i in chosen])
    return masks


def first_answer_s(swap: Swap, found: Measured) -> float:
    """Seconds from the start to the first answer by a swap's new version after its commands began."""
    answered_s = found.due_s + found.waits_s
    began_s, _ = swap.span(found.start_s)
    return float(answered_s[(found.versions == swap.version) & (answered_s > began_s)].min())


def old_after_command(swap: Swap, following: Swap | None, versions: NDArray[np.int64]) -> int:
    """Answers by another version than the champion, from the end of its command to the beginning of the next swap's.

    They are told by offset: what lies behind the end that ``scores`` had when the command had ended came later.
    """
    count = 0
    for partition, first in swap.moved.ends.items():
        mine = versions[partition::PARTITIONS]
        last = len(mine) if following is None else following.moved.ends_before[partition]
        count += int((mine[first:last] != swap.version).sum())
    return count


def within(due_s: NDArray[np.float64], spans: Iterable[tuple[float, float]]) -> Mask:
    """Which moments lie in one of the spans.

    Example:
        >>> within(np.array([0.5, 1.5, 2.5]), [(0, 1), (2, 3)]).tolist()
        [True, False, True]

    """
    found = np.zeros(len(due_s), bool)
    for low, high in spans:
        found |= (due_s >= low) & (due_s < high)
    return found


def _around(centres: list[float]) -> list[tuple[float, float]]:
    return [(centre - WINDOW_S / 2, centre + WINDOW_S / 2) for centre in centres]


def _largest_gaps_ms(answered_s: NDArray[np.float64], plan: Plan, phases: list[tuple[float, float]]) -> dict[str, Any]:
    """The longest time without any answer, in the phases and outside of them."""
    gaps_ms, at_s = np.diff(answered_s) * 1000, answered_s[:-1]
    in_phase = within(at_s, phases)
    return {
        "phases": round(float(gaps_ms[in_phase].max()), 2),
        "steady": round(float(gaps_ms[~in_phase & (at_s > plan.warm_s)].max()), 2),
    }
