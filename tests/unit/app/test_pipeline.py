"""The whole hot path between a producer and a store in memory: order, conservation, and what an error may never do."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiokafka.errors import KafkaError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import app.lanes
import app.outboxes
import app.pipeline
from app.batcher import MicroBatcher
from app.delivery import AtLeastOnce
from app.errors import DeliveryError, DeviceLost
from app.lanes import Lanes
from app.ledger import Ledger
from app.metrics import Metrics
from app.models.live_table import LiveTable
from app.outboxes import OutputTopics
from app.pipeline import ScoringPipeline
from app.poison_circuit import PoisonCircuit
from app.recent import RecentAnswers
from app.requests import RequestDecoder
from app.settings import BudgetSettings
from schemas.columnar import Decoder
from schemas.columns import to_python
from schemas.registry import SchemaBook, load_schema
from schemas.wire import parse_source_mark
from tests.fakes import FakeClock, MemoryCluster, MemoryProducer, MemoryStore, Sent
from tests.samples import TOPIC, framed, record_batch, request, sample_request_schema, store_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from app.models.live import LiveModel
    from app.models.runtime import ScoringModel
    from schemas.records import Headers, RecordBatch

SCHEMA = sample_request_schema()
DLQ = f"{TOPIC}.dlq"
PATIENCE_S = 30.0


class Boom(RuntimeError):
    """An error that nobody expects."""


@dataclass
class Bench:
    """A pipeline with everything around it in memory.

    Attributes:
        expected: offsets that were submitted, by partition.

    """

    decoder: RequestDecoder
    tables: list[LiveTable[LiveModel]]
    book: SchemaBook
    score_schema: dict[str, Any]
    spare: tuple[ScoringModel, ...] = ()
    lanes: int = 1
    window_s: float = 0.001
    max_queued_rows: int = 10_000
    max_batch_size: int = 8
    max_in_flight_batches: int = 4
    clock: FakeClock | None = None
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    store: MemoryStore = field(default_factory=lambda: MemoryStore(store_rows()))
    ledger: Ledger = field(default_factory=Ledger)
    failures: list[BaseException] = field(default_factory=list)
    circuit: PoisonCircuit = field(default_factory=lambda: PoisonCircuit(share=1.0))
    holds: list[bool] = field(default_factory=list)
    next_offset: dict[int, int] = field(default_factory=dict)
    expected: dict[int, list[int]] = field(default_factory=dict)
    dead: dict[int, list[int]] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        producer = MemoryProducer(self.cluster)
        await producer.start()
        self.metrics = Metrics(BudgetSettings(), now_s=FakeClock())
        clocks: dict[str, Any] = {"now_s": self.clock, "wall_s": self.clock} if self.clock else {}
        self.pipeline = ScoringPipeline(
            decoder=self.decoder,
            batcher=MicroBatcher(max_batch_size=self.max_batch_size, window_s=self.window_s),
            lanes=Lanes(self.lanes, on_device_lost=self.on_device_lost),
            output=OutputTopics("scores", "predictions-log", DLQ),
            delivery=AtLeastOnce(producer),  # type: ignore[arg-type]
            ledger=self.ledger,
            recent=RecentAnswers(remembered=1000, max_age_s=600.0),
            circuit=self.circuit,
            on_hold=self.holds.append,
            metrics=self.metrics,
            on_failure=self.failures.append,
            max_queued_rows=self.max_queued_rows,
            max_in_flight_batches=self.max_in_flight_batches,
            **clocks,
        )
        self.producer = producer
        await self.pipeline.switch(self.tables[0])
        self.pipeline.start()
        return self

    async def on_device_lost(self, live: LiveModel, lost: DeviceLost) -> None:
        """The spare instances take over; without any the loss is fatal."""
        if not self.spare:
            raise lost
        live.scorers = self.spare

    async def __aexit__(self, *_: object) -> None:
        for topic in ("scores", "predictions-log", DLQ):
            self.cluster.release(topic)
        await self.pipeline.stop()
        await self.producer.stop()

    def batch(self, kinds: str, partition: int = 0, gap: int = 0, headers: Headers = ()) -> RecordBatch:
        """The next records of a partition: g good, i invalid, d dead; ``gap`` offsets are missing before them."""
        first = self.next_offset.get(partition, 0) + gap
        schema_id = self.book.add(TOPIC, SCHEMA)
        records = [request(first + i, distance=None if kind == "i" else 5.0) for i, kind in enumerate(kinds)]
        values = [None if kind == "d" else framed(SCHEMA, schema_id, r) for kind, r in zip(kinds, records, strict=True)]
        keys = [str(r["entity_id"]).encode() for r in records]
        self.next_offset[partition] = first + len(kinds)
        for i, kind in enumerate(kinds):
            (self.dead if kind == "d" else self.expected).setdefault(partition, []).append(first + i)
        return record_batch(
            values,
            keys,
            partition=partition,
            first=first,
            headers=[headers] * len(kinds) if headers else (),
            received_s=(self.clock or time.monotonic)(),
        )

    async def submit(self, kinds: str, partition: int = 0, gap: int = 0) -> None:
        """Hand the next records of a partition over."""
        await self.pipeline.submit(self.batch(kinds, partition, gap))

    def answered(self, partition: int) -> list[int]:
        """Offsets of the requests that have an answer, in the order in which the answers were sent."""
        return [_offset(sent) for sent in self.cluster.records["scores", partition]]

    def statuses(self) -> list[str]:
        """Statuses of all answers."""
        decoded = Decoder(self.score_schema).decode([s.value or b"" for s in self.cluster.topic("scores")])
        return [row["status"] for row in to_python(decoded.columns)]

    def assert_nothing_unanswered_is_committable(self) -> None:
        """Every offset below what may be committed has its terminal record at the broker."""
        for (_, partition), end in self.ledger.committable().items():
            answers = set(self.answered(partition))
            letters = {_offset(sent) for sent in self.cluster.records[DLQ, partition]}
            assert {o for o in self.expected.get(partition, []) if o < end} <= answers
            assert {o for o in self.dead.get(partition, []) if o < end} <= letters


def _offset(sent: Sent) -> int:
    return parse_source_mark(dict(sent.headers)["x-src"])[2]


@pytest.fixture
def make_bench(
    model: ScoringModel,
    make_live: Callable[..., LiveModel],
    book: SchemaBook,
    pytestconfig: pytest.Config,
) -> Callable[..., Bench]:
    """Fresh benches."""
    folder: Path = pytestconfig.rootpath / "schemas"

    def make(**options: Any) -> Bench:  # noqa: ANN401 - fields of Bench
        store = options.setdefault("store", MemoryStore(store_rows()))
        fresh = RequestDecoder(book, max_request_bytes=4096)
        table = LiveTable.of([make_live(model, store)])
        return Bench(fresh, [table], book, load_schema(folder, "score"), **options)

    return make


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a state of many parts."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - no event stands for it
            await asyncio.sleep(0.001)


fetches = st.lists(
    st.tuples(st.text(alphabet="ggggid", min_size=1, max_size=20), st.integers(0, 2), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=10,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fetches)
async def test_every_request_is_answered_once_in_order(
    make_bench: Callable[..., Bench], batches: list[tuple[str, int, int, bool]]
) -> None:
    """Random fetches of several partitions: answers in offset order, nothing lost, nothing twice, all committable."""
    async with make_bench() as bench:
        for kinds, partition, gap, pause in batches:
            await bench.submit(kinds, partition, gap)
            bench.assert_nothing_unanswered_is_committable()
            if pause:
                await asyncio.sleep(0.002)
        assert await bench.pipeline.drain(PATIENCE_S)
        for partition in bench.next_offset:
            assert bench.answered(partition) == bench.expected.get(partition, [])
            letters = [_offset(s) for s in bench.cluster.records[DLQ, partition]]
            assert set(letters) >= set(bench.dead.get(partition, []))
            assert letters == sorted(set(letters))
        assert bench.ledger.committable() == {(TOPIC, p): end for p, end in bench.next_offset.items()}
        assert not any(bench.ledger.in_flight().values())
        assert (bench.failures, bench.pipeline.queued_rows) == ([], 0)
        conservation = bench.metrics.snapshot()["conservation"]
        assert conservation["in_flight"] == 0
        assert conservation["undecodable"] == sum(map(len, bench.dead.values()))


async def test_nothing_is_committable_before_the_broker_has_all_of_it(make_bench: Callable[..., Bench]) -> None:
    """An answer without its evidence, evidence without its answer, or a lost dead letter: not answered."""
    for held in ("scores", "predictions-log", DLQ):
        async with make_bench() as bench:
            bench.cluster.hold(held)
            await bench.submit("gdgi")
            others = {"scores", "predictions-log", DLQ} - {held}
            await until(lambda: all(bench.cluster.topic(topic) for topic in others))  # noqa: B023
            await asyncio.sleep(0.02)
            assert bench.ledger.committable() == {}
            assert not await bench.pipeline.drain(0.01)
            bench.cluster.release(held)
            assert await bench.pipeline.drain(PATIENCE_S)
            assert bench.ledger.committable() == {(TOPIC, 0): 4}


async def test_drained_means_every_part_is_acknowledged(make_bench: Callable[..., Bench]) -> None:
    """A fetch that was cut into several micro-batches is not done when its last part is."""
    async with make_bench() as bench:
        bench.cluster.hold("predictions-log")
        await bench.submit("g" * 8 + "i" * 8)  # the second micro-batch has no evidence to wait for
        await until(lambda: len(bench.answered(0)) == 16)
        await asyncio.sleep(0.02)
        assert bench.ledger.committable() == {}
        assert not await bench.pipeline.drain(0.01)
        bench.cluster.release("predictions-log")
        assert await bench.pipeline.drain(PATIENCE_S)
        assert bench.ledger.committable() == {(TOPIC, 0): 16}


class _Once:
    """Stands before a function and raises on its n-th call."""

    def __init__(self, inner: Callable[..., Any], on_call: int) -> None:
        self.inner, self.on_call, self.calls = inner, on_call, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self.calls += 1
        if self.calls == self.on_call:
            raise Boom
        return self.inner(*args, **kwargs)


def _champion(pipeline: ScoringPipeline) -> LiveModel:
    return pipeline._decoder.table.champion


STAGES: dict[str, tuple[Callable[[ScoringPipeline], object], str]] = {
    "decode": (lambda pipeline: pipeline._decoder, "decode"),
    "form": (lambda _: app.pipeline, "form"),
    "divide": (lambda _: app.pipeline, "divide"),
    "lookup": (lambda pipeline: _champion(pipeline).lookup, "fetch"),
    "compute": (lambda _: app.lanes, "compute"),
    "evidence": (lambda pipeline: _champion(pipeline).writer, "predictions"),
    "encode": (lambda pipeline: _champion(pipeline).writer, "scores"),
    "outboxes": (lambda _: app.outboxes, "_answer_headers"),
    "send": (lambda pipeline: pipeline._delivery, "send"),
    "ledger": (lambda pipeline: pipeline.ledger, "deliver"),
    "metrics": (lambda pipeline: pipeline._metrics, "observe_batch"),
}


@pytest.mark.parametrize(("stage", "on_call"), list(itertools.product(STAGES, (1, 3))))
async def test_an_error_in_any_stage_commits_nothing_past_it(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, stage: str, on_call: int
) -> None:
    """The failure is reported once, no unanswered offset may be committed, and nothing more is taken."""
    async with make_bench() as bench:
        find, name = STAGES[stage]
        target = find(bench.pipeline)
        monkeypatch.setattr(target, name, _Once(getattr(target, name), on_call))
        with_error = 0
        for number in range(24):
            try:
                await asyncio.wait_for(bench.submit("gdgi", number % 2), PATIENCE_S)
            except DeliveryError:
                with_error += 1
            await asyncio.sleep(0.002)
            bench.assert_nothing_unanswered_is_committable()
        await until(lambda: bool(bench.failures))
        await asyncio.sleep(0.02)
        assert [type(failure) for failure in bench.failures] == [Boom]
        assert isinstance(bench.pipeline.failure, Boom)
        bench.assert_nothing_unanswered_is_committable()
        for partition in (0, 1):
            assert bench.answered(partition) == bench.expected[partition][: len(bench.answered(partition))]
        with pytest.raises(DeliveryError, match="has stopped"):
            await bench.submit("g")
        if stage not in {"decode", "ledger", "metrics"}:  # of these, none leaves a delivered record unanswered
            assert not await bench.pipeline.drain(0.01)


@pytest.mark.parametrize("topic", ["scores", "predictions-log", DLQ])
async def test_a_record_that_the_broker_refuses_stops_everything(make_bench: Callable[..., Bench], topic: str) -> None:
    """After a failed send no later answer leaves and nothing past it is committed."""
    async with make_bench() as bench:
        await bench.submit("gdgi")
        assert await bench.pipeline.drain(PATIENCE_S)
        bench.cluster.fails_on, bench.cluster.failure = topic, KafkaError("not enough replicas")
        for _ in range(5):
            try:
                await bench.submit("gdgi")
            except DeliveryError:
                break
        await until(lambda: bool(bench.failures))
        await asyncio.sleep(0.02)
        assert [type(failure) for failure in bench.failures] == [DeliveryError]
        assert bench.ledger.committable() == {(TOPIC, 0): 4}
        bench.assert_nothing_unanswered_is_committable()


async def test_a_store_that_fails_degrades_and_does_not_stop(make_bench: Callable[..., Bench]) -> None:
    """Answers go on with defaults, and the failures are counted."""
    async with make_bench() as bench:
        bench.store.error = "gone"
        await bench.submit("gg")
        assert await bench.pipeline.drain(PATIENCE_S)
        assert bench.statuses() == ["DEGRADED", "DEGRADED"]
        assert bench.metrics.counter("store_failures") >= 1
        assert bench.failures == []


async def test_input_waits_while_too_much_is_under_way(make_bench: Callable[..., Bench]) -> None:
    """A broker that does not acknowledge stops the intake: what is held is bounded by the queues, not by the input."""
    async with make_bench(max_queued_rows=24, max_in_flight_batches=2) as bench:
        bench.cluster.hold("scores")
        taken = 0

        async def feed() -> None:
            nonlocal taken
            for _ in range(100):
                await bench.submit("g" * 8)
                taken += 1

        feeder = asyncio.create_task(feed())
        await asyncio.sleep(0.3)
        assert not feeder.done()
        batches = 2 + 1 + app.pipeline.EMIT_QUEUE + 1 + app.pipeline.COMPUTE_QUEUE + 1
        """In flight; in emit; queued for it; in compute; queued for it; being formed."""
        assert bench.ledger.in_flight()[TOPIC, 0] <= 24 + 8 + 8 * batches
        assert bench.pipeline.queued_rows <= 24 + 8
        bench.cluster.release("scores")
        await asyncio.wait_for(feeder, PATIENCE_S)
        assert await bench.pipeline.drain(PATIENCE_S)
        assert bench.answered(0) == list(range(800))


async def test_a_waiting_submit_ends_when_the_pipeline_fails(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back-pressure must not hide a failure: who waits for room is let go."""
    async with make_bench(max_queued_rows=4) as bench:
        monkeypatch.setattr(app.lanes, "compute", _Once(app.lanes.compute, 1))

        async def feed() -> None:
            for _ in range(50):
                await bench.submit("g" * 8)

        with pytest.raises(DeliveryError):
            await asyncio.wait_for(feed(), PATIENCE_S)


