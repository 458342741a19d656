"""Kafka and Redis for a demo, its settings, and topics without records."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from agents.topics import delete_topics, ensure_topics, topic_specs
from app.embedded.stack import Stack

from .account import record_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from app.settings import Settings


class DemoError(Exception):
    """The demo cannot go on; the message says why and what to do."""


@contextlib.contextmanager
def servers(data_dir: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Addresses of Kafka and Redis, as settings: those that the environment names, else the embedded ones."""
    kafka, store = os.environ.get("KAFKA_BOOTSTRAP_SERVERS"), os.environ.get("REDIS_URL")
    if kafka and store:
        yield {"kafka": {"bootstrap_servers": kafka}, "redis": {"url": store}}
        return
    with Stack.start(data_dir, on_progress=say) as stack:
        yield {"kafka": {"bootstrap_servers": stack.info.bootstrap_servers}, "redis": {"url": stack.info.redis_url}}


def as_variables(overrides: dict[str, Any]) -> dict[str, str]:
    """Settings as the variables that a worker reads.

    Example:
        >>> as_variables({"deployment": "d", "redis": {"url": "redis://h"}})
        {'SLUICE_DEPLOYMENT': 'd', 'SLUICE_REDIS__URL': 'redis://h'}

    """
    variables = {}
    for name, value in overrides.items():
        leaves = value.items() if isinstance(value, dict) else [("", value)]
        for key, leaf in leaves:
            variables["SLUICE_" + "__".join(filter(None, (name, key))).upper()] = str(leaf)
    return variables


async def fresh_topics(settings: Settings, *, reset: bool) -> None:
    """Topics without records, so that the closing account is of this run alone.

    Args:
        settings: of this run.
        reset: delete what the topics of a Kafka that is not ours hold.

    Raises:
        DemoError: a Kafka that is not ours has records, and they are not to be deleted.

    """
    is_ours = not (os.environ.get("KAFKA_BOOTSTRAP_SERVERS") and os.environ.get("REDIS_URL"))
    if not is_ours and not reset:
        names = tuple(spec.name for spec in topic_specs(settings) if spec.is_data)
        counts = await record_counts(settings.kafka.bootstrap_servers, names)
        used = [f"{name} ({count:,})" for name, count in counts.items() if count]
        if used:
            msg = (
                f"the Kafka at {settings.kafka.bootstrap_servers} has records on {', '.join(used)}; the demo needs "
                "empty topics: set RESET=1 to delete and create them anew, or unset KAFKA_BOOTSTRAP_SERVERS"
            )
            raise DemoError(msg)
    await delete_topics(settings)
    await ensure_topics(settings)
