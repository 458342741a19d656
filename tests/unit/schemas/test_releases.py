"""No edit of an ``.avsc`` file can break a producer or a consumer: FULL compatibility with every released version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schemas.registry import RELEASES, SchemaBook, is_compatible, local_id, read_releases, release

FOLDER = Path(__file__).parents[3] / "schemas"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the contract."""
    for path in [*FOLDER.glob("*.avsc"), FOLDER / RELEASES]:
        shutil.copy(path, tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.avsc")), ids=lambda p: p.stem)
def test_every_schema_is_released_and_compatible(path: Path) -> None:
    """An edit that is not recorded (`sluice schema release`), or that old readers or writers cannot bear, fails."""
    schema, versions = json.loads(path.read_text()), read_releases(FOLDER)[path.stem]
    assert local_id(versions[-1]) == local_id(schema), "record the new version: sluice schema release"
    for version in versions:
        assert is_compatible(version, schema) is None


def test_a_field_with_a_default_is_a_new_version(folder: Path) -> None:
    """It is recorded behind the old one, and both stay readable."""
    path = folder / "outcome.avsc"
    schema = json.loads(path.read_text())
    old = local_id(schema)
    schema["fields"].append({"name": "note", "type": ["null", "string"], "default": None})
    path.write_text(json.dumps(schema))
    assert release(folder) == ["outcome"]
    assert release(folder) == []
    assert {old, local_id(schema)} <= set(SchemaBook(folder).ids())


@pytest.mark.parametrize("change", ["no default", "other type", "renamed"])
def test_an_incompatible_edit_is_refused(folder: Path, change: str) -> None:
    """The message names file and version, and nothing is recorded."""
    path = folder / "outcome.avsc"
    schema = json.loads(path.read_text())
    before = (folder / RELEASES).read_text()
    if change == "no default":
        schema["fields"].append({"name": "note", "type": "string"})
    elif change == "other type":
        schema["fields"][2]["type"] = "string"
    else:
        schema["fields"][2]["name"] = "truth"
    path.write_text(json.dumps(schema))
    with pytest.raises(ValueError, match=r"outcome\.avsc is not FULL-compatible with its version 1"):
        release(folder)
    assert (folder / RELEASES).read_text() == before
