"""How records are packed into produce batches, and what a failed one means; the real producer, a cluster in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiokafka.errors import MessageSizeTooLargeError
from hypothesis import given, settings
from hypothesis import strategies as st

import app.producer
from app.errors import DeliveryError
from app.settings import KafkaSettings
from tests.fakes import MemoryCluster, MemoryProducer, Sent

if TYPE_CHECKING:
    from schemas.records import Headers

SMALL = KafkaSettings(producer_batch_bytes=16_384)


async def _started(cluster: MemoryCluster) -> MemoryProducer:
    producer = MemoryProducer(cluster, SMALL)
    await producer.start()
    return producer


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 9000), min_size=0, max_size=6), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_all_records_arrive_in_order(sends: list[tuple[int, list[int], bool]]) -> None:
    """Whatever the sizes, each partition's records arrive once, in the order of the sends, with keys and headers."""

    async def run() -> None:
        cluster = MemoryCluster(batch_bytes=SMALL.producer_batch_bytes)
        producer = await _started(cluster)
        expected: dict[int, list[Sent]] = {0: [], 1: []}
        futures = []
        for number, (partition, sizes, with_headers) in enumerate(sends):
            keys: list[bytes | None] = [b"k%d" % i if i % 2 else None for i in range(len(sizes))]
            values = [b"%d:" % number + b"x" * size for size in sizes]
            headers: list[Headers] | None = [(("h", b"%d" % i),) for i in range(len(sizes))] if with_headers else None
            futures.append(await producer.send("scores", partition, keys, values, headers))
            rows = zip(keys, values, headers or [()] * len(sizes), strict=True)
            expected[partition] += [Sent(*row) for row in rows]
        await asyncio.gather(*futures)
        assert {p: cluster.records["scores", p] for p in (0, 1)} == expected
        await producer.stop()

    asyncio.run(run())


async def test_a_send_is_split_where_a_batch_is_full() -> None:
    """Records beyond the batch size go into the next produce batch, not into a bigger one."""
    cluster = MemoryCluster(batch_bytes=16_384)
    producer = await _started(cluster)
    future = await producer.send("scores", 0, [None] * 10, [b"v" * 5000] * 10)
    await future
    assert cluster.batches["scores", 0] == [3, 3, 3, 1]


async def test_a_record_larger_than_a_batch_goes_alone() -> None:
    """A dead letter of a megabyte fits in no batch of 16 KiB and is sent all the same."""
    cluster = MemoryCluster(batch_bytes=16_384)
    producer = await _started(cluster)
    values = [b"small", b"x" * 2**20, b"small"]
    await (await producer.send("score-requests.dlq", 0, [b"k"] * 3, values))
    assert [sent.value for sent in cluster.topic("score-requests.dlq")] == values
    assert cluster.batches["score-requests.dlq", 0] == [1, 1, 1]


async def test_a_tombstone_is_sent_as_it_came() -> None:
    """A value of None, dead-lettered, arrives as None."""
    cluster = MemoryCluster()
    producer = await _started(cluster)
    await (await producer.send("score-requests.dlq", 0, [b"k", None], [None, b""]))
    assert [(s.key, s.value) for s in cluster.topic("score-requests.dlq")] == [(b"k", None), (None, b"")]


async def test_sending_nothing_is_done_at_once() -> None:
    """An empty list is acknowledged without a produce request."""
    cluster = MemoryCluster()
    producer = await _started(cluster)
    assert (await producer.send("scores", 0, [], [])).done()
    assert cluster.records == {}


async def test_sends_share_a_batch_while_one_is_under_way() -> None:
    """What is handed over while a request is under way is packed into one following batch."""
    cluster = MemoryCluster()
    cluster.hold("scores")
    producer = await _started(cluster)
    first = await producer.send("scores", 0, [None], [b"0"])
    await asyncio.sleep(0.01)
    later = [await producer.send("scores", 0, [None], [b"%d" % i]) for i in (1, 2, 3)]
    assert not first.done()
    cluster.release("scores")
    await asyncio.gather(first, *later)
    assert cluster.batches["scores", 0] == [1, 3]
    await producer.flush()


async def test_after_a_failed_send_nothing_more_is_sent() -> None:
    """The failed records and all that wait raise DeliveryError, later sends are refused, the cluster sees no more."""
    cluster = MemoryCluster()
    cluster.failure = MessageSizeTooLargeError()
    producer = await _started(cluster)
    futures = [await producer.send("scores", p, [None], [b"%d" % i]) for i in range(3) for p in (0, 1)]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert any(isinstance(result, DeliveryError) for result in results)
    assert isinstance(results[-2], DeliveryError)
    assert "must restart" in str(results[-2])
    sent_before = cluster.topic("scores")
    with pytest.raises(DeliveryError, match="not acknowledged"):
        await producer.send("scores", 1, [None], [b"late"])
    await producer.stop()
    assert cluster.topic("scores") == sent_before
    assert [s.value for s in cluster.records["scores", 0]] == [], "nothing after the failed batch of partition 0"


async def test_send_waits_while_too_much_waits_for_the_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer slows the input down instead of filling the memory."""
    monkeypatch.setattr(app.producer, "MAX_WAITING_BYTES", 1000)
    cluster = MemoryCluster()
    cluster.hold("scores")
    producer = await _started(cluster)
    first = await producer.send("scores", 0, [None], [b"x" * 1000])
    blocked = asyncio.create_task(producer.send("scores", 0, [None], [b"y"]))
    await asyncio.sleep(0.02)
    assert not blocked.done()
    cluster.release("scores")
    await first
    await (await blocked)
    assert [s.value[:1] for s in cluster.topic("scores") if s.value] == [b"x", b"y"]
