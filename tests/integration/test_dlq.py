"""``sluice dlq`` on a real broker and a real worker: poison becomes a dead letter, is listed, shown and sent again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from typer.testing import CliRunner

from agents import topics
from app import dlq_commands
from app.dead_letters import DeadLetterError
from app.errors import TopicError
from app.replay_journal import Parcel, ReplayJournal
from app.topic_reader import find_cluster
from bench.kafka_batches import ReadyBatch, batch, record
from schemas.deadletter import PREFIX
from tests.integration.delays_service import PARTITIONS, Deployment
from tests.integration.kafka_client import KafkaClient, Message, header
from tests.integration.worker_process import ROOT, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiokafka.structs import ConsumerRecord
    from typer.testing import Result

    from schemas.records import Headers

pytestmark = pytest.mark.integration
KEY = b"e01"
OWN: Headers = (("traceparent", b"00-1"), ("twice", b"\xff\x00"), ("twice", b""))


class Operator:
    """Somebody at a terminal, with the settings of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.kafka = deployment.kafka
        self.journal = deployment.folder / "data" / dlq_commands.JOURNAL

    def try_dlq(self, *arguments: str) -> Result:
        """Run ``sluice dlq`` in this process."""
        variables = {**self.deployment.variables, "SLUICE_DATA_DIR": str(self.journal.parent)}
        return CliRunner(env=variables).invoke(dlq_commands.cli, arguments)

    def dlq(self, *arguments: str) -> str:
        """What it prints; it must succeed."""
        done = self.try_dlq(*arguments)
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.stdout

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """The lines of ``list --json``."""
        return [json.loads(line) for line in self.dlq("list", "--json", *arguments).splitlines()]

    def bury(self, count: int, *, stage: str = "decode", partition: int = 0, first: int = 0) -> list[Message]:
        """Dead letters as a worker writes them, numbered by their source offsets."""
        letters = [
            Message(KEY, b"poison %d" % i, (*OWN, *fault_headers(i, stage, partition)), partition)
            for i in range(first, first + count)
        ]
        self.kafka.produce(letters, topics.REQUESTS_DLQ)
        return letters


def fault_headers(offset: int, stage: str, partition: int) -> Headers:
    """The marks of one failure."""
    facts = {"topic": topics.REQUESTS, "partition": str(partition), "offset": str(offset), "timestamp": "1000",
             "stage": stage, "class.name": "sluice", "exception.class.name": "NotFramed",
             "exception.message": "it is broken"}  # fmt: skip
    return (*((PREFIX + k, v.encode()) for k, v in facts.items()), ("x-src", b"score-requests:0:%d:0" % offset))


@pytest.fixture
def operator(tmp_path: Path, bootstrap_servers: str, redis_url: str) -> Iterator[Operator]:
    """Fresh topics."""
    with KafkaClient(bootstrap_servers) as kafka:
        deployment = Deployment("dlq", tmp_path, kafka, bootstrap_servers, redis_url)
        kafka.fresh_topics(deployment.settings)
        yield Operator(deployment)