async def test_timings_add_up_to_the_total(make_bench: Callable[..., Bench]) -> None:
    """For every answered row the stages are not negative, and their sum is the total."""
    async with make_bench() as bench:
        for _ in range(5):
            await bench.submit("ggigg")
            await asyncio.sleep(0.001)
        assert await bench.pipeline.drain(PATIENCE_S)
        decoded = Decoder(bench.score_schema).decode([s.value or b"" for s in bench.cluster.topic("scores")])
        for row in to_python(decoded.columns):
            stages = dict(row["timings"])
            total = stages.pop("total_us")
            assert sum(stages.values()) == total
            assert min(stages.values()) >= 0


async def test_a_row_past_its_deadline_expires(make_bench: Callable[..., Bench]) -> None:
    """At the deadline on the wall clock it is answered EXPIRED; a later one is scored."""
    clock = FakeClock(1000.0)
    async with make_bench(clock=clock) as bench:
        await bench.pipeline.submit(bench.batch("g", headers=(("x-deadline-unix-ms", b"1000000"),)))
        assert await bench.pipeline.drain(PATIENCE_S)
        await bench.pipeline.submit(bench.batch("g", headers=(("x-deadline-unix-ms", b"1000001"),)))
        assert await bench.pipeline.drain(PATIENCE_S)
        assert bench.statuses() == ["EXPIRED", "DEGRADED"], "plane N1 is stale"


