"""A Faust app as Sluice runs it: our transport, our committer's settings, prepared before it joins its group."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faust
from faust.tables.manager import TableManager
from faust.types.enums import ProcessingGuarantee
from yarl import URL

from app.connections import connection_arguments
from app.errors import PartitionMismatch, SettingsError, TopicError
from app.standby import assignor
from app.transport import BatchTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from faust.auth import Credentials

    from app.settings import KafkaSettings, Settings

log = logging.getLogger(__name__)

BROKER_WAIT_S = 60.0
"""How long a worker waits for a broker at start before it gives up and lets its supervisor decide."""


class PromptTableManager(TableManager):
    """Starts at once: Faust's waits a second for tables that register themselves, and we have none."""

    async def on_start(self) -> None:
        """As Faust's, without the wait: a worker takes its partitions a second earlier."""
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class SluiceApp(faust.App):
    """Calls ``prepare`` before anything connects: what it needs is loaded and warm when it joins the group."""

    prepare: Callable[[], Awaitable[None]] | None = None

    async def on_first_start(self) -> None:
        """Prepare; Faust's own step would only make folders for tables, and we have none."""
        if self.prepare is not None:
            await self.prepare()


def make_app(settings: Settings, role: str, batch_topics: list[str], *, linger_ms: float = 0.0) -> SluiceApp:
    """The app of a role, with the settings that ``reliability`` asks for.

    Args:
        settings: all of them.
        role: scoring or monitor; the group id is ``<deployment>-<role>``.
        batch_topics: topics delivered as whole record batches.
        linger_ms: pause before each fetch, so that it brings more.

    Raises:
        SettingsError: Faust's own exactly-once is asked for.

    """
    kafka, web = settings.kafka, settings.web
    app = SluiceApp(
        f"{settings.deployment}-{role}",
        broker_credentials=broker_credentials(kafka),
        broker=[URL(f"kafka://{server.strip()}") for server in kafka.bootstrap_servers.split(",")],
        store="memory://",
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        stream_wait_empty=False,
        stream_buffer_maxsize=4,  # an event is a whole record batch
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=kafka.heartbeat_s,
        broker_request_timeout=max(kafka.request_timeout_s, kafka.session_timeout_s),
        broker_max_poll_records=kafka.max_poll_records,
        consumer_max_fetch_size=kafka.max_fetch_bytes,
        consumer_auto_offset_reset="earliest",
        producer_request_timeout=kafka.request_timeout_s,
        consumer_group_instance_id=kafka.group_instance_id,
        web_enabled=web.enabled,
        web_bind=web.host,
        web_host=web.host,
        web_port=next_free_port(web.host, web.port) if web.enabled else web.port,
        worker_redirect_stdouts=False,
        TableManager=PromptTableManager,
    )

    guarantee: Any = app.conf.processing_guarantee
    if guarantee is not ProcessingGuarantee.AT_LEAST_ONCE:
        msg = (
            "Faust's own processing_guarantee=exactly_once is set (PROCESSING_GUARANTEE?): it leaves outputs outside"
            " its transactions; unset it and set SLUICE_DELIVERY__MODE=exactly_once"
        )
        raise SettingsError(msg)
    transport = type("RoleTransport", (BatchTransport,), {
        "batch_topics": frozenset(batch_topics), "linger_s": linger_ms / 1000,
        "assignor": assignor(is_standby=kafka.standby),
    })  # fmt: skip
    app.transport = transport(app.conf.broker_consumer, app)
    return app


def broker_credentials(kafka: KafkaSettings) -> Credentials | None:
    """How Faust's clients encrypt and say who we are; None where they do neither.

    Raises:
        SettingsError: the settings do not fit together.

    """
    arguments = connection_arguments(kafka)
    context = arguments.get("ssl_context")
    if "sasl_mechanism" in arguments:
        return faust.SASLCredentials(
            username=arguments["sasl_plain_username"],
            password=arguments["sasl_plain_password"],
            mechanism=arguments["sasl_mechanism"],
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


async def wait_for_broker(attempt: Callable[[], Awaitable[Any]], *, timeout_s: float = BROKER_WAIT_S) -> Any:  # noqa: ANN401
    """What ``attempt`` returns, tried again for a while when no broker answers.

    Raises:
        TopicError: the time is over.

    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await attempt()
        except PartitionMismatch:
            raise
        except TopicError as exc:
            if asyncio.get_running_loop().time() > deadline:
                raise
            log.warning("%s; trying again", exc)
            await asyncio.sleep(1.0)


def next_free_port(host: str, first: int) -> int:
    """The first port from ``first`` on that nobody listens on; 0 asks the system for any.

    The port is bound much later, so until this process ends a lock file keeps other workers from choosing it too.

    Raises:
        OSError: none of the next 100 is free.

    """
    for port in range(first, first + 100) if first else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            chosen = int(probe.getsockname()[1])
            if _reserve(chosen):
                return chosen
    msg = f"no free port on {host} from {first} to {first + 99}; set SLUICE_WEB__PORT"
    raise OSError(msg)


def _reserve(port: int) -> bool:
    """Lock the port's file; it stays open, and the system unlocks it when the process ends, however it ends."""
    path = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}-web-{port}.lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return False
    return True
