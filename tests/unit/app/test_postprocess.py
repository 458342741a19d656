"""Logits to probabilities to calibrated scores to decisions."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.postprocess import Calibration, decide, sigmoid

_shares = st.floats(0, 1)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20))
def test_sigmoid_is_a_probability_that_grows(logits: list[float]) -> None:
    """In [0, 1], not decreasing, and never a warning, for every finite logit."""
    p = sigmoid(np.sort(np.array(logits, np.float32)))
    assert ((p >= 0) & (p <= 1)).all()
    assert (np.diff(p) >= 0).all()


def test_sigmoid_of_known_logits() -> None:
    """Ln 3 is three to one; the two tails are mirror images."""
    p = sigmoid(np.array([math.log(3), -math.log(3), 0.0], np.float32))
    assert p == pytest.approx([0.75, 0.25, 0.5], abs=1e-7)


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
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_calibration_is_refused(name: str) -> None:
    """A file that would give wrong scores, or an error later, raises ValueError now."""
    with pytest.raises(ValueError, match=r".+"):
        Calibration.from_json(json.dumps(BAD[name]))


def test_the_threshold_itself_decides_for_the_second_label() -> None:
    """At or above: 1."""
    scores = np.array([0.4, np.nextafter(0.4, 0), 0.0, 1.0])
    assert decide(scores, 0.4, ("on_time", "late")).tolist() == [1, 0, 0, 1]
