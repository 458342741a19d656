"""Waiting for what another process does."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOOK_EVERY_S = 0.1


def stretched(timeout_s: float) -> float:
    """More time on a machine that has more to do than cores: what counts is whether it happens, not how soon."""
    return timeout_s * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str, *, timeout_s: float = 60.0) -> None:
    """Look again and again until a condition holds; a broker that cannot be asked counts as not yet.

    Raises:
        TimeoutError: it does not within ``timeout_s``, stretched on a busy machine; the message says what was waited
            for.

    Example:
        >>> asyncio.run(until(lambda: True, "nothing"))

    """
    timeout_s = stretched(timeout_s)
    deadline_s = time.monotonic() + timeout_s
    while not await _holds(condition, deadline_s):
        if time.monotonic() > deadline_s:
            msg = f"not within {timeout_s:.0f} s: {what}"
            raise TimeoutError(msg)
        await asyncio.sleep(LOOK_EVERY_S)


async def _holds(condition: Callable[[], bool | Awaitable[bool]], deadline_s: float) -> bool:
    try:
        async with asyncio.timeout(max(1.0, deadline_s - time.monotonic())):
            found = condition()
            return await found if inspect.isawaitable(found) else bool(found)
    except (KafkaError, TimeoutError):
        return False
