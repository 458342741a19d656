"""What is known about one model version in one window, ready to publish or to show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from monitors.calibration import calibration
from monitors.closing import Closing
from monitors.drift import confirmed, drift
from monitors.quality import quality

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monitors.drift import Drift, Reference
    from monitors.store import WindowKey
    from monitors.windows import WindowCounts, WindowRule


@dataclass(slots=True)
class WindowFigures:
    """Figures of one window.

    Attributes:
        label: how people call the window.
        end_us: first moment after it.
        predictions: counted.
        labelled: of which the outcome is known.
        metrics: defined metrics by name.
        undefined: names of metrics without a value.
        reasons: for each undefined metric, why.
        drift: verdicts; None: there is no reference.
        confirmed: features that drifted in two of the last three windows; ``confirm_drift`` sets it.

    """

    label: str
    end_us: int
    predictions: int
    labelled: int
    metrics: dict[str, float]
    undefined: list[str]
    reasons: dict[str, str]
    drift: Drift | None
    confirmed: list[str] = field(default_factory=list)

    @property
    def drifted(self) -> list[str]:
        """Names of the features that drifted in this window."""
        return [] if self.drift is None else self.drift.drifted

    @property
    def drift_metrics(self) -> dict[str, float]:
        """Index and p-value of each feature and of the score."""
        found: dict[str, float] = {}
        for name, verdict in self._verdicts().items():
            for kind, value in (("psi", verdict.psi), ("p_value", verdict.p_value)):
                if value is not None:
                    found[f"{kind}.{name}"] = value
        return found

    @property
    def drift_reasons(self) -> dict[str, str]:
        """For each feature without a verdict, why."""
        if self.drift is None:
            return {"status": "no reference for this version"}
        return {f"reason.{name}": v.reason for name, v in self._verdicts().items() if v.reason is not None}

    def _verdicts(self) -> dict[str, Any]:
        return {} if self.drift is None else {**self.drift.features, "score": self.drift.score}


def figures_of(
    key: WindowKey,
    counts: WindowCounts,
    reference: Reference | None,
    rule: WindowRule,
) -> WindowFigures:
    """All figures of a window.

    Args:
        key: whose counts they are.
        counts: merged over partitions.
        reference: frozen reference of the version; used when the counts were made on it.
        rule: of the windows.

    Cost: about 2 ms.
    """
    measured = quality(counts)
    fit = calibration(counts)
    values = {**measured.values, "calibration_z": fit.in_the_large_z, "spiegelhalter_z": fit.spiegelhalter_z}
    reasons = dict(measured.reasons)
    if fit.reason is not None:
        reasons["calibration"] = fit.reason
    found = None
    if reference is not None and counts.layout == reference.layout():
        found = drift(reference, counts)
    return WindowFigures(
        label=rule.label(key.start_us),
        end_us=rule.end(key.start_us),
        predictions=counts.count("predictions"),
        labelled=counts.count("labelled"),
        metrics={name: value for name, value in values.items() if value is not None},
        undefined=[name for name, value in values.items() if value is None],
        reasons=reasons,
        drift=found,
    )


def confirm_drift(figures: Sequence[WindowFigures]) -> None:
    """Set ``confirmed`` of consecutive windows of one model version, oldest first."""
    for at, window in enumerate(figures):
        recent = figures[max(0, at - 2) : at + 1]
        window.confirmed = [n for n in window.drifted if confirmed([n in w.drifted for w in recent])]


def as_json(key: WindowKey, figures: WindowFigures, state: Closing) -> dict[str, Any]:
    """The figures as a document for pages and ``/stats``; undefined metrics are null, with their reasons beside."""
    verdicts = figures.drift.features if figures.drift is not None else {}
    return {
        "model_name": key.model_name,
        "model_version": key.model_version,
        "window_start": key.start_us,
        "window_end": figures.end_us,
        "label": figures.label,
        "closing": state.name.lower(),
        "final": state is Closing.FINAL,
        "predictions": figures.predictions,
        "labelled": figures.labelled,
        **figures.metrics,
        **dict.fromkeys(figures.undefined),
        "reasons": figures.reasons,
        "score_psi": figures.drift.score.psi if figures.drift is not None else None,
        "drifted": figures.drifted,
        "confirmed": figures.confirmed,
        "features": {
            name: {"psi": v.psi, "p_value": v.p_value, "drifted": v.drifted, "missing_share": v.missing_share,
                   "reason": v.reason}
            for name, v in verdicts.items()
        },
    }  # fmt: skip
