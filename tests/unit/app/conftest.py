"""The sample bundle, packed once; models and codecs around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.answers import AnswerWriter
from app.batcher import LearnedCost
from app.lookup import ViewLookup
from app.models.bundle import Bundle, open_bundle
from app.models.live import LiveModel
from app.models.live_table import LiveTable
from app.models.runtime import ScoringModel
from app.postprocess import Postprocessor
from app.requests import RequestDecoder
from schemas.generate import prediction_schema
from schemas.registry import SchemaBook, load_schema
from tests.fakes import MemoryStore
from tests.samples import TOPIC, pack_sample, sample_request_schema, store_rows

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
def make_live(book: SchemaBook) -> Callable[..., LiveModel]:
    """Live models around networks, their store features from a store in memory."""

    def make(scorer: ScoringModel, store: MemoryStore | None = None) -> LiveModel:
        spec = scorer.spec
        schema = load_schema(SCHEMAS, "score")
        writer = AnswerWriter(
            scorer.bundle,
            schema,
            score_id=book.add("scores", schema),
            prediction_id=book.add("predictions-log", prediction_schema(spec.name, spec.fields())),
        )
        return LiveModel(
            bundle=scorer.bundle,
            scorers=(scorer,),
            postprocessor=Postprocessor(spec.output, scorer.bundle.calibration),
            lookup=ViewLookup(spec, store or MemoryStore(store_rows())),
            writer=writer,
            cost=LearnedCost(),
        )

    return make


@pytest.fixture
def live(make_live: Callable[..., LiveModel], model: ScoringModel) -> LiveModel:
    """The sample model, live."""
    return make_live(model)


@pytest.fixture
def decoder(book: SchemaBook, live: LiveModel) -> RequestDecoder:
    """Decodes requests for the sample model."""
    return RequestDecoder(book, LiveTable.of([live]), max_request_bytes=4096)
