"""The composition root: wires both Faust apps; the only module, with the views, that sees every room.

``faust -A app.main:scoring worker`` and ``sluice worker scoring`` run the same app.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from faust.exceptions import ConsumerNotStarted

from agents import scoring as scoring_agent
from agents import topics
from agents.control import send_wishes
from agents.life import MonitorLife, ScoringLife, WorkerLife, WorkerParts
from agents.worker_stats import WorkerIdentity, WorkerStats
from app.batcher import MicroBatcher
from app.committer import Committer
from app.crash import end_process
from app.delivery import AtLeastOnce, Delivery
from app.exactly_once import ExactlyOnce
from app.faust_app import SluiceApp, make_app
from app.features import RedisFeatureStore
from app.health import Health
from app.lanes import Lanes
from app.ledger import Ledger
from app.metrics import Metrics
from app.models.control import encode
from app.models.policy import parse_policies
from app.models.repository import configured_repository
from app.outboxes import OutputTopics
from app.pipeline import ScoringPipeline
from app.poison_circuit import PoisonCircuit
from app.producer import OutputProducer
from app.recent import RecentAnswers
from app.requests import RequestDecoder
from app.settings import DeliverySettings, ModelSettings, Settings, load_settings
from app.start_stages import StartStages
from app.transport import commit_offsets, crash_reason, hold_consumer
from app.views import attach_views
from app.views_models import LiveModels
from schemas.generate import prediction_schema, request_schema
from schemas.registry import SchemaBook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.errors import DeviceLost
    from app.ledger import Partition
    from app.models.control import Target, Wish
    from app.models.live import LiveModel
    from app.models.live_loader import LiveLoader
    from app.models.manager import ModelManager
    from app.models.policy import VersionPolicy
    from app.models.repository import Repository
    from app.views_models import ModelsView
    from schemas.records import RecordBatch


def __getattr__(name: str) -> Any:  # noqa: ANN401 - built on first use, so that importing this module costs nothing
    """``scoring`` and ``monitor``, built from the settings on first use."""
    builders = {"scoring": build_scoring, "monitor": build_monitor}
    if name not in builders:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return globals().setdefault(name, builders[name](load_settings()))


def version_policies(models: ModelSettings) -> dict[str, VersionPolicy]:
    """What is served when no operator says otherwise; the first model is the default one.

    Raises:
        SettingsError: ``models.serve`` cannot be read.

    """
    if models.serve:
        return parse_policies(models.serve)
    which = "latest" if models.version is None else str(models.version)
    return parse_policies(f"{models.name}@{which}")


def build_scoring(settings: Settings) -> SluiceApp:
    """The scoring worker; before it joins its group its models are loaded, verified and warm."""
    # torch: the monitor loads no model and is spared it.
    from app.models.architectures import load_architecture_modules  # noqa: PLC0415
    from app.models.compute_threads import set_compute_threads  # noqa: PLC0415
    from app.models.live_loader import LiveLoader  # noqa: PLC0415

    start = StartStages()
    start.ended("import")
    policies = version_policies(settings.models)
    set_compute_threads(settings.models.threads)
    load_architecture_modules(settings.models.architecture_modules)
    app = make_app(settings, "scoring", [topics.REQUESTS])
    metrics = Metrics(settings.budget, now_s=time.monotonic)
    producer = OutputProducer(settings.kafka, client_id=f"{settings.deployment}-scoring")
    store = RedisFeatureStore(settings.redis)
    ledger = Ledger()
    book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
    repository = configured_repository(settings.models)
    circuit = _poison_circuit(settings.delivery)
    delivery = make_delivery(settings, app.conf.id, producer, ledger, metrics)
    loader = LiveLoader(settings, book, store, metrics)

    async def go_elsewhere(live: LiveModel, lost: DeviceLost) -> None:
        scorers = await asyncio.to_thread(loader.elsewhere, live, lost)
        manager.replace_scorers(live, scorers, f"serving on the CPU: {lost}")

    pipeline = ScoringPipeline(
        decoder=RequestDecoder(book, max_request_bytes=settings.delivery.max_request_bytes),
        batcher=MicroBatcher(
            max_batch_size=settings.batching.max_batch_size, window_s=settings.batching.window_ms / 1000
        ),
        lanes=Lanes(loader.lanes, on_device_lost=go_elsewhere),
        output=OutputTopics(topics.SCORES, topics.PREDICTIONS, topics.REQUESTS_DLQ),
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
    manager = make_manager(settings, policies, repository, loader, pipeline)
    committer = Committer(
        _offsets_committer(app, settings), ledger, settings.delivery, metrics,
        on_failure=end_process, crash_reason=partial(crash_reason, app), is_held=lambda: circuit.is_holding,
    )  # fmt: skip
    gate = scoring_agent.Gate()
    scoring_agent.attach(app, [topics.REQUESTS], pipeline.submit, gate)
    health = _health(app, settings, committer, lambda: pipeline.failure)
    health.add_check("poison", lambda: circuit.problem(time.monotonic()))
    health.add_check("models", manager.problem)
    stats = _attach_views(
        app, settings, "scoring", book=book, producer=producer, metrics=metrics, health=health,
        figures=lambda: {**metrics.snapshot(), "models": manager.document(), "start_s": start.seconds},
        models=_models_view(settings, manager, repository),
    )  # fmt: skip
    parts = WorkerParts(app, settings, producer, committer, stats, ledger, gate, start)
    _attach_life(app, ScoringLife(parts, pipeline, delivery, store, book, manager))
    return app


def make_manager(
    settings: Settings,
    policies: dict[str, VersionPolicy],
    repository: Repository,
    loader: LiveLoader,
    pipeline: ScoringPipeline,
) -> ModelManager:
    """The manager of a worker's models; nothing is loaded yet."""
    from app.models.manager import ModelManager  # noqa: PLC0415 - see build_scoring
    from app.models.version_loader import VersionLoader  # noqa: PLC0415

    models = settings.models
    return ModelManager(
        policies,
        VersionLoader(repository, loader, max_run_ms=models.max_run_ms),
        poll_s=models.poll_s,
        memory_bytes=None if models.memory_mb is None else int(models.memory_mb * 2**20),
        switch=pipeline.switch,
    )


