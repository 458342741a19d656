"""FastStream with its confluent broker: a batch subscriber; the outputs through a librdkafka producer of its own.

Its ``publish_batch`` starts a task for each record and costs several times as much (LOG.md), so it is spared that.
"""

from __future__ import annotations

import asyncio

import redis.asyncio
from confluent_kafka import Producer
from faststream import FastStream
from faststream.confluent import KafkaBroker

from bench.peers.confluent_loop import PRODUCER, _produce
from bench.peers.work import BATCH, PREDICTIONS, REQUESTS, SCORES, Contender, Work

contender = Contender.from_environment()
work = Work(contender)
broker = KafkaBroker(contender.servers)
producer = Producer({"bootstrap.servers": contender.servers, **PRODUCER})
store = redis.asyncio.from_url(contender.redis_url)


@broker.subscriber(REQUESTS, batch=True, max_records=BATCH, group_id=contender.group, auto_offset_reset="earliest",
                   decoder=lambda message: message.body)  # fmt: skip
async def score(values: list[bytes]) -> None:
    """Score a batch."""
    decoded = work.decode(values)
    keys = work.store_keys(decoded)
    answers = work.answer(decoded, await store.mget(keys) if keys else ())
    for key, value, evidence in zip(answers.keys, answers.scores, answers.predictions, strict=True):
        _produce(producer, SCORES, value, key)
        _produce(producer, PREDICTIONS, evidence, key)
    producer.poll(0)


if __name__ == "__main__":
    asyncio.run(FastStream(broker).run())
