"""What the compute thread makes of a micro-batch: scores that depend on the row alone, faults that cost one row."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.batcher import Slice
from app.compute import compute
from app.lookup import ViewLookup
from app.microbatch import MicroBatch, form
from app.models.runtime import ScoringModel
from app.postprocess import sigmoid
from app.request_features import Fault
from schemas.records import FireReason, Status
from tests.fakes import MemoryStore
from tests.samples import framed, record_batch, request, sample_request_schema, store_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.bundle import Bundle
    from app.preprocess import Inputs
    from app.requests import RequestDecoder

SCHEMA = sample_request_schema()
POISON = 7777.0


class MoodyModel(ScoringModel):
    """Raises on a batch that holds a poisoned row, and gives NaN for a row that has no distance to speak of."""

    def predict(self, inputs: Inputs) -> tuple[NDArray[np.float32], int]:
        """As the real one, but for rows with special distances."""
        distance = inputs["numbers"][:, 4] * 500 + 1000
        if np.isclose(distance, POISON).any():
            msg = "a row that this model cannot bear"
            raise ZeroDivisionError(msg)
        logits, bucket = super().predict(inputs)
        return np.where(np.isclose(distance, 5555.0), np.nan, logits).astype(np.float32), bucket


@pytest.fixture(scope="module")
def moody(bundle: Bundle) -> MoodyModel:
    """A model with weak spots."""
    return MoodyModel(bundle)


@pytest.fixture
def make_batch(decoder: RequestDecoder) -> MicroBatchMaker:
    """Micro-batches of requests with given distances, features looked up."""
    return MicroBatchMaker(decoder)


class MicroBatchMaker:
    """Forms micro-batches."""

    def __init__(self, decoder: RequestDecoder) -> None:
        self._decoder = decoder
        self._id = next(i for i in decoder._book.ids() if decoder._book.schema(i) == SCHEMA)

    async def __call__(self, distances: list[float], *, store: MemoryStore | None = None, first: int = 0) -> MicroBatch:
        """A micro-batch of one request a distance."""
        records = [request(first + i, distance=d) for i, d in enumerate(distances)]
        values = [framed(SCHEMA, self._id, r) for r in records]
        requests = self._decoder.decode(record_batch(values, [str(r["entity_id"]).encode() for r in records]))
        batch = form([Slice(requests, 0, len(requests))], FireReason.FULL, now_s=0.0, planned_s=0.0, in_time_ms=0)
        lookup = ViewLookup(batch.model.spec, store or MemoryStore(store_rows()))
        batch.lookup = await lookup.fetch(batch.features, batch.event_time_us)
        batch.marks_s |= {"features": 0.0, "start": 0.0}
        return batch


def _compute(batch: MicroBatch, scorer: ScoringModel) -> None:
    live = batch.model
    live.bundle = replace(live.bundle, spec=scorer.spec)
    compute(batch, live, scorer)


def _scored(batch: MicroBatch) -> dict[int, tuple[float, float, int]]:
    assert batch.predictions is not None
    columns = (batch.predictions.scored.raw, batch.predictions.scored.score, batch.predictions.bucket)
    return dict(zip(batch.live.tolist(), zip(*(c.tolist() for c in columns), strict=True), strict=True))


async def test_raw_score_decision_and_bucket_hang_together(make_batch: MicroBatchMaker, model: ScoringModel) -> None:
    """The raw score is the sigmoid of the logit, the score its calibration, the decision the threshold's."""
    batch = await make_batch([100.0, 900.0, 2500.0])
    _compute(batch, model)
    assert batch.predictions is not None
    logits, bucket = model.predict(model.preprocessor.transform(batch.features))
    scored = batch.predictions.scored
    assert scored.raw.tolist() == sigmoid(logits).tolist()
    assert scored.score.tolist() == model.bundle.calibration.apply(sigmoid(logits)).tolist()
    assert scored.decision.tolist() == (scored.score >= 0.4).astype(int).tolist()
    assert (batch.device_rows, set(batch.predictions.bucket.tolist()), bucket) == (3, {4}, 4)
    assert list(batch.marks_s) == ["features", "start", "preprocess", "inference", "postprocess"]
    marks = [batch.marks_s[name] for name in ("preprocess", "inference", "postprocess")]
    assert marks == sorted(marks)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 16])
async def test_a_score_does_not_depend_on_its_neighbours(
    make_batch: MicroBatchMaker, model: ScoringModel, rows: int
) -> None:
    """In the bucket that the evidence names, a row has the same bits beside any other rows and at any place."""
    distances = [200.0 + 37 * i for i in range(rows)]
    batch = await make_batch(distances)
    _compute(batch, model)
    numbers, codes = model.preprocessor.transform(batch.features).values()
    bucket = model.spec.bucket_for(rows)
    generator = np.random.default_rng(rows)
    expected = _scored(batch)
    for row in range(rows):
        place = int(generator.integers(bucket))
        others = generator.normal(size=(bucket, numbers.shape[1])).astype(np.float32)
        other_codes = np.zeros((bucket, codes.shape[1]), np.int64)
        others[place], other_codes[place] = numbers[row], codes[row]
        logits, used = model.predict({"numbers": others, "codes": other_codes})
        assert used == bucket
        assert sigmoid(logits)[place] == expected[row][0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 16), st.data())
