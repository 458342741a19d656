"""How a verified bundle becomes a live model on the devices of this worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from app.answers import AnswerWriter
from app.batcher import LearnedCost
from app.lookup import ViewLookup, last_known_of
from app.models.devices import parse_devices, place
from app.models.live import LiveModel
from app.models.runtime import ScoringModel
from app.postprocess import Postprocessor
from app.recorded_requests import recorded_requests
from schemas.generate import prediction_schema, request_schema
from schemas.registry import load_schema
from schemas.topic_names import PREDICTIONS, REQUESTS, SCORES

if TYPE_CHECKING:
    from app.errors import DeviceLost
    from app.features import FeatureStore
    from app.metrics import Metrics
    from app.models.bundle import Bundle
    from app.models.spec import ModelSpec
    from app.settings import Settings
    from schemas.columns import Column
    from schemas.registry import SchemaBook

log = logging.getLogger(__name__)


class LiveLoader:
    """Makes live models; its methods but ``recorded`` block.

    Args:
        settings: devices, schema folder.
        book: where the schemas of a model are registered.
        store: online store.
        metrics: counts look-ups.

    """

    def __init__(self, settings: Settings, book: SchemaBook, store: FeatureStore, metrics: Metrics) -> None:
        self._settings, self._book, self._store, self._metrics = settings, book, store, metrics
        self._devices = parse_devices(settings.models.device)

    @property
    def lanes(self) -> int:
        """Micro-batches that compute at once: one on each device of the worker."""
        return len(self._devices)

    def devices(self, spec: ModelSpec) -> tuple[str, ...]:
        """Where the instances of a model go: one for each lane, so that no two lanes share an instance.

        Raises:
            BundleError: it is pinned to a device that the worker does not use.

        """
        placed = place(spec, self._devices)
        return tuple(placed[lane % len(placed)] for lane in range(self.lanes))

    def map(self, bundle: Bundle) -> LiveModel:
        """The network of a bundle on its devices, not warm yet.

        Raises:
            BundleError: it does not fit.
            DeviceLost: a device fails, or has too little memory.

        """
        spec = bundle.spec
        scorers = tuple(ScoringModel(bundle, device) for device in self.devices(spec))
        self._book.add(REQUESTS, request_schema(spec.name, spec.fields()))
        last_known = last_known_of(self._settings.redis)
        return LiveModel(
            bundle=bundle,
            scorers=scorers,
            postprocessor=Postprocessor(spec.output, bundle.calibration),
            lookup=ViewLookup(spec, self._store, last_known=last_known, metrics=self._metrics),
            writer=answer_writer(self._settings, bundle, self._book),
            cost=LearnedCost(),
        )

    def warm(self, live: LiveModel, recorded: dict[str, Column] | None) -> dict[int, float]:
        """Run every bucket on every instance; returns seconds by bucket, the slowest instance's.

        Raises:
            BundleError: an output is not finite, or has another shape than declared.
            DeviceLost: a device fails, or has too little memory.

        """
        slowest: dict[int, float] = {}
        for scorer in live.scorers:
            samples = None if recorded is None else scorer.preprocessor.transform(recorded)
            for bucket, seconds in scorer.warm_up(samples).items():
                slowest[bucket] = max(seconds, slowest.get(bucket, 0.0))
        live.cost = LearnedCost(slowest)
        return slowest

    async def recorded(self, spec: ModelSpec) -> dict[str, Column] | None:
        """The newest requests of a model, from the prediction log."""
        return await recorded_requests(self._settings.kafka, self._book, spec)

    def elsewhere(self, live: LiveModel, lost: DeviceLost) -> tuple[ScoringModel, ...]:
        """Instances on the CPU in place of those that lost their device.

        Raises:
            DeviceLost: the settings say to stop.

        """
        if self._settings.models.on_device_lost == "stop":
            raise lost
        log.critical("%s version %d goes on on the CPU: %s", live.spec.name, live.spec.version, lost)
        moved = tuple(scorer.moved_to("cpu") for scorer in live.scorers)
        for scorer in moved:
            scorer.warm_up()
        return moved


def answer_writer(settings: Settings, bundle: Bundle, book: SchemaBook) -> AnswerWriter:
    """Encoders of a bundle's answers, their schemas registered."""
    score_schema = load_schema(settings.schemas.folder, "score")
    spec = bundle.spec
    return AnswerWriter(
        bundle,
        score_schema,
        score_id=book.add(SCORES, score_schema),
        prediction_id=book.add(PREDICTIONS, prediction_schema(spec.name, spec.fields())),
    )
