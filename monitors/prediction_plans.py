"""How the records of one schema on the prediction log are read, and written again as labelled predictions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.columnar import Decoder, Encoder, SchemaNotSupported
from schemas.generate import AVRO_TYPES, FeatureField, labelled_schema, prediction_schema
from schemas.wire import frame_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from schemas.generate import FeatureType
    from schemas.registry import SchemaBook

NAMESPACE = re.compile(r"sluice\.([a-z][a-z0-9_]{0,63})")


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """One schema of the prediction log.

    Attributes:
        model_name: the model whose records these are.
        decoder: reads them as the current form of the prediction schema.
        encoder: writes labelled predictions.
        prefix: the frame of a labelled prediction.

    """

    model_name: str
    decoder: Decoder
    encoder: Encoder
    prefix: bytes


class PredictionPlans:
    """Plans by schema id, made once each.

    Args:
        book: knows the schemas.
        labelled_topic: under which the labelled schemas are registered.
        learn: called when an id is unknown, so that the book may look for models that were added since.

    """

    def __init__(self, book: SchemaBook, labelled_topic: str, learn: Callable[[], None] = lambda: None) -> None:
        self._book = book
        self._learn = learn
        self._labelled_topic = labelled_topic
        self._plans: dict[int, PredictionPlan | None] = {}

    def plan(self, schema_id: int, *, may_ask: bool = True) -> PredictionPlan | None:
        """The plan for the records of an id; None when nobody knows it, or it is no prediction of a model.

        Args:
            schema_id: any number.
            may_ask: ask the registry and ``learn`` for an id that is new here, which may take seconds; on an event loop
                make its plan in a thread first, then pass False.

        """
        if schema_id in self._plans:
            return self._plans[schema_id]
        schema = self._book.schema(schema_id, may_ask=may_ask)
        if schema is None and may_ask and schema_id >= 0:
            self._learn()
            schema = self._book.schema(schema_id)
        if schema is None:
            return None  # not cached: a model that is added later makes its schema known
        try:
            plan = self._make(schema)
        except (SchemaNotSupported, KeyError, TypeError):
            plan = None
        self._plans[schema_id] = plan
        return plan

    def missing(self, schema_ids: Iterable[int]) -> list[int]:
        """The ids that have no plan yet; ``plan`` may make one."""
        return [schema_id for schema_id in schema_ids if schema_id >= 0 and schema_id not in self._plans]

    def _make(self, schema: dict[str, Any]) -> PredictionPlan | None:
        match = NAMESPACE.fullmatch(str(schema.get("namespace")))
        if match is None or schema.get("name") != "Prediction":
            return None
        model, features = match[1], feature_fields(schema)
        labelled = labelled_schema(model, features)
        return PredictionPlan(
            model,
            Decoder(schema, prediction_schema(model, features)),
            Encoder(labelled),
            frame_header(self._book.add(self._labelled_topic, labelled)),
        )


def feature_fields(schema: dict[str, Any]) -> list[FeatureField]:
    """The features that a prediction schema holds, with their types; whether request or store is not told by it.

    Raises:
        KeyError: there is no record of features, or a type is none that features have.

    Example:
        >>> feature_fields(prediction_schema("demo", [FeatureField("age", "number", "store")]))
        [FeatureField(name='age', type='number', source='request')]

    """
    fields = {field["name"]: field for field in schema["fields"]}
    return [FeatureField(f["name"], _feature_type(f["type"]), "request") for f in fields["features"]["type"]["fields"]]


def _feature_type(avro: Any) -> FeatureType:  # noqa: ANN401 - any Avro type
    plain = next(branch for branch in avro if branch != "null") if isinstance(avro, list) else avro
    kinds: tuple[FeatureType, ...] = ("number", "category", "time", "flag")
    for kind in kinds:
        if AVRO_TYPES[kind] == plain:
            return kind
    raise KeyError(str(plain))