async def test_a_model_that_raises_costs_the_row_and_no_other(
    make_batch: MicroBatchMaker, moody: MoodyModel, model: ScoringModel, rows: int, data: st.DataObject
) -> None:
    """Halving finds exactly the rows at fault; the others have the bits that their recorded bucket gives alone."""
    poisoned = data.draw(st.sets(st.integers(0, rows - 1), max_size=4))
    vague = data.draw(st.sets(st.integers(0, rows - 1), max_size=2)) - poisoned
    distances = [POISON if i in poisoned else 5555.0 if i in vague else 100.0 + 41 * i for i in range(rows)]
    batch = await make_batch(distances)
    features = dict(batch.features)
    _compute(batch, moody)
    scored = _scored(batch)
    assert set(scored) == set(range(rows)) - poisoned - vague
    assert {row: f.error_class for row, f in batch.faults.items()} == dict.fromkeys(
        poisoned, "ZeroDivisionError"
    ) | dict.fromkeys(vague, "NotFinite")
    assert all(batch.status[row] == (Status.OK if row in scored else Status.ERROR) for row in range(rows))
    assert all(fault.stage == "inference" for fault in batch.faults.values())
    assert all("cannot bear" not in fault.message for fault in batch.faults.values()), "a message holds no payload"
    assert set(features) <= set(batch.features)
    numbers, codes = model.preprocessor.transform(batch.features).values()
    for place, (raw, _, bucket) in enumerate(scored.values()):
        alone = np.zeros((bucket, numbers.shape[1]), np.float32), np.zeros((bucket, codes.shape[1]), np.int64)
        alone[0][0], alone[1][0] = numbers[place], codes[place]
        assert sigmoid(model.predict(dict(zip(("numbers", "codes"), alone, strict=True)))[0])[0] == raw


async def test_a_batch_that_fails_whole_has_no_scores(make_batch: MicroBatchMaker, moody: MoodyModel) -> None:
    """Every row an ERROR, none live, nothing to encode as evidence."""
    batch = await make_batch([POISON] * 5)
    _compute(batch, moody)
    assert batch.status.tolist() == [Status.ERROR] * 5
    assert len(batch.live) == 0
    assert _scored(batch) == {}


async def test_nothing_live_is_no_work(make_batch: MicroBatchMaker, model: ScoringModel) -> None:
    """A batch without live rows never reaches the device but has all its marks."""
    batch = await make_batch([100.0])
    batch.drop(np.ones(1, bool), Status.EXPIRED, Fault("queue", "Expired", "late"))
    _compute(batch, model)
    assert (batch.predictions, batch.device_rows) == (None, 0)
    assert {"preprocess", "inference", "postprocess"} <= set(batch.marks_s)


async def test_a_number_beyond_float32_is_an_error_of_its_row(make_batch: MicroBatchMaker, model: ScoringModel) -> None:
    """The network gives no finite output for it; its neighbour has one."""
    batch = await make_batch([1e300, 100.0])
    _compute(batch, model)
    assert batch.status.tolist() == [Status.ERROR, Status.OK]
    assert batch.faults[0].error_class == "NotFinite"


async def test_store_features_are_imputed_when_the_store_is_gone(
    make_batch: MicroBatchMaker, model: ScoringModel
) -> None:
    """Optional store features cost no answer: the row is scored with what a missing value becomes."""
    store = MemoryStore()
    store.error = "gone"
    batch = await make_batch([100.0, 200.0], store=store)
    _compute(batch, model)
    assert len(_scored(batch)) == 2
    assert batch.features["delay"].valid.tolist() == [False, False]  # type: ignore[union-attr]


async def test_a_required_store_feature_that_is_missing_is_an_error(
    make_batch: MicroBatchMaker, model: ScoringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is an ERROR that names feature and cause; rows that have it are scored."""
    spec = model.spec
    features = tuple(f.model_copy(update={"required": True}) if f.name == "delay" else f for f in spec.features)
    monkeypatch.setattr(model, "spec", spec.model_copy(update={"features": features}))
    batch = await make_batch([100.0] * 4)  # planes N0 to N3; the store knows all but N2
    _compute(batch, model)
    assert batch.status.tolist() == [Status.OK, Status.OK, Status.ERROR, Status.OK]
    assert (batch.faults[2].stage, batch.faults[2].error_class) == ("features", "MissingFeature")
    assert "delay is required" in batch.faults[2].message
    store = MemoryStore()
    store.error = "the breaker is open"
    lost = await make_batch([100.0] * 2, store=store)
    _compute(lost, model)
    assert lost.status.tolist() == [Status.ERROR] * 2
    assert "the breaker is open" in lost.faults[0].message
