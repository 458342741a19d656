"""Bytewax: ``flat_map_batch`` over the batches of its Kafka source, into its Kafka sink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bytewax.operators as op
import redis
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.testing import run_main

from bench.peers.confluent_loop import PRODUCER
from bench.peers.work import BATCH, PREDICTIONS, REQUESTS, SCORES, Contender, Work

if TYPE_CHECKING:
    from collections.abc import Iterable

contender = Contender.from_environment()
work = Work(contender)
store = redis.from_url(contender.redis_url)


def score(messages: list[Any]) -> Iterable[KafkaSinkMessage[bytes, bytes]]:
    """Both output records of each request."""
    decoded = work.decode([m.value for m in messages])
    keys = work.store_keys(decoded)
    answers = work.answer(decoded, store.mget(keys) if keys else ())
    for key, value, evidence in zip(answers.keys, answers.scores, answers.predictions, strict=True):
        yield KafkaSinkMessage(key, value, topic=SCORES)
        yield KafkaSinkMessage(key, evidence, topic=PREDICTIONS)


PARTITIONS = 4
"""The flow gets the batches of all partitions in one."""
flow = Dataflow("bench")
servers = contender.servers.split(",")
source = op.input("requests", flow, KafkaSource(servers, [REQUESTS], batch_size=BATCH // PARTITIONS))
op.output("answers", op.flat_map_batch("score", source, score),
          KafkaSink(servers, None, {str(k): str(v) for k, v in PRODUCER.items()}))  # fmt: skip

if __name__ == "__main__":
    run_main(flow)
