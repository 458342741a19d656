"""The most telling scenarios in their short form, on brokers, stores and workers of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.embedded.warm import prepare_fast_starts
from chaos.catalogue import named
from chaos.runner import run

if TYPE_CHECKING:
    from pathlib import Path

    from chaos.scenario import Mode

pytestmark = pytest.mark.integration

SEED = 1


@pytest.fixture(scope="module", autouse=True)
def fast_starts() -> None:
    """Brokers start faster from a cache of their classes."""
    prepare_fast_starts(print)


@pytest.mark.parametrize(
    ("name", "mode"), [("kill-loop", "exactly_once"), ("zombie", "exactly_once"), ("zombie", "at_least_once")]
)
async def test_every_promise_is_kept(name: str, mode: Mode, tmp_path: Path) -> None:
    """Nothing is lost, nothing repeated that a reader cannot tell, every score the model's, no commit ahead."""
    result = await run(named(name), seed=SEED, mode=mode, profile="short", say=print, keep=tmp_path / name)
    assert result.problems == [], result.figures
    assert result.figures["requests"] > 500
