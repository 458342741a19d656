"""A model manager on a repository of its own, with an operator at hand."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.metrics import Metrics
from app.models.control import ControlState, Target, Wish, encode
from app.models.control_progress import Progress, progress_of
from app.models.live_loader import LiveLoader
from app.models.manager import ModelManager
from app.models.policy import parse_policies
from app.models.repository import open_repository
from app.models.trust import TrustStore
from app.models.version_loader import VersionLoader
from app.settings import BudgetSettings, Settings
from schemas.registry import SchemaBook
from tests.fakes import FakeClock, MemoryStore
from tests.samples import pack_sample, sample_spec

if TYPE_CHECKING:
    from app.models.live import LiveModel
    from app.models.live_table import LiveTable
    from app.models.spec import ModelSpec

SCHEMAS = Path(__file__).parents[1] / "schemas"
NAME = "sample"
"""The default model."""


class _WithoutLog(LiveLoader):
    """As a worker's, where there is no prediction log."""

    async def recorded(self, spec: ModelSpec) -> None:
        """Nothing."""


class Rig:
    """A manager, its repository, and an operator.

    Attributes:
        root: of the repository.
        tables: that were put in force, the newest last.
        is_drained: what ``switch`` answers.

    """

    def __init__(
        self, folder: Path, serve: str = NAME, *, memory_bytes: int | None = None, poll_s: float = 0.01
    ) -> None:
        self.root = folder / "models"
        self.tables: list[LiveTable[LiveModel]] = []
        self.is_drained = True
        self.control = ControlState.empty()
        self._folder = folder
        book, metrics = SchemaBook(SCHEMAS), Metrics(BudgetSettings(), now_s=FakeClock())
        loader = _WithoutLog(Settings(), book, MemoryStore(), metrics)
        self.repository = open_repository(self.root, cache=folder / "cache", trust=TrustStore(folder / "trust.json"))
        self.manager = ModelManager(
            parse_policies(serve),
            VersionLoader(self.repository, loader, max_run_ms=10_000),
            poll_s=poll_s,
            memory_bytes=memory_bytes,
            switch=self._switch,
        )

    async def _switch(self, table: LiveTable[LiveModel]) -> bool:
        await asyncio.sleep(0)
        self.tables.append(table)
        return self.is_drained

    def pack(self, version: int, name: str = NAME, **changes: Any) -> Path:  # noqa: ANN401 - of ModelSpec
        """A good bundle."""
        return pack_sample(self.root, sample_spec(name=name, version=version, buckets=(1, 2), **changes))

    def set_aside(self, version: int, name: str = NAME) -> Path:
        """Pack a good bundle, and take it out of the repository for now."""
        return self.pack(version, name).rename(self._folder / f"{name}-{version}")

    def put(self, aside: Path) -> Path:
        """Copy what was set aside into the repository."""
        name, _, version = aside.name.rpartition("-")
        target = self.root / name / version
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(aside, target))

    async def start(self) -> Rig:
        """Start the manager on what is wished so far."""
        await self.manager.start(self.control)
        return self

    async def say(self, target: Target, value: int | None, *, is_looked_at: bool = True) -> Progress:
        """An operator's wish, None takes it back; and what `sluice model` makes of it."""
        wish = None if value is None else Wish(value)
        raw = None if wish is None else encode(target, wish)[1]
        offset = self.control.offset
        self.control = self.control.apply(target.key, raw, offset)
        await self.manager.control(self.control)
        if is_looked_at:
            await self.look()
        return progress_of(self.manager.document(), target, wish, offset)

    async def look(self, times: int = 1) -> None:
        """So many polls."""
        for _ in range(times):
            await self.manager.look()

    def row(self, version: int, name: str = NAME) -> dict[str, Any]:
        """What the document says of a version."""
        (row,) = [r for r in self.manager.document()["versions"] if (r["name"], r["version"]) == (name, version)]
        return row

    @property
    def states(self) -> dict[int, str]:
        """Of the versions of the sample."""
        return {row["version"]: row["state"] for row in self.manager.document()["versions"] if row["name"] == NAME}

    @property
    def champion(self) -> int:
        """Who answers requests that pin nothing."""
        return self.tables[-1].champion.spec.version

    @property
    def refused(self) -> dict[str, str]:
        """What to why."""
        return {refused["what"]: refused["reason"] for refused in self.manager.document()["refused"]}
