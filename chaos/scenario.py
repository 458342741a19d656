"""What a scenario is: a name, what it runs on, and a few lines that do harm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from chaos.world import World

Mode: TypeAlias = Literal["at_least_once", "exactly_once"]
Profile: TypeAlias = Literal["short", "long"]
Harm: TypeAlias = "Callable[[World], Awaitable[None]]"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Attributes:
        name: as the command line and the results call it.
        harm: does the harm; when it returns, everything is healed, drained and judged.
        brokers: 1 or 3.
        workers: scoring workers.
        monitors: monitor workers; with any, every request gets an outcome too.
        rate: requests a second.
        is_detoured: workers reach Kafka and the store by proxies that the scenario may trouble.
        is_clock_stepped: the wall clock of workers follows ``World.clock``.
        environment: further settings of the workers.
        is_by_hand: runs only when it is named.

    """

    name: str
    harm: Harm
    brokers: int = 1
    workers: int = 2
    monitors: int = 0
    rate: float = 400.0
    is_detoured: bool = False
    is_clock_stepped: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    is_by_hand: bool = False

    @property
    def sentence(self) -> str:
        """What it does, the first line of its docstring."""
        return (self.harm.__doc__ or "").strip().splitlines()[0]


def scenario(name: str, **stage: Any) -> Callable[[Harm], Scenario]:  # noqa: ANN401 - the fields of Scenario
    """Make a `Scenario` of a function.

    Args:
        name: of the scenario.
        stage: other fields of `Scenario`.

    Example:
        >>> @scenario("nothing", brokers=3)
        ... async def nothing(world):
        ...     '''Nothing happens.'''
        >>> nothing.name, nothing.brokers, nothing.sentence
        ('nothing', 3, 'Nothing happens.')

    """

    def made(harm: Harm) -> Scenario:
        return Scenario(name, harm, **stage)

    return made
