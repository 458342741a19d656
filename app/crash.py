"""Crash-only: a worker that met an unexpected error ends at once, and its supervisor starts it again."""

from __future__ import annotations

import logging
import os
from typing import NoReturn

log = logging.getLogger(__name__)

EXIT_CODE = 1


def end_process(error: BaseException) -> NoReturn:
    """Say why and exit without any clean-up: after the error nothing may be committed, and nothing needs saving."""
    log.critical("this worker ends: %s: %s", type(error).__name__, error)
    logging.shutdown()
    os._exit(EXIT_CODE)
