"""Maps from a model's own probabilities to true ones, as artefacts with their own versions; pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 before a logit is taken."""
TEMPERATURE_RANGE = (1e-3, 1e3)
"""Beyond it every score is certain, or none says anything."""
Kind = Literal["identity", "platt", "isotonic", "temperature"]
PROVENANCE = ("model", "model_version", "revision", "fitted_on", "note")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A map from the model's probability to a calibrated one, versioned apart from the weights.

    Attributes:
        kind: identity, platt (``sigmoid(a * logit(p) + b)``), isotonic (linear between the knots x, y) or temperature
            (the logits are divided by t).
        a: slope for platt.
        b: intercept for platt.
        x: increasing knots for isotonic, in [0, 1].
        y: their images, not decreasing, in [0, 1].
        t: temperature, 0.001 .. 1000; above 1 the scores become less certain.
        model: name of the model that it belongs to.
        model_version: and its version.
        revision: counts the calibrations of this version.
        fitted_on: which data, in words.
        note: anything else worth knowing.

    """

    kind: Kind = "identity"
    a: float = 1.0
    b: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()
    t: float = 1.0
    model: str | None = None
    model_version: int | None = None
    revision: int | None = None
    fitted_on: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: a number is not finite or out of range, or the isotonic knots are not monotone in [0, 1].

        """
        if not (np.isfinite(self.a) and np.isfinite(self.b)):
            msg = "calibration: a and b must be finite"
            raise ValueError(msg)
        if not TEMPERATURE_RANGE[0] <= self.t <= TEMPERATURE_RANGE[1]:
            msg = f"calibration: t must be in {TEMPERATURE_RANGE[0]:g} .. {TEMPERATURE_RANGE[1]:g}, not {self.t}"
            raise ValueError(msg)
        if self.kind == "isotonic":
            x, y = np.asarray(self.x), np.asarray(self.y)
            inside = bool(len(x) >= 2 and len(x) == len(y) and np.all((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)))
            if not (inside and np.all(np.diff(x) > 0) and np.all(np.diff(y) >= 0)):
                msg = "calibration: isotonic needs at least two knots, x increasing and y not decreasing, all in [0, 1]"
                raise ValueError(msg)

    def apply(self, p: Floats) -> Floats:
        """Calibrated probabilities, each by itself, in [0, 1], shaped like p; a NaN stays one.

        Raises:
            ValueError: a temperature divides logits, which a probability no longer tells; use ``calibrate``.

        Example:
            >>> Calibration("isotonic", x=(0.0, 1.0), y=(0.0, 0.5)).apply(np.array([0.5])).tolist()
            [0.25]

        """
        if self.kind == "temperature":
            msg = "calibration: a temperature divides logits; use calibrate, or Postprocessor.apply"
            raise ValueError(msg)
        if self.kind == "identity":
            return p
        if self.kind == "isotonic":
            return np.interp(p, self.x, self.y)
        inner = np.clip(p, CLIP, 1 - CLIP)
        z = self.a * np.log(inner / (1 - inner)) + self.b
        with np.errstate(over="ignore"):  # exp gives infinity, the quotient the right 0
            return np.asarray(1.0 / (1.0 + np.exp(-z)))

    def calibrate(self, logits: NDArray[Any], activate: Callable[[NDArray[Any]], Floats]) -> Floats:
        """Calibrated probabilities, shaped like the logits.

        Args:
            logits: shape (n,) or (n, m).
            activate: sigmoid or softmax.

        Example:
            >>> from app.postprocess import sigmoid
            >>> logits = np.array([0.0, 2.0 * np.log(3.0)])
            >>> Calibration("temperature", t=2.0).calibrate(logits, sigmoid).round(9).tolist()
            [0.5, 0.75]

        """
        if self.kind == "temperature":
            return activate(logits.astype(np.float64) / self.t)
        return self.apply(activate(logits))

    def to_json(self) -> str:
        """Text of ``calibration.json``, the same for the same calibration."""
        document: dict[str, Any] = {"kind": self.kind}
        if self.kind == "platt":
            document |= {"a": self.a, "b": self.b}
        if self.kind == "isotonic":
            document |= {"x": list(self.x), "y": list(self.y)}
        if self.kind == "temperature":
            document["t"] = self.t
        document |= {name: value for name in PROVENANCE if (value := getattr(self, name)) is not None}
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The calibration that ``to_json`` wrote.

        Raises:
            ValueError: it is not one; the message says what is wrong.

        """
        try:
            document = json.loads(text)
        except RecursionError as exc:
            msg = "calibration: lists within lists within lists; an object of numbers is expected"
            raise ValueError(msg) from exc
        known = {"kind", "a", "b", "x", "y", "t", *PROVENANCE}
        if not isinstance(document, dict) or not document.keys() <= known:
            msg = f"calibration: an object with keys among {sorted(known)} is expected"
            raise ValueError(msg)
        if document.get("kind") not in get_args(Kind):
            msg = f"calibration: kind must be one of {', '.join(get_args(Kind))}, not {document.get('kind')!r}"
            raise ValueError(msg)
        try:
            return cls(
                kind=document["kind"],
                a=float(document.get("a", 1.0)),
                b=float(document.get("b", 0.0)),
                x=tuple(float(v) for v in document.get("x", ())),
                y=tuple(float(v) for v in document.get("y", ())),
                t=float(document.get("t", 1.0)),
                **_provenance(document),
            )
        except (TypeError, OverflowError) as exc:
            msg = f"calibration: a, b and t must be numbers, x and y lists of numbers ({exc})"
            raise ValueError(msg) from exc

    @classmethod
    def fit_isotonic(cls, p: Floats, y: Floats) -> Calibration:
        """Isotonic regression of labels y (0 or 1) on probabilities p, pool-adjacent-violators by SciPy.

        Raises:
            ValueError: fewer than two different probabilities.

        """
        from scipy.optimize import isotonic_regression  # noqa: PLC0415 - training only; serving need not load it

        order = np.argsort(p, kind="stable")
        xs, first, counts = np.unique(p[order], return_index=True, return_counts=True)
        means = np.add.reduceat(y[order].astype(np.float64), first) / counts
        fitted = isotonic_regression(means, weights=counts.astype(np.float64)).x
        keep = np.ones(len(xs), dtype=bool)
        keep[1:-1] = (np.diff(fitted)[:-1] != 0) | (np.diff(fitted)[1:] != 0)
        return cls("isotonic", x=tuple(xs[keep].tolist()), y=tuple(np.clip(fitted[keep], 0, 1).tolist()))

    @classmethod
    def fit_platt(cls, p: Floats, y: Floats, *, steps: int = 50) -> Calibration:
        """Logistic regression of labels y on the logit of p, by Newton's method with a small ridge."""
        inner = np.clip(p, CLIP, 1 - CLIP)
        design = np.column_stack([np.log(inner / (1 - inner)), np.ones(len(p))])
        weights = np.array([1.0, 0.0])
        for _ in range(steps):
            q = 1.0 / (1.0 + np.exp(-design @ weights))
            hessian = design.T @ (design * (q * (1 - q))[:, None]) + 1e-6 * np.eye(2)
            weights -= np.linalg.solve(hessian, design.T @ (q - y))
        return cls("platt", a=float(weights[0]), b=float(weights[1]))

    @classmethod
    def fit_temperature(cls, logits: NDArray[Any], y: NDArray[Any]) -> Calibration:
        """The temperature under which the labels are most likely (Guo et al. 2017, section 4.2), by SciPy.

        Args:
            logits: shape (n,) or (n, m).
            y: labels 0 or 1 shaped like the logits (sigmoid), or for (n, m) logits n integers 0 .. m - 1 (softmax).

        Raises:
            ValueError: the shapes do not fit.

        """
        from scipy.optimize import minimize_scalar  # noqa: PLC0415 - as above

        wide = logits.astype(np.float64)
        if not len(wide) or (y.shape != wide.shape and y.shape != wide.shape[:1]):
            msg = f"calibration: labels of shape {y.shape} do not fit logits of shape {wide.shape}"
            raise ValueError(msg)
        loss = _sigmoid_loss if y.shape == wide.shape else _softmax_loss
        low, high = np.log(TEMPERATURE_RANGE)
        found = minimize_scalar(lambda log_t: loss(wide / np.exp(log_t), y), bounds=(low, high), method="bounded")
        return cls("temperature", t=float(np.clip(np.exp(found.x), *TEMPERATURE_RANGE)))


def _sigmoid_loss(logits: Floats, y: NDArray[Any]) -> float:
    return float(np.logaddexp(0.0, np.where(y > 0.5, -logits, logits)).mean())


def _softmax_loss(logits: Floats, y: NDArray[Any]) -> float:
    chosen = np.take_along_axis(logits, y.astype(np.int64)[:, None], axis=1)[:, 0]
    return float((np.logaddexp.reduce(logits, axis=1) - chosen).mean())


def _provenance(document: dict[str, Any]) -> dict[str, Any]:
    for name in PROVENANCE:
        expected = int if name in {"model_version", "revision"} else str
        fits = type(document.get(name)) in {expected, type(None)}  # exactly: True is an int to isinstance
        if not fits:
            msg = f"calibration: {name} must be {'a whole number' if expected is int else 'text'}"
            raise ValueError(msg)
    return {name: document[name] for name in PROVENANCE if name in document}
