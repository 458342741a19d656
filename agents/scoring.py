"""The agent on ``score-requests``: hands whole record batches to the pipeline; thin, and it never raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.errors import DeliveryError
from app.transport import PassThroughSchema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import faust

    from schemas.records import RecordBatch


def attach(app: faust.App, topics: list[str], handle: Callable[[RecordBatch], Awaitable[None]]) -> None:
    """Let ``handle`` see every record batch of some topics.

    Args:
        app: its transport must name the topics in ``batch_topics``.
        topics: their names.
        handle: called for one batch after the other; a ``DeliveryError`` means that the worker is ending.

    """
    channel = app.topic(*topics, schema=PassThroughSchema(), acks=False, internal=False)

    async def take_batches(stream: Any) -> AsyncIterator[None]:  # noqa: ANN401 - Faust's stream type is dynamic
        async for event in stream.noack().events():
            if event.message.generation_id != app.consumer_generation_id:
                continue  # of before a rebalance: whoever has the partition now reads it again
            try:
                for batch in event.message.value:
                    await handle(batch)
            except DeliveryError:
                return
            yield

    app.agent(channel, name=f"take-{topics[0]}", concurrency=1)(take_batches)
