"""Named checks that say whether a worker lives and whether it is ready, each with a reason when not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class FailingCheck:
    """One check that failed.

    Attributes:
        check: its name.
        reason: why it failed, and where to look.
    """

    check: str
    reason: str


class Health:
    """The checks of one worker.

    A *live* check fails when only a restart can help; it makes the worker unready too. A *ready* check
    fails while the worker should get no work: a model is not warm, no partition is assigned.

    Example:
        >>> health = Health()
        >>> health.add_check("model", lambda: "no version is loaded yet")
        >>> health.failing_ready(), health.failing_live()
        ([FailingCheck(check='model', reason='no version is loaded yet')], [])

    """

    def __init__(self) -> None:
        self._ready: dict[str, Callable[[], str | None]] = {}
        self._live: dict[str, Callable[[], str | None]] = {}

    def add_check(self, name: str, check: Callable[[], str | None], *, live: bool = False) -> None:
        """Add a check, or replace the one of that name.

        Args:
            name: shown in the list of failing checks.
            check: None when all is well, else the reason; must return at once, it runs on the event loop. An
                exception counts as a failure with its text.
            live: whether a failure calls for a restart.

        """
        (self._live if live else self._ready)[name] = check

    def failing_live(self) -> list[FailingCheck]:
        """Failing live checks, in the order in which they were added; empty when the worker lives."""
        return _failing(self._live)

    def failing_ready(self) -> list[FailingCheck]:
        """Failing checks of both kinds; empty when the worker is ready."""
        return _failing(self._live) + _failing(self._ready)


def _failing(checks: dict[str, Callable[[], str | None]]) -> list[FailingCheck]:
    found = []
    for name, check in checks.items():
        try:
            reason = check()
        except Exception as exc:  # noqa: BLE001 - a check that cannot tell must not take the endpoint down
            reason = f"the check itself failed: {type(exc).__name__}: {exc}"
        if reason is not None:
            found.append(FailingCheck(name, reason))
    return found
