"""What a manager knows of one version of a model, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.models.lifecycle import Event, State, next_state

if TYPE_CHECKING:
    from app.models.live import LiveModel
    from app.models.live_table import LiveTable

Key = tuple[str, int]
"""Name and version of a model."""


@dataclass(slots=True)
class Tracked:
    """One version.

    Attributes:
        state: where it is.
        reason: why it is there; empty when there is nothing to say.
        live: the loaded model, while there is one.
        fingerprint: of the files that were tried last.
        calibration: revision in use; 0: the bundle's own.
        calibration_problem: why another revision is not in use; empty when the wanted one is.
        seconds: what loading took, by step.
        warm_up_s: what a batch took at the end of the warm-up, by bucket.
        gave_up_at: offset of the control state when it failed, or went for lack of memory; None: neither.
        told: reason and that offset, of the failure that was logged last.

    """

    state: State = State.NEW
    reason: str = ""
    live: LiveModel | None = None
    fingerprint: str = ""
    calibration: int = 0
    calibration_problem: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    warm_up_s: dict[int, float] = field(default_factory=dict)
    gave_up_at: int | None = None
    told: tuple[str, int] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it may answer requests."""
        return self.state is State.READY

    @property
    def why(self) -> str:
        """State and reason in words.

        Example:
            >>> Tracked().why, Tracked(State.FAILED, "too slow").why
            ('NEW', 'FAILED: too slow')

        """
        return f"{self.state.value}: {self.reason}" if self.reason else self.state.value

    def on(self, event: Event, reason: str = "") -> None:
        """Step to the next state.

        Raises:
            ValueError: the event cannot happen now; nothing changes.

        """
        self.state, self.reason = next_state(self.state, event), reason

    def let_go(self) -> None:
        """Close the loaded model."""
        if self.live is not None:
            close(self.live)
        self.live = None

    def row(self, key: Key, table: LiveTable[LiveModel] | None) -> dict[str, Any]:
        """All of it as plain values, with the labels that point to it in the table in force."""
        live, labels = self.live, {} if table is None else table.labels
        return {
            "name": key[0],
            "version": key[1],
            "state": self.state.value,
            "reason": "; ".join(filter(None, (self.reason, self.calibration_problem))),
            "device": ",".join(scorer.device for scorer in live.scorers) if live else None,
            "sha256": live.bundle.sha256 if live else None,
            "calibration_revision": self.calibration if live else None,
            "calibration_sha256": live.bundle.calibration_sha256 if live else None,
            "labels": sorted(label for (name, label), number in labels.items() if (name, number) == key),
            "memory_bytes": memory_bytes(live) if live else 0,
            "load_ms": {step: round(s * 1000, 3) for step, s in self.seconds.items()},
            "warm_up_ms": {str(bucket): round(s * 1000, 3) for bucket, s in self.warm_up_s.items()},
            "is_default": live is not None and table is not None and table.champion is live,
            "requests": live.requests if live else 0,
        }


def memory_bytes(live: LiveModel) -> int:
    """What all instances of a model take together."""
    return sum(scorer.memory_bytes for scorer in live.scorers)


def close(live: LiveModel) -> None:
    """Let go of the networks of a model; every later run of them is refused."""
    for scorer in live.scorers:
        scorer.close()