async def test_after_a_rebalance_the_partition_starts_again(make_bench: Callable[..., Bench]) -> None:
    """Revoked and delivered again from the committed offset, records are answered again and committed."""
    async with make_bench() as bench:
        await bench.submit("ggg")
        assert await bench.pipeline.drain(PATIENCE_S)
        bench.ledger.revoke()
        bench.next_offset, bench.expected = {}, {}
        await bench.submit("gggg")
        assert await bench.pipeline.drain(PATIENCE_S)
        assert bench.answered(0) == [0, 1, 2, 0, 1, 2, 3]
        assert bench.ledger.committable() == {(TOPIC, 0): 4}


async def test_what_has_not_fired_is_given_back(make_bench: Callable[..., Bench]) -> None:
    """A backlog does not delay a rebalance: what fired is answered, the rest is neither answered nor committable."""
    async with make_bench(max_in_flight_batches=1) as bench:
        bench.cluster.hold("scores")
        for _ in range(20):
            await bench.submit("ggdgig")
        await asyncio.sleep(0.05)
        waiting = bench.pipeline.queued_rows
        assert waiting > 0, "the brokers hold the answers back, so a backlog stands before the device"
        release = asyncio.create_task(bench.pipeline.release(PATIENCE_S))
        await asyncio.sleep(0)
        assert bench.pipeline.queued_rows == 0
        bench.cluster.release("scores")
        assert await release
        answered = bench.ledger.committable()[TOPIC, 0]
        assert 0 < answered < 120
        consumed = bench.metrics.snapshot()["conservation"]
        assert consumed["consumed"] == answered
        assert consumed["in_flight"] == 0
        assert not bench.failures
