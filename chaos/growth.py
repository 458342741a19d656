"""Whether a long-lived process holds more and more: pure, from samples of what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WARM_S = 300.0
"""Allocators and caches fill up first; growth counts from this age of a process on."""
LIMITS = {"rss_mb": 48.0, "fds": 16.0, "threads": 4.0, "tasks": 64.0}
"""Tasks come and go with partitions and micro-batches; where they leak, one a batch or request, they are thousands."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process held at some moment.

    Attributes:
        life: names the process, not only the worker: ``worker-0#2`` is its second start.
        age_s: of the process.
        held: resident set in MB, file descriptors, threads, tasks of the event loop; those that could be told.

    """

    life: str
    age_s: float
    held: Mapping[str, float]


def growth(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """For each process that lived long enough: what it held last, less what it held when it was warm.

    Example:
        >>> growth([Sample("w#1", 400.0, {"rss_mb": 600.0}), Sample("w#1", 500.0, {"rss_mb": 610.0})])
        {'w#1': {'rss_mb': 10.0}}

    """
    first: dict[str, dict[str, float]] = {}
    last: dict[str, dict[str, float]] = {}
    for sample in samples:
        if sample.age_s >= WARM_S:
            first[sample.life] = {**sample.held, **first.get(sample.life, {})}
            last[sample.life] = {**last.get(sample.life, {}), **sample.held}
    return {life: {name: round(last[life][name] - held[name], 1) for name in held} for life, held in first.items()}


def excess(grown: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence for each limit that a process has broken.

    Example:
        >>> excess({"w#1": {"rss_mb": 50.0, "fds": 2}})
        ['w#1 holds 50 rss_mb more than when it was warm; 48 are allowed']

    """
    return [
        f"{life} holds {amount:.0f} {name} more than when it was warm; {LIMITS[name]:.0f} are allowed"
        for life, amounts in grown.items()
        for name, amount in amounts.items()
        if amount > LIMITS[name]
    ]