def _models_view(settings: Settings, manager: ModelManager, repository: Repository) -> LiveModels:
    async def send(wishes: list[tuple[Target, Wish]]) -> list[int]:
        return await send_wishes(settings.kafka, [encode(target, wish) for target, wish in wishes])

    return LiveModels(manager.document, manager.spec, repository.versions, send)


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
    models: ModelsView | None = None,
) -> WorkerStats:
    url = f"http://{settings.web.host}:{app.conf.web_port}"
    identity = WorkerIdentity(f"{settings.deployment}-{role}-{os.getpid()}", role, url)
    stats = WorkerStats(settings, book, producer, identity, lambda: {"group": _membership(app, settings), **figures()})
    attach_views(
        app,
        health=health,
        stats=stats.document,
        collector=metrics.collector(),
        reports=settings.monitor.reports,
        version=version("sluice"),
        models=models,
        allow_model_control=settings.web.allow_model_control,
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
        return None if stalled_s < settings.delivery.stall_after_s else f"nothing committed for {stalled_s:.0f} s"

    health = Health()
    health.add_check("worker", problem, live=True)
    health.add_check("assignment", partial(_assignment_problem, app, is_standby=settings.kafka.standby))
    health.add_check("progress", progress)
    return health


def _assigned(app: SluiceApp) -> list[int]:
    """Numbers of the partitions that the worker has."""
    with contextlib.suppress(ConsumerNotStarted):
        return sorted({tp.partition for tp in app.consumer.assignment()})
    return []


def _assignment_problem(app: SluiceApp, *, is_standby: bool) -> str | None:
    """Why the worker answers nothing, or as a standby could take nothing over; None when it could."""
    has_joined = app.consumer_generation_id > 0 and not app.rebalancing
    if has_joined and (is_standby or _assigned(app)):
        return None
    return "no partition is assigned yet, or a rebalance is under way"


def _membership(app: SluiceApp, settings: Settings) -> dict[str, Any]:
    """What the worker is in its group."""
    return {"is_standby": settings.kafka.standby, "partitions": _assigned(app)}


def build_monitor(settings: Settings) -> SluiceApp:
    """The monitor worker: joins outcomes to predictions, closes windows, judges drift, writes reports."""
    from agents.outcomes import OutcomeMonitor  # noqa: PLC0415 - SciPy and pandas: the scoring worker is spared them

    start = StartStages()
    start.ended("import")
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
        configured_repository(settings.models).reference_path,
        learn_schemas=partial(add_bundle_schemas, book, settings),
    )
    ledger = Ledger()
    committer = Committer(
        partial(commit_offsets, app), ledger, settings.delivery, metrics,
        on_failure=end_process, crash_reason=partial(crash_reason, app),
    )  # fmt: skip

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
        app, settings, "monitor", book=book, producer=producer, metrics=metrics, health=health,
        figures=lambda: {**monitor.snapshot(), "start_s": start.seconds},
    )  # fmt: skip
    parts = WorkerParts(app, settings, producer, committer, stats, ledger, gate, start)
    _attach_life(app, MonitorLife(parts, monitor, metrics))
    return app


def add_bundle_schemas(book: SchemaBook, settings: Settings) -> None:
    """The schemas of all bundles in the repository: their ids must be known to whoever reads them."""
    for spec in configured_repository(settings.models).specs():
        book.add(topics.PREDICTIONS, prediction_schema(spec.name, spec.fields()))
        book.add(topics.REQUESTS, request_schema(spec.name, spec.fields()))


async def _or_end(handle: Callable[[RecordBatch], Awaitable[None]], batch: RecordBatch) -> None:
    try:
        await handle(batch)
    except Exception as exc:  # noqa: BLE001 - crash-only: after an unexpected error nothing may be committed
        end_process(exc)
