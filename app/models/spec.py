"""``model.yaml`` as frozen values: what a model takes, gives and needs.

An unknown key is an error, so that a misspelt setting never silently does nothing.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from app.errors import BundleError
from schemas.generate import FeatureField, check_name

if TYPE_CHECKING:
    from collections.abc import Iterable

ONE_HOT_MAX = 4096
"""A column for each of more values would cost more than an embedding."""
HASH_BUCKETS_MAX = 2**24
"""An embedding of eight numbers then takes half a gigabyte."""
MAX_TOKENS_MAX = 4096
OUTPUTS_MAX = 1024
DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Up to 2048, because decoding and encoding cost a third of it at 512; slower models name fewer."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
FileName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.json$", description="in the bundle's folder")
]
TimePart = Literal["minute_of_hour", "hour_of_day", "day_of_week", "day_of_year", "month_of_year"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Standardise(_Part):
    """``(x - mean) / scale``."""

    mean: float
    scale: Annotated[float, Field(gt=0)]


class Bucketise(_Part):
    """A number becomes the bucket that it falls into; missing ones have a bucket of their own.

    Attributes:
        edges: k increasing numbers make k + 1 buckets; an edge itself belongs to the bucket above it.
        encode: k + 2 columns of which one is 1, or an index for an embedding; 0 is missing.

    """

    edges: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=1, max_length=ONE_HOT_MAX - 2)
    ]
    encode: Literal["one_hot", "embedding"] = "one_hot"

    @model_validator(mode="after")
    def _increases(self) -> Bucketise:
        if any(a >= b for a, b in itertools.pairwise(self.edges)):
            msg = "edges: each must be larger than the one before"
            raise ValueError(msg)
        return self


class Feature(_Part):
    """One feature of the signature, in the order in which the model takes them.

    ``number`` and ``flag`` features become one column (two with ``missing_indicator``) or, with ``bucketise``, the
    index of a bucket; ``time`` features a sine and a cosine for each part; ``category`` features an index (0: unknown
    or missing) by ``vocabulary``, or by a hash into ``hash_buckets`` slots (0: missing). An index is the input of an
    embedding, or with ``one_hot`` as many columns as it has values. ``text`` features become ``max_tokens`` ids and a
    mask by the bundle's file ``tokenizer``; a missing text is all padding.

    A null, or a key that the store does not know, becomes ``default`` (status *missing*); without a default a number
    becomes the mean that ``standardise`` names, else 0. A null in a required request feature makes the request INVALID;
    a required store feature that cannot be had makes it ERROR.
    """

    name: Name
    source: Literal["request", "store"] = "request"
    type: Literal["number", "category", "text", "time", "flag"] = "number"
    required: bool = False
    model_input: Annotated[bool, Field(description="false: only a key of views or evidence, not for the network")] = (
        True
    )
    default: float | str | bool | None = None
    range: Annotated[tuple[float, float] | None, Field(description="values outside are clipped")] = None
    log1p: bool = False
    standardise: Standardise | None = None
    missing_indicator: bool = False
    vocabulary: tuple[str, ...] | None = None
    parts: tuple[TimePart, ...] | None = None
    utc_offset_minutes: Annotated[int, Field(ge=-840, le=840, description="local time of `parts`")] = 0
    view: Name | None = None
    column: Name | None = None
    bucketise: Bucketise | None = None
    encode: Annotated[Literal["embedding", "one_hot"], Field(description="how the network sees a category")] = (
        "embedding"
    )
    hash_buckets: Annotated[int | None, Field(ge=2, le=HASH_BUCKETS_MAX, description="instead of vocabulary")] = None
    tokenizer: FileName | None = None
    max_tokens: Annotated[int | None, Field(ge=1, le=MAX_TOKENS_MAX)] = None

    @property
    def is_one_hot(self) -> bool:
        """Whether its index becomes columns; else it is one for an embedding, if it has an index at all."""
        return (self.encode if self.bucketise is None else self.bucketise.encode) == "one_hot"

    @model_validator(mode="after")
    def _fits_its_type(self) -> Feature:
        if self.source == "store" and (self.view is None or self.type != "number"):
            msg = f"feature {self.name}: a store feature is a number and names its view"
            raise ValueError(msg)
        if self.source == "request" and (self.view is not None or self.column is not None):
            msg = f"feature {self.name}: view and column belong to store features"
            raise ValueError(msg)
        if (self.type == "time") != (self.parts is not None):
            msg = f"feature {self.name}: a time, and nothing else, has parts"
            raise ValueError(msg)
        if self.type != "number" and (self.standardise or self.log1p or self.range):
            msg = f"feature {self.name}: range, log1p and standardise belong to numbers"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _indexes(self) -> Feature:
        ways = (self.vocabulary is not None) + (self.hash_buckets is not None)
        if ways != (self.type == "category" and self.model_input):
            msg = "a category that is a model input, and nothing else, has a vocabulary or hash_buckets"
            raise self._fault(msg)
        if self.encode == "one_hot" and not ways:
            msg = "encode belongs to categories that are model inputs; a number's buckets have their own"
            raise self._fault(msg)
        if self.encode == "one_hot" and max(len(self.vocabulary or ()), self.hash_buckets or 0) >= ONE_HOT_MAX:
            msg = f"encode: one_hot has room for {ONE_HOT_MAX - 1} values; use embedding"
            raise self._fault(msg)
        if self.bucketise is not None and (
            self.type != "number" or self.range or self.log1p or self.standardise or not self.model_input
        ):
            msg = "bucketise takes a number as it is: it has no other transform, and is a model input"
            raise self._fault(msg)
        if self.missing_indicator and (self.bucketise is not None or self.hash_buckets is not None or self.is_one_hot):
            msg = "missing_indicator: the index says by its own value 0 that nothing was there"
            raise self._fault(msg)
        return self

    @model_validator(mode="after")
    def _reads(self) -> Feature:
        expected = self.type == "text" and self.model_input
        if (self.tokenizer is not None) != expected or (self.max_tokens is not None) != expected:
            msg = "a text that is a model input, and nothing else, has a tokenizer and max_tokens"
            raise self._fault(msg)
        if self.type == "text" and (self.default is not None or self.missing_indicator):
            msg = "a text has no default and no missing_indicator; a missing one is all padding"
            raise self._fault(msg)
        return self

    def _fault(self, message: str) -> ValueError:
        return ValueError(f"feature {self.name}: {message}")


class ViewColumn(_Part):
    """A typed column of a feature view; NaN stands for a missing float, the smallest number for a missing i8."""

    name: Name
    type: Literal["f4", "f8", "i8"] = "f4"


class FeatureView(_Part):
    """A row of the online store: key ``fs:{name}:v{version}:{key features joined by |}``."""

    name: Name
    version: Annotated[int, Field(ge=1, le=65_535)] = 1
    key: Annotated[tuple[Name, ...], Field(min_length=1, description="request features, as text")]
    columns: Annotated[tuple[ViewColumn, ...], Field(min_length=1)]
    stale_after_s: Annotated[float | None, Field(gt=0, description="older at event_time: stale")] = None


class Output(_Part):
    """What comes out of the network and how it becomes a score and a decision.

    ``sigmoid`` with one output: below ``threshold`` the first label is decided, at or above it the second; ``null``
    decides nothing. With several ``names`` each output is a label of its own: those at or above their thresholds are
    decided, joined by commas. ``softmax``: of ``labels`` the most probable is decided if it reaches its threshold, if
    it has one. ``identity``: a regression; with a ``threshold`` its score decides between two labels.

    Attributes:
        name: of the only output, when there is one.
        threshold: for what ``thresholds`` does not name; by default 0.5 for sigmoid, none for the others.
        names: of several outputs, for sigmoid and identity; the outputs of softmax are named by its labels.
        thresholds: by label (softmax) or by output (sigmoid with several).
        otherwise: decided when no label reaches its threshold; by default nothing is.
        score: the output that is the ``score``; by default the first, for softmax that of the most probable label.
        decimals: score and outputs are rounded to so many before they decide and are answered; the raw score is not.

    """

    name: Name = "score"
    kind: Literal["sigmoid", "softmax", "identity"] = "sigmoid"
    threshold: Annotated[float | None, Field(allow_inf_nan=False)] = 0.5
    labels: Annotated[
        tuple[str, ...], Field(min_length=2, max_length=OUTPUTS_MAX, description="below the threshold; at or above it")
    ] = ("no", "yes")
    names: Annotated[tuple[Name, ...] | None, Field(min_length=2, max_length=OUTPUTS_MAX)] = None
    thresholds: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    otherwise: str | None = None
    score: str | None = None
    decimals: Annotated[int | None, Field(ge=0, le=15)] = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """One for each number that the network gives a row."""
        return self.labels if self.kind == "softmax" else self.names or (self.name,)

    @property
    def is_multi_label(self) -> bool:
        """Whether each output is a label of its own."""
        return self.kind == "sigmoid" and self.names is not None

    @property
    def reached_at(self) -> tuple[float | None, ...]:
        """The threshold of each output."""
        return tuple(self.thresholds.get(name, self.threshold) for name in self.output_names)

    @model_validator(mode="before")
    @classmethod
    def _no_threshold_unless_sigmoid(cls, given: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if isinstance(given, dict) and given.get("kind", "sigmoid") != "sigmoid":
            return {"threshold": None, **given}
        return given

    @model_serializer(mode="wrap")
    def _with_threshold_unless_sigmoid(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The default depends on the kind, which leaving out defaults does not know: 0.5 would be read as none."""
        document: dict[str, Any] = dump(self)
        return document if self.kind == "sigmoid" else {**document, "threshold": self.threshold}

    @model_validator(mode="after")
    def _is_consistent(self) -> Output:
        for name, words in (("labels", self.labels), ("names", self.names or ())):
            if len(set(words)) != len(words):
                msg = f"{name}: one stands twice"
                raise ValueError(msg)
        if self.kind == "softmax" and self.names is not None:
            msg = "names: the outputs of softmax are named by its labels"
            raise ValueError(msg)
        if self.score is not None and self.score not in self.output_names:
            msg = f"score: there is no output {self.score}; there are {', '.join(self.output_names)}"
            raise ValueError(msg)
        if self.kind != "softmax" and len(self.labels) != 2:
            msg = "labels: one threshold separates two labels"
            raise ValueError(msg)
        is_used = self.kind == "softmax" or (self._decides and not self.is_multi_label)
        if self.labels != ("no", "yes") and not is_used:
            why = "name the outputs instead" if self.is_multi_label else "give a threshold"
            msg = f"labels: nothing decides between them; {why}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _thresholds_fit(self) -> Output:
        given = [*self.thresholds.items(), ("threshold", self.threshold)]
        outside = [name for name, value in given if value is not None and not 0 <= value <= 1]
        if self.kind != "identity" and outside:
            msg = f"threshold: that of a probability must be in 0 .. 1, not {', '.join(outside)}"
            raise ValueError(msg)
        by_label = self.kind == "softmax" or self.is_multi_label
        if self.thresholds and not by_label:
            msg = "thresholds: there is one only; write it as threshold"
            raise ValueError(msg)
        unknown = sorted(set(self.thresholds) - set(self.output_names))
        if unknown:
            msg = f"thresholds: {', '.join(unknown)}: no such label; there are {', '.join(self.output_names)}"
            raise ValueError(msg)
        if self.otherwise is not None and not (by_label and self._decides):
            msg = "otherwise: nothing can miss its threshold"
            raise ValueError(msg)
        return self

    @property
    def _decides(self) -> bool:
        return any(limit is not None for limit in self.reached_at)


