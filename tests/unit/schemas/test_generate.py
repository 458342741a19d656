"""The schemas that are made for a model, and the compatibility of ours."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import avro.schema
import fastavro
import pytest

from schemas.columnar import Decoder, Encoder
from schemas.generate import (
    AVRO_TYPES,
    FeatureField,
    FeatureType,
    check_name,
    labelled_schema,
    prediction_schema,
    request_schema,
)
from schemas.registry import is_compatible

ROOT = Path(__file__).parents[3]
TYPES: tuple[FeatureType, ...] = ("number", "category", "text", "time", "flag")
FIELDS = [FeatureField(f"f_{kind}", kind, "request") for kind in TYPES] + [FeatureField("stored", "number", "store")]
MAKERS = [request_schema, prediction_schema, labelled_schema]
Maker = "Callable[[str, list[FeatureField]], dict[str, Any]]"


def _features(schema: dict[str, Any]) -> dict[str, Any]:
    return {f["name"]: f for f in next(f for f in schema["fields"] if f["name"] == "features")["type"]["fields"]}


@pytest.mark.parametrize("make", MAKERS)
def test_every_library_takes_what_is_made(make: Maker) -> None:
    """Apache avro, fastavro and our codec accept each schema, and our codec needs no fallback."""
    schema = make("demo", FIELDS)
    avro.schema.parse(json.dumps(schema))
    fastavro.parse_schema(copy.deepcopy(schema))
    assert Decoder(schema).vectorised
    assert Encoder(schema).vectorised


def test_a_request_holds_request_features_only() -> None:
    """Producers send what they have; the store's features are not theirs to send."""
    assert set(_features(request_schema("demo", FIELDS))) == {f"f_{kind}" for kind in TYPES}


@pytest.mark.parametrize("make", [prediction_schema, labelled_schema])
def test_evidence_holds_all_features_in_order(make: Maker) -> None:
    """``feature_status`` has a letter for each feature in this order."""
    assert list(_features(make("demo", FIELDS))) == [f.name for f in FIELDS]


@pytest.mark.parametrize("kind", TYPES)
def test_features_are_nullable_with_default_null(kind: FeatureType) -> None:
    """Each type has its Avro type, and null first, so that null is the default."""
    field = _features(request_schema("demo", FIELDS))[f"f_{kind}"]
    assert field == {"name": f"f_{kind}", "type": ["null", AVRO_TYPES[kind]], "default": None}


@pytest.mark.parametrize("make", MAKERS)
def test_features_come_and_go_compatibly(make: Maker) -> None:
    """A feature added or dropped stays FULL-compatible: old readers read new records and the other way round."""
    longer = [*FIELDS, FeatureField("extra", "category", "request")]
    assert is_compatible(make("demo", FIELDS), make("demo", longer)) is None
    assert is_compatible(make("demo", FIELDS[1:]), make("demo", longer)) is None


@pytest.mark.parametrize("make", MAKERS)
def test_a_feature_that_changes_its_type_is_not_compatible(make: Maker) -> None:
    """A number that becomes text is refused, and the message says where."""
    changed = [FeatureField("f_number", "text", "request"), *FIELDS[1:]]
    problem = is_compatible(make("demo", FIELDS), make("demo", changed))
    assert problem is not None
    assert "/fields/" in problem


def test_a_labelled_prediction_is_a_prediction_with_its_outcome() -> None:
    """What both have in common has the same name and type, so that training reads one or the other."""
    prediction = {f["name"]: f["type"] for f in prediction_schema("demo", FIELDS)["fields"]}
    labelled = {f["name"]: f["type"] for f in labelled_schema("demo", FIELDS)["fields"]}
    assert set(labelled) - set(prediction) == {"label", "outcome_time", "revision", "retracted"}
    assert {n: t for n, t in labelled.items() if n in prediction} == {
        n: prediction[n] for n in labelled if n in prediction
    }


@pytest.mark.parametrize("name", ["a", "flight_delays", "x" * 64, "a1_"])
def test_good_names_are_taken(name: str) -> None:
    """Lower case, digits and underscores, up to 64 characters."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "1a", "_a", "a-b", "a.b", "x" * 65, "a\n", "ä", "../a"])
def test_bad_names_are_refused(name: str) -> None:
    """Avro allows no hyphen, a path no dots; the message shows the name and the rule."""
    with pytest.raises(ValueError, match=r"must match \[a-z\]"):
        check_name(name)


@pytest.mark.parametrize("make", MAKERS)
def test_names_are_checked_wherever_they_are_used(make: Maker) -> None:
    """Neither a model nor a feature gets a name that Avro or a path cannot hold."""
    with pytest.raises(ValueError, match="bad-name"):
        make("bad-name", FIELDS)
    with pytest.raises(ValueError, match="bad-name"):
        make("demo", [FeatureField("bad-name", "number", "request")])


def _committed(path: Path) -> list[str]:
    """Earlier contents of a file, newest first; none outside a checkout."""
    name = str(path.relative_to(ROOT))
    if shutil.which("git") is None:
        return []
    log = subprocess.run(
        ["git", "log", "--format=%H", "--", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    shown = [
        subprocess.run(["git", "show", f"{commit}:{name}"], cwd=ROOT, capture_output=True, text=True, check=False)
        for commit in log.stdout.split()
    ]
    return [one.stdout for one in shown if one.returncode == 0]


@pytest.mark.parametrize("path", sorted((ROOT / "schemas").glob("*.avsc")), ids=lambda path: path.stem)
def test_a_schema_stays_compatible_with_all_that_were_committed(path: Path) -> None:
    """An edit that old readers or old records do not survive fails here."""
    schema = json.loads(path.read_text())
    for earlier in [path.read_text(), *_committed(path)]:
        assert is_compatible(schema, json.loads(earlier)) is None


@pytest.mark.parametrize("path", sorted((ROOT / "schemas").glob("*.avsc")), ids=lambda path: path.stem)
def test_a_required_field_would_be_noticed(path: Path) -> None:
    """The check that guards the schemas is not blind: a new field without default breaks each of them."""
    schema = json.loads(path.read_text())
    broken = {**schema, "fields": [*schema["fields"], {"name": "must", "type": "string"}]}
    assert is_compatible(schema, broken) is not None
