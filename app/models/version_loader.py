"""From a version in the repository to a live model: fetch, map, warm up, calibrate; on one thread of low priority."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from app.errors import BundleError, SluiceError
from app.models.compute_threads import lower_priority
from app.models.lifecycle import Event
from app.models.tracked import close

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.models.bundle import Bundle
    from app.models.control import ControlState
    from app.models.live import LiveModel
    from app.models.spec import ModelSpec
    from app.models.tracked import Key, Tracked
    from schemas.columns import Column

log = logging.getLogger(__name__)

T = TypeVar("T")
Recorded = dict[str, "Column"]


class Bundles(Protocol):
    """Where bundles come from; ``app.models.repository`` has one. All of it blocks."""

    def versions(self, name: str) -> list[int]:
        """Versions that there are of a model, increasing."""

    def fingerprint(self, name: str, version: int) -> str:
        """Changes when a file of the version does."""

    def calibrations(self, name: str, version: int) -> list[int]:
        """Revisions of its calibration, increasing."""

    def open(self, name: str, version: int, *, calibration: int | None = None) -> Bundle:
        """The verified bundle."""


class Loader(Protocol):
    """How a bundle becomes a live model; ``app.models.live_loader`` has one."""

    def devices(self, spec: ModelSpec) -> tuple[str, ...]:
        """Where the instances of a model go."""

    def map(self, bundle: Bundle) -> LiveModel:
        """Load the network on its devices; blocks."""

    def warm(self, live: LiveModel, recorded: Recorded | None) -> dict[int, float]:
        """Run every bucket, with recorded requests if there are any; returns seconds by bucket; blocks."""

    async def recorded(self, spec: ModelSpec) -> Recorded | None:
        """The newest requests of a model, as columns by feature; None: there are none."""


class VersionLoader:
    """Takes versions through LOADING and WARMING.

    Args:
        bundles: where they come from.
        loader: how they become live.
        max_run_ms: a warm batch of the smallest bucket that takes longer fails the load, unless the bundle says more.

    Attributes:
        problems: why the repository did not answer, since they were forgotten last.

    """

    def __init__(self, bundles: Bundles, loader: Loader, *, max_run_ms: float) -> None:
        self.bundles = bundles
        self.problems: list[str] = []
        self._loader, self._max_run_ms = loader, max_run_ms
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models")

    async def be_modest(self) -> None:
        """From now on what is loaded waits for what serves."""
        await self._blocking(lower_priority)

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def forget_problems(self) -> list[str]:
        """The problems so far; from now on there are none."""
        known, self.problems = self.problems, []
        return known

    async def ask(self, question: Callable[..., T], *arguments: Any) -> T | None:  # noqa: ANN401 - of the question
        """What the repository answers; None when it cannot be asked, which becomes one of ``problems``."""
        try:
            return await self._blocking(question, *arguments)
        except (SluiceError, OSError) as exc:
            if str(exc) not in self.problems:
                self.problems.append(str(exc))
            return None

    def devices(self, bundle: Bundle) -> tuple[str, ...]:
        """Where the instances of a model would go.

        Raises:
            BundleError: it is pinned to a device that the worker does not use.

        """
        return self._loader.devices(bundle.spec)

    async def open(self, key: Key, tracked: Tracked, control: ControlState) -> Bundle:
        """The verified bundle with the wanted calibration, or with the next older one that can be used.

        Raises:
            BundleError: it cannot be used; the message names the file and the field.

        """
        started_s = time.monotonic()
        tracked.fingerprint = await self._blocking(self.bundles.fingerprint, *key)
        tracked.calibration_problem = ""
        revisions = await self._revisions(key, control) or [0]
        for revision in revisions:
            try:
                bundle = await self._calibrated(key, revision)
                break
            except (SluiceError, OSError) as exc:
                if revision == revisions[-1]:
                    raise
                await self._calibrated(key, 0)  # raises when the fault is not the calibration's
                _note_calibration_problem(key, tracked, revision, exc)
        tracked.calibration, tracked.seconds = revision, {"fetch": time.monotonic() - started_s}
        return bundle

    async def make_ready(self, bundle: Bundle, tracked: Tracked) -> None:
        """Map its weights and warm it up; if this raises, nothing of it stays loaded.

        Raises:
            BundleError: it does not fit together, an output is not finite, or it is too slow.
            DeviceLost: a device fails, or has too little memory.

        """
        started_s = time.monotonic()
        live = await self._blocking(self._loader.map, bundle)
        tracked.seconds["map"] = time.monotonic() - started_s
        tracked.on(Event.LOADED)
        try:
            await self._warm(live, tracked)
        except BaseException:
            close(live)
            raise
        live.last_used_s = time.monotonic()  # what is new is not what was used longest ago
        tracked.live = live
        tracked.on(Event.WARMED)

    async def recalibrate(self, key: Key, tracked: Tracked, control: ControlState) -> None:
        """The wanted calibration for a live version whose weights stay where they are; a bad one changes nothing."""
        revisions = await self._revisions(key, control)
        if not revisions or revisions[0] == tracked.calibration:
            tracked.calibration_problem = ""
            return
        try:
            bundle = await self._calibrated(key, revisions[0])
            live = _recalibrated(tracked.live, bundle)
        except (SluiceError, OSError) as exc:
            _note_calibration_problem(key, tracked, revisions[0], exc)
            return
        tracked.live, tracked.calibration, tracked.calibration_problem = live, revisions[0], ""
        log.info("model %s version %d uses calibration %d", *key, revisions[0])

    async def _revisions(self, key: Key, control: ControlState) -> list[int]:
        """Revisions of its calibration, the wanted one first, then what to fall back to; empty: nobody can say."""
        known = await self.ask(self.bundles.calibrations, *key)
        asked = control.calibrations(key[0]).get(key[1])
        if known is None:
            return [] if asked is None else [asked]
        newest_first = [*sorted(known, reverse=True), 0]  # 0 is the bundle's own
        return newest_first if asked is None else [asked, *(r for r in newest_first if r < asked)]

    async def _calibrated(self, key: Key, revision: int) -> Bundle:
        return await self._blocking(partial(self.bundles.open, *key, calibration=revision or None))

    async def _warm(self, live: LiveModel, tracked: Tracked) -> None:
        started_s = time.monotonic()
        recorded = await self._loader.recorded(live.spec)
        tracked.warm_up_s = await self._blocking(self._loader.warm, live, recorded)
        tracked.seconds["warm-up"] = time.monotonic() - started_s
        smallest, took_s = next(iter(tracked.warm_up_s.items()))
        limit_ms = live.spec.max_run_ms or self._max_run_ms
        if took_s * 1000 > limit_ms:
            msg = (
                f"too slow: a batch of {smallest} takes {took_s * 1000:.3g} ms, at most {limit_ms:g} ms are allowed "
                "(max_run_ms in model.yaml, or SLUICE_MODELS__MAX_RUN_MS); make the model smaller, or allow more"
            )
            raise BundleError(msg)

    async def _blocking(self, work: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - whatever it takes
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _recalibrated(live: LiveModel | None, bundle: Bundle) -> LiveModel:
    assert live is not None, "only what is live is recalibrated"
    if bundle.sha256 != live.bundle.sha256:
        msg = "the version's files are others than those that are loaded; pack a new version instead"
        raise BundleError(msg)
    return live.recalibrated(bundle)


def _note_calibration_problem(key: Key, tracked: Tracked, revision: int, exc: Exception) -> None:
    problem = f"calibration {revision} is not in use: {exc}"
    if problem != tracked.calibration_problem:  # it is told once, not at every look
        log.error("model %s version %d: %s", *key, problem)
    tracked.calibration_problem = problem
