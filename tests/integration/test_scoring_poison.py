"""Kafka batches that no ordinary client writes, through one real worker: each offset is answered once, and it lives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

from agents import topics
from bench.kafka_batches import COMPRESS, ReadyBatch, batch, record
from tests.integration.delays_service import Service, running_service
from tests.integration.kafka_client import header, source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiokafka.structs import ConsumerRecord

    from bench.kafka_batches import RawHeaders
    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration

KEY = b"N14228"
ODD = ((b"x-\xff\xfe", b"1"), (b"traceparent", b"00-aa-bb-01"), ("ü".encode(), None))
MIB = 2**20


class PoisonedService(Service):
    """A running worker, and what it makes of a batch."""

    def answered(self, raw: bytes, count: int) -> tuple[int, dict[int, ConsumerRecord], dict[int, ConsumerRecord]]:
        """Produce finished bytes to partition 0; returns their first offset, and scores and dead letters by offset."""
        kafka = self.kafka
        before = {topic: kafka.ends(topic) for topic in (topics.SCORES, topics.REQUESTS_DLQ)}
        first = asyncio.run(send(self.deployment.bootstrap_servers, raw, count))
        self.deployment.wait_answered(timeout_s=30)
        assert self.worker.is_running, self.worker.log()[-3000:]
        scores, dead = (kafka.read(topic, ends) for topic, ends in before.items())
        found = [{source(r)[1]: r for r in records} for records in (scores, dead)]
        assert sum(map(len, found)) == len(scores) + len(dead) == count, "each offset ends in one record"
        assert found[0].keys() | found[1].keys() == set(range(first, first + count))
        return first, found[0], found[1]

    def request(self, number: int, *, headers: RawHeaders = (), distance_mi: float = 100.0) -> bytes:
        """A good request as a record of a batch."""
        value = self.deployment.request(f"r{number}", KEY.decode(), distance_mi=distance_mi)
        return record(value, key=KEY, headers=headers, place=number)


async def send(servers: str, raw: bytes, count: int) -> int:
    """Produce a finished batch to partition 0; returns its first offset."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, max_request_size=2 * MIB)
    await producer.start()
    try:
        sent = await producer.send_batch(ReadyBatch(raw, count), topics.REQUESTS, partition=0)
        return int((await sent).offset)
    finally:
        await producer.stop()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str
) -> Iterator[PoisonedService]:
    """One worker for the whole module, on fresh topics."""
    with running_service("poison", tmp_path_factory.mktemp("poison"), bootstrap_servers, redis_url) as running:
        yield PoisonedService(running.deployment, running.worker)


@pytest.mark.parametrize("codec", COMPRESS)
def test_a_header_name_that_is_not_utf8_does_not_stop_the_worker(service: PoisonedService, codec: int) -> None:
    """The request is scored like its neighbours, and its other headers are handed on."""
    records = [service.request(0), service.request(1, headers=ODD), service.request(2)]
    first, scores, dead = service.answered(batch(records, codec=codec), 3)
    assert not dead
    assert [service.deployment.decode(scores[first + i].value)["request_id"] for i in range(3)] == ["r0", "r1", "r2"]
    assert header(scores[first + 1], "traceparent") == b"00-aa-bb-01"


def test_an_undecodable_value_keeps_its_odd_headers(service: PoisonedService) -> None:
    """Its dead letter has the bytes as they came, and the header names readable."""
    bad = record(b"\x07 no request", key=KEY, headers=ODD, place=1)
    first, scores, dead = service.answered(batch([service.request(0), bad]), 2)
    assert list(scores) == [first]
    letter = dead[first + 1]
    assert (letter.key, letter.value) == (KEY, b"\x07 no request")
    assert letter.headers[:3] == (("x-\\xff\\xfe", b"1"), ("traceparent", b"00-aa-bb-01"), ("ü", None))


def test_a_record_without_a_time_is_scored(service: PoisonedService) -> None:
    """A producer may leave the timestamp out, and the broker takes it."""
    _, scores, _ = service.answered(batch([service.request(0)], first_ms=-1, max_ms=-1), 1)
    assert len(scores) == 1


def test_a_bomb_is_dead_letters_and_costs_no_memory(service: PoisonedService) -> None:
    """300 kB of gzip that hold 300 MB: a dead letter an offset, the first with the batch; the worker stays small."""
    before_mb = resident_mb(service.worker)
    raw = batch([record(bytes(100 * MIB), key=KEY, place=place) for place in range(3)], codec=1)
    assert len(raw) < MIB // 2
    first, _, dead = service.answered(raw, 3)
    # The broker has set the base offset and the leader epoch; all that the checksum covers is as it was sent.
    assert dead[first].value[21:] == raw[21:]
    assert calc_crc32c(dead[first].value[21:]) == int.from_bytes(dead[first].value[17:21], "big")
    assert [dead[first + i].value for i in (1, 2)] == [None, None]
    assert header(dead[first], "__connect.errors.exception.class.name") == b"UnreadableRecord"
    message = header(dead[first + 1], "__connect.errors.exception.message")
    assert message is not None
    assert message.startswith(b"a gzip batch inflates to more than 64 MiB; send smaller batches")
    assert resident_mb(service.worker) - before_mb < 100


def test_a_record_that_no_topic_holds_is_cut(service: PoisonedService) -> None:
    """5 MiB sent as 5 kB: its dead letter has the beginning and says where the whole is; a neighbour is scored."""
    huge = record(b"\0" * 5 * MIB, key=KEY, place=1)
    first, scores, dead = service.answered(batch([service.request(0), huge], codec=4), 2)
    assert list(scores) == [first]
    assert dead[first + 1].value == bytes(MIB)
    assert b"whole record is at its offset" in (header(dead[first + 1], "__connect.errors.exception.message") or b"")


def resident_mb(worker: WorkerProcess) -> float:
    """Memory of the worker's process, largest since it began."""
    with open(f"/proc/{worker.pid}/status") as status:  # noqa: PTH123 - not a file to treat as a path
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def test_the_worker_was_never_restarted(service: PoisonedService) -> None:
    """After all of this it is the same process, without an error in its log."""
    assert service.worker.start_count == 1
    assert "Traceback" not in service.worker.log()
