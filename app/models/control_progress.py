"""Whether a worker has done what a control record asked for, by what it publishes of itself; pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from app.models.control import Kind
from app.models.lifecycle import State

if TYPE_CHECKING:
    from app.models.control import Target, Wish


class Outcome(StrEnum):
    """How far a worker is."""

    WAITING = "WAITING"
    DONE = "DONE"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Progress:
    """One worker's answer to a wish.

    Attributes:
        outcome: whether it can still change.
        state: of the version that the wish is about, or REFUSED, ABSENT, APPLIED, UNREAD, UNKNOWN.
        reason: in words; empty when there is nothing to say.

    """

    outcome: Outcome
    state: str
    reason: str = ""


def progress_of(models: object, target: Target, wish: Wish | None, offset: int) -> Progress:
    """How far a worker is with a wish.

    Args:
        models: ``models`` of its published figures, whatever that is: it comes from outside.
        target: what the wish is about.
        wish: what is wanted; None: the wish before was taken back.
        offset: of the control record.

    Example:
        >>> from app.models.control import Wish, of_version
        >>> models = {"control_offset": 8, "versions": [{"name": "delays", "version": 3, "state": "WARMING"}]}
        >>> progress_of(models, of_version("delays", 3), Wish(1), offset=7).state
        'WARMING'

    """
    if not isinstance(models, dict):
        return Progress(Outcome.WAITING, "UNKNOWN", "it publishes no model states; is it of an older release?")
    unapplied = _unapplied(models, offset)
    if unapplied is not None:
        return unapplied
    if wish is None:
        return Progress(Outcome.DONE, "APPLIED", "the policies decide")
    version = wish.value if target.kind is Kind.LABEL else int(target.item)
    entry = find_version(models, target.model, version)
    if target.kind is Kind.VERSION and not wish.value:
        return _unloaded(entry)
    if entry is None:
        return Progress(Outcome.WAITING, "ABSENT", f"it knows no version {version} of {target.model}")
    return _ready(entry, target, wish)


def _unapplied(models: dict[str, Any], offset: int) -> Progress | None:
    """Why a record has no effect yet, or never will; None when it has."""
    for refused in _dicts(models.get("refused")):
        if refused.get("offset") == offset:
            return Progress(Outcome.FAILED, "REFUSED", str(refused.get("reason", "")))
    applied = models.get("control_offset")
    if isinstance(applied, int) and applied > offset:
        return None
    return Progress(Outcome.WAITING, "UNREAD", f"it is at offset {applied} of the control topic, not past {offset}")


def find_version(models: dict[str, Any], model: str, version: int) -> dict[str, Any] | None:
    """What a worker publishes of one version; None when it says nothing of it."""
    for entry in _dicts(models.get("versions")):
        if entry.get("name") == model and entry.get("version") == version:
            return entry
    return None


def _unloaded(entry: dict[str, Any] | None) -> Progress:
    if entry is None:
        return Progress(Outcome.DONE, "ABSENT")
    state = str(entry.get("state"))
    is_gone = state in {State.UNLOADED, State.FAILED}
    return Progress(Outcome.DONE if is_gone else Outcome.WAITING, state, _reason(entry))


def _ready(entry: dict[str, Any], target: Target, wish: Wish) -> Progress:
    state, reason = str(entry.get("state")), _reason(entry)
    if state == State.FAILED:
        return Progress(Outcome.FAILED, state, reason or "no reason given; see its log")
    labels, revision = entry.get("labels"), entry.get("calibration_revision")
    if target.kind is Kind.LABEL and not (isinstance(labels, list) and target.item in labels):
        return Progress(Outcome.WAITING, state, reason or f"it does not bear the label {target.item} yet")
    if target.kind is Kind.CALIBRATION and revision != wish.value:
        return Progress(Outcome.WAITING, state, reason or f"it uses revision {revision}")
    return Progress(Outcome.DONE if state == State.READY else Outcome.WAITING, state, reason)


def _reason(entry: dict[str, Any]) -> str:
    return str(entry.get("reason") or "")


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
