"""The manager on real bundles in a real repository: every way to READY, and every way to stay as it was."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import threading
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from app.calibration import Calibration
from app.errors import BundleError, RepositoryAway
from app.models.architectures import register_architecture
from app.models.bundle_files import WEIGHTS
from app.models.control import of_calibration, of_label, of_version
from app.models.control_progress import Outcome
from app.models.repository import add_calibration
from app.models.runtime import ScoringModel, zero_inputs
from tests.model_rig import NAME, Rig
from tests.spoilt_bundles import SPOILT, edit_spec, half_copy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

CHAMPION = of_label(NAME, "champion")


@pytest.fixture
def make_rig(tmp_path: Path) -> Callable[..., Rig]:
    """Rigs on a repository of their own."""
    return partial(Rig, tmp_path)


@pytest.fixture
async def rig(make_rig: Callable[..., Rig]) -> Rig:
    """Versions 1 and 2, of which 2 serves."""
    rig = make_rig()
    rig.pack(1)
    rig.pack(2)
    return await rig.start()


async def test_the_newest_version_serves(rig: Rig) -> None:
    """Loaded, warm and in force when start returns; the older one is not even loaded."""
    assert rig.champion == 2
    assert rig.manager.problem() is None
    row = rig.row(2)
    assert (row["state"], row["labels"], row["is_default"], row["device"]) == ("READY", ["champion"], True, "cpu")
    assert row["sha256"] == rig.repository.digest(NAME, 2)
    assert row["load_ms"].keys() == {"fetch", "map", "warm-up"}
    assert row["warm_up_ms"].keys() == {"1", "2"}
    assert rig.states == {2: "READY"}
    assert rig.manager.spec(NAME, 2) == rig.repository.spec(NAME, 2)
    assert rig.manager.spec(NAME, 1) is None


async def test_a_worker_starts_with_the_newest_that_is_good(make_rig: Callable[..., Rig]) -> None:
    """The reason is kept with the one that is not."""
    rig = make_rig()
    rig.pack(1)
    half_copy(rig.pack(2))
    await rig.start()
    assert rig.champion == 1
    assert rig.states == {1: "READY", 2: "FAILED"}
    assert WEIGHTS in rig.row(2)["reason"]


async def test_a_worker_without_a_good_version_does_not_start(make_rig: Callable[..., Rig]) -> None:
    """The message says what is wrong with each; meanwhile it is not ready."""
    rig = make_rig()
    with pytest.raises(BundleError, match=r"no model sample in the repository; pack one there"):
        await rig.start()
    half_copy(rig.pack(1))
    half_copy(rig.pack(2))
    with pytest.raises(BundleError, match=r"sample version 1: .*\nsample version 2: .*weights"):
        await rig.start()
    assert rig.manager.problem() == "models are being loaded: none yet"
    assert not rig.tables


async def test_a_better_version_takes_over(rig: Rig) -> None:
    """The old one is unloaded once no answer of it can come, and can answer no more."""
    old = rig.tables[-1].champion
    rig.pack(3)
    await rig.look()
    assert rig.champion == 3
    assert rig.states == {2: "UNLOADED", 3: "READY"}
    assert rig.row(2)["memory_bytes"] == 0
    (scorer,) = old.scorers
    with pytest.raises(BundleError, match="is unloaded"):
        scorer.predict(zero_inputs(scorer.preprocessor.layout, 1))
    await rig.look(3)
    assert len(rig.tables) == 2, "nothing is switched when nothing changes"


@pytest.mark.parametrize("name", SPOILT)
async def test_a_bad_bundle_changes_nothing(rig: Rig, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """The old version serves on, the reason is in the document, in the log once, and in the answer of `load`."""
    spoil, reason = SPOILT[name]
    aside = rig.set_aside(3)
    spoil(rig.put(aside))
    with caplog.at_level(logging.ERROR):
        await rig.look(5)
    assert rig.champion == 2
    assert rig.states == {2: "READY", 3: "FAILED"}
    assert caplog.text.count("sample version 3 is not loaded") == 1
    asked = await rig.say(of_version(NAME, 3), 1)
    assert (asked.outcome, asked.state) == (Outcome.FAILED, "FAILED")
    for told in (rig.row(3)["reason"], caplog.text, asked.reason, rig.refused["load sample 3"]):
        assert re.search(reason, told), told
    assert len(rig.tables) == 1
    rig.put(aside)
    await rig.look()
    assert rig.champion == 3, "good files make it good"
    assert rig.row(3)["reason"] == ""


async def test_a_copy_that_takes_long_is_told_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Every look finds other files and tries again; the log has one line of it, and in the end the version serves."""
    aside = rig.set_aside(3)
    whole = (aside / WEIGHTS).read_bytes()
    folder = rig.put(aside)
    with caplog.at_level(logging.ERROR):
        for part in range(1, 6):
            (folder / WEIGHTS).write_bytes(whole[: 100 * part])
            await rig.look()
            assert rig.states[3] == "FAILED"
    assert caplog.text.count("is not loaded") == 1
    (folder / WEIGHTS).write_bytes(whole)
    await rig.look()
    assert rig.champion == 3


