"""``model.yaml``: what it may declare, what it may not, and that old ones are written as ever."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from app.errors import BundleError
from app.models.spec import ModelSpec, Output, parse_spec
from tests.samples import sample_spec

OLD_TEXT = """\
format: sluice-model/1
name: sample
version: 3
architecture:
  name: tabular_mlp
  arguments:
    hidden:
    - 8
    embedding_dim: 4
features:
- name: departure
  type: time
  required: true
  parts:
  - hour_of_day
  - day_of_week
- name: distance
  required: true
  standardise:
    mean: 1000.0
    scale: 500.0
- name: carrier
  type: category
  vocabulary:
  - AA
  - B6
  - UA
- name: tailnum
  type: category
  model_input: false
- name: gate
  default: 1.0
- name: night
  type: flag
  missing_indicator: true
- name: delay
  source: store
  missing_indicator: true
  view: plane
  column: delay_min
- name: gust
  source: store
  default: 0.0
  view: weather
views:
- name: plane
  key:
  - tailnum
  columns:
  - name: delay_min
    type: f8
  stale_after_s: 3600.0
- name: weather
  version: 2
  key:
  - carrier
  - gate
  columns:
  - name: gust
output:
  name: late
  threshold: 0.4
  labels:
  - on_time
  - late
buckets:
- 1
- 2
- 4
- 8
- 16
"""
"""What packing wrote before there were texts, several outputs and other weights."""


def _dump(spec: ModelSpec) -> str:
    document = spec.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump({"format": spec.format, **document}, sort_keys=False, allow_unicode=True)


def test_what_an_old_bundle_declares_is_written_as_ever() -> None:
    """Its digest stands for the bundle: not a byte may change, and reading gives it back."""
    assert _dump(sample_spec()) == OLD_TEXT
    assert parse_spec(yaml.safe_load(OLD_TEXT), origin="model.yaml") == sample_spec()


FEATURES: list[dict[str, Any]] = [
    {"name": "x", "bucketise": {"edges": [0.0, 1.5], "encode": "embedding"}},
    {"name": "x", "bucketise": {"edges": [0.0]}, "default": 3.0},
    {"name": "x", "type": "category", "vocabulary": ["a"], "encode": "one_hot"},
    {"name": "x", "type": "category", "hash_buckets": 2**24, "default": "a"},
    {"name": "x", "type": "category", "hash_buckets": 4095, "encode": "one_hot"},
    {"name": "x", "type": "category", "model_input": False},
    {"name": "x", "type": "text", "tokenizer": "tokenizer.json", "max_tokens": 4096, "required": True},
    {"name": "x", "type": "text", "model_input": False},
    {"name": "x", "type": "time", "parts": ["month_of_year", "minute_of_hour"]},
]
OUTPUTS: list[dict[str, Any]] = [
    {},
    {"threshold": None},
    {"kind": "identity"},
    {"kind": "identity", "threshold": 0.5, "labels": ["ok", "hot"]},
    {"kind": "identity", "threshold": -40.0},
    {"kind": "identity", "names": ["low", "high"], "score": "high", "decimals": 0},
    {"kind": "softmax"},
    {"kind": "softmax", "threshold": 0.5},
    {"kind": "softmax", "labels": ["a", "b", "c"], "thresholds": {"b": 0.4}, "otherwise": "?", "score": "c"},
    {"names": ["spam", "rude"], "thresholds": {"rude": 0.9}, "otherwise": "fine", "score": "rude"},
    {"names": ["spam", "rude"], "threshold": None},
]


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_are_read_as_they_were_written(output: dict[str, Any]) -> None:
    """Defaults depend on the kind; what is left out in writing is the same again in reading."""
    given = Output.model_validate(output)
    read = parse_spec(yaml.safe_load(_dump(sample_spec(output=given))), origin="model.yaml").output
    assert read == given
    assert read.threshold == output.get("threshold", None if "kind" in output else 0.5)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: ",".join(map(str, f)))
def test_features_are_read_as_they_were_written(feature: dict[str, Any]) -> None:
    """Every way to declare one, through YAML and back."""
    spec = parse_spec(_document(features=[{"name": "y"}, feature]), origin="model.yaml")
    assert parse_spec(yaml.safe_load(_dump(spec)), origin="model.yaml") == spec


RUNS: list[dict[str, Any]] = [
    {"weights": "pt2", "architecture": None},
    {"precision": "bf16", "precision_error": 0.01},
    {"compile": True, "device": "cuda:1", "keep_loaded": True, "max_run_ms": 5.0},
]


@pytest.mark.parametrize("run", RUNS)
def test_ways_to_run_are_read_as_they_were_written(run: dict[str, Any]) -> None:
    """Weights, precision, compilation, device and bounds."""
    spec = sample_spec(**run)
    assert parse_spec(yaml.safe_load(_dump(spec)), origin="model.yaml") == spec


def test_each_tokenizer_file_is_named_once() -> None:
    """Packing copies them; two texts may share one."""
    text = {"type": "text", "max_tokens": 8}
    features = [{"name": n, "tokenizer": f"{f}.json", **text} for n, f in (("a", "w"), ("b", "w"), ("c", "bpe"))]
    spec = parse_spec(_document(features=features), origin="model.yaml")
    assert spec.tokenizer_files() == ["bpe.json", "w.json"]
    assert sample_spec().tokenizer_files() == []


def _document(**changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    fields = {"name": "m", "version": 1, "architecture": {"name": "tabular_mlp"}, "features": [{"name": "y"}]}
    return {**fields, **changes}


def _feature(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    return _document(features=[{"name": "x", **fields}])


def _output(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - any field
    return _document(output=fields)


EDGES = {"edges": [0.0, 1.0]}
TEXT: dict[str, Any] = {"type": "text", "tokenizer": "t.json", "max_tokens": 8}
CATEGORY: dict[str, Any] = {"type": "category", "hash_buckets": 8}
ONE_HOT: dict[str, Any] = {"type": "category", "vocabulary": ["a"], "encode": "one_hot"}
SOFTMAX: dict[str, Any] = {"kind": "softmax", "labels": ["a", "b", "c"]}
SEVERAL: dict[str, Any] = {"names": ["a", "b"]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "edges that fall": (_feature(bucketise={"edges": [1, 0]}), r"features\.0\.bucketise: .*edges: each must be larger"),
    "an edge twice": (_feature(bucketise={"edges": [1, 1]}), "edges: each must be larger"),
    "no edges": (_feature(bucketise={"edges": []}), r"bucketise\.edges: "),
    "an endless edge": (_feature(bucketise={"edges": [float("inf")]}), r"bucketise\.edges\.0: "),
    "a misspelt key of buckets": (_feature(bucketise={**EDGES, "encoding": "one_hot"}), r"bucketise\.encoding: Extra"),
    "buckets of a flag": (_feature(type="flag", bucketise=EDGES), "x: bucketise takes a number"),
    "buckets and log1p": (_feature(bucketise=EDGES, log1p=True), "x: bucketise takes a number as it is"),
    "buckets and a range": (_feature(bucketise=EDGES, range=[0, 1]), "x: bucketise takes a number as it is"),
    "buckets of a mere key": (_feature(bucketise=EDGES, model_input=False), "x: bucketise takes a number"),
    "buckets and an indicator": (_feature(bucketise=EDGES, missing_indicator=True), "x: missing_indicator: "),
    "neither list nor hash": (_feature(type="category"), "has a vocabulary or hash_buckets"),
    "both list and hash": (_feature(**CATEGORY, vocabulary=["a"]), "has a vocabulary or hash_buckets"),
    "a hash of a number": (_feature(hash_buckets=8), "has a vocabulary or hash_buckets"),
    "a hash of a mere key": (_feature(**CATEGORY, model_input=False), "has a vocabulary or hash_buckets"),
    "one slot": (_feature(type="category", hash_buckets=1), r"features\.0\.hash_buckets: "),
    "too many slots": (_feature(type="category", hash_buckets=2**24 + 1), r"features\.0\.hash_buckets: "),
    "one-hot of very many": (_feature(type="category", hash_buckets=4096, encode="one_hot"), "use embedding"),
    "one-hot of a number": (_feature(encode="one_hot"), "encode belongs to categories"),
    "one-hot and an indicator": (_feature(**ONE_HOT, missing_indicator=True), "x: missing_indicator: "),
    "a hash and an indicator": (_feature(**CATEGORY, missing_indicator=True), "x: missing_indicator: "),
    "another encoding": (_feature(**CATEGORY, encode="binary"), r"features\.0\.encode: "),
    "a text without tokenizer": (_feature(type="text", max_tokens=8), "x: a text .* has a tokenizer and max_tokens"),
    "a text without length": (_feature(type="text", tokenizer="t.json"), "has a tokenizer and max_tokens"),
    "a tokenizer for a number": (_feature(tokenizer="t.json"), "has a tokenizer and max_tokens"),
    "a length for a category": (_feature(**CATEGORY, max_tokens=8), "has a tokenizer and max_tokens"),
    "a tokenizer elsewhere": (_feature(**{**TEXT, "tokenizer": "../t.json"}), r"features\.0\.tokenizer: "),
    "a tokenizer that is a pickle": (_feature(**{**TEXT, "tokenizer": "t.pkl"}), r"features\.0\.tokenizer: "),
    "no tokens": (_feature(**{**TEXT, "max_tokens": 0}), r"features\.0\.max_tokens: "),
    "too many tokens": (_feature(**{**TEXT, "max_tokens": 4097}), r"features\.0\.max_tokens: "),
    "a default text": (_feature(**TEXT, default="a"), "x: a text has no default"),
    "a text and an indicator": (_feature(**TEXT, missing_indicator=True), "no missing_indicator"),
    "a text from the store": (_feature(**TEXT, source="store", view="v"), "a store feature is a number"),
    "another part": (_feature(type="time", parts=["second"]), r"features\.0\.parts\.0: "),
    "another kind": (_output(kind="relu"), r"output\.kind: "),
    "a threshold of 2": (_output(threshold=2), "output: .*threshold: .* 0 .. 1"),
    "a softmax threshold below 0": (_output(**SOFTMAX, thresholds={"b": -1}), "threshold: .* not b"),
    "a NaN threshold": (_output(kind="identity", threshold=float("nan")), r"output\.threshold: "),
    "a label twice": (_output(kind="softmax", labels=["a", "a"]), "labels: one stands twice"),
    "a name twice": (_output(names=["a", "a"]), "names: one stands twice"),
    "names with a comma": (_output(names=["a,b", "c"]), r"output\.names\.0: "),
    "a name alone": (_output(names=["a"]), r"output\.names: "),
    "names of softmax": (_output(**SOFTMAX, names=["a", "b", "c"]), "names: the outputs of softmax"),
    "three labels, one cut": (_output(labels=["a", "b", "c"]), "labels: one threshold separates two"),
    "labels of several outputs": (_output(**SEVERAL, labels=["n", "y"]), "labels: .*name the outputs instead"),
    "labels nobody decides": (_output(kind="identity", labels=["n", "y"]), "labels: .*give a threshold"),
    "labels and no threshold": (_output(threshold=None, labels=["n", "y"]), "labels: .*give a threshold"),
    "a score that is none": (_output(**SOFTMAX, score="d"), "score: there is no output d; there are a, b, c"),
    "thresholds of one output": (_output(thresholds={"score": 0.1}), "thresholds: there is one only"),
    "a threshold of no label": (_output(**SOFTMAX, thresholds={"d": 0.1}), "thresholds: d: no such label"),
    "nothing to miss": (_output(**SOFTMAX, otherwise="?"), "otherwise: nothing can miss"),
    "otherwise of two labels": (_output(otherwise="?"), "otherwise: nothing can miss"),
    "too many decimals": (_output(decimals=16), r"output\.decimals: "),
    "no architecture": (_document(architecture=None), "architecture: safetensors need"),
    "an architecture of a program": (_document(weights="pt2"), "architecture: a pt2 program brings its own"),
    "pickled weights": (_document(weights="pt"), "weights: "),
    "an error of fp32": (_document(precision_error=0.1), "precision_error: "),
    "another precision": (_document(precision="int8"), "precision: "),
    "another device": (_document(device="tpu"), "device: "),
    "no time to run": (_document(max_run_ms=0), "max_run_ms: "),
    "a program cast": (
        _document(weights="pt2", architecture=None, precision="bf16"),
        "precision: a pt2 program has its own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name: str) -> None:
    """The message leads to the field, and says what would fit."""
    document, message = REFUSED[name]
    with pytest.raises(BundleError, match=message) as caught:
        parse_spec(document, origin="3/model.yaml")
    assert str(caught.value).startswith("3/model.yaml: ")


def test_every_fault_of_a_document_is_told_at_once() -> None:
    """One line each, so that one round of corrections is enough."""
    features = [{"name": "y"}, {"name": "x", "hash_buckets": 0}]
    document = _document(features=features, output={"kind": "relu"}, device="tpu")
    with pytest.raises(BundleError) as caught:
        parse_spec(document, origin="m")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "features.1.hash_buckets",
        "output.kind",
        "device",
    ]
