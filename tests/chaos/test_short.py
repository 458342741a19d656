"""The most telling scenarios in their short form, on brokers, stores and workers of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.embedded.warm import prepare_fast_starts
from chaos.catalogue import named
from chaos.runner import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SEED = 1


@pytest.fixture(scope="module", autouse=True)
def fast_starts() -> None:
    """Brokers start faster from a cache of their classes."""
    prepare_fast_starts(print)


@pytest.mark.parametrize("name", ["kill-loop", "zombie", "store-hung"])
async def test_every_promise_is_kept(name: str, tmp_path: Path) -> None:
    """Nothing is lost, repeated answers can be told, every score is the model's, no commit runs ahead."""
    result = await run(named(name), seed=SEED, mode="at_least_once", profile="short", say=print, keep=tmp_path / name)
    assert result.problems == [], result.figures
    assert result.figures["requests"] > 500
