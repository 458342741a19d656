"""Which schemas of the prediction log can be read, and how the labelled schema follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monitors.prediction_plans import PredictionPlans, feature_fields
from schemas.generate import FeatureField, labelled_schema, prediction_schema
from schemas.registry import SchemaBook, load_schema, local_id

SCHEMAS = Path(__file__).parents[3] / "schemas"
FIELDS = [
    FeatureField("age", "number", "request"), FeatureField("town", "category", "request"),
    FeatureField("since", "time", "request"), FeatureField("vip", "flag", "request"),
]  # fmt: skip


def test_the_features_of_a_model_are_read_off_its_predictions() -> None:
    """Every type comes back, so the labelled schema is the one that the bundle would give."""
    schema = prediction_schema("demo", FIELDS)
    assert feature_fields(schema) == FIELDS
    book = SchemaBook()
    plan = PredictionPlans(book, "labelled-predictions").plan(book.add("predictions-log", schema))
    assert plan is not None
    assert plan.model_name == "demo"
    assert int.from_bytes(plan.prefix[1:], "big") == local_id(labelled_schema("demo", FIELDS))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Score"},
        {"namespace": "elsewhere.demo"},
        {"fields": [f for f in prediction_schema("demo", FIELDS)["fields"] if f["name"] != "features"]},
        {"fields": [f for f in prediction_schema("demo", FIELDS)["fields"] if f["name"] != "score"]},
    ],
)
def test_what_is_no_prediction_has_no_plan(change: dict[str, Any]) -> None:
    """Another record, another namespace, or one without features or score is refused, not guessed at."""
    book = SchemaBook()
    schema_id = book.add("predictions-log", {**prediction_schema("demo", FIELDS), **change})
    assert PredictionPlans(book, "labelled-predictions").plan(schema_id) is None


def test_a_model_that_is_added_later_is_learned_when_its_first_prediction_comes() -> None:
    """An unknown id asks for news once each time; what is not framed asks nobody."""
    book, schema, asked = SchemaBook(), prediction_schema("late", FIELDS), []

    def learn() -> None:
        asked.append(1)
        if len(asked) == 2:
            book.add("predictions-log", schema)

    plans = PredictionPlans(book, "labelled-predictions", learn)
    assert plans.plan(-1) is None
    assert asked == []
    assert plans.plan(local_id(schema)) is None
    found = plans.plan(local_id(schema))
    assert found is not None
    assert plans.plan(local_id(schema)) is found
    assert len(asked) == 2


def test_a_known_schema_of_another_topic_has_no_plan() -> None:
    """An outcome on the prediction log is no prediction."""
    book = SchemaBook()
    schema_id = book.add("outcomes", load_schema(SCHEMAS, "outcome"))
    assert PredictionPlans(book, "labelled-predictions").plan(schema_id) is None
