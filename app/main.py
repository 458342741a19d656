"""The composition root: wires both Faust apps; the only module, with the views, that sees every room.

``faust -A app.main:scoring worker`` and ``sluice worker scoring`` run the same app.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from faust.exceptions import ConsumerNotStarted

from agents import scoring as scoring_agent
from agents import topics
from agents.life import MonitorLife, ScoringLife, WorkerLife, WorkerParts
from agents.worker_stats import WorkerIdentity, WorkerStats
from app.answers import AnswerWriter, OutputTopics
from app.batcher import LearnedCost, MicroBatcher
from app.committer import Committer
from app.crash import end_process
from app.delivery import AtLeastOnce, Delivery
from app.exactly_once import ExactlyOnce
from app.faust_app import SluiceApp, make_app
from app.features import RedisFeatureStore
from app.health import Health
from app.ledger import Ledger
from app.lookup import ViewLookup, last_known_of
from app.metrics import Metrics
from app.models.bundle import REFERENCE, all_specs, latest_version, open_bundle
from app.pipeline import ScoringPipeline
from app.poison_circuit import PoisonCircuit
from app.producer import OutputProducer
from app.recent import RecentAnswers
from app.requests import RequestDecoder
from app.settings import DeliverySettings, Settings, load_settings
from app.transport import commit_offsets, hold_consumer
from app.views import attach_views
from schemas.generate import check_name, prediction_schema, request_schema
from schemas.registry import SchemaBook, load_schema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from app.ledger import Partition
    from app.models.bundle import Bundle
    from app.models.runtime import ScoringModel
    from schemas.records import RecordBatch


def __getattr__(name: str) -> Any:  # noqa: ANN401 - built on first use, so that importing this module costs nothing
    """``scoring`` and ``monitor``, built from the settings on first use."""
    builders = {"scoring": build_scoring, "monitor": build_monitor}
    if name not in builders:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return globals().setdefault(name, builders[name](load_settings()))


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
    model, run_s = load_model(settings, bundle)
    app = make_app(settings, "scoring", [topics.REQUESTS])
    metrics = Metrics(settings.budget, now_s=time.monotonic)
    producer = OutputProducer(settings.kafka, client_id=f"{settings.deployment}-scoring")
    store = RedisFeatureStore(settings.redis)
    ledger = Ledger()
    book = schema_book(settings, bundle)
    circuit = _poison_circuit(settings.delivery)
    delivery = make_delivery(settings, app.conf.id, producer, ledger, metrics)
    pipeline = ScoringPipeline(
        decoder=RequestDecoder(book, bundle.spec, max_request_bytes=settings.delivery.max_request_bytes),
        batcher=MicroBatcher(
            max_batch_size=min(settings.batching.max_batch_size, bundle.spec.buckets[-1]),
            window_s=settings.batching.window_ms / 1000,
            run=LearnedCost(run_s),
        ),
        lookup=ViewLookup(bundle.spec, store, last_known=last_known_of(settings.redis), metrics=metrics),
        model=model,
        writer=answer_writer(settings, bundle, book, model.device),
        delivery=delivery,
        ledger=ledger,
        recent=RecentAnswers(remembered=settings.delivery.remembered_answers, max_age_s=settings.delivery.remembered_s),
        circuit=circuit,
        on_hold=partial(hold_consumer, app),
        metrics=metrics,
        on_failure=end_process,
        max_queued_rows=settings.batching.max_queued_rows,
        max_in_flight_batches=settings.batching.max_in_flight_batches,
    )
    committer = Committer(
        app, _offsets_committer(app, settings), ledger, settings.delivery, metrics,
        on_failure=end_process, is_held=lambda: circuit.is_holding,
    )  # fmt: skip
    gate = scoring_agent.Gate()
    scoring_agent.attach(app, [topics.REQUESTS], pipeline.submit, gate)
    health = _health(app, settings, committer, lambda: pipeline.failure)
    health.add_check("poison", lambda: circuit.problem(time.monotonic()))
    stats = _attach_views(
        app, settings, "scoring", book=book, producer=producer, figures=metrics.snapshot, metrics=metrics, health=health
    )
    parts = WorkerParts(app, settings, producer, committer, stats, ledger, gate)
    _attach_life(app, ScoringLife(parts, pipeline, delivery, store, book))
    return app


def _poison_circuit(delivery: DeliverySettings) -> PoisonCircuit:
    return PoisonCircuit(
        window=delivery.poison_window,
        share=delivery.poison_share,
        open_s=delivery.poison_open_s,
        probe_records=delivery.poison_probe_records,
    )


def make_delivery(
    settings: Settings, group_id: str, producer: OutputProducer, ledger: Ledger, metrics: Metrics
) -> Delivery:
    """The delivery of the mode that is set."""
    if settings.delivery.mode == "at_least_once":
        return AtLeastOnce(producer)
    return ExactlyOnce(settings, group_id=group_id, ledger=ledger, metrics=metrics, on_failure=end_process)


def _offsets_committer(app: SluiceApp, settings: Settings) -> Callable[[dict[Partition, int]], Awaitable[bool]]:
    """Who commits what is answered: with exactly_once the transactions have done so already."""
    if settings.delivery.mode == "at_least_once":
        return partial(commit_offsets, app)

    async def is_committed(_offsets: dict[Partition, int]) -> bool:
        return True

    return is_committed


def load_model(settings: Settings, bundle: Bundle) -> tuple[ScoringModel, dict[int, float]]:
    """The model on its device, every bucket warmed, and the seconds that a batch of each bucket took."""
    import torch  # noqa: PLC0415 - the monitor loads no model and is spared torch

    from app.models.runtime import ScoringModel  # noqa: PLC0415

    torch.set_num_threads(settings.models.threads)
    model = ScoringModel(bundle, settings.models.device)
    return model, model.warm_up()


def answer_writer(settings: Settings, bundle: Bundle, book: SchemaBook, device: str) -> AnswerWriter:
    """Encoders of a bundle's answers, their schemas registered."""
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


