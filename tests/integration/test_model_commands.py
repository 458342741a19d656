"""``sluice model load | unload | label | calibrate | reset | status`` against workers that publish what a test says.

The workers here are the real control follower and the real statistics, around a few lines instead of models.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import typer
from typer.testing import CliRunner

from agents import worker_stats
from agents.control import ControlFollower
from agents.topics import delete_topics, ensure_topics
from agents.worker_stats import WorkerIdentity, WorkerStats
from app import model_control_commands
from app.models.control import ControlError, ControlState
from app.producer import OutputProducer
from app.settings import KafkaSettings, SchemaSettings, Settings
from schemas.registry import SchemaBook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from typer.testing import Result

pytestmark = pytest.mark.integration
FOLDER = Path(__file__).parents[2] / "schemas"
CLI = typer.Typer()
model_control_commands.register(CLI)


class Puppet:
    """A scoring worker whose versions are what ``react`` makes of the control state."""

    def __init__(self, settings: Settings, name: str, react: Callable[[ControlState], dict[str, Any]]) -> None:
        self._react = react
        self.models: dict[str, Any] = {"control_offset": 0, "versions": []}
        self._follower = ControlFollower(settings, self._follow)
        self._producer = OutputProducer(settings.kafka)
        identity = WorkerIdentity(name, "scoring", f"http://{name}")
        self._stats = WorkerStats(
            settings, SchemaBook(FOLDER), self._producer, identity, lambda: {"models": self.models}
        )

    async def _follow(self, state: ControlState) -> None:
        self.models = {"control_offset": state.offset, **self._react(state)}

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._follow(await self._follower.read_all())
        await self._follower.start()
        self._publishing = asyncio.create_task(self._stats._publish())  # puppets need not follow one another
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._follower.stop()
        self._publishing.cancel()
        await asyncio.gather(self._publishing, return_exceptions=True)
        await self._producer.stop()


class Stage:
    """Fresh topics, some puppets, and an operator."""

    def __init__(self, settings: Settings, puppets: AsyncExitStack) -> None:
        self.settings = settings
        self._puppets = puppets

    async def add(self, name: str, react: Callable[[ControlState], dict[str, Any]]) -> Puppet:
        """Start a puppet."""
        return await self._puppets.enter_async_context(Puppet(self.settings, name, react))

    async def sluice(self, *arguments: str) -> Result:
        """Run ``sluice model`` in a thread, for it has an event loop of its own."""
        variables = {"KAFKA_BOOTSTRAP_SERVERS": self.settings.kafka.bootstrap_servers,
                     "SLUICE_SCHEMAS__FOLDER": str(FOLDER)}  # fmt: skip
        return await asyncio.to_thread(CliRunner(env=variables).invoke, CLI, arguments)


@pytest.fixture
async def stage(bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Topics without a record, and workers that publish ten times a second."""
    monkeypatch.setattr(worker_stats, "PUBLISH_EVERY_S", 0.1)
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=bootstrap_servers), schemas=SchemaSettings(folder=FOLDER))
    await delete_topics(settings)
    await ensure_topics(settings)
    async with AsyncExitStack() as puppets:
        yield Stage(settings, puppets)


