"""A tiny run of every benchmark, so that none of them rots; no figure is judged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bench import (
    codec,
    delivery,
    device,
    hostile,
    latency,
    measuring,
    memory,
    overload,
    redis_faults,
    replay,
    report,
    throughput,
)
from bench.__main__ import PARTS
from bench.batching_simulation import compare
from bench.contenders import KINDS
from bench.stack import Bench, no_stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.embedded.stack import StackInfo


@pytest.fixture
def without_broker() -> Iterator[Bench]:
    """A folder alone."""
    with no_stack(is_quick=True) as bench:
        yield bench


@pytest.fixture
def bench(stack: StackInfo, tmp_path: Path) -> Bench:
    """The session's broker and store."""
    return Bench(stack.bootstrap_servers, stack.redis_url, tmp_path, is_quick=True)


async def test_codec(without_broker: Bench) -> None:
    """Both codecs write the same bytes, and every record type has its figures."""
    figures = await codec.run(without_broker)
    assert set(figures["records"]) == {"request", "score", "prediction"}


async def test_measuring(without_broker: Bench) -> None:
    """Both kinds of run are timed, and the unmeasured pipeline answers as well."""
    figures = await measuring.run(without_broker)
    assert figures["cpu_us_on"] > 0
    assert figures["cpu_us_off"] > 0


async def test_device(without_broker: Bench) -> None:
    """The pipeline from memory and the bare loop run for both sizes."""
    figures = await device.run(without_broker)
    assert {name: row["rows"] for name, row in figures["models"].items()} == {"small": 2048, "large": 2048}


def test_batching_simulation() -> None:
    """Every rule is tried on every device, load and trace."""
    assert len(compare(count=50)) == 24


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("with_store", [False, True])
async def test_throughput(bench: Bench, with_store: bool) -> None:
    """Each installed contender answers every request, with its evidence."""
    figures = await throughput.run(bench, with_store=with_store)
    installed = {kind.name for kind in KINDS if kind.is_installed}
    assert installed <= set(figures["contenders"])
    assert all(run["evidence_share"] > 0.5 for row in figures["contenders"].values() for run in row["runs"])


@pytest.mark.integration
@pytest.mark.slow
async def test_latency(bench: Bench) -> None:
    """Every request of the schedule gets a latency, through the echo and through the service."""
    figures = await latency.run(bench)
    assert figures["rates"]["light, 100/s"]["sluice"]["p50_ms"] > 0


@pytest.mark.integration
@pytest.mark.slow
async def test_overload(bench: Bench) -> None:
    """Every request that was sent is answered, and the device saw just the rows that were scored."""
    over = (await overload.run(bench))["overload"]
    assert over["answered"] == over["sent"]
    assert over["device_rows"] == over["scored_rows"] + over["expired_after_device"]


@pytest.mark.integration
async def test_replay(bench: Bench) -> None:
    """Every logged row scores to the same bits again."""
    figures = await replay.run(bench)
    assert figures["bit_equal"] == figures["rows"] == 4000


@pytest.mark.integration
@pytest.mark.slow
async def test_delivery(bench: Bench) -> None:
    """Both modes answer everything, and a read_committed reader sees it."""
    figures = await delivery.run(bench)
    assert set(figures["requests_per_s"]) == set(figures["light"]) == {"at_least_once", "exactly_once"}


@pytest.mark.integration
@pytest.mark.slow
async def test_redis_faults(bench: Bench) -> None:
    """All phases are measured and every request is answered."""
    figures = await redis_faults.run(bench)
    assert figures["answered"] == figures["sent"]


@pytest.mark.integration
@pytest.mark.slow
async def test_memory(bench: Bench) -> None:
    """The worker's memory is seen from the first answers to the last."""
    figures = await memory.run(bench, requests=8000)
    assert figures["points"][-1][0] >= 8000


@pytest.mark.integration
@pytest.mark.slow
async def test_hostile(bench: Bench) -> None:
    """Some thousand hostile records of every kind: each ends in one place, unaltered, and good ones are scored."""
    figures = await hostile.run(bench)
    zero = ("lost", "doubled", "misplaced", "altered_dead_letters", "valid_not_scored", "crashes")
    assert {name: figures[name] for name in zero} == dict.fromkeys(zero, 0)
    assert all(row["sent"] > 0 for row in figures["mutators"].values())
    assert figures["mutators"]["bomb"] == {"sent": 3, "dead letter": 3}
    assert figures["mutators"]["header junk"]["OK"] > 0


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page names a missed target, and by how much."""
    part = {
        "part": "replay", "command": "make bench ARGS=replay", "date": "today", "commit": "abc", "settings": {},
        "machine": {"cpu": "x", "cores": 2, "memory_gb": 1, "load_before": 0, "load_average": [0], "python": "3"},
        "versions": {}, "figures": {"rows": 5, "bit_equal": 3, "buckets": [8], "seconds": 1},
    }  # fmt: skip
    (tmp_path / "replay.json").write_text(json.dumps(part))
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "MODELS_PAGE", tmp_path / "MODELS.md")
    report.write()
    assert "| bit-equal rows | at least 5 | 3 | missed by 2 |" in (tmp_path / "RESULTS.md").read_text()


def test_every_part_is_tried_here() -> None:
    """A part that is added gets a smoke run too; those of models have theirs in ``test_models_smoke``."""
    assert set(PARTS) == {
        "throughput", "features", "latency", "overload", "replay", "hostile", "delivery", "redis_faults",
        "codec", "measuring", "memory", "memory-10m", "gpu",
        "swaps", "cold_start", "mapped", "remote", "precision",
    }  # fmt: skip
