"""Whether a worker has done what a control record asked for, by what it publishes of itself; pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from app.models.control import Kind, describe
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
    applied = models.get("control_offset")
    if not isinstance(applied, int) or applied <= offset:
        return Progress(Outcome.WAITING, "UNREAD", f"it is at offset {applied} of the control topic, not past {offset}")
    if wish is None:
        return Progress(Outcome.DONE, "APPLIED", "the policies decide")
    version = wish.value if target.kind is Kind.LABEL else int(target.item)
    entry = find_version(models, target.model, version)
    found = _unloaded(entry) if target.kind is Kind.VERSION and not wish.value else _ready(entry, target, wish)
    refusal = _refusal(models, target, wish) if found.outcome is Outcome.WAITING else None
    return found if refusal is None else Progress(Outcome.FAILED, "REFUSED", refusal)


def _refusal(models: dict[str, Any], target: Target, wish: Wish) -> str | None:
    """Why the worker will not do it; None when it does not say so."""
    what = describe(target, wish)
    return next((str(r.get("reason", "")) for r in _dicts(models.get("refused")) if r.get("what") == what), None)


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


def _ready(entry: dict[str, Any] | None, target: Target, wish: Wish) -> Progress:
    if entry is None:
        return Progress(Outcome.WAITING, "ABSENT", "it knows no such version")
    state, reason = str(entry.get("state")), _reason(entry)
    if state == State.FAILED:
        return Progress(Outcome.FAILED, state, reason or "no reason given; see its log")
    labels, revision = entry.get("labels"), entry.get("calibration_revision")
    if target.kind is Kind.LABEL and not (isinstance(labels, list) and target.item in labels):
        return Progress(Outcome.WAITING, state, reason or f"it does not bear the label {target.item} yet")
    if target.kind is Kind.CALIBRATION and revision != wish.value:
        # With a reason it has been tried: the worker applies a record before it publishes the record's offset.
        outcome = Outcome.FAILED if reason and state == State.READY else Outcome.WAITING
        return Progress(outcome, state, reason or f"it uses revision {revision}")
    return Progress(Outcome.DONE if state == State.READY else Outcome.WAITING, state, reason)


def _reason(entry: dict[str, Any]) -> str:
    return str(entry.get("reason") or "")


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