class Architecture(_Part):
    """A network from the allow-list of ``app.models.architectures`` with its arguments."""

    name: Name
    arguments: dict[str, Any] = {}


class ModelSpec(_Part):
    """The whole ``model.yaml``.

    Attributes:
        files: sha256 (hex) of every other file of the bundle; written by ``pack``.
        buckets: padded batch sizes, increasing; the largest is the largest micro-batch.
        architecture: needed by safetensors; a pt2 program brings its own.
        weights: safetensors, or pt2: a program of ``torch.export``, which loads only when its digest is trusted.
        precision: what the network computes in.
        precision_error: largest difference of a score to fp32's; written by ``pack``.
        compile: by ``torch.compile``, for each bucket.
        device: pins the model to it; by default it is the worker's.
        keep_loaded: never unloaded to make room for another model.
        max_run_ms: a bucket that runs slower than this when warm fails the load.

    """

    format: Literal["sluice-model/1"] = "sluice-model/1"
    name: Name
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    description: str = ""
    architecture: Architecture | None = None
    features: Annotated[tuple[Feature, ...], Field(min_length=1, max_length=1024)]
    views: Annotated[
        tuple[FeatureView, ...], Field(max_length=32, description="3**32 degraded states fit an integer")
    ] = ()
    output: Output = Output()
    buckets: Annotated[tuple[int, ...], Field(min_length=1)] = DEFAULT_BUCKETS
    files: dict[str, str] = {}
    weights: Literal["safetensors", "pt2"] = "safetensors"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    precision_error: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    compile: bool = False
    device: Annotated[str | None, Field(pattern=r"^(cpu|cuda(:[0-9]{1,2})?)$")] = None
    keep_loaded: bool = False
    max_run_ms: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None

    @model_validator(mode="after")
    def _runs(self) -> ModelSpec:
        if (self.weights == "safetensors") != (self.architecture is not None):
            msg = (
                "architecture: safetensors need the architecture that they fit"
                if self.architecture is None
                else "architecture: a pt2 program brings its own; remove it, or say weights: safetensors"
            )
            raise ValueError(msg)
        if self.weights == "pt2" and self.precision != "fp32":
            msg = "precision: a pt2 program has its own, in which it was exported; remove the key"
            raise ValueError(msg)
        if self.precision_error is not None and self.precision == "fp32":
            msg = "precision_error: fp32 is what the error is measured against; remove it, or name bf16 or fp16"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _hangs_together(self) -> ModelSpec:
        names = [f.name for f in self.features]
        if len(set(names)) != len(names):
            msg = "features: a name stands twice"
            raise ValueError(msg)
        if not any(f.model_input for f in self.features):
            msg = "features: none of them is a model input"
            raise ValueError(msg)
        if len({v.name for v in self.views}) != len(self.views):
            msg = "views: a name stands twice"
            raise ValueError(msg)
        if list(self.buckets) != sorted(set(self.buckets)) or self.buckets[0] < 1:
            msg = "buckets: must be positive and increase"
            raise ValueError(msg)
        requested = {f.name: f for f in self.features if f.source == "request"}
        views = {v.name: v for v in self.views}
        for view in self.views:
            for key in view.key:
                if key not in requested or (requested[key].type != "category" and requested[key].type != "number"):
                    msg = f"views: {view.name} needs the request feature {key} (category or number) for its key"
                    raise ValueError(msg)
        for feature in self.features:
            if feature.view is not None:
                _check_column(feature, views)
        return self

    def fields(self) -> list[FeatureField]:
        """The features as the generated schemas see them."""
        return [FeatureField(f.name, f.type, f.source) for f in self.features]

    def tokenizer_files(self) -> list[str]:
        """Names of the tokenizer files that the bundle must hold, each once."""
        return sorted({f.tokenizer for f in self.features if f.tokenizer is not None})

    def bucket_for(self, rows: int) -> int:
        """The smallest bucket that holds ``rows``.

        Raises:
            ValueError: there is none.

        """
        for bucket in self.buckets:
            if rows <= bucket:
                return bucket
        msg = f"{rows} rows exceed the largest bucket, {self.buckets[-1]}"
        raise ValueError(msg)


def _check_column(feature: Feature, views: dict[str, FeatureView]) -> None:
    view = views.get(feature.view or "")
    if view is None:
        msg = f"feature {feature.name}: there is no view {feature.view}"
        raise ValueError(msg)
    column = feature.column or feature.name
    if column not in {c.name for c in view.columns}:
        msg = f"feature {feature.name}: view {view.name} has no column {column}"
        raise ValueError(msg)


def parse_spec(document: object, *, origin: str) -> ModelSpec:
    """A checked specification.

    Args:
        document: what YAML made of the file.
        origin: how messages name the file.

    Raises:
        BundleError: every fault, one a line, with the path of its field.

    """
    try:
        spec = ModelSpec.model_validate(document)
    except ValidationError as exc:
        raise BundleError("\n".join(_fault_lines(exc.errors(), origin))) from exc
    check_name(spec.name)
    return spec


def _fault_lines(errors: Iterable[Any], origin: str) -> list[str]:
    return [f"{origin}: {'.'.join(str(p) for p in e['loc']) or 'document'}: {e['msg']}" for e in errors]