async def test_an_operator_has_a_bad_version_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Every wish may change what is possible, so what failed is tried once more after each."""
    half_copy(rig.pack(3))
    await rig.look(2)
    for version in (3, 1):
        await rig.say(of_version(NAME, version), 1)
    assert caplog.text.count("sample version 3 is not loaded") == 3
    assert rig.states == {1: "READY", 2: "READY", 3: "FAILED"}


async def test_a_network_may_raise_anything(rig: Rig) -> None:
    """An operator's own class with a fault costs its version, and not the worker."""

    def build(*_: object) -> Any:  # noqa: ANN401 - never returns
        return {}["no such key"]

    register_architecture("faulty_for_the_manager", build)
    edit_spec(rig.pack(3), architecture={"name": "faulty_for_the_manager"})
    await rig.look(2)
    assert "KeyError: 'no such key'" in rig.row(3)["reason"]
    assert rig.champion == 2


async def test_a_fault_of_ours_costs_one_version(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody has foreseen is told with its trace, and the other versions are seen to."""
    rig.pack(3)
    real = rig.repository.open

    def fail(name: str, version: int, **options: Any) -> Any:  # noqa: ANN401 - as the real one
        return real(name, version, **options) if version != 3 else 1 // 0

    monkeypatch.setattr(rig.repository, "open", fail)
    await rig.say(of_version(NAME, 1), 1)
    assert rig.row(3)["reason"].startswith("ZeroDivisionError: ")
    assert rig.states == {1: "READY", 2: "READY", 3: "FAILED"}
    assert "Traceback" in caplog.text


async def test_a_label_moves_to_a_ready_version(make_rig: Callable[..., Rig]) -> None:
    """At once, without a look at the repository; and stays there when better versions come."""
    rig = make_rig("sample@latest:2")
    rig.pack(1)
    rig.pack(2)
    await rig.start()
    assert rig.champion == 2
    await rig.say(CHAMPION, 1, is_looked_at=False)
    assert rig.champion == 1
    assert rig.manager.document()["control_offset"] == 0, "it has not seen to all of it yet"
    await rig.look()
    assert (rig.manager.document()["control_offset"], rig.refused) == (1, {})
    rig.pack(3)
    await rig.look()
    assert (rig.champion, rig.states) == (1, {1: "READY", 2: "READY", 3: "READY"})
    assert (await rig.say(CHAMPION, None)).outcome is Outcome.DONE
    assert (rig.champion, rig.states) == (3, {1: "UNLOADED", 2: "READY", 3: "READY"})


async def test_a_label_does_not_wait_for_a_load(make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is large or far away is being loaded: going back to the old one takes no longer for it."""
    rig = make_rig("sample@latest:2")
    rig.pack(1)
    rig.pack(2)
    await rig.start()
    rig.pack(3)
    real, may_go_on = rig.repository.open, threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the real one
        may_go_on.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(rig.repository, "open", slow)
    looking = asyncio.create_task(rig.look())
    await _until(lambda: rig.states.get(3) == "LOADING")
    assert rig.manager.document()["loading"] == "sample version 3"
    await rig.say(CHAMPION, 1, is_looked_at=False)
    assert rig.champion == 1
    may_go_on.set()
    await looking
    assert rig.champion == 1, "what was wished meanwhile holds when the load ends"
    assert rig.manager.document()["control_offset"] == 0
    await rig.look()
    assert rig.states == {1: "READY", 2: "READY", 3: "READY"}


async def test_a_label_waits_for_a_version_that_is_not_ready(rig: Rig) -> None:
    """It is refused with the reason, stays where it was, and moves as soon as the version is READY."""
    missing = await rig.say(CHAMPION, 3)
    assert (missing.state, missing.reason) == ("REFUSED", "there is no such version in the repository")
    aside = rig.set_aside(3)
    half_copy(rig.put(aside))
    await rig.look()
    assert rig.champion == 2
    assert rig.refused["label champion of sample -> 3"].startswith("FAILED: 3/weights.safetensors")
    rig.put(aside)
    await rig.look()
    assert (rig.champion, rig.refused) == (3, {})


async def test_a_label_loads_what_it_points_to(rig: Rig) -> None:
    """A version that lies in the repository is loaded for it; pinned by label it answers beside the champion."""
    assert (await rig.say(of_label(NAME, "stable"), 1)).outcome is Outcome.DONE
    table = rig.tables[-1]
    found = table.find(NAME, label=b"stable")
    assert (found, rig.champion) == (table.versions[NAME, 1], 2)
    assert (await rig.say(of_label(NAME, "stable"), None)).outcome is Outcome.DONE
    assert rig.states == {1: "UNLOADED", 2: "READY"}


async def test_unloading_what_a_label_points_to_is_refused(rig: Rig) -> None:
    """The champion of the default model, too, when nothing else can serve."""
    await rig.say(of_label(NAME, "stable"), 1)
    refused = await rig.say(of_version(NAME, 1), 0)
    assert (refused.state, refused.outcome) == ("REFUSED", Outcome.FAILED)
    assert refused.reason.startswith("label stable points to it; move the label first")
    await rig.say(of_label(NAME, "stable"), None)
    assert rig.states == {1: "UNLOADED", 2: "READY"}, "the wish stands, and is fulfilled as soon as it can be"
    last = await rig.say(of_version(NAME, 2), 0)
    assert last.reason.startswith("label champion points to it")
    assert (rig.champion, rig.states[2]) == (2, "READY")


async def test_unload_and_load(rig: Rig) -> None:
    """The next best serves meanwhile; loaded again it is the same bundle."""
    digest = rig.row(2)["sha256"]
    gone = await rig.say(of_version(NAME, 2), 0)
    assert (gone.outcome, gone.state, rig.champion) == (Outcome.DONE, "UNLOADED", 1)
    back = await rig.say(of_version(NAME, 2), 1)
    assert (back.outcome, back.state, rig.champion) == (Outcome.DONE, "READY", 2)
    assert rig.row(2)["sha256"] == digest


async def test_a_model_beside_the_default_one_comes_and_goes(rig: Rig) -> None:
    """No setting names it: an operator loads it, unloads it, and its folder may go."""
    rig.pack(5, "other")
    await rig.look()
    assert rig.tables[-1].names == (NAME,)
    assert (await rig.say(of_version("other", 5), 1)).outcome is Outcome.DONE
    assert rig.tables[-1].find("other") is rig.tables[-1].versions["other", 5]
    shutil.rmtree(rig.root / "other")
    await rig.look()
    assert rig.tables[-1].names == ("other", NAME), "whoever wants it to end says so"
    assert rig.manager.document()["repository_problem"] == "the repository has no version of other"
    assert (await rig.say(of_version("other", 5), 0)).outcome is Outcome.DONE
    assert rig.tables[-1].names == (NAME,)
    await rig.look()
    assert [row["name"] for row in rig.manager.document()["versions"]] == [NAME]


async def test_another_calibration_leaves_the_weights_where_they_are(rig: Rig) -> None:
    """The newest revision is used, an operator's choice before it; the same networks score on."""
    before = rig.tables[-1].champion
    add_calibration(rig.root, NAME, 2, Calibration("platt", a=2.0))
    await rig.look()
    after = rig.tables[-1].champion
    assert after is not before
    assert after.scorers is before.scorers
    assert after.bundle.sha256 == before.bundle.sha256
    assert rig.row(2)["calibration_revision"] == 1
    assert rig.row(2)["calibration_sha256"] != before.bundle.calibration_sha256
    add_calibration(rig.root, NAME, 2, Calibration("platt", a=3.0))
    chosen = await rig.say(of_calibration(NAME, 2), 1)
    assert (chosen.outcome, rig.row(2)["calibration_revision"]) == (Outcome.DONE, 1)
    own = await rig.say(of_calibration(NAME, 2), 0)
    assert (own.outcome, rig.row(2)["calibration_sha256"]) == (Outcome.DONE, before.bundle.calibration_sha256)
    await rig.say(of_calibration(NAME, 2), None)
    assert rig.row(2)["calibration_revision"] == 2
    assert rig.tables[-1].champion.scorers is before.scorers


def _break_calibration(rig: Rig, version: int) -> Path:
    """Add a revision whose copy is not complete yet: its digest is missing; returns where the digest lies."""
    revision = add_calibration(rig.root, NAME, version, Calibration("platt", a=9.0))
    sidecar = rig.root / NAME / "calibrations" / str(version) / f"{revision}.json.sha256"
    return sidecar.rename(rig.root.parent / sidecar.name)


async def test_a_broken_calibration_changes_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """The one before is used on; the reason is told once, and to whoever asks for it; complete, it is used."""
    add_calibration(rig.root, NAME, 2, Calibration("platt", a=2.0))
    await rig.look()
    aside = _break_calibration(rig, 2)
    await rig.look(4)
    row = rig.row(2)
    assert (row["state"], row["calibration_revision"]) == ("READY", 1)
    assert "calibration 2 is not in use" in row["reason"]
    assert caplog.text.count("calibration 2 is not in use") == 1
    asked = await rig.say(of_calibration(NAME, 2), 2)
    assert (asked.outcome, asked.state) == (Outcome.FAILED, "READY")
    assert "2.json.sha256" in asked.reason
    aside.rename(rig.root / NAME / "calibrations" / "2" / aside.name)
    await rig.look()
    assert (rig.row(2)["calibration_revision"], rig.row(2)["reason"]) == (2, "")


async def test_a_worker_starts_with_the_newest_calibration_that_is_good(make_rig: Callable[..., Rig]) -> None:
    """A broken one costs no version: a worker that starts serves what those serve that run."""
    rig = make_rig()
    rig.pack(1)
    add_calibration(rig.root, NAME, 1, Calibration("platt", a=2.0))
    _break_calibration(rig, 1)
    await rig.start()
    assert rig.states == {1: "READY"}
    assert rig.row(1)["calibration_revision"] == 1
    assert "calibration 2 is not in use" in rig.row(1)["reason"]


async def test_the_calibration_of_other_files_is_not_used(rig: Rig) -> None:
    """Somebody replaced the files of a version that is loaded: its weights keep their own digest and calibration."""
    digest = rig.row(2)["sha256"]
    shutil.rmtree(rig.root / NAME / "2")
    rig.pack(2, description="other files")
    add_calibration(rig.root, NAME, 2, Calibration("platt", a=2.0))
    await rig.look()
    assert (rig.row(2)["sha256"], rig.row(2)["calibration_revision"]) == (digest, 0)
    assert "files are others than those that are loaded" in rig.row(2)["reason"]


async def test_a_calibration_of_what_is_not_loaded_waits(rig: Rig) -> None:
    """The wish is told to be unfulfilled, and holds once the version is loaded."""
    add_calibration(rig.root, NAME, 1, Calibration("platt", a=2.0))
    asked = await rig.say(of_calibration(NAME, 1), 0)
    assert (asked.state, asked.reason) == ("REFUSED", "it is not loaded; the wish holds once it is")
    await rig.say(of_version(NAME, 1), 1)
    assert rig.row(1)["calibration_revision"] == 0


@pytest.fixture
def room_for(make_rig: Callable[..., Rig]) -> Callable[[int], int]:
    """The budget that so many versions of the sample fit into, and one more does not."""
    rig = make_rig()
    folder = rig.pack(1)
    needed_bytes = (folder / WEIGHTS).stat().st_size  # of the one that is to be loaded
    loaded_bytes = ScoringModel(rig.repository.open(NAME, 1)).memory_bytes
    shutil.rmtree(rig.root)
    return lambda count: (count - 1) * loaded_bytes + needed_bytes


async def test_the_least_recently_used_version_makes_room(
    make_rig: Callable[..., Rig], room_for: Callable[[int], int]
) -> None:
    """What a label points to stays, however long ago it was used; what went is not tried again until somebody asks."""
    rig = make_rig("sample@4", memory_bytes=room_for(3))
    for version in (1, 2, 3, 4):
        rig.pack(version)
    await rig.start()
    for version in (1, 2):
        assert (await rig.say(of_version(NAME, version), 1)).outcome is Outcome.DONE
    for version, used_s in ((4, 1.0), (2, 2.0), (1, 3.0)):
        rig.tables[-1].versions[NAME, version].last_used_s = used_s
    assert (await rig.say(of_version(NAME, 3), 1)).outcome is Outcome.DONE
    assert rig.states == {1: "READY", 2: "UNLOADED", 3: "READY", 4: "READY"}
    assert rig.row(2)["reason"] == "unloaded to make room for sample version 3"
    assert rig.refused == {"load sample 2": "UNLOADED: unloaded to make room for sample version 3"}
    await rig.look(3)
    assert rig.states[2] == "UNLOADED"


async def test_what_is_new_goes_last(make_rig: Callable[..., Rig], room_for: Callable[[int], int]) -> None:
    """A version that was just loaded has not been used yet, and is still the one used last."""
    rig = make_rig("sample@4", memory_bytes=room_for(3))
    for version in (1, 2, 3, 4):
        rig.pack(version)
    await rig.start()
    await rig.say(of_version(NAME, 1), 1)
    rig.tables[-1].versions[NAME, 1].last_used_s = 1.0  # long ago
    await rig.say(of_version(NAME, 2), 1)
    await rig.say(of_version(NAME, 3), 1)
    assert rig.states == {1: "UNLOADED", 2: "READY", 3: "READY", 4: "READY"}


async def test_pinned_versions_never_go(make_rig: Callable[..., Rig], room_for: Callable[[int], int]) -> None:
    """The one to come is refused with what stays in its way, and fits once that is unloaded."""
    rig = make_rig("sample@4", memory_bytes=room_for(3))
    rig.pack(1, keep_loaded=True)
    for version in (2, 3, 4):
        rig.pack(version)
    await rig.start()
    await rig.say(of_version(NAME, 1), 1)
    await rig.say(of_label(NAME, "stable"), 2)
    refused = await rig.say(of_version(NAME, 3), 1)
    assert (refused.outcome, refused.state) == (Outcome.FAILED, "FAILED")
    assert re.search("do not fit into the budget.*version 1 .*raise models.memory_mb", refused.reason)
    assert rig.states == {1: "READY", 2: "READY", 3: "FAILED", 4: "READY"}
    await rig.say(of_version(NAME, 1), 0)
    assert rig.states == {1: "UNLOADED", 2: "READY", 3: "READY", 4: "READY"}


async def test_the_first_champion_is_not_sacrificed(
    make_rig: Callable[..., Rig], room_for: Callable[[int], int]
) -> None:
    """Before the first table is in force the default model is as safe as after."""
    rig = make_rig("sample, other", memory_bytes=room_for(1))
    rig.pack(1)
    rig.pack(1, "other")
    await rig.start()
    assert rig.champion == 1
    assert rig.tables[-1].names == (NAME,)
    assert "do not fit into the budget" in rig.row(1, "other")["reason"]


async def test_a_policy_that_wants_more_than_fits_settles(
    make_rig: Callable[..., Rig], room_for: Callable[[int], int]
) -> None:
    """It ends, serves the newest, and does nothing more at the next looks."""
    rig = make_rig("sample@all", memory_bytes=room_for(2))
    for version in range(1, 6):
        rig.pack(version)
    await rig.start()
    assert rig.champion == 5
    assert sorted(rig.states.values()).count("READY") == 2
    states, switches = rig.states, len(rig.tables)
    await rig.look(3)
    assert (rig.states, len(rig.tables)) == (states, switches)


async def test_a_repository_that_is_away_changes_nothing(
    make_rig: Callable[..., Rig], caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder was renamed: all that is live serves on, labels move, and new versions come once it is back."""
    rig = make_rig("sample@latest:2")
    rig.pack(1)
    rig.pack(2)
    await rig.start()
    away = rig.root.rename(rig.root.with_name("away"))
    await rig.look(3)
    assert rig.states == {1: "READY", 2: "READY"}
    assert caplog.text.count("the repository has no version of sample; what is live serves on") == 1
    assert (await rig.say(CHAMPION, 1)).outcome is Outcome.DONE
    assert rig.champion == 1
    away.rename(rig.root)
    await rig.say(CHAMPION, None)
    rig.pack(3)
    await rig.look()
    assert (rig.champion, rig.states) == (3, {1: "UNLOADED", 2: "READY", 3: "READY"})
    assert rig.manager.document()["repository_problem"] is None


async def test_a_repository_that_cannot_be_read_changes_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a remote one that does not answer: told once, commands are obeyed as far as they can be, then all goes on."""

    def fail(*_: object) -> None:
        msg = "s3://models cannot be reached"
        raise BundleError(msg)

    half_copy(rig.pack(3))
    await rig.look()
    for method in ("versions", "fingerprint", "calibrations"):
        monkeypatch.setattr(rig.repository, method, fail)
    await rig.look(2)
    assert rig.states == {2: "READY", 3: "FAILED"}
    assert rig.manager.document()["repository_problem"] == "s3://models cannot be reached"
    refused = await rig.say(of_version(NAME, 7), 1)
    assert refused.reason == "there is no such version in the repository; s3://models cannot be reached"
    monkeypatch.undo()
    await rig.say(of_version(NAME, 7), None)
    assert (rig.champion, rig.manager.document()["repository_problem"]) == (2, None)


async def test_a_download_that_breaks_off_goes_on_at_the_next_look(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the bundle's fault: nobody has to touch a file or say a word, and the old version serves meanwhile."""
    real = rig.repository.open
    breaks = iter([True, True, False])

    def broken(*key: Any, **options: Any) -> Any:  # noqa: ANN401 - as the repository's
        if next(breaks):
            msg = "weights.safetensors: cannot be read from https://models.example; what has arrived is kept"
            raise RepositoryAway(msg)
        return real(*key, **options)

    monkeypatch.setattr(rig.repository, "open", broken)
    rig.pack(3)
    for _ in range(2):
        await rig.look()
        assert (rig.champion, rig.states[3]) == (2, "FAILED")
        assert "what has arrived is kept" in rig.row(3)["reason"]
    await rig.look()
    assert (rig.champion, rig.states[3]) == (3, "READY")


async def test_a_start_without_a_repository_says_why(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of the repository reaches whoever starts the worker."""

    def fail(*_: object) -> None:
        msg = "s3://models cannot be reached"
        raise BundleError(msg)

    rig = make_rig()
    monkeypatch.setattr(rig.repository, "versions", fail)
    with pytest.raises(BundleError, match="s3://models cannot be reached"):
        await rig.start()


async def test_a_champion_without_a_folder_serves_on(rig: Rig) -> None:
    """As long as nothing can take its place; if something can, that does."""
    shutil.rmtree(rig.root / NAME / "1")
    shutil.rmtree(rig.root / NAME / "2")
    await rig.look(2)
    assert (rig.champion, rig.states) == (2, {2: "READY"})
    rig.pack(1)
    await rig.look()
    assert (rig.champion, rig.states) == (1, {1: "READY", 2: "UNLOADED"})
    await rig.look()
    assert rig.states == {1: "READY"}, "what is neither there nor loaded is forgotten"


async def test_a_version_drains_until_its_last_answer_has_come(rig: Rig) -> None:
    """Its networks stay until then; wanted again meanwhile, it is READY without being loaded again."""
    rig.is_drained = False
    old = rig.tables[-1].champion
    rig.pack(3)
    await rig.look()
    assert (rig.champion, rig.states) == (3, {2: "DRAINING", 3: "READY"})
    (scorer,) = old.scorers
    assert scorer.predict(zero_inputs(scorer.preprocessor.layout, 1))[1] == 1
    await rig.say(of_version(NAME, 2), 1)
    assert rig.states == {2: "READY", 3: "READY"}
    assert rig.tables[-1].versions[NAME, 2] is old
    await rig.say(of_version(NAME, 2), None)
    assert rig.states == {2: "DRAINING", 3: "READY"}
    rig.is_drained = True
    await rig.look()
    assert rig.states == {2: "UNLOADED", 3: "READY"}


async def test_a_lost_device_is_flagged(rig: Rig) -> None:
    """Also when the micro-batch that met it still had the model as it was before it was calibrated anew."""
    before = rig.tables[-1].champion
    add_calibration(rig.root, NAME, 2, Calibration("platt", a=2.0))
    await rig.look()
    moved = tuple(scorer.moved_to("cpu") for scorer in before.scorers)
    rig.manager.replace_scorers(before, moved, "serving on the CPU: cuda:0 lost")
    assert before.scorers is rig.tables[-1].champion.scorers is moved
    assert rig.row(2)["reason"] == "serving on the CPU: cuda:0 lost"


@asynccontextmanager
async def _running(rig: Rig) -> AsyncIterator[None]:
    task = asyncio.create_task(rig.manager.run())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        rig.manager.close()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the manager has no event for it
            await asyncio.sleep(0.005)


async def test_it_polls_and_outlives_its_own_faults(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """New files are found without being told of; a fault of ours is logged, and the next look goes on."""
    failed = asyncio.Event()

    def fail(*_: object) -> None:
        failed.set()
        raise ZeroDivisionError

    async with _running(rig):
        monkeypatch.setattr(rig.repository, "versions", fail)
        await failed.wait()
        monkeypatch.undo()
        rig.pack(3)
        await _until(lambda: rig.champion == 3)
    assert "ZeroDivisionError" in caplog.text


async def test_a_wish_is_not_left_until_the_next_poll(make_rig: Callable[..., Rig]) -> None:
    """It wakes the manager."""
    rig = make_rig(poll_s=3600)
    rig.pack(1)
    rig.pack(2)
    await rig.start()
    async with _running(rig):
        await asyncio.sleep(0)
        await rig.say(of_version(NAME, 1), 1, is_looked_at=False)
        await _until(lambda: rig.states == {1: "READY", 2: "READY"})
