"""The windows of a worker's partitions, merged: which are due for closing, and their figures."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from monitors.closing import Closing, closing
from monitors.figures import as_json, confirm_drift, figures_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from monitors.figures import WindowFigures
    from monitors.join import JoinRule
    from monitors.partition import PartitionMonitor
    from monitors.store import WindowKey

SHOWN_WINDOWS = 60
"""Newest windows of a model version that a snapshot lists."""
MIN_REPORT_PREDICTIONS = 200

Revision = tuple[tuple[int, int], ...]


class WindowBook:
    """Figures of windows over partitions, computed again only when a count has changed.

    Args:
        rule: times of the join.

    """

    def __init__(self, rule: JoinRule) -> None:
        self._rule = rule
        self._figures: dict[WindowKey, tuple[Revision, WindowFigures]] = {}
        self._reported: dict[WindowKey, Revision] = {}

    def due(self, partitions: Mapping[int, PartitionMonitor], watermark_us: int | None) -> dict[WindowKey, Closing]:
        """Windows that have reached a state which is not published yet, oldest first."""
        found = {}
        for key in self._keys(partitions):
            reached = closing(self._rule.window.end(key.start_us), watermark_us, self._rule.maturity_us)
            if reached > self.state(partitions, key):
                found[key] = reached
        return found

    def state(self, partitions: Mapping[int, PartitionMonitor], key: WindowKey) -> Closing:
        """What has been published of a window: the least that any partition with it remembers."""
        states = [m.closings.get(key, Closing.OPEN) for m in partitions.values() if key in m.revisions]
        return min(states, default=Closing.OPEN)

    def figures(self, partitions: Mapping[int, PartitionMonitor], key: WindowKey) -> WindowFigures | None:
        """Merged figures of a window, or None when no partition has it."""
        revision = self._revision(partitions, key)
        known = self._figures.get(key)
        if known is not None and known[0] == revision:
            return known[1]
        holders = [m for m in partitions.values() if key in m.revisions]
        parts = [counts for counts in (m.window(key) for m in holders) if counts is not None]
        if not parts:
            return None
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.add(part)
        references = (m.reference(key.model_name, key.model_version) for m in holders)
        reference = next((r for r in references if r is not None), None)
        figures = figures_of(key, merged, reference, self._rule.window)
        self._figures[key] = (revision, figures)
        return figures

    def as_json(self, partitions: Mapping[int, PartitionMonitor]) -> list[dict[str, Any]]:
        """The newest windows of each model version, oldest first."""
        listed: list[dict[str, Any]] = []
        for _, group in groupby(self._keys(partitions), key=lambda key: key[:2]):
            keys = list(group)[-SHOWN_WINDOWS:]
            found = [(key, figures) for key in keys if (figures := self.figures(partitions, key)) is not None]
            confirm_drift([figures for _, figures in found])
            listed += [as_json(key, figures, self.state(partitions, key)) for key, figures in found]
            for old in [k for k in self._figures if k[:2] == keys[0][:2] and k < keys[0]]:
                del self._figures[old]
        return listed

    def unreported(self, partitions: Mapping[int, PartitionMonitor]) -> list[WindowKey]:
        """The newest window of each model version, if it has changed since its last report and is large enough."""
        found = []
        for _, group in groupby(self._keys(partitions), key=lambda key: key[:2]):
            key = list(group)[-1]
            figures = self.figures(partitions, key)
            if (
                figures is not None
                and figures.predictions >= MIN_REPORT_PREDICTIONS
                and self._reported.get(key) != self._revision(partitions, key)
            ):
                found.append(key)
        return found

    def mark_reported(self, partitions: Mapping[int, PartitionMonitor], key: WindowKey) -> None:
        """A report shows the window as it is now."""
        self._reported[key] = self._revision(partitions, key)

    @staticmethod
    def _keys(partitions: Mapping[int, PartitionMonitor]) -> list[WindowKey]:
        return sorted({key for monitor in partitions.values() for key in list(monitor.revisions)})

    @staticmethod
    def _revision(partitions: Mapping[int, PartitionMonitor], key: WindowKey) -> Revision:
        return tuple(sorted((p, m.revisions[key]) for p, m in partitions.items() if key in m.revisions))
