"""The sample bundle, packed once; models and codecs around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.answers import AnswerWriter, OutputTopics
from app.models.bundle import Bundle, open_bundle
from app.models.runtime import ScoringModel
from app.requests import RequestDecoder
from schemas.generate import prediction_schema
from schemas.registry import SchemaBook, load_schema
from tests.samples import TOPIC, pack_sample, sample_request_schema

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMAS = Path(__file__).parents[3] / "schemas"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample model's bundle."""
    return open_bundle(pack_sample(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="session")
def model(bundle: Bundle) -> ScoringModel:
    """The sample model on the CPU."""
    return ScoringModel(bundle)


@pytest.fixture
def book() -> SchemaBook:
    """All schemas of the contract, and the sample's request schema."""
    book = SchemaBook(SCHEMAS)
    book.add(TOPIC, sample_request_schema())
    return book


@pytest.fixture
def decoder(book: SchemaBook, bundle: Bundle) -> RequestDecoder:
    """Decodes requests for the sample model."""
    return RequestDecoder(book, bundle.spec, max_request_bytes=4096)


@pytest.fixture
def make_writer(book: SchemaBook, bundle: Bundle) -> Callable[[], AnswerWriter]:
    """Encoders of the sample model's answers."""

    def make() -> AnswerWriter:
        schema = load_schema(SCHEMAS, "score")
        spec = bundle.spec
        return AnswerWriter(
            bundle,
            schema,
            score_id=book.add("scores", schema),
            prediction_id=book.add("predictions-log", prediction_schema(spec.name, spec.fields())),
            topics=OutputTopics("scores", "predictions-log", f"{TOPIC}.dlq"),
            device="cpu",
        )

    return make
