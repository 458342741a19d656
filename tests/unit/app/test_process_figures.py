"""Figures of the process: each must move with what it counts, and be on ``/metrics``."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

import pytest

from app.metrics import Metrics
from app.process_figures import process_figures
from app.settings import BudgetSettings


@pytest.mark.skipif(sys.platform != "linux", reason="files and threads are told by /proc")
async def test_a_task_and_a_file_and_a_thread_are_counted() -> None:
    """One more of each is one more in the figures."""
    before = process_figures()
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    task = asyncio.create_task(asyncio.sleep(0))
    file = os.open(__file__, os.O_RDONLY)
    try:
        after = process_figures()
    finally:
        os.close(file)
        release.set()
        thread.join()
        await task
    assert {name: (after[name] or 0) - (before[name] or 0) for name in after} == dict.fromkeys(before, 1)


async def test_they_are_scraped() -> None:
    """Each is a gauge with one sample, for whoever looks at ``/metrics``."""
    families = {f.name: f for f in Metrics(BudgetSettings(), now_s=lambda: 0.0).collector().collect()}
    for name, value in process_figures().items():
        family = families[f"sluice_{name}"]
        assert family.type == "gauge"
        assert len(family.samples) == (value is not None)
        assert family.documentation.endswith(".")
