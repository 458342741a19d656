"""The circuit breaker before a server: after enough failures among the last calls nobody waits for it any more."""

from __future__ import annotations

from collections import deque
from math import ceil, inf


class Breaker:
    """Opens when a share of the last calls failed; then one probe after each pause decides; pure.

    Args:
        calls: how many of the last calls count, >= 1.
        failed_share: of those, in (0, 1], that opens it.
        open_s: how long it spares the server before a probe, seconds.

    Example:
        >>> breaker = Breaker(calls=4, failed_share=0.5, open_s=1.0)
        >>> for ok in (True, False, True, False):
        ...     breaker.record(ok=ok, now_s=10.0)
        >>> breaker.is_open(10.9), breaker.is_open(11.0), breaker.awaits_probe
        (True, False, True)
        >>> breaker.record(ok=True, now_s=11.0)
        >>> breaker.awaits_probe
        False

    """

    def __init__(self, *, calls: int, failed_share: float, open_s: float) -> None:
        self._outcomes: deque[bool] = deque(maxlen=calls)
        self._failures_to_open = max(1, ceil(calls * failed_share))
        self._open_s = open_s
        self._open_until_s = -inf

    @property
    def awaits_probe(self) -> bool:
        """Whether it has opened, and no call has gone well since."""
        return self._open_until_s > -inf

    @property
    def last_failed(self) -> bool:
        """Whether the latest call failed."""
        return self.awaits_probe or (bool(self._outcomes) and not self._outcomes[-1])

    def is_open(self, now_s: float) -> bool:
        """Whether to spare the server the call."""
        return now_s < self._open_until_s

    def record(self, *, ok: bool, now_s: float) -> None:
        """The outcome of a call; that of a probe opens or closes it by itself."""
        if ok and self.awaits_probe:
            self._open_until_s = -inf
            self._outcomes.clear()
        self._outcomes.append(ok)
        if not ok and (self.awaits_probe or self._outcomes.count(False) >= self._failures_to_open):
            self._open_until_s = now_s + self._open_s
