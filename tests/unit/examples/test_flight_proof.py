"""The proof finds what is wrong, down to one bit; the account finds what is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from app.models.bundle import Bundle, open_bundle
from app.models.runtime import ScoringModel
from examples.account import Conservation
from examples.flights.answers import Answers
from examples.flights.closing import drifted_features, month_figures
from examples.flights.features import simulate
from examples.flights.messages import outcome_messages, request_messages
from examples.flights.offline import raw_scores
from examples.flights.replay import ReplayError, _Ledger, replayed_flights
from examples.flights.train import train
from examples.flights.verify import compare, expected_features
from schemas.columns import to_python
from schemas.records import Status
from schemas.registry import SchemaBook

if TYPE_CHECKING:
    from pathlib import Path

    from examples.flights.data import FlightData

ROWS = 300


@pytest.fixture(scope="module")
def bundles(january: FlightData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Two small models: with store features and without."""
    trained = train(january, tmp_path_factory.mktemp("models"), months=(1,), epochs=1)
    return open_bundle(trained.model), open_bundle(trained.static_model)


@pytest.fixture(scope="module")
def expected(january: FlightData) -> pd.DataFrame:
    """Features of some flights, as they must have been used."""
    return expected_features(january.flights.iloc[5000 : 5000 + ROWS], simulate(january))


@pytest.fixture
def log(bundles: tuple[Bundle, Bundle], expected: pd.DataFrame) -> pd.DataFrame:
    """A prediction log as a right service writes it, in two bucket sizes."""
    bundle = bundles[0]
    model = ScoringModel(bundle)
    bucket = np.where(np.arange(ROWS) % 3 == 0, 4, 16)
    raw = np.where(bucket == 4, raw_scores(model, expected, 4), raw_scores(model, expected, 16))
    frame = expected.assign(feature_status="f" * len(bundle.spec.features), raw_score=raw)
    return frame.assign(score=bundle.calibration.apply(raw), batch_bucket=bucket)


def test_a_right_stream_is_proven(bundles: tuple[Bundle, Bundle], expected: pd.DataFrame, log: pd.DataFrame) -> None:
    """Nothing differs, whatever the order of the log."""
    found = compare(log.sample(frac=1, random_state=1), expected, bundles[0], log[["score"]])
    assert found.is_proven
    assert found.bucket_counts == {4: 100, 16: 200}
    assert [line.split(": ")[1] for line in found.lines()[:3]] == [f"all {ROWS} equal"] * 3


def test_one_bit_of_a_score_is_found(bundles: tuple[Bundle, Bundle], expected: pd.DataFrame, log: pd.DataFrame) -> None:
    """The next number up is another number."""
    wrong = log.index[7]
    log.loc[wrong, "raw_score"] = np.nextafter(log.loc[wrong, "raw_score"], 1.0)
    found = compare(log, expected, bundles[0], log[["score"]])
    assert found.scores_wrong == (wrong,)
    assert "DIFFER" in "".join(found.lines())


def test_a_feature_that_differs_is_found(
    bundles: tuple[Bundle, Bundle], expected: pd.DataFrame, log: pd.DataFrame
) -> None:
    """A number, a text and a missing value each count; a row without the store is told apart."""
    log.loc[log.index[1], "carrier_late_2h"] += 1e-9
    log.loc[log.index[2], "carrier"] = "??"
    log.loc[log.index[3], "temperature_f"] = np.nan
    log.loc[log.index[4], ["route_late_14d", "feature_status"]] = [np.nan, "fd"]
    found = compare(log, expected, bundles[0], log[["score"]])
    assert set(found.features_wrong) == set(log.index[1:4])
    assert found.store_not_had_count == 1
    assert not found.is_proven


def test_lost_doubled_and_changed_answers_are_found(
    bundles: tuple[Bundle, Bundle], expected: pd.DataFrame, log: pd.DataFrame
) -> None:
    """An answer without a log record, a log record without an answer, a log record twice, another score."""
    answers = log[["score"]].copy()
    answers.loc[log.index[5], "score"] = 0.5
    answers = answers.drop(index=log.index[6])
    written = pd.concat([log.drop(index=log.index[8]), log.iloc[[9]]])
    found = compare(written, expected, bundles[0], answers)
    assert set(found.answers_wrong) == set(log.index[[5, 6, 8, 9]])


def test_account_must_add_up() -> None:
    """One request without an answer, or one answer too many, breaks conservation."""
    statuses = dict.fromkeys(Status, 0) | {Status.OK: 8, Status.DEGRADED: 1}
    right = Conservation(10, statuses, 9, 1)
    assert right.holds
    assert right.line() == (
        "consumed 10 = 8 OK + 1 DEGRADED + 0 INVALID + 0 EXPIRED + 0 SHED + 0 ERROR + 1 undecodable"
    )
    assert not Conservation(11, statuses, 9, 1).holds
    assert not Conservation(10, statuses, 10, 1).holds


