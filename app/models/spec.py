"""``model.yaml`` as frozen values: what a model takes, gives and needs.

An unknown key is an error, so that a misspelt setting never silently does nothing.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

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
    """What comes out of the network and how it becomes a decision."""

    name: Name = "score"
    kind: Literal["sigmoid"] = "sigmoid"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    labels: Annotated[tuple[str, str], Field(description="below the threshold; at or above it")] = ("no", "yes")


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