def _attach_life(app: SluiceApp, life: WorkerLife) -> None:
    """Let Faust's signals drive a worker's life."""
    app.prepare = life.prepare
    app.on_rebalance_complete.connect(life.take_over, weak=False)
    app.on_partitions_revoked.connect(life.hand_over, weak=False)
    app.on_before_shutdown.connect(life.close, weak=False)


def _attach_views(  # noqa: PLR0913 - the composition root hands every part to the views once
    app: SluiceApp,
    settings: Settings,
    role: str,
    *,
    book: SchemaBook,
    producer: OutputProducer,
    figures: Callable[[], dict[str, Any]],
    metrics: Metrics,
    health: Health,
) -> WorkerStats:
    url = f"http://{settings.web.host}:{app.conf.web_port}"
    identity = WorkerIdentity(f"{settings.deployment}-{role}-{os.getpid()}", role, url)
    stats = WorkerStats(settings, book, producer, identity, figures)
    attach_views(
        app,
        health=health,
        stats=stats.document,
        collector=metrics.collector(),
        reports=settings.monitor.reports,
        version=version("sluice"),
    )
    return stats


def _health(
    app: SluiceApp, settings: Settings, committer: Committer, failure: Callable[[], BaseException | None]
) -> Health:
    def problem() -> str | None:
        error = failure()
        return None if error is None else repr(error)

    def progress() -> str | None:
        stalled_s = committer.stalled_s()
        return None if stalled_s < settings.delivery.stall_after_s else f"nothing answered for {stalled_s:.0f} s"

    health = Health()
    health.add_check("worker", problem, live=True)
    health.add_check("assignment", partial(_assignment_problem, app))
    health.add_check("progress", progress)
    return health


def _assignment_problem(app: SluiceApp) -> str | None:
    with contextlib.suppress(ConsumerNotStarted):
        if app.consumer.assignment() and not app.rebalancing:
            return None
    return "no partition is assigned yet, or a rebalance is under way"


def build_monitor(settings: Settings) -> SluiceApp:
    """The monitor worker: joins outcomes to predictions, closes windows, judges drift, writes reports."""
    from agents.outcomes import OutcomeMonitor  # noqa: PLC0415 - SciPy and pandas: the scoring worker is spared them

    app = make_app(
        settings, "monitor", [topics.PREDICTIONS, topics.OUTCOMES], linger_ms=settings.monitor.fetch_linger_ms
    )
    metrics = Metrics(settings.budget, now_s=time.monotonic)
    producer = OutputProducer(settings.kafka, client_id=f"{settings.deployment}-monitor")
    book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
    add_bundle_schemas(book, settings)
    monitor = OutcomeMonitor(
        settings,
        book,
        producer,
        partial(reference_path, settings),
        learn_schemas=partial(add_bundle_schemas, book, settings),
    )
    ledger = Ledger()
    committer = Committer(app, partial(commit_offsets, app), ledger, settings.delivery, metrics, on_failure=end_process)

    async def handle(batch: RecordBatch) -> None:
        partition = (batch.topic, batch.partition)
        ledger.deliver(partition, batch.start_offset, batch.next_offset)
        await monitor.handle(batch)
        ledger.answer(partition, batch.start_offset, batch.next_offset)
        metrics.count("monitored", len(batch), topic=batch.topic)

    monitoring_agent = partial(_or_end, handle)
    gate = scoring_agent.Gate()
    scoring_agent.attach(app, [topics.PREDICTIONS, topics.OUTCOMES], monitoring_agent, gate)
    health = _health(app, settings, committer, lambda: None)
    stats = _attach_views(
        app, settings, "monitor", book=book, producer=producer, figures=monitor.snapshot, metrics=metrics, health=health
    )
    parts = WorkerParts(app, settings, producer, committer, stats, ledger, gate)
    _attach_life(app, MonitorLife(parts, monitor, metrics))
    return app


def reference_path(settings: Settings, name: str, model_version: int) -> Path | None:
    """The drift reference of a model version, or None when its bundle is not here."""
    path = settings.models.repository / check_name(name) / str(model_version) / REFERENCE
    return path if path.is_file() else None


def add_bundle_schemas(book: SchemaBook, settings: Settings) -> None:
    """The prediction schemas of all bundles in the repository: their ids must be known to whoever reads them."""
    for spec in all_specs(settings.models.repository):
        book.add(topics.PREDICTIONS, prediction_schema(spec.name, spec.fields()))
        book.add(topics.REQUESTS, request_schema(spec.name, spec.fields()))


async def _or_end(handle: Callable[[RecordBatch], Awaitable[None]], batch: RecordBatch) -> None:
    try:
        await handle(batch)
    except Exception as exc:  # noqa: BLE001 - crash-only: after an unexpected error nothing may be committed
        end_process(exc)
