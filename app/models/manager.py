"""Keeps the live models as the policies and the operators want them: loads, warms, switches, retires.

One version is loaded at a time, on a thread of low priority, while the others serve. Whatever goes wrong leaves the
table as it was; the reason is kept with the version. What has failed is tried again when its files change, or when an
operator says something new.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from app.errors import BundleError, RepositoryAway, SluiceError
from app.models.control import ControlState, Kind, describe
from app.models.lifecycle import Event, State
from app.models.live_table import CHAMPION, LiveTable
from app.models.policy import next_labels, wanted_versions
from app.models.residency import Resident, plan_unloads
from app.models.tracked import Tracked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from app.models.bundle import Bundle
    from app.models.control import Target, Wish
    from app.models.live import LiveModel
    from app.models.policy import VersionPolicy
    from app.models.spec import ModelSpec
    from app.models.tracked import Key
    from app.models.version_loader import VersionLoader

log = logging.getLogger(__name__)


class ModelManager:
    """Runs the lifecycle of all versions of a worker.

    Args:
        policies: by model; the first model is the default one.
        loader: how they become live.
        poll_s: between two looks at the repository.
        memory_bytes: that all models may take on each device; None: as much as there is.
        switch: puts a table in force, and returns when no answer by the one before can come; False: some still may.

    """

    def __init__(
        self,
        policies: Mapping[str, VersionPolicy],
        loader: VersionLoader,
        *,
        poll_s: float,
        memory_bytes: int | None,
        switch: Callable[[LiveTable[LiveModel]], Awaitable[bool | None]],
    ) -> None:
        self._policies, self._loader = policies, loader
        self._poll_s, self._memory_bytes, self._switch = poll_s, memory_bytes, switch
        self._default = next(iter(policies))
        self._tracked: dict[Key, Tracked] = {}
        self._table: LiveTable[LiveModel] | None = None
        self._control, self._applied_offset = ControlState.empty(), 0
        self._refused: list[dict[str, Any]] = []
        self._loading = ""
        self._wake, self._switching = asyncio.Event(), asyncio.Lock()

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
        await self.look()
        if self._table is None:
            raise BundleError(self._why_nothing_serves())
        await self._loader.be_modest()

    async def run(self) -> None:
        """Follow the repository and the operators' wishes, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.look()
            except Exception:  # a fault of ours, but what is live serves on
                log.exception("models: looking again in %.0f s", self._poll_s)

    async def control(self, state: ControlState) -> None:
        """Operators wish something else: labels move at once, what must be loaded for it comes next."""
        self._control = state
        if self._table is not None:
            await self._put_in_force(self._ready())
        self._wake.set()

    async def look(self) -> None:
        """Look at the repository and the wishes once, and bring about what follows."""
        control, known = self._control, self._loader.forget_problems()
        await self._put_in_force(self._ready() - _sent_away(control))  # first, since it makes room
        wanted: set[Key] = set()
        for name in self._names(control):
            wanted |= {(name, version) for version in await self._bring_up(name, control)}
        await self._put_in_force(wanted)
        for problem in self._loader.problems:
            if problem not in known:  # it is told once, not at every look
                log.warning("models: %s; what is live serves on", problem)
        self._refused = [
            {"what": describe(target, wish), "reason": reason, "offset": control.offset}
            for target, wish in control.wishes.items()
            if (reason := self._refusal(target, wish)) is not None
        ]
        self._applied_offset = control.offset

    def replace_scorers(self, live: LiveModel, scorers: tuple[Any, ...], reason: str) -> None:
        """A device was lost: the model goes on elsewhere, flagged."""
        lost, live.scorers = live.scorers, scorers
        for tracked in self._tracked.values():
            if tracked.live is not None and tracked.live.scorers in (lost, scorers):  # a recalibrated one shares them
                tracked.live.scorers, tracked.reason = scorers, reason

    def problem(self) -> str | None:
        """Why no request could be answered; None when it could."""
        return None if self._table is not None else f"models are being loaded: {self._loading or 'none yet'}"

    def spec(self, name: str, version: int) -> ModelSpec | None:
        """What a loaded version takes and gives."""
        tracked = self._tracked.get((name, version))
        return None if tracked is None or tracked.live is None else tracked.live.spec

    def load_seconds(self) -> dict[str, float]:
        """What loading took, all versions together, by step."""
        total: dict[str, float] = {}
        for tracked in self._tracked.values():
            for step, took_s in tracked.seconds.items():
                total[step] = total.get(step, 0.0) + took_s
        return total

    def close(self) -> None:
        """Let go of the thread."""
        self._loader.close()

    def document(self) -> dict[str, Any]:
        """The state of every version, plain values."""
        return {
            "default": self._default,
            "control_offset": self._applied_offset,
            "loading": self._loading or None,
            "repository_problem": "; ".join(self._loader.problems) or None,
            "versions": [tracked.row(key, self._table) for key, tracked in sorted(self._tracked.items())],
            "refused": list(self._refused),
        }

    def _names(self, control: ControlState) -> list[str]:
        return list(dict.fromkeys([*self._policies, *control.models()]))

    async def _bring_up(self, name: str, control: ControlState) -> list[int]:
        """Load what is wanted of a model; returns the versions that should be live."""
        available = await self._loader.ask(self._loader.bundles.versions, name)
        if available is not None:
            self._forget_what_is_gone(name, available)
        if not available:  # away, or gone: whoever wants it to end says so
            return self._what_serves_on(name, control)
        await self._forgive(name, available, control)
        while True:
            wanted = wanted_versions(
                self._policies.get(name),
                available,
                wishes=control.wanted(name),
                labelled=control.labels(name).values(),
                unfit={v for v in available if self._has_given_up((name, v), control)},
            )
            missing = [version for version in wanted if not self._is_ready((name, version))]
            if not missing:
                break
            await self._load((name, missing[-1]), control)  # ends READY, or is given up
        for version in wanted:
            await self._loader.recalibrate((name, version), self._tracked[name, version], control)
        return wanted

    def _what_serves_on(self, name: str, control: ControlState) -> list[int]:
        live = _versions(name, self._ready())
        if live and not self._loader.problems:
            self._loader.problems.append(f"the repository has no version of {name}")
        return sorted(live - _versions(name, _sent_away(control)))

    def _forget_what_is_gone(self, name: str, available: list[int]) -> None:
        for key in [k for k, t in self._tracked.items() if k[0] == name and k[1] not in available and t.live is None]:
            del self._tracked[key]

    async def _forgive(self, name: str, available: list[int], control: ControlState) -> None:
        """Versions that failed may be tried again when their files have changed."""
        for version in available:
            tracked = self._tracked.get((name, version))
            if tracked is None or tracked.state is not State.FAILED or tracked.gave_up_at != control.offset:
                continue
            seen = await self._loader.ask(self._loader.bundles.fingerprint, name, version)
            if seen is not None and seen != tracked.fingerprint:
                tracked.gave_up_at = None

    def _has_given_up(self, key: Key, control: ControlState) -> bool:
        """Whether it failed or went for lack of memory, and no operator has spoken since."""
        tracked = self._tracked.get(key)
        return tracked is not None and tracked.gave_up_at == control.offset

    def _is_ready(self, key: Key) -> bool:
        tracked = self._tracked.get(key)
        return tracked is not None and tracked.is_ready

    def _ready(self) -> set[Key]:
        return {key for key, tracked in self._tracked.items() if tracked.is_ready}

    async def _load(self, key: Key, control: ControlState) -> None:
        tracked = self._tracked.setdefault(key, Tracked())
        was_loaded = tracked.live is not None  # it was about to go
        tracked.on(Event.LOAD)
        if was_loaded:
            return
        tracked.gave_up_at, self._loading = None, f"{key[0]} version {key[1]}"
        try:
            bundle = await self._loader.open(key, tracked, control)
            await self._make_room(key, bundle, control)
            await self._loader.make_ready(bundle, tracked)
        except Exception as exc:  # noqa: BLE001 - a bundle, and a network that operators register, may raise anything
            self._give_up(key, tracked, control, exc)
        else:
            log.info("model %s version %d is ready: %s", *key, _steps(tracked.seconds))
        finally:
            self._loading = ""

    @staticmethod
    def _give_up(key: Key, tracked: Tracked, control: ControlState, exc: Exception) -> None:
        reason = str(exc) if isinstance(exc, SluiceError) else f"{type(exc).__name__}: {exc}"
        tracked.on(Event.FAIL, reason)
        tracked.gave_up_at = control.offset
        if isinstance(exc, RepositoryAway):
            tracked.fingerprint = ""  # not the bundle's fault: the next look tries again
        if tracked.told != (reason, control.offset):  # what is tried while it is copied is told once
            trace = None if isinstance(exc, SluiceError | OSError) else exc
            log.error("model %s version %d is not loaded: %s", *key, reason, exc_info=trace)
        tracked.told = reason, control.offset

    async def _make_room(self, key: Key, bundle: Bundle, control: ControlState) -> None:
        """Unload what was used longest ago, when the memory that is allowed would not do.

        Raises:
            DeviceFull: it would not do even so.

        """
        if self._memory_bytes is None:
            return
        residents = self._residents()
        gone: list[Key] = []
        for device, instances in Counter(self._loader.devices(bundle)).items():
            gone += plan_unloads(
                [resident for resident in residents if resident.key not in gone],
                device=device,
                needed_bytes=bundle.weight_bytes * instances,
                budget_bytes=self._memory_bytes,
            )
        if not gone:
            return
        for other in gone:
            self._tracked[other].gave_up_at = control.offset
        await self._put_in_force(self._ready() - set(gone), f"unloaded to make room for {key[0]} version {key[1]}")

    def _residents(self) -> list[Resident]:
        """What is loaded, by instance; what a label points to, now or in the next table, is pinned."""
        live = {key: tracked.live for key, tracked in self._tracked.items() if tracked.live is not None}
        pinned = _pointed_at(self._labels(set(live)))
        if self._table is not None:
            pinned |= _pointed_at(self._table.labels)
        return [
            Resident(
                key=key,
                device=scorer.device,
                memory_bytes=scorer.memory_bytes,
                last_used_s=model.last_used_s,
                is_pinned=model.spec.keep_loaded or key in pinned,
            )
            for key, model in live.items()
            for scorer in model.scorers
        ]

    def _labels(self, wanted: set[Key]) -> dict[tuple[str, str], int]:
        """Where all labels point when these versions should be live."""
        before = {} if self._table is None else self._table.labels
        ready, sent_away = self._ready(), _sent_away(self._control)
        labels: dict[tuple[str, str], int] = {}
        for name in self._names(self._control):
            of_model = next_labels(
                _versions(name, ready),
                _versions(name, wanted),
                policy=self._policies.get(name),
                wishes=self._control.labels(name),
                before={label: version for (other, label), version in before.items() if other == name},
                can_be_gone=() if name == self._default else _versions(name, sent_away),
            )
            labels |= {(name, label): version for label, version in of_model.items()}
        return labels

    async def _put_in_force(self, wanted: set[Key], reason: str = "") -> None:
        """Let the versions that should be live answer, and those that a label points to; the others drain and go."""
        async with self._switching:
            labels = self._labels(wanted)
            if (self._default, CHAMPION) not in labels:
                return
            served = wanted | _pointed_at(labels)
            live = {key: t.live for key, t in self._tracked.items() if t.live is not None and t.is_ready}
            table = LiveTable(self._default, {key: model for key, model in live.items() if key in served}, labels)
            leaving = {k: t for k, t in self._tracked.items() if t.live is not None and k not in table.versions}
            if self._table is not None and not leaving and _is_same(table, self._table):
                return
            for tracked in leaving.values():
                if tracked.is_ready:
                    tracked.on(Event.RETIRE, reason)
            self._tell_labels(labels)
            self._table = table
            if await self._switch(table) is False:
                return  # what drains is asked for again at the next look
            for key, tracked in leaving.items():
                tracked.let_go()
                tracked.on(Event.DRAINED, tracked.reason)
                log.info("model %s version %d is unloaded", *key)

    def _tell_labels(self, labels: Mapping[tuple[str, str], int]) -> None:
        before = {} if self._table is None else self._table.labels
        for (name, label), version in labels.items():
            if before.get((name, label)) != version:
                log.info("label %s of %s -> version %d", label, name, version)

    def _refusal(self, target: Target, wish: Wish) -> str | None:
        """Why a wish is not fulfilled; None when it is."""
        is_label = target.kind is Kind.LABEL
        key = target.model, wish.value if is_label else int(target.item)
        labels = {} if self._table is None else self._table.labels
        if is_label:
            return None if labels.get((target.model, target.item)) == wish.value else self._why_not_ready(key)
        if target.kind is Kind.VERSION and not wish.value:
            pointing = [label for (name, label), version in labels.items() if (name, version) == key]
            advice = "move the label first (`sluice model label`)"
            return f"label {', '.join(pointing)} points to it; {advice}" if pointing else None
        is_ready = self._is_ready(key)
        if target.kind is Kind.VERSION:
            return None if is_ready else self._why_not_ready(key)
        if not is_ready:
            return "it is not loaded; the wish holds once it is"
        return None if self._tracked[key].calibration == wish.value else self._tracked[key].calibration_problem

    def _why_not_ready(self, key: Key) -> str:
        tracked = self._tracked.get(key)
        if tracked is not None:
            return tracked.why
        return "; ".join(["there is no such version in the repository", *self._loader.problems])

    def _why_nothing_serves(self) -> str:
        told = [
            f"{name} version {version}: {tracked.reason}"
            for (name, version), tracked in sorted(self._tracked.items())
            if name == self._default and tracked.reason
        ]
        if told or self._loader.problems:
            return "\n".join([*told, *self._loader.problems])
        return (
            f"no model {self._default} in the repository; pack one there, or name another repository "
            "(SLUICE_MODELS__REPOSITORY) or model (SLUICE_MODELS__SERVE)"
        )


def _versions(name: str, keys: set[Key]) -> set[int]:
    return {version for other, version in keys if other == name}


def _sent_away(control: ControlState) -> set[Key]:
    return {
        (name, version)
        for name in control.models()
        for version, is_wanted in control.wanted(name).items()
        if not is_wanted
    }


def _pointed_at(labels: Mapping[tuple[str, str], int]) -> set[Key]:
    return {(name, version) for (name, _), version in labels.items()}


def _is_same(one: LiveTable[LiveModel], other: LiveTable[LiveModel]) -> bool:
    is_same_models = one.versions.keys() == other.versions.keys() and all(
        one.versions[key] is other.versions[key] for key in one.versions
    )
    return is_same_models and dict(one.labels) == dict(other.labels)


def _steps(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{step} {s * 1000:.0f} ms" for step, s in seconds.items())