async def create_tight_topic(bootstrap_servers: str, name: str) -> None:
    """A topic of one partition that takes 100 kB a record."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1, topic_configs={"max.message.bytes": "100000"})])
    finally:
        await admin.close()


def names(record: ConsumerRecord) -> list[str]:
    """Header names, in order."""
    return [name for name, _ in record.headers]


def test_poison_is_listed_shown_and_sent_again(operator: Operator, tmp_path: Path) -> None:
    """A cut request and an INVALID one die, are replayed byte for byte with attempt 1, and die again with it."""
    kafka = operator.kafka
    cut = operator.deployment.request("r1", "e01")[:-9]
    refused = operator.deployment.request("r2", "e01", distance_mi=float("nan"))
    sent = [Message(KEY, value, OWN, 1) for value in (cut, refused)]
    with operator.deployment.worker() as worker:
        worker.start().wait_ready()
        kafka.produce(sent)
        until(lambda: kafka.count(topics.REQUESTS_DLQ) == 2, "two dead letters")
        first, second = operator.listed()
        assert (first["place"], first["stage"], first["attempt"]) == ("1:0", "decode", 0)
        assert first["source"] == {"topic": topics.REQUESTS, "partition": 1, "offset": 0}
        assert second["source"]["offset"] == 1
        text = operator.dlq("show", "1:0", "--raw", str(tmp_path / "cut.bin"))
        assert "field        request_id = r1" in text
        assert "stopped      at byte" in text
        assert (tmp_path / "cut.bin").read_bytes() == cut

        assert "Nothing was sent. Add --yes" in operator.dlq("replay")
        assert kafka.count(topics.REQUESTS) == 2
        assert "Sent and confirmed: 2 dead letters, the last of each partition 1:1" in operator.dlq("replay", "--yes")
        until(lambda: kafka.count(topics.REQUESTS_DLQ) == 4, "both dead again")
    replayed = kafka.read(topics.REQUESTS, {1: 2})
    assert [(r.partition, r.key, r.value) for r in replayed] == [(1, KEY, cut), (1, KEY, refused)]
    marks = [(("x-attempt", b"1"), ("x-replay-of", b"score-requests.dlq:1:%d" % i)) for i in (0, 1)]
    assert [tuple(r.headers) for r in replayed] == [(*OWN, *mark) for mark in marks]
    assert [letter["attempt"] for letter in operator.listed()] == [0, 0, 1, 1]
    assert [r.value for r in kafka.read(topics.REQUESTS_DLQ)] == [cut, refused, cut, refused]
    again = kafka.read(topics.REQUESTS_DLQ, {1: 2})
    assert [header(r, "x-attempt") for r in again] == [b"1", b"1"]


def test_what_is_left_of_a_damaged_record_is_not_sent(operator: Operator) -> None:
    """A record too large for any topic, sent as 5 kB, dies with its beginning; a replay says so and leaves it out."""
    raw = batch([record(b"no request", key=KEY), record(bytes(5 * 2**20), key=KEY, place=1)], codec=4)

    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=operator.deployment.bootstrap_servers) as producer:
            await (await producer.send_batch(ReadyBatch(raw, 2), topics.REQUESTS, partition=0))

    with operator.deployment.worker() as worker:
        worker.start().wait_ready()
        asyncio.run(send())
        until(lambda: operator.kafka.count(topics.REQUESTS_DLQ) == 2, "two dead letters")
    assert [letter["error_class"] for letter in operator.listed()] == ["NotFramed", "UnreadableRecord"]
    assert "their own bytes are not there, left out: 1 (0:1)" in operator.dlq("replay")
    assert "No dead letter to send." in operator.dlq("replay", "0:1", "--yes")
    assert "Sent and confirmed: 1 dead letter, " in operator.dlq("replay", "--yes")
    assert [r.value for r in operator.kafka.read(topics.REQUESTS, {0: 2})] == [b"no request"]


def test_a_replay_of_a_replay_is_the_second_attempt(operator: Operator) -> None:
    """The attempt counts up, and no mark of earlier attempts is left over."""
    (letter,) = operator.bury(1)
    again = Message(letter.key, letter.value, (*OWN, ("x-attempt", b"1"), ("x-replay-of", b"score-requests.dlq:0:0"),
                                               *fault_headers(1, "decode", 0)), 0)  # fmt: skip
    operator.kafka.produce([again], topics.REQUESTS_DLQ)
    operator.dlq("replay", "0:1", "--yes")
    (record,) = operator.kafka.read(topics.REQUESTS)
    assert names(record) == [*(name for name, _ in OWN), "x-attempt", "x-replay-of"]
    assert (header(record, "x-attempt"), header(record, "x-replay-of")) == (b"2", b"score-requests.dlq:0:1")


def test_nothing_is_sent_twice(operator: Operator) -> None:
    """A second replay sends what is new, in order, whatever filters the two had; --again sends all."""
    operator.bury(3, stage="decode")
    operator.bury(3, stage="features", first=3)
    operator.dlq("replay", "--stage", "features", "--yes")
    assert "Replayed before, left out: 3 " in operator.dlq("replay")
    operator.dlq("replay", "--yes")
    values = [r.value for r in operator.kafka.read(topics.REQUESTS)]
    assert values == [b"poison %d" % i for i in (3, 4, 5, 0, 1, 2)]
    assert "Nothing was sent." in operator.dlq("replay", "--yes")
    operator.dlq("replay", "--again", "--yes", "--limit", "2")
    assert operator.kafka.count(topics.REQUESTS) == 8


def test_a_topic_made_anew_is_not_taken_for_the_old_one(operator: Operator) -> None:
    """A dead letter at an offset that was replayed in the topic's earlier life is sent."""
    operator.bury(2)
    operator.dlq("replay", "--yes")
    operator.kafka.fresh_topics(operator.deployment.settings)
    operator.bury(1, first=7)
    operator.dlq("replay", "--yes")
    assert [r.value for r in operator.kafka.read(topics.REQUESTS)] == [b"poison 7"]


