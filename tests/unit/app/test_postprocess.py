"""Logits to probabilities to calibrated scores to decisions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.calibration import Calibration
from app.errors import BundleError
from app.models.spec import Output
from app.postprocess import Postprocessor, Scored, joined_labels, sigmoid, softmax


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


EXTREMES = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(st.tuples(EXTREMES, EXTREMES, EXTREMES), max_size=12))
def test_softmax_is_a_distribution_whoever_stands_beside(rows: list[tuple[float, float, float]]) -> None:
    """For all finite logits each row sums to 1, keeps its order, and is bit-equal to the row alone."""
    logits = np.array(rows, np.float32).reshape(-1, 3)
    p = softmax(logits)
    assert p.sum(axis=1) == pytest.approx(np.ones(len(rows)))
    for i, row in enumerate(p):
        assert (np.diff(row[np.argsort(logits[i])]) >= 0).all()
        assert np.array_equal(softmax(logits[i : i + 1])[0], row)


@pytest.mark.parametrize("width", [9, 40, 300])
def test_a_wide_softmax_adds_a_row_alone_as_among_others(width: int) -> None:
    """Sums of many terms depend on their order; here it is the same for one row and for hundreds."""
    logits = np.random.default_rng(2).normal(scale=4, size=(64, width)).astype(np.float32)
    assert all(np.array_equal(softmax(logits[i : i + 1])[0], row) for i, row in enumerate(softmax(logits)))


def _apply(logits: Any, calibration: Calibration | None = None, **output: Any) -> Scored:  # noqa: ANN401 - any field
    return Postprocessor(Output(**output), calibration or Calibration()).apply(np.array(logits, np.float32))


def _decisions(scored: Scored) -> list[str | None]:
    assert scored.decision.dtype == np.int64
    return [None if i < 0 else scored.decision_labels[i] for i in scored.decision.tolist()]


CALIBRATIONS = [
    Calibration(),
    Calibration("platt", a=0.7, b=-0.1),
    Calibration("isotonic", x=(0, 0.4, 1), y=(0, 0.2, 1)),
]


@pytest.mark.parametrize("calibration", CALIBRATIONS, ids=lambda c: c.kind)
def test_one_sigmoid_output_is_scored_as_ever(calibration: Calibration) -> None:
    """To the bit: sigmoid, calibration, threshold; a column of logits is the same as a row of them."""
    logits = np.random.default_rng(1).normal(scale=3, size=257).astype(np.float32)
    raw = sigmoid(logits)
    score = calibration.apply(raw)
    for shaped in (logits, logits[:, None]):
        scored = Postprocessor(Output(threshold=0.4, labels=("on_time", "late")), calibration).apply(shaped)
        assert np.array_equal(scored.raw, raw)
        assert np.array_equal(scored.score, score)
        assert np.array_equal(scored.outputs, score[:, None])
        assert np.array_equal(scored.decision, score >= 0.4)
        assert (scored.threshold == 0.4).all()
    assert scored.decision_labels == ("on_time", "late")


def test_the_threshold_itself_decides_for_the_second_label() -> None:
    """At or above: the second; the next smaller score is below."""
    below = float(np.nextafter(np.float32(1.5), np.float32(0)))
    decided = _decisions(_apply([1.5, below, -1e30, 1e30], threshold=float(sigmoid(np.array([1.5]))[0])))
    assert decided == ["yes", "no", "no", "yes"]


def test_without_a_threshold_nothing_is_decided() -> None:
    """The score is answered alone; NaN stands for the threshold that there is not."""
    scored = _apply([3.0], threshold=None)
    assert _decisions(scored) == [None]
    assert np.isnan(scored.threshold).all()


CLASSES: dict[str, Any] = {"kind": "softmax", "labels": ("cat", "dog", "eel")}
LOGITS = np.log([[5.0, 3.0, 2.0], [1.0, 8.0, 1.0], [3.5, 3.0, 3.5]])


def test_softmax_decides_for_the_most_probable_label() -> None:
    """The score is its probability; of equal ones the first counts."""
    scored = _apply(LOGITS, **CLASSES)
    assert _decisions(scored) == ["cat", "dog", "cat"]
    assert scored.score == pytest.approx([0.5, 0.8, 0.35])
    assert scored.outputs[0] == pytest.approx([0.5, 0.3, 0.2])
    assert np.isnan(scored.threshold).all()


@pytest.mark.parametrize(("otherwise", "missed"), [(None, None), ("unsure", "unsure"), ("eel", "eel")])
def test_a_label_that_misses_its_threshold_is_not_decided(otherwise: str | None, missed: str | None) -> None:
    """Each label has its own, or the common one; what is compared is in the answer."""
    scored = _apply(LOGITS, **CLASSES, thresholds={"dog": 0.9}, threshold=0.4, otherwise=otherwise)
    assert _decisions(scored) == ["cat", missed, missed]
    assert scored.threshold.tolist() == [0.4, 0.9, 0.4]


def test_the_score_may_be_that_of_a_label() -> None:
    """Whatever is decided, score and raw score are that label's probability."""
    scored = _apply(LOGITS, Calibration("temperature", t=2.0), **CLASSES, score="eel")
    assert scored.raw == pytest.approx([0.2, 0.1, 0.35])
    assert scored.score == pytest.approx(softmax(LOGITS / 2)[:, 2])
    assert _decisions(scored) == ["cat", "dog", "cat"]
    compared = _apply(LOGITS, **CLASSES, score="eel", thresholds={"cat": 0.1, "dog": 0.2, "eel": 0.3})
    assert compared.threshold.tolist() == [0.1, 0.2, 0.1], "the threshold is that of the label that is decided"


