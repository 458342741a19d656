"""A live model: one version, loaded and warm, with everything that its rows need on their way to an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app.postprocess import Postprocessor

if TYPE_CHECKING:
    from app.answers import AnswerWriter
    from app.batcher import LearnedCost
    from app.lookup import ViewLookup
    from app.models.bundle import Bundle
    from app.models.runtime import ScoringModel
    from app.models.spec import ModelSpec


@dataclass(slots=True, eq=False)
class LiveModel:
    """One version of one model.

    Attributes:
        bundle: verified; its calibration is the one in use.
        scorers: instances on their devices, at least one; micro-batches take them in turn.
        postprocessor: logits to scores and decisions.
        lookup: its store features.
        writer: encodes its answers.
        cost: seconds that a batch takes on one instance, by rows.
        requests: answered so far.
        last_used_s: monotonic; decides what goes first when memory is short.

    """

    bundle: Bundle
    scorers: tuple[ScoringModel, ...]
    postprocessor: Postprocessor
    lookup: ViewLookup
    writer: AnswerWriter
    cost: LearnedCost
    requests: int = 0
    last_used_s: float = 0.0

    @property
    def spec(self) -> ModelSpec:
        """Its specification."""
        return self.bundle.spec

    def scorer(self, lane: int) -> ScoringModel:
        """The instance that a lane of the pipeline uses."""
        return self.scorers[lane % len(self.scorers)]

    def recalibrated(self, bundle: Bundle) -> LiveModel:
        """The same model with the calibration of another opening of its bundle; instances and counts are shared."""
        return replace(
            self,
            bundle=bundle,
            postprocessor=Postprocessor(bundle.spec.output, bundle.calibration),
            writer=self.writer.of_bundle(bundle),
        )
