"""Frozen bins, the stability index and its verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from monitors.drift import MIN_ROWS, Reference, confirmed, drift, freeze, population_stability
from monitors.windows import Layout, WindowCounts
from schemas.columns import NumberColumn, TextColumn


def frame_of(seed: int, rows: int, **shifts: float) -> pd.DataFrame:
    """Twenty normal features, a category, a flag, a time, and a score."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"x{k}": rng.normal(shifts.get(f"x{k}", 0.0), 1, rows) for k in range(20)}
    columns["town"] = rng.choice(["ulm", "bonn", "jena"], rows, p=[0.6, 0.3, 0.1])
    columns["vip"] = rng.random(rows) < 0.2
    columns["when"] = rng.integers(0, 10**15, rows)
    columns["score"] = rng.beta(2 + shifts.get("score", 0.0), 3, rows)
    return pd.DataFrame(columns)


def counted(reference: Reference, frame: pd.DataFrame) -> WindowCounts:
    """Window counts of a frame's rows."""
    counts = WindowCounts(reference.layout())
    bins = [
        f.assign(
            TextColumn.from_values(frame[f.name].tolist()) if f.kind == "category"
            else NumberColumn(frame[f.name].to_numpy()), len(frame),
        )
        for f in reference.features
    ]  # fmt: skip
    scores = frame["score"].to_numpy()
    counts.add_predictions(scores, reference.score.assign(NumberColumn(scores), len(frame)), bins)
    return counts


def test_deciles_hold_a_tenth_each_and_missing_and_infinite_have_their_own_bins() -> None:
    """Ten open-ended bins on the reference's deciles, then missing, then not finite."""
    values = pd.Series([*np.arange(1000.0), np.nan, np.nan, np.inf, -np.inf])
    feature = freeze("x", values)
    assert feature.counts == (*[100] * 10, 2, 2)
    probe = NumberColumn(np.array([-1e300, 1e300, np.nan, np.inf, 5.0]), np.array([True, True, True, True, False]))
    assert feature.assign(probe, 5).tolist() == [0, 9, 10, 11, 10]


def test_ties_make_fewer_bins_and_a_value_below_all_ties_is_seen() -> None:
    """A column that is mostly zero keeps one edge at zero, and a negative value falls in a bin of its own."""
    feature = freeze("x", pd.Series([0.0] * 900 + [1.0] * 100))
    counts = feature.assign(NumberColumn(np.array([-1.0, 0.0, 0.5, 1.0])), 4).tolist()
    assert len(set(counts)) == 3
    assert counts[0] != counts[1]
    assert sum(feature.counts) == 1000


def test_categories_are_chosen_on_one_half_and_counted_on_the_other() -> None:
    """With 200 equal categories and 20 chosen, the chosen ones get no more than their true share."""
    rng = np.random.default_rng(3)
    feature = freeze("x", pd.Series(rng.integers(0, 200, 10_000).astype(str)))
    share = sum(feature.counts[:20]) / sum(feature.counts)
    assert share == pytest.approx(20 / 200, abs=5 * np.sqrt(0.1 * 0.9 / 5000))
    known = feature.assign(TextColumn.from_values([feature.top[0], feature.rest[0], "never seen", None]), 4)
    assert known.tolist() == [0, 20, 22, 21]


def test_a_column_of_another_kind_counts_as_missing() -> None:
    """A feature that vanished or changed its type fills the bin missing, which is a signal of its own."""
    frame = frame_of(0, 400)
    reference = Reference.from_frame(frame)
    kinds = {f.name: f for f in reference.features}
    assert {kinds[n].kind for n in ("x0", "town", "vip", "when")} == {"number", "category", "flag", "time"}
    for name in ("x0", "town", "vip", "when"):
        missing = kinds[name].assign(None, 3)
        assert missing.tolist() == kinds[name].assign(TextColumn.from_values([None] * 3), 3).tolist()
        assert len(set(missing.tolist())) == 1


def test_the_index_is_that_of_its_definition_and_its_p_value_that_of_chi_square() -> None:
    """Golden numbers by hand, and the p-value of a two-bin table is near that of scipy's test of homogeneity."""
    index, p_value = population_stability([500, 500], [600, 400])
    r, c = np.array([500.5, 500.5]) / 1001, np.array([600.5, 400.5]) / 1001
    assert index == pytest.approx(((c - r) * np.log(c / r)).sum(), rel=1e-12)
    table = stats.chi2_contingency([[500, 500], [600, 400]], correction=False)
    assert np.log(p_value) == pytest.approx(np.log(table.pvalue), rel=0.05)
    assert population_stability([5, 0, 5], [5, 0, 5]) == (0.0, 1.0)


