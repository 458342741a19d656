"""Keeps the live models as the policies and the operators want them: loads, warms, switches, retires.

One version is loaded at a time, on a thread of low priority, while the others serve. Whatever goes wrong leaves the
table as it was; the reason is kept with the version. What has failed is tried again when its files change, or when an
operator says something new.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from app.errors import BundleError, SluiceError
from app.models.compute_threads import lower_priority
from app.models.control import ControlState
from app.models.lifecycle import Event, State, next_state
from app.models.live_table import CHAMPION, LiveTable
from app.models.policy import wanted_versions
from app.models.residency import Resident, plan_unloads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from app.models.bundle import Bundle
    from app.models.live import LiveModel
    from app.models.policy import VersionPolicy
    from app.models.spec import ModelSpec
    from schemas.columns import Column

log = logging.getLogger(__name__)

Key = tuple[str, int]
Recorded = dict[str, "Column"]


class Bundles(Protocol):
    """Where bundles come from; ``app.models.repository`` has one."""

    def names(self) -> list[str]:
        """Models that there are."""

    def versions(self, name: str) -> list[int]:
        """Versions that there are of a model."""

    def fingerprint(self, name: str, version: int) -> str:
        """Changes when a file of the version does."""

    def calibrations(self, name: str, version: int) -> list[int]:
        """Revisions of its calibration, increasing."""

    def open(self, name: str, version: int, *, calibration: int | None = None) -> Bundle:
        """The verified bundle."""


@dataclass(slots=True)
class Tracked:
    """What is known of a version.

    Attributes:
        state: where it is.
        reason: why it is there; empty when there is nothing to say.
        live: the loaded model, while there is one.
        fingerprint: of the files that were tried last.
        calibration: revision in use; 0: the bundle's own.
        seconds: what loading took, by step.
        warm_up_s: what a batch took at the end of the warm-up, by bucket.
        gave_up_at: offset of the control state when it failed, or went for lack of memory; it is tried again when the
            operators say something new.

    """

    state: State = State.NEW
    reason: str = ""
    live: LiveModel | None = None
    fingerprint: str = ""
    calibration: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warm_up_s: dict[int, float] = field(default_factory=dict)
    gave_up_at: int | None = None

    def on(self, event: Event, reason: str = "") -> None:
        """Step to the next state."""
        self.state, self.reason = next_state(self.state, event), reason


@dataclass(frozen=True, slots=True)
class Loader:
    """How a bundle becomes a live model; the composition root knows the parts.

    Attributes:
        devices: where the instances of a model go.
        map: loads the network on its devices; blocking.
        warm: runs every bucket, with recorded requests if there are any; returns seconds by bucket; blocking.
        recorded: newest requests of a model, as columns by feature; None: there are none.

    """

    devices: Callable[[ModelSpec], tuple[str, ...]]
    map: Callable[[Bundle], LiveModel]
    warm: Callable[[LiveModel, Recorded | None], dict[int, float]]
    recorded: Callable[[ModelSpec], Awaitable[Recorded | None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a manager allows.

    Attributes:
        poll_s: between two looks at the repository.
        max_run_ms: a warm batch of the smallest bucket that takes longer fails the load, unless the bundle says more.
        memory_bytes: of each device; None: no limit.

    """

    poll_s: float = 5.0
    max_run_ms: float = 100.0
    memory_bytes: int | None = None


