"""Runs one Faust app in this process, on uvloop, until a signal ends it."""

from __future__ import annotations

import gc
import logging.config
import sys
from typing import Any

import mode.loop

mode.loop.use("uvloop")  # before anything makes an event loop

import faust  # noqa: E402

from app import main  # noqa: E402
from app.closed_transports import expect_closed_transports  # noqa: E402
from app.settings import load_settings  # noqa: E402

SWITCH_INTERVAL_S = 0.0005
"""Python's 5 ms would let the compute thread wait that long for the event loop, more than most models run."""


def run_worker(role: str, log_level: str) -> None:
    """Build and run the app of a role; returns never, the exit code says how it ended.

    Args:
        role: scoring or monitor.
        log_level: of the root logger.

    Raises:
        SluiceError: the app cannot be built; the message says why and what to do.

    """
    config = logging_config(log_level.upper())
    logging.config.dictConfig(config)
    expect_closed_transports()
    builders = {"scoring": main.build_scoring, "monitor": main.build_monitor}
    app = builders[role](load_settings())
    calm_garbage_collector()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    faust.Worker(
        app, loglevel=log_level.upper(), logging_config=config, redirect_stdouts=False, quiet=True
    ).execute_from_commandline()


def calm_garbage_collector() -> None:
    """Spare the collector what never dies, and let it run far less often.

    A fetched record is an object that the collector tracks, so with Python's default it would walk the heap, torch's
    modules included, several times for each record batch; the records die by reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def logging_config(level: str) -> dict[str, Any]:
    """One line a record on standard error; the libraries below us speak from WARNING on."""
    chatty = {name: {"level": "WARNING"} for name in ("aiokafka", "faust", "mode")}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)-8s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"level": level, "handlers": ["stderr"]},
        "loggers": chatty,
    }
