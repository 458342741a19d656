"""A hand-written aiokafka loop: ``getmany``, score, ``send`` each record, wait for all acknowledgements, commit."""

from __future__ import annotations

import asyncio

import aiokafka
import redis.asyncio

from bench.peers.work import BATCH, PREDICTIONS, REQUESTS, SCORES, Contender, Work


async def main() -> None:
    """Run until killed."""
    contender = Contender.from_environment()
    work = Work(contender)
    consumer = aiokafka.AIOKafkaConsumer(
        REQUESTS, bootstrap_servers=contender.servers, group_id=contender.group, auto_offset_reset="earliest",
        enable_auto_commit=False, max_poll_records=BATCH,
    )  # fmt: skip
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=contender.servers, acks="all", enable_idempotence=True, linger_ms=5, max_batch_size=2**19,
        max_request_size=2**21,
    )  # fmt: skip
    store = redis.asyncio.from_url(contender.redis_url)
    await consumer.start()
    await producer.start()
    while True:
        records = [r for part in (await consumer.getmany(timeout_ms=50, max_records=BATCH)).values() for r in part]
        if not records:
            continue
        decoded = work.decode([r.value for r in records])
        keys = work.store_keys(decoded)
        answers = work.answer(decoded, await store.mget(keys) if keys else ())
        sent = []
        for key, value, evidence in zip(answers.keys, answers.scores, answers.predictions, strict=True):
            sent.append(await producer.send(SCORES, value, key))
            sent.append(await producer.send(PREDICTIONS, evidence, key))
        await asyncio.gather(*sent)
        await consumer.commit()


if __name__ == "__main__":
    asyncio.run(main())
