"""All scenarios by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.scenarios import brokers, links, monitors, soak, stores, workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.scenario import Scenario

SCENARIOS: Sequence[Scenario] = (
    *workers.SCENARIOS,
    *brokers.SCENARIOS,
    *links.SCENARIOS,
    *stores.SCENARIOS,
    *monitors.SCENARIOS,
    *soak.SCENARIOS,
)


def named(name: str) -> Scenario:
    """The scenario of a name.

    Raises:
        KeyError: there is none; the message names all.

    Example:
        >>> named("zombie").workers
        2

    """
    for each in SCENARIOS:
        if each.name == name:
            return each
    msg = f"no scenario {name!r}; there are {', '.join(each.name for each in SCENARIOS)}"
    raise KeyError(msg)
