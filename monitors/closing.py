"""When a window closes: the watermark over partitions, and the three states of a window.

Closing decides when a window is published, never what it counts.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Closing(IntEnum):
    """State of a window; it only ever goes up."""

    OPEN = 0
    PROVISIONAL = 1
    FINAL = 2


def watermark(clocks: Sequence[tuple[int | None, bool]], lateness_us: int, previous_us: int | None) -> int | None:
    """Event time below which no prediction is expected any more.

    Args:
        clocks: for each partition, the highest event time seen (None: none yet) and whether it is idle.
        lateness_us: allowed disorder.
        previous_us: the watermark before; it never goes back.

    Returns:
        Min over the partitions that are not idle, less the lateness; when all are idle, the max over all of them; None
        before the first event, or while a partition that is not idle has shown none.

    Example:
        >>> watermark([(100, False), (50, False)], 10, None), watermark([(100, False), (50, True)], 10, 40)
        (40, 90)

    """
    active = [clock for clock, is_idle in clocks if not is_idle]
    seen = [clock for clock in active if clock is not None]
    if len(seen) < len(active):
        return previous_us
    if not active:
        known = [clock for clock, _ in clocks if clock is not None]
        if not known:
            return previous_us
        seen = [max(known)]
    found = min(seen) - lateness_us
    return found if previous_us is None else max(found, previous_us)


def closing(end_us: int, watermark_us: int | None, maturity_us: int) -> Closing:
    """State that a window which ends at ``end_us`` has reached.

    Example:
        >>> closing(100, 99, 50).name, closing(100, 100, 50).name, closing(100, 150, 50).name
        ('OPEN', 'PROVISIONAL', 'FINAL')

    """
    if watermark_us is None or watermark_us < end_us:
        return Closing.OPEN
    return Closing.FINAL if watermark_us >= end_us + maturity_us else Closing.PROVISIONAL
