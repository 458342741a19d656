"""A tiny run of every benchmark of models: what they prove is proven here too, their figures mean nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench import cold_start, mapped, precision, remote, report, swaps
from bench.operator import Done
from bench.results import save
from bench.stack import Bench, no_stack
from bench.swaps import Measured, Swap, old_after_command

if TYPE_CHECKING:
    from pathlib import Path

    from app.embedded.stack import StackInfo


@pytest.fixture
def bench(stack: StackInfo, tmp_path: Path) -> Bench:
    """The session's broker and store."""
    return Bench(stack.bootstrap_servers, stack.redis_url, tmp_path, is_quick=True)


@pytest.mark.integration
@pytest.mark.slow
async def test_swaps(bench: Bench) -> None:
    """A label moves, a new version is loaded: nobody else answers afterwards, and every row is that of its version."""
    figures = await swaps.run(bench)
    assert figures["old_after_command"] == 0
    assert set(figures["answers_by_version"]) == {"1", "2", "3"}
    assert figures["evidence"]["bit_equal"] == figures["evidence"]["answer_is_evidence"] == figures["evidence"]["rows"]


@pytest.mark.integration
@pytest.mark.slow
async def test_cold_start(bench: Bench) -> None:
    """The stages add up to the first score, and the cache is in the state that the table says."""
    row = (await cold_start.run(bench))["sizes"]["1 MB"]
    assert row["cached_before"]["cold"] == 0
    assert row["cached_before"]["warm"] > 0.9
    for run in row["cold"]["runs"]:
        assert {"import", "fetch", "map", "warm-up", "join"} <= set(run["stages_s"])
        assert sum(run["stages_s"].values()) == pytest.approx(run["first_score_s"], abs=0.01)


@pytest.mark.integration
@pytest.mark.slow
async def test_mapped(bench: Bench) -> None:
    """Each of two workers bears half of the pages of the weights."""
    figures = await mapped.run(bench)
    assert figures["alone"]["weights_pss_mb"] == pytest.approx(figures["weights_mb"], rel=0.2)
    assert figures["weights_pss_mb"] == pytest.approx(figures["weights_mb"], rel=0.2)


@pytest.mark.integration
@pytest.mark.slow
async def test_remote(bench: Bench) -> None:
    """A broken download is not served; the next start goes on where it ended, and the one after needs nothing."""
    broken, again, cached = (await remote.run(bench))["starts"]["ranges"]
    assert broken["outcome"] == "ended with 1"
    assert "what has arrived is kept" in broken["reason"]
    assert again["from_byte"] > 0
    assert (cached["sent_mb"], cached["from_byte"]) == (0, None)


async def test_precision() -> None:
    """Narrow numbers cost some accuracy, and every device has its rows."""
    with no_stack(is_quick=True) as bench:
        rows = (await precision.run(bench))["rows"]
    assert {(row["device"], row["precision"]) for row in rows} == {
        (device, precision) for device in ("cpu", "cuda") for precision in ("fp32", "bf16", "fp16")
    }
    errors = {row["precision"]: row["score_error"] for row in rows if row["is_run"] and row["network"] == "small"}
    assert errors["fp32"] == 0 < errors["fp16"] < errors["bf16"] < 0.05


def test_an_answer_of_the_old_version_is_found() -> None:
    """Of answers behind the end that a command was told, one by another version counts; those before it do not."""
    done = Done(("label",), 0.0, 1.0, ends_before=dict.fromkeys(range(4), 0), ends=dict.fromkeys(range(4), 2))
    swap = Swap("label", 2, (done,), done)
    versions = np.repeat([1, 1, 2, 2], 4)
    assert old_after_command(swap, None, versions) == 0
    versions[13] = 1
    assert old_after_command(swap, None, versions) == 1


def test_quantiles_are_those_of_the_requests_that_are_asked_for() -> None:
    """A slow second among nine fast ones is in the p99 of all, not in that of the median second."""
    due_s = np.arange(1000) / 100
    waits_s = np.where(due_s >= 9, 0.5, 0.01)
    found = Measured(due_s, waits_s, np.ones(1000, np.int64), 0.0)
    row = found.row(np.ones(1000, bool))
    assert (row["requests"], row["p99_ms"], row["second_p99_ms"]) == (1000, 500.0, 10.0)
    assert found.row(due_s < 9)["p99_ms"] == 10.0


def test_page_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every saved part becomes a section, and a missed target says by how much."""
    monkeypatch.setattr("bench.results.FOLDER", tmp_path)
    memory = {"rss_mb": 9.0, "pss_mb": 8.0, "private_mb": 7.0, "weights_rss_mb": 2.0, "weights_pss_mb": 2.0}
    figures = {"weights_mb": 2.0, "alone": memory, "both": [memory, memory], "weights_pss_mb": 4.0}
    path = save("mapped", figures, command="python -m bench mapped", settings={}, load_before=0.0)
    assert json.loads(path.read_text())["figures"] == figures
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "PAGE", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "MODELS_PAGE", tmp_path / "MODELS.md")
    report.write()
    page = (tmp_path / "MODELS.md").read_text()
    assert "| beside the other | 9.0 | 8.0 | 7.0 | 2.0 | 2.0 |" in page
    assert "over their size | at most 1.05 | 2 | missed by 0.95 |" in page
    assert "## mapped" not in (tmp_path / "RESULTS.md").read_text()
