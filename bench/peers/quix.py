"""Quix Streams: a batching sink scores whole batches; its producer is a librdkafka one with the same settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
from confluent_kafka import Producer
from quixstreams import Application
from quixstreams.sinks.base import BatchingSink

from bench.peers.confluent_loop import PRODUCER, _produce
from bench.peers.work import BATCH, PREDICTIONS, REQUESTS, SCORES, Contender, Work

if TYPE_CHECKING:
    from quixstreams.sinks.base import SinkBatch


class ScoringSink(BatchingSink):
    """Scores what gathered since the last checkpoint, in batches of at most 2048."""

    def __init__(self, contender: Contender) -> None:
        super().__init__()
        self._work = Work(contender)
        self._producer = Producer({"bootstrap.servers": contender.servers, **PRODUCER})
        self._store = redis.from_url(contender.redis_url)

    def write(self, batch: SinkBatch) -> None:
        """One partition's records."""
        for chunk in map(list, batch.iter_chunks(BATCH)):
            decoded = self._work.decode([item.value for item in chunk])
            keys = self._work.store_keys(decoded)
            answers = self._work.answer(decoded, self._store.mget(keys) if keys else ())
            for key, value, evidence in zip(answers.keys, answers.scores, answers.predictions, strict=True):
                _produce(self._producer, SCORES, value, key)
                _produce(self._producer, PREDICTIONS, evidence, key)
            self._producer.poll(0)


def main() -> None:
    """Run until killed."""
    contender = Contender.from_environment()
    app = Application(
        broker_address=contender.servers, consumer_group=contender.group, auto_offset_reset="earliest",
        commit_every=4096, commit_interval=1.0, auto_create_topics=False, loglevel="WARNING",
    )  # fmt: skip
    topic: Any = app.topic(REQUESTS, value_deserializer="bytes", key_deserializer="bytes")
    app.dataframe(topic).sink(ScoringSink(contender))
    app.run()


if __name__ == "__main__":
    main()