def version(number: int, state: str = "READY", **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a worker says of a version of ``delays``."""
    return {"name": "delays", "version": number, "state": state, "reason": "", "labels": [], "calibration_revision": 0,
            "device": "cpu", "memory_bytes": 3 * 2**20, **changes}  # fmt: skip


def obedient(state: ControlState) -> dict[str, Any]:
    """All that is wanted is READY at once."""
    labels, revisions = state.labels("delays"), state.calibrations("delays")
    return {"versions": [
        version(n, labels=[label for label, to in labels.items() if to == n], calibration_revision=revisions.get(n, 0))
        for n in (1, *(n for n, is_wanted in state.wanted("delays").items() if is_wanted))
    ]}  # fmt: skip


async def test_every_worker_answers_to_every_command(stage: Stage) -> None:
    """Each command waits for all workers, prints a line for each, and leaves with 0."""
    await stage.add("s1", obedient)
    await stage.add("s2", obedient)
    for arguments, state in (
        (("load", "delays", "3"), "READY"),
        (("label", "delays", "champion", "3"), "READY"),
        (("calibrate", "delays", "3", "2"), "READY"),
        (("reset", "delays", "--label", "champion"), "APPLIED"),
        (("unload", "delays", "3"), "ABSENT"),
    ):
        done = await stage.sluice(*arguments)
        assert done.exit_code == 0, (arguments, done.output, done.exception)
        said = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:]}
        assert said == {"s1": state, "s2": state}, arguments


async def test_one_refusal_fails_the_command(stage: Stage) -> None:
    """The worker that refuses is named with its reason; the other has moved its label, and that is said too."""

    def refuses(_state: ControlState) -> dict[str, Any]:
        refused = [{"what": "label champion of delays -> 3", "reason": "version 3 is WARMING", "offset": 1}]
        return {"versions": [version(3, "WARMING")], "refused": refused}

    await stage.add("s1", obedient)
    await stage.add("s2", refuses)
    await stage.sluice("load", "delays", "3", "--no-wait")
    done = await stage.sluice("label", "delays", "champion", "3")
    assert done.exit_code == model_control_commands.EXIT_FAILED
    assert "s1  READY" in done.stdout
    assert "s2  REFUSED  version 3 is WARMING" in done.stdout


async def test_a_failed_load_tells_the_whole_reason(stage: Stage) -> None:
    """All lines of the reason are printed; what a terminal would obey is not."""
    reason = "3/model.yaml: features: wrong\n3/weights.safetensors: NaN \x1b[2J"
    await stage.add("s1", lambda _state: {"versions": [version(3, "FAILED", reason=reason)]})
    done = await stage.sluice("load", "delays", "3")
    assert done.exit_code == model_control_commands.EXIT_FAILED
    assert "features: wrong\n    3/weights.safetensors: NaN \\x1b[2J" in done.stdout


async def test_without_a_worker_the_record_stands(stage: Stage) -> None:
    """Exit code 3 says that nobody was there; whoever starts later finds the wish."""
    done = await stage.sluice("load", "delays", "3")
    assert done.exit_code == model_control_commands.EXIT_NO_WORKER
    assert "no scoring worker is alive" in done.stderr
    puppet = await stage.add("s1", obedient)
    assert [entry["version"] for entry in puppet.models["versions"]] == [1, 3]
    assert puppet.models["control_offset"] == 1


async def test_workers_that_are_late_are_named(stage: Stage) -> None:
    """After the time-out each worker that is not there yet is printed with its state, with exit code 4."""
    await stage.add("s1", lambda _state: {"versions": [version(3, "LOADING")]})
    done = await stage.sluice("load", "delays", "3", "--timeout", "1")
    assert done.exit_code == model_control_commands.EXIT_TIMED_OUT
    assert "s1  LOADING" in done.stdout
    assert "sluice model status" in done.stderr


async def test_status_shows_workers_and_decisions(stage: Stage) -> None:
    """A table of every worker's versions, then what was decided by command; the same as JSON."""
    assert (await stage.sluice("status")).exit_code == model_control_commands.EXIT_NO_WORKER
    await stage.add("s1", obedient)
    await stage.sluice("load", "delays", "2")
    await stage.sluice("label", "delays", "champion", "2")
    shown = (await stage.sluice("status")).stdout
    assert [line.split()[:5] for line in shown.splitlines()[1:3]] == [
        ["s1", "delays", "1", "READY", "-"],
        ["s1", "delays", "2", "READY", "champion"],
    ]
    assert "load delays 2" in shown
    assert "label champion of delays -> 2" in shown
    document = json.loads((await stage.sluice("status", "--json")).stdout)
    assert document["control_offset"] == 2
    assert document["workers"]["s1"]["models"]["versions"][1]["labels"] == ["champion"]
    assert [wish["what"] for wish in document["decided"]] == ["load delays 2", "label champion of delays -> 2"]


async def test_a_wrong_name_is_refused_before_anything_is_sent(stage: Stage) -> None:
    """Names, and a reset of nothing or of two things."""
    for arguments in (("load", "Delays", "1"), ("label", "delays", "the-best", "1")):
        assert isinstance((await stage.sluice(*arguments)).exception, ControlError), arguments
    for arguments in (
        ("reset", "delays"),
        ("reset", "delays", "--version", "1", "--label", "a"),
        ("load", "delays", "0"),
    ):
        assert (await stage.sluice(*arguments)).exit_code == 2, arguments
    assert json.loads((await stage.sluice("status", "--json")).stdout)["control_offset"] == 0
