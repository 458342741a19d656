"""A hand-written confluent-kafka loop: ``consume`` a batch, score, ``produce`` each record, commit behind its back."""

from __future__ import annotations

import redis
from confluent_kafka import Consumer, Producer

from bench.peers.work import BATCH, PREDICTIONS, REQUESTS, SCORES, Contender, Work

PRODUCER = {"enable.idempotence": True, "acks": "all", "linger.ms": 5, "batch.size": 2**19,
            "queue.buffering.max.messages": 500_000}  # fmt: skip


def main() -> None:
    """Run until killed."""
    contender = Contender.from_environment()
    work = Work(contender)
    consumer = Consumer({"bootstrap.servers": contender.servers, "group.id": contender.group,
                         "auto.offset.reset": "earliest", "enable.auto.offset.store": False})  # fmt: skip
    producer = Producer({"bootstrap.servers": contender.servers, **PRODUCER})
    store = redis.from_url(contender.redis_url)
    consumer.subscribe([REQUESTS])
    while True:
        messages = [m for m in consumer.consume(BATCH, 0.05) if m.error() is None]
        if not messages:
            producer.poll(0)
            continue
        decoded = work.decode([m.value() for m in messages])
        keys = work.store_keys(decoded)
        answers = work.answer(decoded, store.mget(keys) if keys else ())
        for key, value, evidence in zip(answers.keys, answers.scores, answers.predictions, strict=True):
            _produce(producer, SCORES, value, key)
            _produce(producer, PREDICTIONS, evidence, key)
        producer.poll(0)
        consumer.store_offsets(message=messages[-1])


def _produce(producer: Producer, topic: str, value: bytes, key: bytes) -> None:
    try:
        producer.produce(topic, value, key)
    except BufferError:
        producer.poll(0.1)
        _produce(producer, topic, value, key)


if __name__ == "__main__":
    main()
