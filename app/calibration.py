"""Maps from a model's own probabilities to true ones, as artefacts with their own versions; pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1 before a logit is taken."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A map from the model's probability to a calibrated one, versioned apart from the weights.

    Attributes:
        kind: identity, platt (``sigmoid(a * logit(p) + b)``) or isotonic (linear between the knots x, y).
        a: slope for platt.
        b: intercept for platt.
        x: increasing knots for isotonic, in [0, 1].
        y: their images, not decreasing, in [0, 1].

    """

    kind: Literal["identity", "platt", "isotonic"] = "identity"
    a: float = 1.0
    b: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: a number is not finite, or the isotonic knots are not monotone in [0, 1].

        """
        if not (np.isfinite(self.a) and np.isfinite(self.b)):
            msg = "calibration: a and b must be finite"
            raise ValueError(msg)
        if self.kind == "isotonic":
            x, y = np.asarray(self.x), np.asarray(self.y)
            inside = bool(len(x) >= 2 and len(x) == len(y) and np.all((x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)))
            if not (inside and np.all(np.diff(x) > 0) and np.all(np.diff(y) >= 0)):
                msg = "calibration: isotonic needs at least two knots, x increasing and y not decreasing, all in [0, 1]"
                raise ValueError(msg)

    def apply(self, p: Floats) -> Floats:
        """Calibrated probabilities, shape (n,), in [0, 1]; a NaN stays one.

        Example:
            >>> Calibration("isotonic", x=(0.0, 1.0), y=(0.0, 0.5)).apply(np.array([0.5])).tolist()
            [0.25]

        """
        if self.kind == "identity":
            return p
        if self.kind == "isotonic":
            return np.interp(p, self.x, self.y)
        inner = np.clip(p, CLIP, 1 - CLIP)
        z = self.a * np.log(inner / (1 - inner)) + self.b
        with np.errstate(over="ignore"):  # exp gives infinity, the quotient the right 0
            return np.asarray(1.0 / (1.0 + np.exp(-z)))

    def to_json(self) -> str:
        """Text of ``calibration.json``, the same for the same calibration."""
        document: dict[str, Any] = {"kind": self.kind}
        if self.kind == "platt":
            document |= {"a": self.a, "b": self.b}
        if self.kind == "isotonic":
            document |= {"x": list(self.x), "y": list(self.y)}
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The calibration that ``to_json`` wrote.

        Raises:
            ValueError: it is not one; the message says what is wrong.

        """
        document = json.loads(text)
        known = {"kind", "a", "b", "x", "y"}
        if not isinstance(document, dict) or not document.keys() <= known:
            msg = f"calibration: an object with keys among {sorted(known)} is expected"
            raise ValueError(msg)
        if document.get("kind") not in ("identity", "platt", "isotonic"):
            msg = f"calibration: kind must be identity, platt or isotonic, not {document.get('kind')!r}"
            raise ValueError(msg)
        try:
            return cls(
                kind=document["kind"],
                a=float(document.get("a", 1.0)),
                b=float(document.get("b", 0.0)),
                x=tuple(float(v) for v in document.get("x", ())),
                y=tuple(float(v) for v in document.get("y", ())),
            )
        except TypeError as exc:
            msg = f"calibration: a and b must be numbers, x and y lists of numbers ({exc})"
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
