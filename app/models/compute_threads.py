"""How many threads a network computes with, and how urgent they are."""

from __future__ import annotations

import os
import sys
import threading

import torch

LOADER_NICENESS = 10
"""On top of the process's own: a tenth of the processor time of a thread that serves, when both want all of it."""


def set_compute_threads(count: int) -> None:
    """Bound the threads of one network run; once, before any thread but the caller's has computed.

    A thread that computes learns the bound at its first run and has a pool of its own; later calls do not reach it.

    One is best wherever the event loop and the compute thread share the cores. The threads of a run wait for each
    other, spinning, so one that the loop holds up holds up all: on two busy cores, a network of 64 and 32 units made
    400 to 620 runs of 2048 rows a second with one thread, 13 to 43 with two; a network of 2048 units 7 to 10 and 6.
    Two pay for large networks on cores that have nothing else to do. More throughput comes from more processes.

    Args:
        count: the setting ``models.threads``, >= 1.

    """
    torch.set_num_threads(count)


def lower_priority() -> None:
    """Let the calling thread, and the pools that it starts, wait for the threads that serve.

    For the thread that loads and warms up a model. Only Linux has priorities by thread; elsewhere nothing happens.
    There is no way back without privileges, so the thread does nothing urgent afterwards.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness + LOADER_NICENESS, 19))
