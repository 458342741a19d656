"""Threads of a run, and their priority."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from app.models.compute_threads import LOADER_NICENESS, lower_priority, set_compute_threads


def test_the_bound_reaches_threads_that_compute_later() -> None:
    """The compute thread starts after it was set."""
    before = torch.get_num_threads()
    try:
        set_compute_threads(3)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        set_compute_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities by thread are Linux's")
def test_the_loader_is_less_urgent_and_so_is_what_it_starts() -> None:
    """Its own thread and a thread started from it, as torch's pools are; no other."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def load() -> tuple[int, int]:
        lower_priority()
        with ThreadPoolExecutor(1) as pool:
            return niceness(), pool.submit(niceness).result()

    before = niceness()
    with ThreadPoolExecutor(1) as pool:
        lowered = pool.submit(load).result()
    assert lowered == (min(before + LOADER_NICENESS, 19),) * 2
    assert niceness() == before
