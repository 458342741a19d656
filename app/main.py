"""The composition root: wires both Faust apps; the only module, with the views, that sees every room.

``faust -A app.main:scoring worker`` and ``sluice worker scoring`` run the same app.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from agents import scoring as scoring_agent
from agents import topics
from aiokafka.errors import KafkaError
from app.answers import AnswerWriter, OutputTopics
from app.batcher import MicroBatcher
from app.committer import Committer
from app.errors import SluiceError
from app.faust_app import SluiceApp, make_app, wait_for_broker
from app.features import RedisFeatureStore
from app.health import Health
from app.ledger import Ledger
from app.lookup import ViewLookup
from app.metrics import Metrics
from app.models.bundle import latest_version, open_bundle
from app.models.runtime import ScoringModel
from app.pipeline import ScoringPipeline
from app.producer import OutputProducer
from app.requests import RequestDecoder
from app.settings import Settings, load_settings
from app.views import attach_views
from schemas.generate import labelled_schema, prediction_schema, request_schema
from schemas.registry import SchemaBook, load_schema

if TYPE_CHECKING:
    from app.models.bundle import Bundle

log = logging.getLogger(__name__)
EXIT_CODE = 1


def __getattr__(name: str) -> Any:  # noqa: ANN401 - built on first use, so that importing this module costs nothing
    """``scoring`` and ``monitor``, built from the settings on first use."""
    builders = {"scoring": build_scoring, "monitor": build_monitor}
    if name not in builders:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return globals().setdefault(name, builders[name](load_settings()))


def end_process(error: BaseException) -> None:
    """Crash-only: what failed cannot be repaired from inside, and a supervisor starts us again."""
    log.critical("this worker ends: %r", error)
    logging.shutdown()
    os._exit(EXIT_CODE)


def open_default_bundle(settings: Settings) -> Bundle:
    """The bundle that the settings name, verified."""
    models = settings.models
    version = models.version or latest_version(models.repository, models.name)
    return open_bundle(models.repository / models.name / str(version))


def schema_book(settings: Settings, bundle: Bundle) -> SchemaBook:
    """All schemas of the contract and of a bundle."""
    book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
    spec = bundle.spec
    book.add(topics.REQUESTS, request_schema(spec.name, spec.fields()))
    return book


def build_scoring(settings: Settings) -> SluiceApp:
    """The scoring worker: loaded, verified and warm when this returns; it joins its group when it is started."""
    bundle = open_default_bundle(settings)
    model = load_model(settings, bundle)
    app = make_app(settings, "scoring", [topics.REQUESTS])
    metrics = Metrics(settings.budget, now_s=time.monotonic)
    producer = OutputProducer(settings.kafka, client_id=f"{settings.deployment}-scoring")
    store = RedisFeatureStore(settings.redis)
    ledger = Ledger()
    book = schema_book(settings, bundle)
    pipeline = ScoringPipeline(
        decoder=RequestDecoder(book, bundle.spec, max_request_bytes=settings.delivery.max_request_bytes),
        batcher=MicroBatcher(
            max_batch_size=min(settings.batching.max_batch_size, bundle.spec.buckets[-1]),
            window_s=settings.batching.window_ms / 1000,
        ),
        lookup=ViewLookup(bundle.spec, store),
        model=model,
        writer=_answer_writer(settings, bundle, book, model.device),
        producer=producer,
        ledger=ledger,
        metrics=metrics,
        on_failure=end_process,
        max_queued_rows=settings.batching.max_queued_rows,
        max_in_flight_batches=settings.batching.max_in_flight_batches,
    )
    committer = Committer(app, ledger, settings.delivery, metrics, on_stall=end_process)
    scoring_agent.attach(app, [topics.REQUESTS], pipeline.submit)
    _attach_scoring_life(app, settings, pipeline, producer, committer, store)
    health = _scoring_health(app, settings, pipeline, committer)
    attach_worker_views(app, settings, "scoring", metrics.snapshot, health, metrics, producer)
    return app


def load_model(settings: Settings, bundle: Bundle) -> ScoringModel:
    """The model on its device, every bucket warmed."""
    import torch  # noqa: PLC0415 - a monitor or a command line that loads no model need not pay for torch

    torch.set_num_threads(settings.models.threads)
    model = ScoringModel(bundle, settings.models.device)
    model.warm_up()
    return model


def _answer_writer(settings: Settings, bundle: Bundle, book: SchemaBook, device: str) -> AnswerWriter:
    score_schema = load_schema(settings.schemas.folder, "score")
    spec = bundle.spec
    return AnswerWriter(
        bundle,
        score_schema,
        score_id=book.add(topics.SCORES, score_schema),
        prediction_id=book.add(topics.PREDICTIONS, prediction_schema(spec.name, spec.fields())),
        topics=OutputTopics(topics.SCORES, topics.PREDICTIONS, topics.REQUESTS_DLQ),
        device=device,
    )


def _attach_scoring_life(
    app: SluiceApp,
    settings: Settings,
    pipeline: ScoringPipeline,
    producer: OutputProducer,
    committer: Committer,
    store: RedisFeatureStore,
) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def prepare() -> None:
        try:
            await connect()
        except (SluiceError, KafkaError) as exc:
            end_process(exc)  # Faust would log a traceback and hang

    async def connect() -> None:
        await wait_for_broker(partial(topics.ensure_topics, settings))
        await producer.start()
        pipeline.start()
        tasks.append(asyncio.create_task(committer.run(), name="commit"))

    async def hand_over(*_: object, **__: object) -> None:
        """Answer and commit what is in flight, then forget it; on a rebalance and at the end."""
        if not await pipeline.drain(settings.delivery.drain_timeout_s):
            end_process(TimeoutError(f"not drained within {settings.delivery.drain_timeout_s:.0f} s"))
        await committer.commit()
        pipeline.revoke(None)

    async def close(*_: object, **__: object) -> None:
        await hand_over()
        for task in tasks:
            task.cancel()
        await pipeline.stop()
        await producer.stop()
        await store.close()

    app.prepare = prepare
    app.on_partitions_revoked.connect(hand_over, weak=False)
    app.on_before_shutdown.connect(close, weak=False)


def _scoring_health(app: SluiceApp, settings: Settings, pipeline: ScoringPipeline, committer: Committer) -> Health:
    health = Health()
    health.add_check("pipeline", lambda: None if pipeline.failure is None else repr(pipeline.failure), live=True)
    health.add_check("assignment", partial(_assignment_problem, app))

    def progress() -> str | None:
        stalled_s = committer.stalled_s()
        return None if stalled_s < settings.delivery.stall_after_s else f"nothing answered for {stalled_s:.0f} s"

    health.add_check("progress", progress)
    return health


def _assignment_problem(app: SluiceApp) -> str | None:
    with contextlib.suppress(Exception):
        if app.consumer.assignment() and not app.rebalancing:
            return None
    return "no partition is assigned yet, or a rebalance is under way"


def attach_worker_views(
    app: SluiceApp,
    settings: Settings,
    role: str,
    stats: Any,  # noqa: ANN401
    health: Health,
    metrics: Metrics,
    producer: OutputProducer,
) -> None:
    """Web views."""
    attach_views(
        app, health=health, stats=stats, collector=metrics.collector(), reports=settings.monitor.reports
    )


def build_monitor(settings: Settings) -> SluiceApp:
    raise NotImplementedError
