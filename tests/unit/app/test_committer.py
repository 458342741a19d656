"""The committer's watchdog: what is answered must be committed, and a commit that hangs hides nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from app.committer import Committer, Stalled
from app.ledger import Ledger
from app.metrics import Metrics
from app.settings import BudgetSettings, DeliverySettings
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.ledger import Partition

IN = ("score-requests", 0)
SETTINGS = DeliverySettings(commit_interval_ms=1, stall_after_s=10)


class Bench:
    """A committer whose commits do what they are told to."""

    def __init__(self, commit: Callable[[dict[Partition, int]], Awaitable[bool]]) -> None:
        self.clock, self.ledger = FakeClock(), Ledger()
        self.failures: list[BaseException] = []
        self.failed = asyncio.Event()
        self.reason: BaseException | None = None
        self.is_held = False
        self.committer = Committer(
            commit, self.ledger, SETTINGS, Metrics(BudgetSettings(), now_s=self.clock),
            on_failure=self._fail, crash_reason=lambda: self.reason, is_held=lambda: self.is_held,
            now_s=self.clock,
        )  # fmt: skip

    def _fail(self, failure: BaseException) -> None:
        self.failures.append(failure)
        self.failed.set()

    async def until_failure(self) -> BaseException:
        """Run until something is reported."""
        task = asyncio.create_task(self.committer.run())
        try:
            async with asyncio.timeout(10):
                await self.failed.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return self.failures[0]


async def _good(_: dict[Partition, int]) -> bool:
    return True


async def _refused(_: dict[Partition, int]) -> bool:
    return False


async def _hanging(_: dict[Partition, int]) -> bool:
    await asyncio.Event().wait()
    return True


@pytest.mark.parametrize("commit", [_hanging, _refused])
async def test_answers_that_are_never_committed_end_the_worker(
    commit: Callable[[dict[Partition, int]], Awaitable[bool]],
) -> None:
    """Nothing is in flight, yet a restart would repeat it all; also when the commit itself never comes back."""
    bench = Bench(commit)
    bench.ledger.deliver(IN, 0, 5)
    bench.ledger.answer(IN, 0, 5)
    running = asyncio.create_task(bench.until_failure())
    await asyncio.sleep(0.02)
    bench.clock.advance(20.0)
    await asyncio.sleep(0.02)
    assert not bench.failures, "twice the time is allowed"
    bench.clock.advance(0.1)
    failure = await running
    assert isinstance(failure, Stalled)
    assert "nothing was committed for 20 s: in flight {('score-requests', 0): 0}" in str(failure)


async def test_only_what_waits_can_stall() -> None:
    """No work, committed work and work that waits on purpose are no stall; unanswered work is."""
    bench = Bench(_good)
    bench.clock.advance(100.0)
    assert bench.committer.stalled_s() == 0.0
    bench.ledger.deliver(IN, 0, 5)
    bench.clock.advance(7.0)
    assert bench.committer.stalled_s() == 7.0
    bench.is_held = True
    assert bench.committer.stalled_s() == 0.0
    bench.is_held = False
    bench.clock.advance(3.0)
    bench.ledger.answer(IN, 0, 5)
    assert bench.committer.stalled_s() == 3.0
    await bench.committer.commit()
    bench.clock.advance(50.0)
    assert bench.committer.stalled_s() == 0.0


async def test_a_part_that_has_ended_ends_the_worker() -> None:
    """Whatever the committer itself could still do."""
    bench = Bench(_good)
    bench.reason = RuntimeError("gone")
    assert await bench.until_failure() is bench.reason
