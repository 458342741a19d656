"""What the harness tells a contender, in the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Contender:
    """Addresses, group and bundle."""

    servers: str
    redis_url: str
    group: str
    repository: Path
    model: str

    @classmethod
    def from_environment(cls) -> Contender:
        """As ``bench.contenders`` sets it."""
        e = os.environ
        return cls(
            e["KAFKA_BOOTSTRAP_SERVERS"],
            e["REDIS_URL"],
            e["BENCH_GROUP"],
            Path(e["BENCH_REPOSITORY"]),
            e["BENCH_MODEL"],
        )
