"""uvloop in place of asyncio under the Kafka client: a connection that was closed a moment ago is a broken connection.

asyncio ignores a write to a transport that is closed, or raises OSError; uvloop raises RuntimeError, which aiokafka
does not expect: the task that keeps its picture of the cluster ends, and with it every search for a coordinator. The
consumer fetches on, but never commits or heartbeats again, and says nothing. Seen when a broker is killed under load.

This stands on private names of aiokafka 0.14.0; ``tests/unit/app/test_closed_transports.py`` fails when they move.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError

if TYPE_CHECKING:
    from collections.abc import Callable


def expect_closed_transports() -> None:
    """Let every Kafka connection of this process treat a write to a closed transport as the end of the connection."""
    for name in ("send", "_send_sasl_token"):
        send = getattr(AIOKafkaConnection, name)
        if not hasattr(send, "__wrapped__"):
            setattr(AIOKafkaConnection, name, _expecting(send))


def _expecting(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def send_or_break(self: AIOKafkaConnection, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - aiokafka's own
        try:
            return send(self, *args, **options)
        except KafkaError:  # a RuntimeError too
            raise
        except RuntimeError as exc:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            msg = f"Connection at {self.host}:{self.port} broken: {exc}"
            raise KafkaConnectionError(msg) from exc

    return send_or_break