class ModelManager:
    """Runs the lifecycle of all versions of a worker.

    Args:
        policies: by model; the first model is the default one.
        bundles: where they come from.
        loader: how they become live.
        limits: time and memory.
        switch: puts a table in force, and returns when no answer by the one before can come.

    """

    def __init__(
        self,
        policies: Mapping[str, VersionPolicy],
        bundles: Bundles,
        loader: Loader,
        *,
        limits: Limits,
        switch: Callable[[LiveTable[LiveModel]], Awaitable[None]],
    ) -> None:
        self._policies, self._bundles, self._loader = policies, bundles, loader
        self._limits, self._switch = limits, switch
        self._default = next(iter(policies))
        self._tracked: dict[Key, Tracked] = {}
        self._table: LiveTable[LiveModel] | None = None
        self._control, self._applied_offset = ControlState.empty(), 0
        self._refused: list[dict[str, Any]] = []
        self._loading = ""
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models")

    @property
    def table(self) -> LiveTable[LiveModel]:
        """The one in force."""
        assert self._table is not None, "nothing is live before start"
        return self._table

    async def start(self, control: ControlState) -> None:
        """Load and warm everything that is wanted, and put the first table in force.

        Raises:
            BundleError: no version of the default model can serve; the message says what is wrong with each.

        """
        self._control = control
        await self._reconcile()
        if self._table is None:
            raise BundleError(self._why_nothing_serves())
        await asyncio.get_running_loop().run_in_executor(self._thread, lower_priority)

    async def run(self) -> None:
        """Follow the repository and the operators' wishes, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._limits.poll_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._reconcile()
            except (SluiceError, OSError) as exc:  # the repository is away: what is live serves on
                log.warning("models: %s; looking again in %.0f s", exc, self._limits.poll_s)

    async def control(self, state: ControlState) -> None:
        """Operators wish something else."""
        self._control = state
        self._wake.set()

    def replace_scorers(self, live: LiveModel, scorers: tuple[Any, ...], reason: str) -> None:
        """A device was lost: the model goes on elsewhere, flagged."""
        live.scorers = scorers
        for tracked in self._tracked.values():
            if tracked.live is live:
                tracked.reason = reason

    def problem(self) -> str | None:
        """Why no request could be answered; None when it could."""
        return None if self._table is not None else f"models are being loaded: {self._loading or 'none yet'}"

    def spec(self, name: str, version: int) -> ModelSpec | None:
        """What a loaded version takes and gives."""
        tracked = self._tracked.get((name, version))
        return None if tracked is None or tracked.live is None else tracked.live.spec

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def document(self) -> dict[str, Any]:
        """The state of every version, plain values."""
        return {
            "default": self._default,
            "control_offset": self._applied_offset,
            "loading": self._loading or None,
            "versions": [self._row(key, tracked) for key, tracked in sorted(self._tracked.items())],
            "refused": list(self._refused),
        }

    def _row(self, key: Key, tracked: Tracked) -> dict[str, Any]:
        live, labels = tracked.live, {} if self._table is None else self._table.labels
        is_serving = live is not None and tracked.state in {State.READY, State.DRAINING}
        return {
            "name": key[0],
            "version": key[1],
            "state": tracked.state.value,
            "reason": tracked.reason,
            "device": ",".join(scorer.device for scorer in live.scorers) if live else None,
            "sha256": live.bundle.sha256 if live else None,
            "calibration_revision": tracked.calibration if live else None,
            "calibration_sha256": live.bundle.calibration_sha256 if live else None,
            "labels": sorted(label for (name, label), number in labels.items() if (name, number) == key),
            "memory_bytes": sum(scorer.memory_bytes for scorer in live.scorers) if live else 0,
            "load_ms": {step: round(s * 1000, 3) for step, s in tracked.seconds.items()},
            "warm_up_ms": {str(bucket): round(s * 1000, 3) for bucket, s in tracked.warm_up_s.items()},
            "is_default": is_serving and self._table is not None and self._table.champion is live,
            "requests": live.requests if live else 0,
        }

    async def _reconcile(self) -> None:
        control = self._control
        names = dict.fromkeys([*self._policies, *control.models()])
        wanted: set[Key] = set()
        for name in names:
            wanted |= {(name, version) for version in await self._bring_up(name, control)}
        await self._put_in_force(self._next_table(names, wanted, control))
        await self._retire(wanted)
        self._applied_offset = control.offset

    async def _bring_up(self, name: str, control: ControlState) -> list[int]:
        """Load what is wanted of a model; returns the versions that are wanted and live."""
        available = await self._blocking(self._bundles.versions, name)
        labels = control.labels(name)
        for key in [k for k, t in self._tracked.items() if k[0] == name and k[1] not in available and t.live is None]:
            del self._tracked[key]
        while True:
            wanted = wanted_versions(
                self._policies.get(name),
                available,
                wishes=control.wanted(name),
                labelled=labels.values(),
                unfit=await self._unfit(name, available),
            )
            missing = [version for version in wanted if not self._is_ready((name, version))]
            if not missing:
                break
            await self._load((name, missing[-1]), self._calibration(name, missing[-1], control))
        for version in wanted:
            await self._recalibrate((name, version), self._calibration(name, version, control))
        return wanted

    def _is_ready(self, key: Key) -> bool:
        tracked = self._tracked.get(key)
        return tracked is not None and tracked.state is State.READY

    async def _unfit(self, name: str, available: list[int]) -> set[int]:
        """Versions that were given up, as long as neither their files change nor an operator speaks."""
        unfit = set()
        for version in available:
            tracked = self._tracked.get((name, version))
            if tracked is None or tracked.gave_up_at != self._control.offset:
                continue
            has_failed = tracked.state is State.FAILED
            if has_failed and await self._blocking(self._bundles.fingerprint, name, version) != tracked.fingerprint:
                continue
            unfit.add(version)
        return unfit

    def _calibration(self, name: str, version: int, control: ControlState) -> int:
        """The revision that a version shall use: the operators', else the newest; 0 is the bundle's own."""
        asked = control.calibrations(name).get(version)
        if asked is not None:
            return asked
        return max(self._bundles.calibrations(name, version), default=0)

    async def _load(self, key: Key, calibration: int) -> None:
        tracked = self._tracked.setdefault(key, Tracked())
        tracked.on(Event.LOAD)
        tracked.gave_up_at, self._loading = None, f"{key[0]} version {key[1]}"
        try:
            tracked.fingerprint = await self._blocking(self._bundles.fingerprint, *key)
            live = await self._mapped(key, calibration, tracked)
            tracked.on(Event.LOADED)
            await self._warm(live, tracked)
        except (SluiceError, OSError, RuntimeError, ValueError, MemoryError) as exc:
            tracked.on(Event.FAIL, str(exc) or repr(exc))
            tracked.gave_up_at = self._control.offset
            log.error("model %s version %d is not loaded: %s", *key, tracked.reason)  # noqa: TRY400 - no fault of ours
        else:
            tracked.live, tracked.calibration = live, calibration
            tracked.on(Event.WARMED)
            log.info("model %s version %d is ready: %s", *key, _told(tracked.seconds))
        finally:
            self._loading = ""

    async def _mapped(self, key: Key, calibration: int, tracked: Tracked) -> LiveModel:
        started_s = time.monotonic()
        bundle = await self._blocking(lambda: self._bundles.open(*key, calibration=calibration or None))
        tracked.seconds = {"fetch": time.monotonic() - started_s}
        await self._make_room(key, bundle)
        started_s = time.monotonic()
        live: LiveModel = await self._blocking(self._loader.map, bundle)
        tracked.seconds["map"] = time.monotonic() - started_s
        return live

    async def _warm(self, live: LiveModel, tracked: Tracked) -> None:
        started_s = time.monotonic()
        recorded = await self._loader.recorded(live.spec)
        tracked.warm_up_s = await self._blocking(self._loader.warm, live, recorded)
        tracked.seconds["warm-up"] = time.monotonic() - started_s
        smallest, took_s = next(iter(tracked.warm_up_s.items()))
        limit_ms = live.spec.max_run_ms or self._limits.max_run_ms
        if took_s * 1000 > limit_ms:
            msg = (
                f"too slow: a batch of {smallest} takes {took_s * 1000:.0f} ms, at most {limit_ms:.0f} ms are allowed "
                "(max_run_ms in model.yaml, or SLUICE_MODELS__MAX_RUN_MS); make the model smaller, or allow more"
            )
            raise BundleError(msg)

    async def _make_room(self, key: Key, bundle: Bundle) -> None:
        """Unload what was used longest ago, when the memory that is allowed would not do.

        Raises:
            BundleError: it would not do even so.

        """
        if self._limits.memory_bytes is None:
            return
        champions = set() if self._table is None else {(n, v) for (n, label), v in self._table.labels.items()}
        residents = [
            Resident(
                key=known, device=scorer.device, memory_bytes=scorer.memory_bytes,
                last_used_s=tracked.live.last_used_s,
                is_pinned=tracked.live.spec.keep_loaded or known in champions,
            )
            for known, tracked in self._tracked.items() if tracked.live is not None
            for scorer in tracked.live.scorers
        ]  # fmt: skip
        gone: list[Key] = []
        for device in dict.fromkeys(self._loader.devices(bundle.spec)):
            gone += plan_unloads(
                [resident for resident in residents if resident.key not in gone],
                device=device,
                needed_bytes=bundle.weight_bytes,
                budget_bytes=self._limits.memory_bytes,
            )
        for other in gone:
            self._tracked[other].gave_up_at = self._control.offset
        if gone:
            log.warning("models: %s go to make room for %s version %d", gone, *key)
            keep = {known for known in self._tracked if known not in set(gone)}
            names = dict.fromkeys([*self._policies, *self._control.models()])
            await self._put_in_force(self._next_table(names, keep, self._control))
            await self._retire(keep, reason="unloaded to make room for another model")

    async def _recalibrate(self, key: Key, revision: int) -> None:
        """Another calibration for a live version: its weights stay where they are."""
        tracked = self._tracked[key]
        if tracked.live is None or tracked.calibration == revision:
            return
        try:
            bundle = await self._blocking(lambda: self._bundles.open(*key, calibration=revision or None))
            tracked.live = tracked.live.recalibrated(bundle)
        except (SluiceError, OSError) as exc:
            tracked.reason = f"calibration {revision} is not in use: {exc}"
            return
        tracked.calibration, tracked.reason = revision, ""

    def _next_table(
        self, names: Mapping[str, None], wanted: set[Key], control: ControlState
    ) -> LiveTable[LiveModel] | None:
        """The table that follows from what is live; None when the default model would not answer."""
        live = {key: t.live for key, t in self._tracked.items() if t.live is not None and t.state is State.READY}
        before = {} if self._table is None else dict(self._table.labels)
        labels: dict[tuple[str, str], int] = {}
        self._refused = []
        for name in names:
            labels |= self._labels_of(name, live, wanted, before, control)
        kept = {key: model for key, model in live.items() if key in wanted or key in _pointed_at(labels)}
        if (self._default, CHAMPION) not in labels:
            return None
        return LiveTable(self._default, kept, labels)

    def _labels_of(
        self,
        name: str,
        live: Mapping[Key, LiveModel],
        wanted: set[Key],
        before: Mapping[tuple[str, str], int],
        control: ControlState,
    ) -> dict[tuple[str, str], int]:
        labels: dict[tuple[str, str], int] = {}
        ready = [version for other, version in live if other == name and (other, version) in wanted]
        if ready:
            labels[name, CHAMPION] = self._newest_by_policy(name, ready)
        elif (name, before.get((name, CHAMPION), 0)) in live:
            labels[name, CHAMPION] = before[name, CHAMPION]
        for label, version in control.labels(name).items():
            if (name, version) in live:
                labels[name, label] = version
                continue
            if (name, before.get((name, label), 0)) in live:
                labels[name, label] = before[name, label]
            self._refuse(f"label {label} of {name} -> {version}", self._why_not_ready((name, version)))
        self._refuse_wishes(name, live, labels)
        return labels

    def _refuse_wishes(self, name: str, live: Mapping[Key, LiveModel], labels: Mapping[tuple[str, str], int]) -> None:
        for version, is_wanted in self._control.wanted(name).items():
            key = (name, version)
            pointing = [label for (other, label), number in labels.items() if (other, number) == key]
            if is_wanted and key not in live:
                self._refuse(f"load {name} {version}", self._why_not_ready(key))
            elif not is_wanted and pointing:
                reason = f"label {', '.join(pointing)} points to it; move the label first (`sluice model label`)"
                self._refuse(f"unload {name} {version}", reason)

    def _why_not_ready(self, key: Key) -> str:
        tracked = self._tracked.get(key)
        if tracked is None:
            return "there is no such version in the repository"
        return f"{tracked.state.value}: {tracked.reason}"

    def _refuse(self, what: str, reason: str) -> None:
        self._refused.append({"what": what, "reason": reason, "offset": self._control.offset})

    def _newest_by_policy(self, name: str, ready: list[int]) -> int:
        policy = self._policies.get(name)
        chosen = policy.choose(ready) if policy is not None else []
        return max(chosen or ready)

    async def _put_in_force(self, table: LiveTable[LiveModel] | None) -> None:
        if table is None or (self._table is not None and _is_same(table, self._table)):
            return
        self._table = table
        await self._switch(table)

    async def _retire(self, wanted: set[Key], reason: str = "") -> None:
        """Unload what is live, not wanted, and not in the table."""
        serving = set() if self._table is None else set(self._table.versions)
        for key, tracked in self._tracked.items():
            if tracked.live is None or key in wanted or key in serving:
                continue
            tracked.on(Event.RETIRE)
            for scorer in tracked.live.scorers:
                scorer.close()
            tracked.live = None
            tracked.on(Event.DRAINED, reason)
            log.info("model %s version %d is unloaded", *key)

    def _why_nothing_serves(self) -> str:
        told = [
            f"{name} version {version}: {tracked.reason}"
            for (name, version), tracked in sorted(self._tracked.items())
            if name == self._default and tracked.reason
        ]
        if told:
            return "\n".join(told)
        return (
            f"no model {self._default} in the repository; pack one there, or name another repository "
            "(SLUICE_MODELS__REPOSITORY) or model (SLUICE_MODELS__SERVE)"
        )

    async def _blocking(self, work: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401 - whatever it returns
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def _pointed_at(labels: Mapping[Any, int]) -> set[Key]:
    return {(name, version) for (name, _), version in labels.items()}


def _is_same(one: LiveTable[LiveModel], other: LiveTable[LiveModel]) -> bool:
    is_same_models = one.versions.keys() == other.versions.keys() and all(
        one.versions[key] is other.versions[key] for key in one.versions
    )
    return is_same_models and dict(one.labels) == dict(other.labels)


def _told(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{step} {s * 1000:.0f} ms" for step, s in seconds.items())