def test_several_sigmoid_outputs_are_each_decided_by_themselves() -> None:
    """Names at or above their thresholds, joined; the score is the first output, or the one that is named."""
    logits = [[9.0, 0.0, 9.0], [-9.0, -9.0, -9.0], [-9.0, 0.0, 0.5]]
    output: dict[str, Any] = {"names": ("spam", "rude", "late"), "thresholds": {"late": 0.9}}
    scored = _apply(logits, **output)
    assert _decisions(scored) == ["spam,rude,late", None, "rude"]
    assert np.array_equal(scored.score, sigmoid(np.array(logits))[:, 0])
    assert scored.threshold.tolist() == [0.5] * 3
    named = _apply(logits, **output, score="late", otherwise="fine")
    assert _decisions(named) == ["spam,rude,late", "fine", "rude"]
    assert np.array_equal(named.raw, sigmoid(np.array(logits))[:, 2])
    assert named.threshold.tolist() == [0.9] * 3
    assert _decisions(_apply(logits, **output, threshold=None)) == ["late", None, None]


def test_several_outputs_share_one_map() -> None:
    """Platt and isotonic calibrate each output by itself."""
    calibration = Calibration("platt", a=2.0, b=1.0)
    scored = _apply([[0.0, 1.0]], calibration, names=("a", "b"))
    assert np.array_equal(scored.outputs, calibration.apply(sigmoid(np.array([[0.0, 1.0]]))))


def test_a_regression_answers_its_numbers() -> None:
    """No sigmoid; without a threshold no decision, with one the score decides between two labels."""
    assert _decisions(_apply([12.5, -3.0], kind="identity")) == [None, None]
    assert _apply([12.5, -3.0], kind="identity").score.tolist() == [12.5, -3.0]
    rows = [[1.0, 100.0], [2.0, 99.0]]
    scored = _apply(rows, kind="identity", names=("low", "high"), score="high", threshold=100.0, labels=("ok", "hot"))
    assert _decisions(scored) == ["hot", "ok"]
    assert scored.outputs.tolist() == rows
    assert scored.raw.tolist() == [100.0, 99.0]


