"""Several live models in one stream: who answers what, when another table takes over, and when a device is lost."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from app.errors import DeviceLost
from app.models.bundle import open_bundle
from app.models.live_table import LiveTable
from app.models.runtime import ScoringModel
from schemas.columnar import Decoder
from schemas.columns import to_python
from schemas.generate import prediction_schema
from tests.fakes import MemoryStore
from tests.samples import TOPIC, pack_sample, sample_spec, store_rows
from tests.unit.app.test_pipeline import PATIENCE_S, Bench, make_bench, until  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from app.models.live import LiveModel
    from app.preprocess import Inputs

CHALLENGER = (("x-model-label", b"challenger"),)


class LostModel(ScoringModel):
    """Its device fails at the third batch, and at each that follows."""

    runs = 0

    def predict(self, inputs: Inputs) -> Any:  # noqa: ANN401 - as the model's
        """As the real one, until it is lost."""
        self.runs += 1
        if self.runs >= 3:
            msg = "cuda:0: lost"
            raise DeviceLost(msg)
        return super().predict(inputs)


@pytest.fixture
def versions(tmp_path: Path, make_live: Callable[..., LiveModel]) -> dict[int, LiveModel]:
    """Two versions of the sample model."""
    return {
        number: make_live(
            ScoringModel(open_bundle(pack_sample(tmp_path, sample_spec(version=number)))), MemoryStore(store_rows())
        )
        for number in (3, 4)
    }


def _table(versions: dict[int, LiveModel], champion: int) -> LiveTable[LiveModel]:
    keyed = {("sample", number): live for number, live in versions.items()}
    return LiveTable("sample", keyed, {("sample", "champion"): champion, ("sample", "challenger"): 7 - champion})


def _answers(bench: Bench) -> list[dict[str, Any]]:
    values = [sent.value or b"" for sent in bench.cluster.topic("scores")]
    return to_python(Decoder(bench.score_schema).decode(values).columns)


async def test_versions_share_a_stream(make_bench: Callable[..., Bench], versions: dict[int, LiveModel]) -> None:  # noqa: F811
    """Pinned and unpinned requests of one fetch: each version answers its own, in order, with evidence of its own."""
    async with make_bench() as bench:
        await bench.pipeline.switch(_table(versions, champion=3))
        for turn in range(12):
            batch = bench.batch("gdgigg")
            headers = [CHALLENGER if (row + turn) % 3 == 0 else () for row in range(len(batch))]
            await bench.pipeline.submit(replace(batch, headers=headers))
        assert await bench.pipeline.drain(PATIENCE_S)
        assert bench.answered(0) == bench.expected[0]
        answers = _answers(bench)
        spec = versions[3].spec
        reader = Decoder(prediction_schema(spec.name, spec.fields()))
        evidence = to_python(reader.decode([s.value or b"" for s in bench.cluster.topic("predictions-log")]).columns)
    assert {row["model_version"] for row in answers} == {3, 4}
    scored = [row for row in answers if row["status"] in {"OK", "DEGRADED"}]
    assert [(r["request_id"], r["model_version"], r["score"]) for r in evidence] == [
        (r["request_id"], r["model_version"], r["score"]) for r in scored
    ]
    digests = {row["model_version"]: row["artifact_sha256"] for row in evidence}
    assert digests == {number: live.bundle.sha256 for number, live in versions.items()}
    assert versions[3].requests + versions[4].requests == len(answers)


@pytest.mark.parametrize("lanes", [1, 2])
async def test_no_answer_of_the_old_version_follows_a_switch(
    make_bench: Callable[..., Bench],  # noqa: F811
    versions: dict[int, LiveModel],
    lanes: int,
) -> None:
    """Switched again and again under load: what was submitted after a switch has returned is the new version's."""
    async with make_bench(lanes=lanes, max_queued_rows=64) as bench:
        bench.next_offset = {1: 1_000_000}  # and other request_ids than those of partition 0, which would be duplicates
        spans: list[tuple[int, list[int], list[int]]] = []  # champion, and answers by partition from when to when
        stop = asyncio.Event()

        async def load() -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                await bench.submit("gggg", number % 2)
                await asyncio.sleep(0.001)

        def counts() -> list[int]:
            return [len(bench.cluster.records["scores", partition]) for partition in (0, 1)]

        loading = asyncio.create_task(load())
        for number in range(12):
            champion = 3 + number % 2
            assert await bench.pipeline.switch(_table(versions, champion))
            begun = counts()
            await until(lambda begun=begun: all(now > then for now, then in zip(counts(), begun, strict=True)))
            spans.append((champion, begun, counts()))
        stop.set()
        await loading
        assert await bench.pipeline.drain(PATIENCE_S)
        for partition in (0, 1):
            assert bench.answered(partition) == bench.expected[partition]
        read = Decoder(bench.score_schema)
        sent = [[s.value or b"" for s in bench.cluster.records["scores", partition]] for partition in (0, 1)]
        answers = [[row["model_version"] for row in to_python(read.decode(values).columns)] for values in sent]
    for champion, begun, ends in spans:
        for partition in (0, 1):
            assert set(answers[partition][begun[partition] : ends[partition]]) == {champion}


async def test_a_switch_waits_for_the_slowest_partition(
    make_bench: Callable[..., Bench],  # noqa: F811
    versions: dict[int, LiveModel],
) -> None:
    """Newer answers of another partition do not stand for an older one that its brokers have not acknowledged."""
    async with make_bench() as bench:
        bench.next_offset = {1: 100}
        await bench.pipeline.switch(_table(versions, 3))
        bench.cluster.hold("scores", 0)
        await bench.submit("gggg", 0)
        await until(lambda: bool(bench.cluster.records["scores", 0]))
        switching = asyncio.create_task(bench.pipeline.switch(_table(versions, 4)))
        await asyncio.sleep(0)  # it looks at what was submitted until now
        for _ in range(3):
            await bench.submit("gggg", 1)
        await until(lambda: bench.ledger.committable().get((TOPIC, 1)) == 112)
        assert not switching.done()
        bench.cluster.release("scores")
        assert await switching
        assert bench.answered(0) == bench.expected[0]


async def test_a_lost_device_costs_no_answer(
    make_bench: Callable[..., Bench],  # noqa: F811
    make_live: Callable[..., LiveModel],
    model: ScoringModel,
) -> None:
    """The batch that met it is computed again by what takes over; every request is answered once."""
    async with make_bench(spare=(model,)) as bench:
        await bench.pipeline.switch(LiveTable.of([make_live(LostModel(model.bundle), bench.store)]))
        for number in range(8):
            await bench.submit("ggig", number % 2)
            await asyncio.sleep(0.002)
        assert await bench.pipeline.drain(PATIENCE_S)
        assert not bench.failures
        for partition in (0, 1):
            assert bench.answered(partition) == bench.expected[partition]
        assert "ERROR" not in bench.statuses()


async def test_a_lost_device_without_another_ends_the_worker(
    make_bench: Callable[..., Bench],  # noqa: F811
    make_live: Callable[..., LiveModel],
    model: ScoringModel,
) -> None:
    """Nothing is answered by halves: the failure is reported, and what was not answered is not committable."""
    async with make_bench() as bench:
        await bench.pipeline.switch(LiveTable.of([make_live(LostModel(model.bundle), bench.store)]))
        async with asyncio.timeout(PATIENCE_S):
            while not bench.failures:
                await bench.submit("gg")
                await asyncio.sleep(0.002)
        assert isinstance(bench.failures[0], DeviceLost)
        bench.assert_nothing_unanswered_is_committable()
