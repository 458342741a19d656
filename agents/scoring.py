"""The agent on ``score-requests``: hands whole record batches to the pipeline; thin, and it never raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import DeliveryError
from app.transport import PassThroughSchema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import faust

    from schemas.records import RecordBatch


@dataclass(slots=True)
class Gate:
    """Whether the worker has its partitions: open from taking them over until it begins to hand them over.

    Between the two the ledger forgets what was given back unread. A batch that came in then would start a new account
    behind that gap, and its commit would lose the gap.

    Example:
        >>> gate = Gate()
        >>> ticket = gate.begin_take_over()
        >>> gate.close()
        >>> gate.end_take_over(ticket)
        >>> gate.is_open
        False

    """

    is_open: bool = False
    _closings: int = 0

    def begin_take_over(self) -> int:
        """A ticket for ``end_take_over``."""
        return self._closings

    def end_take_over(self, ticket: int) -> None:
        """Open it, unless the partitions began to go while they were taken over."""
        self.is_open = ticket == self._closings

    def close(self) -> None:
        """The partitions go."""
        self.is_open = False
        self._closings += 1


def attach(app: faust.App, topics: list[str], handle: Callable[[RecordBatch], Awaitable[None]], gate: Gate) -> None:
    """Let ``handle`` see every record batch of some topics.

    Args:
        app: its transport must name the topics in ``batch_topics``.
        topics: their names.
        handle: called for one batch after the other; a ``DeliveryError`` means that the worker is ending.
        gate: batches that come while it is closed are dropped; whoever has the partition next reads them again.

    """
    channel = app.topic(*topics, schema=PassThroughSchema(), acks=False, internal=False)

    async def take_batches(stream: Any) -> AsyncIterator[None]:  # noqa: ANN401 - Faust's stream type is dynamic
        async for event in stream.noack().events():
            try:
                for batch in event.message.value:
                    if not gate.is_open or event.message.generation_id != app.consumer_generation_id:
                        break  # of before a rebalance, perhaps one that came while the last batch was handed over
                    await handle(batch)
            except DeliveryError:
                return
            yield

    app.agent(channel, name=f"take-{topics[0]}", concurrency=1)(take_batches)