@pytest.mark.parametrize(("reference", "current"), [([1, 2], [1, 2, 3]), ([0, 0], [1, 1]), ([1, 1], [0, 0])])
def test_histograms_that_cannot_be_compared_are_refused(reference: list[int], current: list[int]) -> None:
    """Other bins or no rows raise."""
    with pytest.raises(ValueError, match="two histograms"):
        population_stability(reference, current)


def test_the_p_value_is_uniform_without_drift() -> None:
    """Over 300 null windows of one feature the p-value is below 0.05 as often as it should be, within 5 sigma."""
    rng = np.random.default_rng(8)
    feature = freeze("x", pd.Series(rng.normal(size=5000)))
    below = 0
    for _ in range(300):
        bins = feature.assign(NumberColumn(rng.normal(size=1000)), 1000)
        below += population_stability(feature.counts, np.bincount(bins, minlength=feature.bins))[1] < 0.05
    assert below / 300 < 0.05 + 5 * np.sqrt(0.05 * 0.95 / 300)


def test_the_shifted_feature_is_named_and_no_other() -> None:
    """One sigma on one of 23 features: exactly this one drifts; without a shift none does in 20 windows."""
    reference = Reference.from_frame(frame_of(1, 5000))
    found = drift(reference, counted(reference, frame_of(2, 1000, x7=1.0)))
    assert found.drifted == ["x7"]
    assert not found.score.drifted
    for seed in range(100, 120):
        null = drift(reference, counted(reference, frame_of(seed, 1000)))
        assert null.drifted == []
        assert not null.score.drifted
    assert drift(reference, counted(reference, frame_of(3, 1000, score=1.0))).score.drifted


def test_a_significant_but_small_change_is_no_drift() -> None:
    """A tenth of a sigma in 20,000 rows is certain, and irrelevant."""
    reference = Reference.from_frame(frame_of(1, 5000))
    verdict = drift(reference, counted(reference, frame_of(4, 20_000, x3=0.1))).features["x3"]
    assert verdict.p_value is not None
    assert verdict.p_value < 1e-3
    assert not verdict.drifted


def test_a_large_index_that_chance_explains_is_no_drift() -> None:
    """Twenty categories in 250 rows differ by chance: the index is above the floor, the verdict is not drift."""
    rng = np.random.default_rng(6)

    def frame(rows: int) -> pd.DataFrame:
        return pd.DataFrame({"street": rng.integers(0, 20, rows).astype(str), "score": rng.random(rows)})

    reference = Reference.from_frame(frame(500))
    verdicts = [drift(reference, counted(reference, frame(250))).features["street"] for _ in range(20)]
    assert max(v.psi or 0.0 for v in verdicts) > 0.1
    assert not any(v.drifted for v in verdicts)


def test_missing_values_are_a_signal() -> None:
    """Half of the values missing is drift, and the share is told."""
    reference = Reference.from_frame(frame_of(1, 2000))
    frame = frame_of(2, 1000)
    frame.loc[::2, "x0"] = np.nan
    verdict = drift(reference, counted(reference, frame)).features["x0"]
    assert (verdict.drifted, verdict.missing_share) == (True, 0.5)


def test_few_rows_give_no_verdict() -> None:
    """Below the minimum on either side the verdict is "insufficient data"."""
    reference = Reference.from_frame(frame_of(1, 2000))
    few = drift(reference, counted(reference, frame_of(2, MIN_ROWS - 1, x0=9.0)))
    assert few.drifted == []
    assert few.features["x0"].reason == "insufficient data (n=199, need 200)"
    small = Reference.from_frame(frame_of(1, 100))
    verdict = drift(small, counted(small, frame_of(2, 500))).score
    assert (verdict.psi, verdict.reason) == (None, "insufficient data (reference n=100, need 200)")


def test_a_reference_survives_its_json_and_names_itself() -> None:
    """JSON holds all of it; another frame has another fingerprint, and counts on it are refused."""
    reference = Reference.from_frame(frame_of(1, 500))
    again = Reference.from_json(reference.to_json())
    assert again == reference
    assert again.layout() == reference.layout()
    assert Reference.from_frame(frame_of(2, 500)).layout().fingerprint != reference.layout().fingerprint
    with pytest.raises(ValueError, match="another reference"):
        drift(reference, WindowCounts(Layout()))


def test_a_frame_without_scores_is_no_reference() -> None:
    """The message names the remedy."""
    with pytest.raises(ValueError, match="pack the bundle again"):
        Reference.from_frame(pd.DataFrame({"x": [1.0]}))


def test_drift_is_confirmed_by_two_of_three_windows() -> None:
    """One odd window confirms nothing, two of the last three do."""
    assert not confirmed([True])
    assert confirmed([False, True, True])
    assert not confirmed([True, True, False, False])
