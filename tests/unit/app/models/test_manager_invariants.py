"""Random files, wishes and absences: what holds for the models of a worker after every look."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.calibration import Calibration
from app.models.control import of_label, of_version
from app.models.lifecycle import State
from app.models.repository import add_calibration
from tests.model_rig import NAME, Rig
from tests.spoilt_bundles import half_copy

if TYPE_CHECKING:
    from pathlib import Path

ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 3)),
    st.tuples(st.just("spoil"), st.integers(1, 3)),
    st.tuples(st.just("remove"), st.integers(1, 3)),
    st.tuples(st.just("calibrate"), st.integers(1, 3)),
    st.tuples(st.sampled_from(["load", "unload", "forget"]), st.integers(1, 4)),
    st.tuples(st.sampled_from(["champion", "stable"]), st.none() | st.integers(1, 4)),
    st.tuples(st.just("away"), st.none()),
)


@pytest.fixture(scope="module")
def asides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Good bundles of versions 1 to 3."""
    rig = Rig(tmp_path_factory.mktemp("asides"))
    return [rig.set_aside(version) for version in (1, 2, 3)]


async def _act(rig: Rig, asides: list[Path], action: str, argument: int | None) -> None:
    away = rig.root.with_name("away")
    if action == "away":
        rig.root.rename(away) if rig.root.exists() else away.rename(rig.root)
    elif action in {"champion", "stable"}:
        await rig.say(of_label(NAME, action), argument)
    elif action in {"load", "unload", "forget"}:
        assert argument is not None
        value = {"load": 1, "unload": 0, "forget": None}[action]
        await rig.say(of_version(NAME, argument), value, is_looked_at=argument != 2)
    elif rig.root.exists():
        assert argument is not None
        _change_files(rig, asides, action, argument)


def _change_files(rig: Rig, asides: list[Path], action: str, version: int) -> None:
    folder = rig.root / NAME / str(version)
    shutil.rmtree(folder, ignore_errors=True)
    if action != "remove":
        rig.put(asides[version - 1])
    if action == "spoil":
        half_copy(folder)
    if action == "calibrate":
        add_calibration(rig.root, NAME, version, Calibration("platt", a=2.0))


def _check(rig: Rig) -> None:
    """What holds after every look."""
    table, states, control = rig.manager.table, rig.states, rig.control
    assert rig.tables[-1] is table
    assert table.labels[NAME, "champion"], "somebody answers, always"
    assert {version for _, version in table.versions} == {v for v, state in states.items() if state == "READY"}
    assert set(states.values()) <= {State.READY, State.UNLOADED, State.FAILED}
    for label, version in control.labels(NAME).items():
        is_there = states.get(version) == "READY"
        assert (table.labels.get((NAME, label)) == version) == is_there
        assert (f"label {label} of {NAME} -> {version}" in rig.refused) != is_there
    assert {label for _, label in table.labels} <= {"champion", *control.labels(NAME)}
    for version in (v for v, is_wanted in control.wanted(NAME).items() if not is_wanted and states.get(v) == "READY"):
        assert version in table.labels.values(), "an unwanted version serves for the sake of a label alone"
    assert rig.manager.document()["control_offset"] == control.offset


async def _run_actions(rig: Rig, asides: list[Path], actions: list[tuple[str, int | None]]) -> None:
    rig.put(asides[0])
    await rig.start()
    try:
        for action, argument in actions:
            await _act(rig, asides, action, argument)
            await rig.look()
            _check(rig)
        for label in ("champion", "stable"):
            await rig.say(of_label(NAME, label), None)
        for version in (1, 2, 3, 4):
            await rig.say(of_version(NAME, version), None)
        if not rig.root.exists():
            rig.root.with_name("away").rename(rig.root)
        _change_files(rig, asides, "remove", 3)
        _change_files(rig, asides, "put", 3)
        await rig.look()
        assert (rig.champion, rig.refused) == (3, {}), "without wishes the newest serves, whatever was before"
    finally:
        rig.manager.close()


@settings(max_examples=12, deadline=None)
@given(st.lists(ACTIONS, max_size=14))
def test_whatever_happens_somebody_answers(
    asides: list[Path], tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int | None]]
) -> None:
    """Files come, go and break, operators wish what they like, the repository goes away: the invariants hold."""
    asyncio.run(_run_actions(Rig(tmp_path_factory.mktemp("any")), asides, actions))