@pytest.mark.parametrize("arrived_count", [0, 2, 3])
def test_an_interrupted_replay_goes_on_where_it_was(operator: Operator, arrived_count: int) -> None:
    """After a kill between sending and noting it, each dead letter is in the target once, however many had arrived."""
    letters = operator.bury(5)
    kafka = operator.kafka
    kafka.produce([Message(KEY, b"fresh", (), 0)])
    cluster = asyncio.run(find_cluster(operator.deployment.settings.kafka))
    newest_ms = max(r.timestamp for r in kafka.read(topics.REQUESTS_DLQ))
    with ReplayJournal(operator.journal, cluster.name, topics.REQUESTS_DLQ) as journal:
        journal.record("sending", Parcel(0, (0, 1, 2), newest_ms, topics.REQUESTS, 0, 1))
    origins = [b"score-requests.dlq:0:%d" % i for i in range(arrived_count)]
    kafka.produce([Message(KEY, letters[i].value, (("x-replay-of", o),), 0) for i, o in enumerate(origins)])
    said = operator.dlq("replay", "--yes")
    assert ("An earlier replay was interrupted" in said) == (arrived_count > 0)
    values = [r.value for r in kafka.read(topics.REQUESTS)]
    assert values == [b"fresh", *(b"poison %d" % i for i in range(5))]


def test_many_partitions_keep_their_order(operator: Operator) -> None:
    """Several parcels a partition, each record in the partition that it came from, in order."""
    for partition in range(PARTITIONS):
        operator.bury(1100, partition=partition)
    said = operator.dlq("replay", "--yes")
    assert "4,400 dead letters" in said
    records = operator.kafka.read(topics.REQUESTS)
    for partition in range(PARTITIONS):
        values = [r.value for r in records if r.partition == partition]
        assert values == [b"poison %d" % i for i in range(1100)]


def test_a_kill_in_the_middle_loses_and_doubles_nothing(operator: Operator) -> None:
    """A kill -9 while parcels are on their way, then the same command: every dead letter once, in order."""
    count = 6000
    operator.bury(count)
    variables = {"SLUICE_DATA_DIR": str(operator.journal.parent), "PYTHONPATH": str(ROOT)}
    replay = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "dlq", "replay", "--yes"],
        cwd=operator.deployment.folder,
        env={**os.environ, **operator.deployment.variables, **variables},
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: operator.kafka.count(topics.REQUESTS) > 0, "the first parcel")
    finally:
        replay.kill()
        replay.wait()
    operator.dlq("replay", "--yes")
    values = [r.value for r in operator.kafka.read(topics.REQUESTS)]
    assert values == [b"poison %d" % i for i in range(count)]


def test_an_error_half_way_says_what_was_sent(operator: Operator) -> None:
    """A target that refuses a large record: what was confirmed is named, and the next run sends the rest alone."""
    operator.bury(500)
    large = Message(KEY, bytes(200_000), fault_headers(500, "decode", 0), 0)
    operator.kafka.produce([large], topics.REQUESTS_DLQ)
    name = f"tight-{operator.deployment.folder.name}"
    asyncio.run(create_tight_topic(operator.deployment.bootstrap_servers, name))
    refused = operator.try_dlq("replay", "--to", name, "--yes")
    assert isinstance(refused.exception, DeadLetterError), refused.output
    said = str(refused.exception)
    assert "MessageSizeTooLargeError" in said
    assert "confirmed: 500 dead letters, the last of each partition 0:499" in said
    assert "run the same command again" in said
    assert operator.kafka.count(name) == 500
    assert "Sent and confirmed: 1 dead letter, " in operator.dlq("replay", "--yes")
    assert [r.value for r in operator.kafka.read(topics.REQUESTS)] == [large.value]


