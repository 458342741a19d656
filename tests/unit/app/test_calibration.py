"""Maps from probabilities to calibrated ones: what they do, how they are fitted, and how they lie on disk."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.calibration import Calibration
from app.postprocess import sigmoid, softmax

_shares = st.floats(0, 1)


def test_a_nan_stays_one() -> None:
    """Nothing turns a broken logit into a plausible score."""
    for calibration in (Calibration(), Calibration("platt", a=2.0), Calibration("isotonic", x=(0, 1), y=(0, 1))):
        assert np.isnan(calibration.apply(sigmoid(np.array([np.nan], np.float32)))).all()


def test_platt_of_one_and_zero_is_the_identity() -> None:
    """A slope of 1 and an intercept of 0 give back the probability."""
    p = np.array([0.1, 0.5, 0.9])
    assert Calibration("platt", a=1.0, b=0.0).apply(p) == pytest.approx(p)


@pytest.mark.parametrize("a", [1e6, -1e6])
def test_a_steep_platt_does_not_overflow(a: float) -> None:
    """Certainty at both ends, without a warning."""
    assert sorted(Calibration("platt", a=a).apply(np.array([0.0, 1.0])).tolist()) == [0.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(_shares, st.booleans()), min_size=2, max_size=40), st.lists(_shares, min_size=1, max_size=10))
def test_isotonic_is_the_best_monotone_fit(points: list[tuple[float, bool]], probes: list[float]) -> None:
    """Not decreasing, in [0, 1], mean kept, and no level can be moved towards its labels."""
    p, y = np.array([a for a, _ in points]), np.array([float(b) for _, b in points])
    if len(np.unique(p)) < 2:
        with pytest.raises(ValueError, match="two knots"):
            Calibration.fit_isotonic(p, y)
        return
    calibration = Calibration.fit_isotonic(p, y)
    fitted = calibration.apply(p)
    assert fitted.mean() == pytest.approx(y.mean())
    for level in np.unique(fitted):
        assert y[fitted == level].mean() == pytest.approx(level, abs=1e-9)
    out = calibration.apply(np.sort(np.array(probes)))
    assert (np.diff(out) >= 0).all()
    assert ((out >= 0) & (out <= 1)).all()


def test_platt_finds_the_map_that_made_the_labels() -> None:
    """Labels drawn from sigmoid(2 z - 1) give slope 2 and intercept -1, within what 20,000 labels allow."""
    generator = np.random.default_rng(5)
    p = generator.uniform(0.02, 0.98, 20_000)
    truth = Calibration("platt", a=2.0, b=-1.0)
    fitted = Calibration.fit_platt(p, (generator.uniform(size=p.size) < truth.apply(p)).astype(np.float64))
    assert (fitted.a, fitted.b) == pytest.approx((2.0, -1.0), abs=0.1)


@given(
    st.one_of(
        st.just(Calibration()),
        st.builds(lambda a, b: Calibration("platt", a=a, b=b), st.floats(-9, 9), st.floats(-9, 9)),
        st.builds(
            lambda x, y: Calibration("isotonic", x=tuple(sorted(x)), y=tuple(sorted(y[: len(x)]))),
            st.sets(_shares, min_size=2, max_size=6),
            st.lists(_shares, min_size=6, max_size=6),
        ),
        st.builds(
            lambda t, note: Calibration("temperature", t=t, model="m", model_version=3, revision=2, note=note),
            st.floats(1e-3, 1e3),
            st.none() | st.text(max_size=5),
        ),
    )
)
def test_json_gives_back_the_same_bits(calibration: Calibration) -> None:
    """What is written is read as the same map; the same map is written as the same text."""
    text = calibration.to_json()
    assert Calibration.from_json(text) == calibration
    assert Calibration.from_json(text).to_json() == text


BAD: dict[str, Any] = {
    "a list": [],
    "no kind": {},
    "another kind": {"kind": "beta"},
    "kind is a list": {"kind": []},
    "an unknown key": {"kind": "identity", "c": 1},
    "a is null": {"kind": "platt", "a": None},
    "a is text": {"kind": "platt", "a": "steep"},
    "a is NaN": {"kind": "platt", "a": math.nan},
    "x is a number": {"kind": "isotonic", "x": 3, "y": [0, 1]},
    "one knot": {"kind": "isotonic", "x": [0.5], "y": [0.5]},
    "knots fall": {"kind": "isotonic", "x": [0.5, 0.4], "y": [0, 1]},
    "images fall": {"kind": "isotonic", "x": [0.4, 0.5], "y": [1, 0]},
    "outside": {"kind": "isotonic", "x": [0, 1], "y": [0, 1.5]},
    "lengths differ": {"kind": "isotonic", "x": [0, 1], "y": [0]},
    "a NaN knot": {"kind": "isotonic", "x": [0, math.nan], "y": [0, 1]},
    "a number beyond floats": {"kind": "platt", "a": 10**400},
    "t is 0": {"kind": "temperature", "t": 0},
    "t is NaN": {"kind": "temperature", "t": math.nan},
    "t is endless": {"kind": "temperature", "t": math.inf},
    "t is null": {"kind": "temperature", "t": None},
    "model is a number": {"kind": "identity", "model": 3},
    "revision is true": {"kind": "identity", "revision": True},
    "version is text": {"kind": "identity", "model_version": "3"},
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_calibration_is_refused(name: str) -> None:
    """A file that would give wrong scores, or an error later, raises ValueError now."""
    with pytest.raises(ValueError, match=r".+"):
        Calibration.from_json(json.dumps(BAD[name]))


def test_lists_without_end_are_refused() -> None:
    """Not by a RecursionError, which nobody expects."""
    with pytest.raises(ValueError, match="calibration: "):
        Calibration.from_json("[" * 100_000)


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        (Calibration(), '{"kind": "identity"}'),
        (Calibration("platt", a=0.7, b=-0.1), '{"a": 0.7, "b": -0.1, "kind": "platt"}'),
        (
            Calibration("isotonic", x=(0.0, 1.0), y=(0.0, 0.5)),
            '{"kind": "isotonic", "x": [0.0, 1.0], "y": [0.0, 0.5]}',
        ),
        (
            Calibration("temperature", t=1.5, fitted_on="March"),
            '{"fitted_on": "March", "kind": "temperature", "t": 1.5}',
        ),
    ],
)
def test_the_text_says_no_more_than_it_must(calibration: Calibration, text: str) -> None:
    """Digests of calibrations that exist stay as they are: a field that is not set is not written."""
    assert calibration.to_json() == text


def test_a_temperature_divides_logits() -> None:
    """Probabilities alone are refused, since 0 and 1 no longer tell their logits."""
    warm = Calibration("temperature", t=2.0)
    logits = np.array([[4.0, 0.0, -2.0]], np.float32)
    assert np.array_equal(warm.calibrate(logits, softmax), softmax(logits / 2))
    assert np.array_equal(warm.calibrate(logits, sigmoid), sigmoid(logits / 2))
    with pytest.raises(ValueError, match="use calibrate"):
        warm.apply(np.array([0.5]))


def test_a_nan_logit_stays_one_at_any_temperature() -> None:
    """As for the other kinds."""
    assert np.isnan(Calibration("temperature", t=0.5).calibrate(np.array([np.nan], np.float32), sigmoid)).all()


@pytest.mark.parametrize("t", [1e-3, 1e3])
def test_the_outermost_temperatures_do_not_overflow(t: float) -> None:
    """The largest finite logits, without a warning."""
    logits = np.array([[3.4e38, -3.4e38]], np.float32)
    assert Calibration("temperature", t=t).calibrate(logits, softmax).tolist() == [[1.0, 0.0]]


def test_the_temperature_that_made_the_labels_is_found() -> None:
    """Classes drawn from softmax(z / 2.5), labels from sigmoid(z / 2.5), within what 20,000 rows allow."""
    generator = np.random.default_rng(3)
    logits = generator.normal(scale=3, size=(20_000, 4)).astype(np.float32)
    picks = generator.uniform(size=(len(logits), 1))
    classes = (softmax(logits / 2.5).cumsum(axis=1) < picks).sum(axis=1)
    assert Calibration.fit_temperature(logits, classes).t == pytest.approx(2.5, rel=0.05)
    several = (generator.uniform(size=logits.shape) < sigmoid(logits / 2.5)).astype(np.float64)
    assert Calibration.fit_temperature(logits, several).t == pytest.approx(2.5, rel=0.05)
    assert Calibration.fit_temperature(logits[:, 0], several[:, 0]).t == pytest.approx(2.5, rel=0.05)


def test_no_temperature_near_the_found_one_is_better() -> None:
    """The likelihood of few, hard rows, at and beside the optimum."""
    logits, classes = np.array([[2.0, 0.0], [3.0, 1.0], [0.0, 1.0]]), np.array([0, 1, 1])
    best = Calibration.fit_temperature(logits, classes).t

    def loss(t: float) -> float:
        return float(-np.log(softmax(logits / t)[np.arange(3), classes]).mean())

    assert loss(best) <= min(loss(best * 0.99), loss(best * 1.01)) + 1e-12


def test_labels_that_a_model_never_misses_give_the_lowest_temperature() -> None:
    """The likelihood grows without end; the fit stays in its range."""
    assert Calibration.fit_temperature(np.array([1.0, -1.0]), np.array([1, 0])).t == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (3, 3, 1)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Broadcasting would fit something, of no meaning."""
    with pytest.raises(ValueError, match="do not fit"):
        Calibration.fit_temperature(np.zeros((3, 3)), np.zeros(shape))