def test_what_is_rounded_is_what_decides() -> None:
    """Who compares the answered score with the answered threshold comes to the answered decision; raw stays exact."""
    scored = _apply([math.log(0.4996 / 0.5004)], decimals=3)
    assert (scored.score.tolist(), scored.outputs.tolist()) == ([0.5], [[0.5]])
    assert _decisions(scored) == ["yes"]
    assert scored.raw[0] == pytest.approx(0.4996, abs=1e-6)
    assert _decisions(_apply([math.log(0.4996 / 0.5004)])) == ["no"]


def test_rounding_makes_no_other_label_the_most_probable() -> None:
    """The label is chosen before, so that 0.34 and 0.33 differ at one decimal too."""
    assert _decisions(_apply(np.log([[0.32, 0.34, 0.34001]]), **CLASSES, decimals=1)) == ["eel"]


KINDS: list[dict[str, Any]] = [
    {},
    {"names": ("a", "b", "c"), "otherwise": "none"},
    {**CLASSES, "threshold": 0.9},
    {"kind": "identity", "names": ("a", "b", "c")},
]


@pytest.mark.parametrize("output", KINDS, ids=["binary", "several", "softmax", "regression"])
def test_a_row_is_scored_alike_alone_and_among_others(output: dict[str, Any]) -> None:
    """Also when there are no rows at all: then everything is empty, with the right widths."""
    processor = Postprocessor(Output(**output), Calibration())
    width = len(Output(**output).output_names)
    logits = np.random.default_rng(4).normal(scale=5, size=(33, width)).astype(np.float32)
    together = processor.apply(logits)
    for i in range(len(logits)):
        alone, picked = processor.apply(logits[i : i + 1]), together.take(np.array([i]))
        assert _decisions(alone) == _decisions(picked)
        for name in ("raw", "score", "outputs", "threshold"):
            assert np.array_equal(getattr(alone, name), getattr(picked, name), equal_nan=True)
    empty = processor.apply(logits[:0])
    assert (len(empty.raw), len(empty.score), len(empty.decision), len(empty.threshold)) == (0, 0, 0, 0)
    assert empty.outputs.shape == (0, width)


@pytest.mark.parametrize(("output", "shape"), [({}, (4, 2)), (CLASSES, (4,)), (CLASSES, (4, 2)), ({}, (4, 1, 1))])
def test_a_network_with_other_outputs_than_declared_is_refused(output: dict[str, Any], shape: tuple[int, ...]) -> None:
    """At warm-up already; the message names both numbers."""
    with pytest.raises(BundleError, match="outputs are declared"):
        _apply(np.zeros(shape), **output)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (CLASSES, "platt"),
        (CLASSES, "isotonic"),
        ({"kind": "identity"}, "platt"),
        ({"kind": "identity"}, "isotonic"),
        ({"kind": "identity"}, "temperature"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(output: dict[str, Any], kind: Any) -> None:  # noqa: ANN401 - a Kind
    """The message says why, and what fits."""
    with pytest.raises(BundleError, match=f"{kind} does not fit .*; use identity"):
        Postprocessor(Output(**output), Calibration(kind, x=(0, 1), y=(0, 1)))


@given(st.integers(1, 70), st.data())
def test_label_sets_are_told_apart(width: int, data: st.DataObject) -> None:
    """Whatever the number of labels, a row's text is the names that it reached."""
    row = st.lists(st.booleans(), min_size=width, max_size=width)
    rows = data.draw(st.lists(row, max_size=6))
    names = [f"n{i}" for i in range(width)]
    index, texts = joined_labels(np.array(rows, bool).reshape(-1, width), names, None)
    expected = [",".join(itertools.compress(names, row)) or None for row in rows]
    assert [None if i < 0 else texts[i] for i in index.tolist()] == expected


@pytest.mark.parametrize("width", [8, 9, 64, 65, 200])
def test_label_sets_that_differ_in_the_last_label_alone_are_told_apart(width: int) -> None:
    """Also beyond what fits into one machine word."""
    reached = np.zeros((2, width), bool)
    reached[1, -1] = True
    index, texts = joined_labels(reached, [f"n{i}" for i in range(width)], "none")
    assert [texts[i] for i in index.tolist()] == ["none", f"n{width - 1}"]
