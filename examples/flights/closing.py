"""The closing figures of a replay: one row a month, and what the monitor says of drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .model import request_frame
from .offline import auc, brier, score_frame

if TYPE_CHECKING:
    import pandas as pd

    from app.models.bundle import Bundle


@dataclass(frozen=True, slots=True)
class MonthFigures:
    """One month of a replay.

    Attributes:
        month: ``2013-03``, UTC.
        flight_count: requests.
        scored_count: answers with a score.
        outcome_count: flights that have an outcome; AUC and Brier are theirs.
        p50_ms: median latency as the client sees it.
        p99_ms: its 99th percentile.
        auc: with store features.
        auc_static: of the model without them, on the same flights.
        brier: mean squared distance of calibrated score and label.
        late_share: of the flights with an outcome.
        drifted: features that the monitor calls drifted, strongest first; none: no verdict yet.

    """

    month: str
    flight_count: int
    scored_count: int
    outcome_count: int
    p50_ms: float
    p99_ms: float
    auc: float
    auc_static: float
    brier: float
    late_share: float
    drifted: tuple[str, ...] | None = None

    def drift_text(self) -> str:
        """Which features drifted, the strongest first."""
        if self.drifted is None:
            return "the monitor has given no verdict"
        return ", ".join(self.drifted) or "none"


def month_figures(
    flights: pd.DataFrame, answers: pd.DataFrame, static_bundle: Bundle, drifted: dict[str, tuple[str, ...]]
) -> list[MonthFigures]:
    """Figures of each month.

    Args:
        flights: the replayed rows of ``FlightData.flights``.
        answers: ``Replayed.answers``, the same index.
        static_bundle: the model without store features.
        drifted: by month, as ``drifted_features`` gives it.

    """
    static = score_frame(static_bundle, request_frame(flights))
    table = flights[["month", "label"]].assign(score=answers["score"], latency_ms=answers["latency_ms"], static=static)
    figures = []
    for month, rows in table.groupby("month"):
        known = rows[rows["label"].notna() & rows["score"].notna()]
        labels = known["label"].to_numpy()
        figures.append(
            MonthFigures(
                month=str(month),
                flight_count=len(rows),
                scored_count=int(rows["score"].notna().sum()),
                outcome_count=len(known),
                p50_ms=float(rows["latency_ms"].quantile(0.5)),
                p99_ms=float(rows["latency_ms"].quantile(0.99)),
                auc=auc(labels, known["score"].to_numpy()),
                auc_static=auc(labels, known["static"].to_numpy()),
                brier=brier(labels, known["score"].to_numpy()),
                late_share=float(labels.mean()),
                drifted=drifted.get(str(month)),
            )
        )
    return figures


def drifted_features(monitor_stats: dict[str, Any] | None, model: str) -> dict[str, tuple[str, ...]]:
    """Names of the drifted features of each month, the strongest first, from the monitor's own figures."""
    windows = (monitor_stats or {}).get("windows", [])
    found = {}
    for window in windows:
        if window.get("model_name") == model:
            psi = {name: verdict.get("psi") or 0.0 for name, verdict in window.get("features", {}).items()}
            found[str(window["label"])] = tuple(sorted(window["drifted"], key=lambda n: -psi.get(n, 0.0)))
    return found
