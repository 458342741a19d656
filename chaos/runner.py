"""Runs one scenario: world, harm, settling, verdict."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos import evidence, monitor_evidence
from chaos.outcome_verdict import judge_monitors
from chaos.verdict import judge
from chaos.world import World
from schemas import topic_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaos.scenario import Mode, Profile, Scenario

LOG_TAIL = 3000


@dataclass(slots=True)
class Result:
    """How a scenario went.

    Attributes:
        name: of the scenario.
        seed: of every random choice.
        mode: of delivery.
        profile: how much harm.
        problems: broken promises and failures; none: it passed.
        figures: counts.
        seconds: of the whole run.

    """

    name: str
    seed: int
    mode: Mode
    profile: Profile
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def has_passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return asdict(self)


async def run(
    stage: Scenario, *, seed: int, mode: Mode, profile: Profile, say: Callable[[str], None], keep: Path | None = None
) -> Result:
    """Run a scenario on a world of its own.

    Args:
        stage: the scenario.
        seed: of every random choice.
        mode: of delivery.
        profile: how much harm.
        say: told what happens, a line a call.
        keep: where to leave the logs; None: nowhere.

    Returns:
        Its result; a failure of the harness itself is a problem too, never an exception.

    """
    result, started_s = Result(stage.name, seed, mode, profile), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{stage.name}-"))
    try:
        world = World(stage, folder, seed=seed, mode=mode, profile=profile, say=say)
        async with world:
            await _harm_and_judge(world, result)
    except Exception as exc:  # noqa: BLE001 - one broken world must not end the whole run
        result.problems.append(f"the world broke: {exc!r}")
        say(traceback.format_exc())
    finally:
        result.seconds = round(time.monotonic() - started_s, 1)
        if keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(folder, keep, ignore=shutil.ignore_patterns("data", "models"))
        shutil.rmtree(folder, ignore_errors=True)
    return result


async def _harm_and_judge(world: World, result: Result) -> None:
    try:
        await world.stage.harm(world)
    except (AssertionError, TimeoutError) as exc:
        result.problems.append(f"during the harm: {exc}")
        world.say(traceback.format_exc())
    try:
        await world.settle()
    except TimeoutError as exc:
        result.problems.append(f"it never came to rest: {exc}")
        result.problems += [f"{worker.name} says: {worker.log()[-LOG_TAIL:]}" for worker in world.workers]
    result.figures |= world.extra
    if world.monitors:
        await _judge_monitors(world, result)
    result.figures["exits"] = {w.name: list(w.exit_codes) for w in (*world.workers, *world.monitors) if w.exit_codes}
    codes = await world.drain()
    result.figures["stop_seconds"] = {worker.name: worker.stop_seconds for worker in world.workers}
    result.problems += [f"{name} ended with {code} when asked to end" for name, code in codes.items() if code]
    result.problems += [f"the load failed: {failure}" for failure in world.load.failures[:3]]
    found = await evidence.gather(world.judge, world.load, world.workload, world.commits)
    verdict = judge(found, world.mode)
    result.problems += verdict.problems
    result.figures |= verdict.figures
    # What a kill left in an open transaction stands on the topic and is committed to nobody.
    everything = await world.judge.read(topic_names.SCORES, "read_uncommitted")
    result.figures["aborted_scores"] = len(everything) - len(found.scores)


async def _judge_monitors(world: World, result: Result) -> None:
    found = await monitor_evidence.gather(world.judge, world.load, world.workload, world.monitors)
    verdict = judge_monitors(found)
    result.problems += verdict.problems
    result.figures["monitors"] = verdict.figures
