"""What a worker's published states say about a wish: done, failed with its reason, or not yet."""

from __future__ import annotations

from typing import Any

import pytest

from app.models.control import Target, Wish, of_calibration, of_label, of_version
from app.models.control_progress import Outcome, progress_of

LOAD = (of_version("delays", 3), Wish(1))
UNLOAD = (of_version("delays", 3), Wish(0))
LABEL = (of_label("delays", "champion"), Wish(3))
CALIBRATE = (of_calibration("delays", 3), Wish(2))
OFFSET = 7


def models(state: str | None = "READY", *, applied: object = OFFSET + 1, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """What a worker publishes, with version 3 in a state, champion, at calibration revision 2."""
    entry = {"name": "delays", "version": 3, "state": state, "reason": None, "labels": ["champion"],
             "calibration_revision": 2, **changes}  # fmt: skip
    other = {"name": "delays", "version": 2, "state": "READY", "labels": []}
    return {"control_offset": applied, "versions": [other, *([entry] if state else [])], "refused": []}


@pytest.mark.parametrize(
    ("asked", "published", "outcome", "state"),
    [
        (LOAD, models(), Outcome.DONE, "READY"),
        (LOAD, models("WARMING"), Outcome.WAITING, "WARMING"),
        (LOAD, models(None), Outcome.WAITING, "ABSENT"),
        (LOAD, models("FAILED"), Outcome.FAILED, "FAILED"),
        (LOAD, models(applied=OFFSET), Outcome.WAITING, "UNREAD"),
        (LOAD, models("FAILED", applied=OFFSET), Outcome.WAITING, "UNREAD"),
        (LOAD, models(applied="8"), Outcome.WAITING, "UNREAD"),
        (UNLOAD, models(), Outcome.WAITING, "READY"),
        (UNLOAD, models("DRAINING"), Outcome.WAITING, "DRAINING"),
        (UNLOAD, models("UNLOADED"), Outcome.DONE, "UNLOADED"),
        (UNLOAD, models("FAILED"), Outcome.DONE, "FAILED"),
        (UNLOAD, models(None), Outcome.DONE, "ABSENT"),
        (UNLOAD, models(None, applied=OFFSET), Outcome.WAITING, "UNREAD"),
        (LABEL, models(), Outcome.DONE, "READY"),
        (LABEL, models(labels=["stable"]), Outcome.WAITING, "READY"),
        (LABEL, models(labels=None), Outcome.WAITING, "READY"),
        (LABEL, models("FAILED", labels=[]), Outcome.FAILED, "FAILED"),
        (CALIBRATE, models(), Outcome.DONE, "READY"),
        (CALIBRATE, models(calibration_revision=1), Outcome.WAITING, "READY"),
        (CALIBRATE, models("LOADING"), Outcome.WAITING, "LOADING"),
    ],
)
def test_each_wish_has_its_own_end(
    asked: tuple[Target, Wish], published: dict[str, Any], outcome: Outcome, state: str
) -> None:
    """Loading ends READY or FAILED, unloading when the version is gone, a label or a calibration when it is borne."""
    found = progress_of(published, *asked, offset=OFFSET)
    assert (found.outcome, found.state) == (outcome, state)


def test_a_refusal_is_that_of_its_wish() -> None:
    """The refusal of another wish says nothing about this one; that of this one ends it, with the reason."""
    published = models(labels=[])
    published["refused"] = [{"what": "label stable of delays -> 3", "reason": "version 3 is WARMING", "offset": 8}]
    assert progress_of(published, *LABEL, offset=OFFSET).outcome is Outcome.WAITING
    published["refused"][0]["what"] = "label champion of delays -> 3"
    found = progress_of(published, *LABEL, offset=OFFSET)
    assert (found.outcome, found.state, found.reason) == (Outcome.FAILED, "REFUSED", "version 3 is WARMING")


def test_a_version_that_is_not_there_is_refused() -> None:
    """Loading what the repository lacks ends with the worker's words."""
    published = models(None)
    published["refused"] = [{"what": "load delays 3", "reason": "there is no such version", "offset": 8}]
    assert progress_of(published, *LOAD, offset=OFFSET).reason == "there is no such version"


def test_a_calibration_that_cannot_be_used_fails() -> None:
    """The version serves on with the revision before, and the reason says why the new one is not in use."""
    published = models(calibration_revision=1, reason="calibration 2 is not in use: knots")
    found = progress_of(published, *CALIBRATE, offset=OFFSET)
    assert (found.outcome, found.reason) == (Outcome.FAILED, "calibration 2 is not in use: knots")


def test_a_wish_taken_back_is_done_once_it_is_read() -> None:
    """What the policies then do is theirs."""
    assert progress_of(models("FAILED"), LOAD[0], None, OFFSET).outcome is Outcome.DONE
    assert progress_of(models(applied=OFFSET), LOAD[0], None, OFFSET).outcome is Outcome.WAITING


def test_the_reason_of_a_failure_is_handed_on() -> None:
    """An operator reads why, word for word."""
    assert progress_of(models("FAILED", reason="weights: NaN"), *LOAD, offset=OFFSET).reason == "weights: NaN"
    assert "log" in progress_of(models("FAILED"), *LOAD, offset=OFFSET).reason


@pytest.mark.parametrize(
    "published", [None, 3, [], {}, {"control_offset": None, "versions": 3, "refused": {"offset": 7}}]
)
def test_strange_documents_are_waited_for(published: object) -> None:
    """What an older or broken worker publishes neither ends nor breaks the command."""
    assert progress_of(published, *LOAD, offset=OFFSET).outcome is Outcome.WAITING
