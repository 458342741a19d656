"""Faust as its documentation has it: ``stream.take`` and ``topic.send`` for each record."""

from __future__ import annotations

import sys

import faust
import redis.asyncio
from yarl import URL

from bench.peers.work import BATCH, PREDICTIONS, REQUESTS, SCORES, Contender, Work

contender = Contender.from_environment()
work = Work(contender)
app = faust.App(
    contender.group,
    broker=[URL(f"kafka://{s}") for s in contender.servers.split(",")],
    store="memory://",
    topic_disable_leader=True,
    topic_allow_declare=False,
    consumer_auto_offset_reset="earliest",
    stream_wait_empty=False,
    producer_linger_ms=5,
    producer_max_batch_size=2**17,
    web_enabled=False,
)
requests = app.topic(REQUESTS, value_serializer="raw", key_serializer="raw", internal=False)
scores = app.topic(SCORES, value_serializer="raw", key_serializer="raw", internal=False)
predictions = app.topic(PREDICTIONS, value_serializer="raw", key_serializer="raw", internal=False)
store = redis.asyncio.from_url(contender.redis_url)


@app.agent(requests)
async def score(stream) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - Faust looks at the annotation
    """Take batches of up to 2048 within 50 ms."""
    async for values in stream.take(BATCH, within=0.05):
        decoded = work.decode(values)
        keys = work.store_keys(decoded)
        answers = work.answer(decoded, await store.mget(keys) if keys else ())
        for key, value, evidence in zip(answers.keys, answers.scores, answers.predictions, strict=True):
            await scores.send(key=key, value=value)
            await predictions.send(key=key, value=evidence)


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "worker", "-l", "warn", "--without-web"]
    app.main()