def test_ledger_refuses_second_and_foreign_answers(january: FlightData) -> None:
    """Each request is answered once, by somebody who was asked."""
    ledger = _Ledger(january.flights.iloc[:2])
    first, second = january.flights["request_id"].iloc[:2]

    def answer(request_id: str) -> Answers:
        return Answers([request_id], np.array([0], np.int8), np.array([0.25]), received_s=11.5)

    ledger.ask([0], now_s=11.0)
    ledger.take(answer(first))
    with pytest.raises(ReplayError, match=f"a second answer to {first}"):
        ledger.take(answer(first))
    with pytest.raises(ReplayError, match=f"an answer to {second}"):
        ledger.take(answer(second))
    row = ledger.table().iloc[0]
    assert (row["status"], row["score"], row["latency_ms"]) == (Status.OK, 0.25, 500.0)


def test_messages_say_what_the_flights_are(bundles: tuple[Bundle, Bundle], january: FlightData) -> None:
    """Requests and outcomes decode to the flights' own values; a key is the entity id."""
    spec, book = bundles[0].spec, SchemaBook()
    flights = january.flights[january.flights["label"].notna()].iloc[-40:]
    unknown_tail = january.flights[january.flights["tailnum"].isna()].iloc[:1]
    asked = pd.concat([flights, unknown_tail])
    messages = request_messages(asked, spec, book)
    assert messages.keys == [e.encode() for e in asked["entity_id"]]
    decoded = _decoded(book, messages.values)
    assert [r["request_id"] for r in decoded] == asked["request_id"].tolist()
    assert [r["event_time"] for r in decoded] == asked["departure_us"].tolist()
    assert [r["features"]["tailnum"] for r in decoded] == asked["tailnum"].tolist()
    assert [r["features"]["distance_mi"] for r in decoded] == asked["distance_mi"].tolist()
    assert "temperature_f" not in decoded[0]["features"]


def test_outcomes_say_what_happened(january: FlightData, pytestconfig: pytest.Config) -> None:
    """An outcome carries label and real arrival."""
    book = SchemaBook()
    flights = january.flights[january.flights["label"].notna()].iloc[:40]
    messages = outcome_messages(flights, pytestconfig.rootpath / "schemas", book)
    decoded = _decoded(book, messages.values)
    assert [r["label"] for r in decoded] == flights["label"].tolist()
    assert [r["outcome_time"] for r in decoded] == flights["arrival_us"].tolist()
    assert {r["revision"] for r in decoded} == {0}


def test_months_must_follow_each_other(year: FlightData) -> None:
    """A gap is refused; December brings its last evening, which by UTC is 2014; days cut."""
    with pytest.raises(ReplayError, match="consecutive"):
        replayed_flights(year, ["2013-03", "2013-05"])
    rest = replayed_flights(year, [f"2013-{m:02d}" for m in range(3, 13)])
    assert rest.index[-1] == len(year.flights) - 1
    assert (np.diff(rest.index) == 1).all()
    two_days = replayed_flights(year, ["2013-03"], 2)
    assert pd.Timestamp(int(two_days["departure_us"].max()), unit="us") < pd.Timestamp("2013-03-03")


def test_figures_are_by_month(bundles: tuple[Bundle, Bundle], january: FlightData) -> None:
    """Flights without an outcome are scored, and do not count for AUC."""
    flights = january.flights.iloc[1000:3000]
    answers = pd.DataFrame({"score": np.linspace(0, 1, len(flights)), "latency_ms": 7.0}, index=flights.index)
    (figures,) = month_figures(flights, answers, bundles[1], {"2013-01": ("temperature_f",)})
    assert (figures.month, figures.scored_count, figures.flight_count) == ("2013-01", 2000, 2000)
    assert figures.outcome_count == int(flights["label"].notna().sum()) < 2000
    assert (figures.p50_ms, figures.drift_text()) == (7.0, "temperature_f")


def test_drift_comes_from_the_monitor_strongest_first() -> None:
    """Only windows of the model count; without a monitor there is no verdict."""
    psi = {"a": {"psi": 0.2}, "b": {"psi": 3.0}, "c": {"psi": 0.0}}
    windows = [
        {"model_name": "m", "label": "2013-03", "drifted": ["a", "b"], "features": psi},
        {"model_name": "other", "label": "2013-04", "drifted": ["a"], "features": psi},
    ]
    assert drifted_features({"windows": windows}, "m") == {"2013-03": ("b", "a")}
    assert drifted_features(None, "m") == {}


def _decoded(book: SchemaBook, values: list[bytes]) -> list[dict[str, object]]:
    decoder = book.decoder(int.from_bytes(values[0][1:5], "big"))
    assert decoder is not None
    decoded = decoder.decode(values)
    assert not decoded.errors
    return to_python(decoded.columns)


def test_settings_reach_the_workers_as_variables(tmp_path: Path) -> None:
    """What the demo chooses arrives in a worker's settings."""
    from app.settings import load_settings
    from examples.servers import as_variables

    overrides = {"deployment": "d-1", "monitor": {"window": "month", "store": str(tmp_path)}}
    settings = load_settings(environ=as_variables(overrides))
    assert (settings.deployment, settings.monitor.window, settings.monitor.store) == ("d-1", "month", tmp_path)
