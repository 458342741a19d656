"""The trained models: repeatable, calibrated on days they have not seen, better with the store than without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pytest

from app.models.bundle import open_bundle
from examples.flights.features import STORE_FEATURES, VIEWS, simulate
from examples.flights.model import MODEL, STATIC_MODEL, request_frame
from examples.flights.offline import auc, brier, score_frame
from examples.flights.train import Trained, train

if TYPE_CHECKING:
    from pathlib import Path

    from examples.flights.data import FlightData


@pytest.fixture(scope="module")
def trained(year: FlightData, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Both bundles, as the demo trains them."""
    return train(year, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def march(year: FlightData) -> pd.DataFrame:
    """Features and label of the flights of March that have an outcome."""
    flights = year.months(("2013-03",))
    features = simulate(year, until_us=int(flights["departure_us"].max()) + 1).loc[flights.index]
    frame = pd.concat([request_frame(flights), features, flights[["label"]]], axis=1)
    return frame[frame["label"].notna()]


def test_store_features_make_the_model_better(trained: Trained, march: pd.DataFrame) -> None:
    """On a month that training has not seen: AUC 0.72 or more, at least 0.05 above the model without the store."""
    labels = march["label"].to_numpy()
    with_store = score_frame(open_bundle(trained.model), march)
    without = score_frame(open_bundle(trained.static_model), march)
    assert auc(labels, with_store) > 0.72
    assert auc(labels, with_store) > auc(labels, without) + 0.05
    assert brier(labels, with_store) < brier(labels, without)


def test_scores_are_calibrated(trained: Trained, march: pd.DataFrame) -> None:
    """The mean score of March is within four points of the share of late flights."""
    scores = score_frame(open_bundle(trained.model), march)
    assert float(scores.mean()) == pytest.approx(float(march["label"].mean()), abs=0.04)


def test_bundles_say_what_they_take(trained: Trained) -> None:
    """Names, store features and reference columns; the static model knows no view."""
    bundle, static = open_bundle(trained.model), open_bundle(trained.static_model)
    assert (bundle.spec.name, static.spec.name) == (MODEL, STATIC_MODEL)
    assert bundle.spec.views == VIEWS
    assert [f.name for f in bundle.spec.features if f.source == "store"] == list(STORE_FEATURES)
    assert static.spec.views == ()
    reference = pd.read_parquet(bundle.reference_path)
    inputs = [f.name for f in bundle.spec.features if f.model_input]  # a tail number is a key: it has no drift
    assert list(reference.columns) == [*inputs, "raw_score", "score", "label"]
    assert reference["label"].isin([0.0, 1.0]).all()
    # The last fifth of the training period: the second half of February.
    assert pd.Timestamp(int(reference["scheduled_departure"].min()), unit="us") > pd.Timestamp("2013-02-14")


def test_training_repeats_itself(january: FlightData, tmp_path: Path) -> None:
    """The same seed gives bundles of the same digest; another seed does not."""
    first, second, other = (
        train(january, tmp_path / name, months=(1,), seed=seed, epochs=1)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert open_bundle(first.model).sha256 == open_bundle(second.model).sha256
    assert open_bundle(first.model).sha256 != open_bundle(other.model).sha256


def test_training_again_makes_the_next_version(january: FlightData, tmp_path: Path) -> None:
    """A version is never overwritten."""
    folders = [train(january, tmp_path, months=(1,), epochs=1).model for _ in range(2)]
    assert [f.name for f in folders] == ["1", "2"]
