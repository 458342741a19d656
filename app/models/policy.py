"""Which versions of a model a worker wants loaded, and where its labels point; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.errors import SettingsError
from app.models.live_table import CHAMPION
from schemas.generate import check_name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_LATEST = re.compile(r"latest(?::([1-9][0-9]{0,3}))?")
_VERSIONS = re.compile(r"[1-9][0-9]{0,9}(\+[1-9][0-9]{0,9})*")


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """What is loaded of one model when nobody says otherwise.

    Attributes:
        model: its name.
        latest: so many of the newest; 0: none.
        specific: these.
        is_all: every one there is.

    """

    model: str
    latest: int = 0
    specific: tuple[int, ...] = ()
    is_all: bool = False

    def choose(self, available: Collection[int]) -> list[int]:
        """Of the versions that are there, and can be loaded, those that are wanted; increasing.

        Example:
            >>> VersionPolicy("demo", latest=2).choose({1, 2, 7})
            [2, 7]

        """
        ordered = sorted(available)
        if self.is_all:
            return ordered
        return ordered[-self.latest :] if self.latest else [v for v in ordered if v in self.specific]


def parse_policies(text: str) -> dict[str, VersionPolicy]:
    """Policies by model, in the order given; the first model is the default one.

    Args:
        text: models separated by spaces or commas, each ``name``, ``name@latest:2``, ``name@all`` or ``name@3+5``;
            a name alone means its newest version.

    Raises:
        SettingsError: a part cannot be read, or a model stands twice.

    Example:
        >>> parse_policies("delays@latest:2, topics@all")["topics"].is_all
        True

    """
    policies: dict[str, VersionPolicy] = {}
    for part in text.replace(",", " ").split():
        policy = _parse(part)
        if policy.model in policies:
            msg = f"models.serve: {policy.model} stands twice; name each model once"
            raise SettingsError(msg)
        policies[policy.model] = policy
    if not policies:
        msg = "models.serve: no model is named; name one, for example flight_delays@latest:2"
        raise SettingsError(msg)
    return policies


def _parse(part: str) -> VersionPolicy:
    name, _, which = part.partition("@")
    try:
        check_name(name)
    except ValueError as exc:
        msg = f"models.serve: {exc}"
        raise SettingsError(msg) from exc
    latest = _LATEST.fullmatch(which or "latest")
    if latest is not None:
        return VersionPolicy(name, latest=int(latest[1] or 1))
    if which == "all":
        return VersionPolicy(name, is_all=True)
    if _VERSIONS.fullmatch(which):
        return VersionPolicy(name, specific=tuple(int(number) for number in which.split("+")))
    msg = f"models.serve: {part}: after the @ stands latest, latest:N, all, or versions such as 3+5"
    raise SettingsError(msg)


def wanted_versions(
    policy: VersionPolicy | None,
    available: Collection[int],
    *,
    wishes: Mapping[int, bool],
    labelled: Collection[int],
    unfit: Collection[int],
) -> list[int]:
    """The versions that should be live, increasing.

    Args:
        policy: of the model; None: only what is wished for.
        available: in the repository.
        wishes: of operators: True loaded, False unloaded.
        labelled: labels point at them; they stay, whatever else is wished.
        unfit: cannot be loaded as they are; the policy takes others in their place.

    Example:
        >>> policy = VersionPolicy("demo", latest=1)
        >>> wanted_versions(policy, {1, 2, 3}, wishes={}, labelled=(), unfit={3})
        [2]

    """
    fit = set(available) - set(unfit)
    asked = {version for version, is_wanted in wishes.items() if is_wanted}
    sent_away = {version for version, is_wanted in wishes.items() if not is_wanted}
    chosen = policy.choose(fit - sent_away) if policy is not None else []
    return sorted(({*chosen, *asked} - sent_away | set(labelled)) & fit)


def next_labels(
    ready: Collection[int],
    wanted: Collection[int],
    *,
    policy: VersionPolicy | None,
    wishes: Mapping[str, int],
    before: Mapping[str, int],
    can_be_gone: Collection[int] = (),
) -> dict[str, int]:
    """Where the labels of a model point from now on; only to versions that are READY.

    A label that an operator moved to a version that is not READY stays where it was. Without a wish the ``champion``
    is the newest version that the policy wants; there is one as long as any version can answer.

    Args:
        ready: versions that can answer.
        wanted: versions that should be live.
        policy: of the model; None: only what is wished for.
        wishes: versions that operators moved labels to, by label.
        before: where the labels point so far.
        can_be_gone: versions that need not stay for the sake of a champion.

    Example:
        >>> policy = VersionPolicy("demo", latest=1)
        >>> next_labels({1, 2}, {2}, policy=policy, wishes={"stable": 1, "next": 3}, before={"champion": 1})
        {'champion': 2, 'stable': 1}

    """
    labels: dict[str, int] = {}
    candidates = set(ready) & set(wanted)
    if candidates:
        chosen = policy.choose(candidates) if policy is not None else []
        labels[CHAMPION] = max(chosen or candidates)
    elif before.get(CHAMPION) in set(ready) - set(can_be_gone):
        labels[CHAMPION] = before[CHAMPION]
    for label, version in wishes.items():
        if version in ready:
            labels[label] = version
        elif before.get(label) in ready:
            labels[label] = before[label]
    return labels
