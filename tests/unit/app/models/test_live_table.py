"""Which version answers which request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.models.live_table import LiveTable, Refusal


def _model(name: str, version: int) -> Any:  # noqa: ANN401 - a table looks at nothing but its spec
    return SimpleNamespace(spec=SimpleNamespace(name=name, version=version))


MODELS = {(name, version): _model(name, version) for name, version in (("a", 1), ("a", 2), ("b", 7))}
TABLE = LiveTable("a", MODELS, {("a", "champion"): 1, ("a", "next"): 2, ("b", "champion"): 7})


@pytest.mark.parametrize(
    ("name", "version", "label", "expected"),
    [
        (None, None, None, ("a", 1)),
        ("a", None, None, ("a", 1)),
        ("b", None, None, ("b", 7)),
        (None, b"2", None, ("a", 2)),
        ("a", b"002", None, ("a", 2)),
        (None, None, b"next", ("a", 2)),
        (None, b"2", b"next", ("a", 2)),
        ("b", b"7", b"champion", ("b", 7)),
    ],
)
def test_a_request_finds_its_version(
    name: str | None, version: bytes | None, label: bytes | None, expected: tuple[str, int]
) -> None:
    """By model, by pin, by both; without either the default model's champion."""
    assert TABLE.find(name, version=version, label=label) is MODELS[expected]


@pytest.mark.parametrize(
    ("name", "version", "label", "error_class", "message"),
    [
        ("c", None, None, "UnknownModel", "model c is not live here; live are a, b"),
        ("c" * 200, None, None, "UnknownModel", f"model {'c' * 64}… is not live"),
        ("a", b"7", None, "UnknownVersion", "version 7 pinned by x-model-version is not live for a; live are 1, 2"),
        ("a", b"-1", None, "UnknownVersion", "version -1 pinned"),
        ("a", b"9" * 5000, None, "UnknownVersion", "9…"),
        ("a", "\u0662".encode(), None, "UnknownVersion", "pinned by x-model-version"),
        ("a", b"", None, "UnknownVersion", "pinned by x-model-version"),
        ("b", None, b"next", "UnknownLabel", "label next pinned by x-model-label is not set for b; set are champion"),
        ("a", None, b"\xff", "UnknownLabel", "is not set for a; set are champion, next"),
        ("a", b"1", b"next", "ConflictingPins", "name two versions"),
        ("a", b"1", b"gone", "ConflictingPins", "name two versions"),
    ],
)
def test_what_nobody_can_answer_is_told(
    name: str, version: bytes | None, label: bytes | None, error_class: str, message: str
) -> None:
    """A pin is never ignored, and what comes from outside is shown only in part."""
    found = TABLE.find(name, version=version, label=label)
    assert isinstance(found, Refusal)
    assert found.error_class == error_class
    assert message in found.message
    assert len(found.message) < 250


def test_a_table_holds_together() -> None:
    """A label that points nowhere, or a default model without a champion, is a fault of ours."""
    with pytest.raises(ValueError, match="label next of a points to version 3, which is not live"):
        LiveTable("a", MODELS, {("a", "champion"): 1, ("a", "next"): 3})
    with pytest.raises(ValueError, match="no version of the default model b is the champion"):
        LiveTable("b", MODELS, {("a", "champion"): 1})


def test_a_table_of_models_has_their_newest_as_champions() -> None:
    """Whatever the order."""
    table = LiveTable.of([MODELS["a", 2], MODELS["b", 7], MODELS["a", 1]])
    assert (table.default, dict(table.labels)) == ("a", {("a", "champion"): 2, ("b", "champion"): 7})
    assert table.champion is MODELS["a", 2]
    assert table.names == ("a", "b")
    assert LiveTable.of(MODELS.values(), default="b").champion is MODELS["b", 7]
