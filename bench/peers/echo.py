"""The raw echo: every request's bytes to ``scores`` at once, through the same transport and the same producer.

What a request takes through it is the broker's, the clients' and the machine's share of a latency.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import uvloop
from aiokafka import AIOKafkaConsumer

from app.producer import OutputProducer
from app.settings import load_settings
from app.transport import _fetched
from bench.peers.place import Contender
from schemas.topic_names import REQUESTS, SCORES


async def main() -> None:
    """Run until killed."""
    place = Contender.from_environment()
    settings = load_settings({"kafka": {"bootstrap_servers": place.servers}}, environ={}, toml=Path("none"))
    producer = OutputProducer(settings.kafka, client_id="echo")
    consumer = AIOKafkaConsumer(
        REQUESTS, bootstrap_servers=place.servers, group_id=place.group, auto_offset_reset="latest"
    )
    await producer.start()
    await consumer.start()
    fetcher = consumer._fetcher  # noqa: SLF001 - as in app/transport.py
    while True:
        with fetcher._subscriptions.fetch_context():  # noqa: SLF001
            got = await _fetched(fetcher, set(), 1.0, 4096, frozenset([REQUESTS]))
        for batch in (b for batches in got.values() for b in batches):
            values = [v for v in batch.values if v is not None]
            await producer.send(SCORES, batch.partition, batch.keys, values)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
