"""Fixtures shared by all tests; the session-wide stack is started only when a test asks for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.embedded.stack import Stack, StackInfo
from app.embedded.warm import prepare_fast_starts

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackInfo]:
    """Kafka and Redis: those of ``KAFKA_BOOTSTRAP_SERVERS`` and ``REDIS_URL``, else embedded ones for the session."""
    bootstrap_servers, redis_url = os.environ.get("KAFKA_BOOTSTRAP_SERVERS"), os.environ.get("REDIS_URL")
    if bootstrap_servers and redis_url:
        yield StackInfo(bootstrap_servers, redis_url, Path(tmp_path_factory.mktemp("stack")), processes=())
        return
    prepare_fast_starts(print)
    with Stack.start(tmp_path_factory.mktemp("stack")) as started:
        yield started.info


@pytest.fixture(scope="session")
def bootstrap_servers(stack: StackInfo) -> str:
    """Addresses of the session's Kafka brokers, ``host:port[,host:port]``."""
    return stack.bootstrap_servers


@pytest.fixture(scope="session")
def redis_url(stack: StackInfo) -> str:
    """Address of the session's Redis."""
    return stack.redis_url
