"""``sluice schema encode``: JSON lines to framed Avro, and what it says about a line that does not fit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from app.schema_commands import SchemaError, cli
from schemas.columnar import Decoder
from schemas.columns import to_python
from schemas.generate import request_schema
from schemas.wire import HEADER_BYTES
from tests.samples import pack_sample, sample_spec

if TYPE_CHECKING:
    from pathlib import Path

LINE: dict[str, Any] = {
    "request_id": "r1",
    "entity_id": "e1",
    "unit_id": "u1",
    "event_time": "1970-01-01T00:00:05Z",
    "features": {"departure": 5, "distance": 5},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose settings name a repository with the sample model."""
    pack_sample(tmp_path / "models", sample_spec(version=1))
    monkeypatch.setenv("SLUICE_MODELS__REPOSITORY", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_line_becomes_a_file_and_a_command(folder: Path) -> None:
    """The file holds the request, the unit of its experiment too; the command has its key."""
    result = CliRunner().invoke(cli, ["encode", "sample", "--out", "out", "-"], input=json.dumps(LINE) + "\n")
    assert result.exit_code == 0, result.output
    assert "-k e1 out/000001.avro" in result.output
    spec = sample_spec(version=1)
    value = (folder / "out" / "000001.avro").read_bytes()
    decoded = Decoder(request_schema(spec.name, spec.fields())).decode([value], skip_bytes=HEADER_BYTES)
    request: dict[str, Any] = to_python(decoded.columns)[0]
    assert (request["request_id"], request["unit_id"], request["features"]["distance"]) == ("r1", "u1", 5.0)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"distance": "far"}}, "line 1: distance"),
        ({"features": {"distanse": 5, "distance": 5}}, "line 1: distanse: there is no such request feature"),
        ({"features": {}}, "line 1: distance: required, but missing"),
        ({"event_time": "soon"}, "line 1: event_time"),
    ],
)
def test_a_line_that_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    """Number of the line, field, and what is wrong with it."""
    result = CliRunner().invoke(cli, ["encode", "sample", "--out", "out", "-"], input=json.dumps(LINE | change) + "\n")
    assert isinstance(result.exception, SchemaError)
    assert message in str(result.exception)