def test_filters_and_another_target(operator: Operator) -> None:
    """--stage, --partition, --limit and --since choose; --to sends elsewhere, to the same partition."""
    operator.bury(3, stage="decode", partition=1)
    operator.bury(2, stage="join", partition=2)
    assert [x["place"] for x in operator.listed("--stage", "join")] == ["2:0", "2:1"]
    assert [x["place"] for x in operator.listed("--partition", "1", "--limit", "2")] == ["1:0", "1:1"]
    assert len(operator.listed("--since", "1h", "--error", "NotFramed")) == 5
    assert operator.listed("--until", "1h") == []
    assert operator.listed("--since", "2100-01-01") == []
    missed = operator.dlq("list", "--stage", "jion")
    assert "0 dead letters" in missed
    assert "2  join" in missed
    operator.dlq("replay", "--stage", "join", "--to", topics.OUTCOMES, "--yes")
    assert [(r.partition, r.value) for r in operator.kafka.read(topics.OUTCOMES)] == [
        (2, b"poison 0"),
        (2, b"poison 1"),
    ]


def test_a_past_deadline_is_named_and_can_be_dropped(operator: Operator) -> None:
    """Whoever replays a request that has expired learns it before, and can leave its deadline out."""
    overdue = Message(KEY, b"late", (("x-deadline-unix-ms", b"1000"), *fault_headers(0, "features", 0)), 0)
    operator.kafka.produce([overdue], topics.REQUESTS_DLQ)
    assert "Past their deadline: 1 " in operator.dlq("replay")
    assert "Past their" not in operator.dlq("replay", "--without-deadline", "--yes")
    (record,) = operator.kafka.read(topics.REQUESTS)
    assert names(record) == ["x-attempt", "x-replay-of"]


def test_a_tombstone_and_a_stranger(operator: Operator) -> None:
    """An empty value is replayed as it was; a record without a source is named, and not sent."""
    operator.kafka.produce(
        [Message(KEY, None, fault_headers(0, "decode", 0), 0), Message(None, b"?", (), 0)], topics.REQUESTS_DLQ
    )
    said = operator.dlq("replay", "--yes")
    assert "Without a header that says where from, left out: 1 (0:1)" in said
    (record,) = operator.kafka.read(topics.REQUESTS)
    assert (record.key, record.value) == (KEY, None)
    assert "source unknown" in operator.dlq("show", "0:1")
    assert "tombstone" in operator.dlq("show", "0:0")


def test_aborted_dead_letters_do_not_exist(operator: Operator) -> None:
    """Of two transactions the committed one is listed, and the markers at the end stop nothing."""

    async def transact() -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=operator.deployment.bootstrap_servers, transactional_id="dlq-test"
        )
        await producer.start()
        try:
            for value in (b"committed", b"aborted"):
                await producer.begin_transaction()
                headers = list(fault_headers(0, "decode", 0))
                await producer.send_and_wait(topics.REQUESTS_DLQ, value, KEY, partition=0, headers=headers)
                await (producer.commit_transaction() if value == b"committed" else producer.abort_transaction())
        finally:
            await producer.stop()

    asyncio.run(transact())
    assert [letter["place"] for letter in operator.listed()] == ["0:0"]
    operator.dlq("replay", "--yes")
    assert [r.value for r in operator.kafka.read(topics.REQUESTS)] == [b"committed"]


def test_what_cannot_be_done_is_said_with_the_way_out(operator: Operator) -> None:
    """Each refusal names its cause, and nothing is sent."""
    operator.bury(1, partition=3)
    operator.kafka.create_topic(name := f"narrow-{operator.deployment.folder.name}", 2)
    cases = {
        ("show", "0:99"): "has no dead letter 0:99; of partition 0 it is empty",
        ("show", "9:0"): "has no partition 9; its partitions are 0 to 3",
        ("replay", "--to", "nowhere", "--yes"): "there is no topic nowhere",
        ("replay", "--to", name, "--yes"): "came from partition 3, which",
        ("replay", "--to", topics.REQUESTS_DLQ, "--yes"): "is the dead-letter topic itself",
    }
    for arguments, message in cases.items():
        refused = operator.try_dlq(*arguments)
        assert isinstance(refused.exception, (DeadLetterError, TopicError)), refused.output
        assert message in str(refused.exception)
    operator.kafka.delete_topics(operator.deployment.settings)
    assert "there is no topic score-requests.dlq" in str(operator.try_dlq("list").exception)
