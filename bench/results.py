"""Results: one JSON a part with machine, versions and settings."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).parent / "results"
PACKAGES = (
    "faust-streaming",
    "aiokafka",
    "torch",
    "numpy",
    "fastavro",
    "redis",
    "hiredis",
    "uvloop",
    "confluent-kafka",
    "bytewax",
    "faststream",
    "quixstreams",
)


def save(part: str, figures: dict[str, Any], *, command: str, settings: dict[str, Any], load_before: float) -> Path:
    """Write ``bench/results/<part>.json``."""
    FOLDER.mkdir(exist_ok=True)
    document = {
        "part": part,
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": current_commit(),
        "machine": machine() | {"load_before": round(load_before, 2)},
        "versions": versions(),
        "settings": settings,
        "figures": figures,
    }
    path = FOLDER / f"{part}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """Processor, cores, memory, and how busy it is with other work."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of everything that is compared."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def current_commit() -> str:
    """Short id of the checked-out commit."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip() or "unknown"
