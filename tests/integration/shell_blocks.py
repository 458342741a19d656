"""Runs the shell blocks of a document in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 400


def run_script(script: str, clone: Path, environment: dict[str, str]) -> str:
    """What the commands print; they and all that they started end, whatever happens."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    log = (clone / "worker.log").read_text() if (clone / "worker.log").exists() else ""
    assert process.returncode == 0, f"{out}\n{err}\n{log}"
    return out
