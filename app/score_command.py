"""``sluice score``: send one request through the topics, wait for its answer, and print it with its timings."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.structs import TopicPartition

from app.connections import connection_arguments
from app.dead_letter_topic import Range, read_letters
from app.dead_letters import printable
from app.errors import BundleError, TopicError
from app.models.control import of_label, of_version
from app.models.repository import configured_repository
from app.requests import DEADLINE_HEADER, LABEL_HEADER, VERSION_HEADER
from app.score_request import Envelope, RequestError, encode_request, time_us
from app.settings import load_settings
from app.text_table import aligned
from app.topic_reader import find_cluster, open_reader
from schemas.columns import to_python
from schemas.generate import request_schema
from schemas.registry import SchemaBook
from schemas.topic_names import REQUESTS, REQUESTS_DLQ, SCORES
from schemas.wire import HEADER_BYTES, frame_header, schema_ids, source_mark

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.models.spec import ModelSpec
    from app.settings import Settings
    from schemas.records import Headers

EXIT_DOES_NOT_FIT = 2
EXIT_NO_ANSWER = 4
EXIT_NOT_SCORED = 5
SCORED = {"OK", "DEGRADED"}
POLL_MS = 200


@dataclass(frozen=True, slots=True)
class Question:
    """One request on its way.

    Attributes:
        envelope: its ids and times.
        value: framed Avro.
        headers: pins and deadline.
        timeout_s: how long to wait for the answer.

    """

    envelope: Envelope
    value: bytes
    headers: Headers
    timeout_s: float

    @property
    def key(self) -> bytes:
        """Of its record."""
        return self.envelope.entity_id.encode()


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a request lies.

    Attributes:
        partition: of ``score-requests``; the answer comes on the same of ``scores``.
        offset: of the request.
        scores_end: of ``scores`` before it was sent.
        letters_end: of the dead letters before it was sent.
        at_s: monotonic seconds.

    """

    partition: int
    offset: int
    scores_end: int
    letters_end: int
    at_s: float

    @property
    def mark(self) -> bytes:
        """``x-src`` of its answer, up to the attempt."""
        return source_mark(REQUESTS, self.partition, self.offset).rpartition(b":")[0] + b":"


class NoAnswer(TopicError):
    """No answer came in time; the message says where to look."""


def register(cli: typer.Typer) -> None:
    """Add the command to ``sluice``."""
    cli.command()(score)


def score(  # noqa: PLR0913 - one option for each thing that a request can say
    model: Annotated[str, typer.Argument(help="name of a model in the repository")],
    features: Annotated[str, typer.Argument(metavar="JSON", help='{"feature": value, ...}; - reads standard input')],
    *,
    entity: Annotated[str | None, typer.Option(help="whom it is about; else the fresh request id")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="pin a version of the model")] = None,
    label: Annotated[str | None, typer.Option(help="pin a label of the model, for example challenger")] = None,
    event_time: Annotated[str | None, typer.Option(help="unix micros or ISO text; else now")] = None,
    deadline_ms: Annotated[float | None, typer.Option(min=0, help="from now; a later answer is EXPIRED")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="seconds to wait for the answer")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="the answer as JSON")] = False,
) -> None:
    """Send one request through the topics and print its answer: score, outputs, decision, version, timings by stage.

    A time is unix micros or an ISO text. Exit codes: 0 scored, 2 the features do not fit the model, 4 no answer in
    time, 5 an answer without a score (INVALID, EXPIRED, SHED or ERROR).
    """
    settings = load_settings()
    try:
        spec = _spec(settings, model, version)
        envelope = _envelope(model, entity, event_time)
        book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
        prefix = frame_header(book.add(REQUESTS, request_schema(spec.name, spec.fields())))
        value = encode_request(spec, _parse(features), envelope, prefix=prefix)
        headers = _headers(model, version, label, deadline_ms)
    except RequestError as exc:
        typer.echo(f"sluice: the request does not fit {model}:\n{exc}", err=True)
        raise typer.Exit(EXIT_DOES_NOT_FIT) from exc
    try:
        answer = asyncio.run(_ask(settings, book, Question(envelope, value, headers, timeout)))
    except NoAnswer as exc:
        typer.echo(f"sluice: {exc}", err=True)
        raise typer.Exit(EXIT_NO_ANSWER) from exc
    names = _output_names(settings, answer, spec)
    if as_json:
        answer["outputs"] = dict(zip(names, answer["outputs"], strict=False))
        typer.echo(json.dumps(answer, ensure_ascii=False))
    else:
        typer.echo("\n".join(answer_lines(answer, names)))
    if answer["status"] not in SCORED:
        raise typer.Exit(EXIT_NOT_SCORED)


def _spec(settings: Settings, model: str, version: int | None) -> ModelSpec:
    """The signature of the pinned version, else of the newest one."""
    repository = configured_repository(settings.models)
    return repository.spec(model, version or repository.latest(model))


def _envelope(model: str, entity: str | None, event_time: str | None) -> Envelope:
    request_id = str(uuid.uuid4())
    event_us = time.time_ns() // 1000
    if event_time is not None:
        event_us = time_us("--event-time", int(event_time) if event_time.lstrip("-").isdecimal() else event_time)
    return Envelope(request_id, entity or request_id, event_us, model)


def _parse(text: str) -> dict[str, Any]:
    try:
        found = json.loads(sys.stdin.read() if text == "-" else text)
    except json.JSONDecodeError as exc:
        msg = f"the features are not JSON: {exc}"
        raise RequestError(msg) from exc
    if not isinstance(found, dict):
        msg = f"the features must be a JSON object, not {type(found).__name__}"
        raise RequestError(msg)
    return found


def _headers(model: str, version: int | None, label: str | None, deadline_ms: float | None) -> Headers:
    headers: list[tuple[str, bytes]] = []
    if version is not None:
        headers.append((VERSION_HEADER, of_version(model, version).item.encode()))
    if label is not None:
        headers.append((LABEL_HEADER, of_label(model, label).item.encode()))
    if deadline_ms is not None:
        headers.append((DEADLINE_HEADER, b"%d" % (time.time() * 1000 + deadline_ms)))
    return tuple(headers)


async def _ask(settings: Settings, book: SchemaBook, question: Question) -> dict[str, Any]:
    """Send the request and return its decoded answer, with where it lay and how long it took to and fro.

    Raises:
        NoAnswer: none came in time.
        TopicError: no broker answers, or a topic is missing.

    """
    cluster = await find_cluster(settings.kafka)
    count = cluster.count(REQUESTS)
    partition = DefaultPartitioner()(question.key, list(range(count)), [])
    try:
        sent, value = await _exchange(settings, question, partition)
    except KafkaError as exc:
        msg = f"Kafka at {settings.kafka.bootstrap_servers} fails ({exc!r}); look at the brokers, then ask again"
        raise TopicError(msg) from exc
    if value is None:
        raise NoAnswer(await _why_no_answer(settings, question, sent))
    return {
        **await _decode(book, value),
        "request": {"topic": REQUESTS, "partition": sent.partition, "offset": sent.offset},
        "round_trip_us": int((time.monotonic() - sent.at_s) * 1e6),
    }


async def _exchange(settings: Settings, question: Question, partition: int) -> tuple[Sent, bytes | None]:
    kafka = connection_arguments(settings.kafka)
    scores, letters = TopicPartition(SCORES, partition), TopicPartition(REQUESTS_DLQ, partition)
    consumer = AIOKafkaConsumer(**kafka, group_id=None, enable_auto_commit=False, isolation_level="read_committed")
    producer = AIOKafkaProducer(**kafka, acks="all")
    try:
        await consumer.start()
        await producer.start()
        consumer.assign([scores])
        ends = await consumer.end_offsets([scores, letters])
        consumer.seek(scores, ends[scores])
        at_s = time.monotonic()
        put = await producer.send_and_wait(
            REQUESTS, question.value, question.key, partition=partition, headers=list(question.headers)
        )
        sent = Sent(partition, int(put.offset), int(ends[scores]), int(ends[letters]), at_s)
        return sent, await _wait(consumer, scores, sent, question.timeout_s)
    finally:
        await producer.stop()
        await consumer.stop()


async def _wait(consumer: AIOKafkaConsumer, scores: TopicPartition, sent: Sent, timeout_s: float) -> bytes | None:
    """The value of the answer that bears the request's mark; None when it does not come in time."""
    while time.monotonic() < sent.at_s + timeout_s:
        fetched = await consumer.getmany(scores, timeout_ms=POLL_MS)
        for record in fetched.get(scores, ()):
            if any(name == "x-src" and value.startswith(sent.mark) for name, value in record.headers):
                return bytes(record.value)
    return None


async def _decode(book: SchemaBook, value: bytes) -> dict[str, Any]:
    schema_id = int(schema_ids([value])[0])
    decoder = await asyncio.to_thread(book.decoder, schema_id)
    decoded = None if decoder is None else decoder.decode([value], skip_bytes=HEADER_BYTES)
    if decoded is None or decoded.errors:
        msg = f"the answer has the unknown schema id {schema_id}; is SLUICE_SCHEMAS__FOLDER that of the workers?"
        raise TopicError(msg)
    record: dict[str, Any] = to_python(decoded.columns)[0]
    return record


async def _why_no_answer(settings: Settings, question: Question, sent: Sent) -> str:
    """What is known of a request without an answer: a dead letter, the group's lag, the workers that live."""
    from agents.worker_watch import watch_workers  # noqa: PLC0415 - needed only now

    place = f"{REQUESTS} {sent.partition}:{sent.offset}"
    lines = [f"no answer within {question.timeout_s:g} s to request {question.envelope.request_id} at {place}"]
    letter = await _dead_letter(settings, sent)
    if letter is not None:
        return "\n".join([*lines, letter])
    lines.append(await _lag_line(settings, sent))
    async with watch_workers(settings) as watch:
        workers = watch.stats("scoring")
    if not workers:
        lines.append("no scoring worker is alive; start one with `sluice worker scoring`")
    for worker, document in workers.items():
        taken = document["stats"].get("conservation", {})
        figures = f"{taken.get('consumed', '?')} consumed, {taken.get('in_flight', '?')} in flight"
        where = f"see {document['web_url']}/v2/health/ready and its log"
        lines.append(printable(f"{worker} was alive within the last 10 s: {figures}; {where}"))
    return "\n".join(lines)


async def _dead_letter(settings: Settings, sent: Sent) -> str | None:
    async with open_reader(settings.kafka) as reader:
        _, end = await reader.bounds(REQUESTS_DLQ, sent.partition)
        span = Range(REQUESTS_DLQ, sent.partition, sent.letters_end, end)
        async for letter in read_letters(reader, [span]):
            if letter.source == (REQUESTS, sent.partition, sent.offset):
                fault = f"{letter.stage}, {letter.error_class}: {letter.message}"
                return f"it became a dead letter: {fault}; see `sluice dlq show {letter.place}`"
    return None


async def _lag_line(settings: Settings, sent: Sent) -> str:
    group = f"{settings.deployment}-scoring"
    admin = AIOKafkaAdminClient(**connection_arguments(settings.kafka))
    try:
        await admin.start()
        committed = await admin.list_consumer_group_offsets(group)
    except KafkaError as exc:
        return f"the lag of group {group} cannot be had ({exc!r})"
    finally:
        await admin.close()
    found = committed.get(TopicPartition(REQUESTS, sent.partition))
    if found is None or found.offset < 0:
        return f"group {group} has committed nothing of partition {sent.partition} yet"
    if found.offset > sent.offset:
        return f"group {group} has committed it, but {SCORES} has no answer from {sent.scores_end} on; ask again"
    before = f"{sent.offset - found.offset} requests are before it"
    return f"group {group} has committed partition {sent.partition} up to {found.offset}: {before}"


def _output_names(settings: Settings, answer: Mapping[str, Any], asked: ModelSpec) -> list[str]:
    """Names of the outputs of the version that answered, if its bundle is here; else numbers."""
    spec: ModelSpec | None = asked
    if answer["model_version"] != asked.version:
        try:
            spec = _spec(settings, asked.name, int(answer["model_version"]))
        except BundleError:
            spec = None
    names = () if spec is None else spec.output.output_names
    count = len(answer["outputs"])
    return list(names) if len(names) == count else [str(i) for i in range(count)]


def answer_lines(answer: Mapping[str, Any], names: list[str]) -> list[str]:
    """The answer as two tables: what it says, and how long each stage took.

    Args:
        answer: the decoded record, with ``request`` and ``round_trip_us``.
        names: of its outputs.

    """
    request = answer["request"]
    threshold = "" if answer["threshold"] is None else f"  (threshold {answer['threshold']:g})"
    experiment = answer["experiment_id"] and f"{answer['experiment_id']}, arm {answer['arm']}"
    facts = [
        ("status", answer["status"]),
        ("reason", answer["reason"]),
        ("score", answer["score"]),
        ("decision", answer["decision"] and f"{answer['decision']}{threshold}"),
        *((f"output {name}", value) for name, value in zip(names, answer["outputs"], strict=True)),
        ("model", f"{answer['model_name']} version {answer['model_version']}"),
        ("experiment", experiment),
        ("degraded", ", ".join(answer["degraded"])),
        ("request", f"{answer['request_id']} at {request['topic']} {request['partition']}:{request['offset']}"),
        ("batch", f"{answer['batch_rows']} rows, fired {answer['fire_reason']}"),
    ]
    rows = [(name, printable(str(value))) for name, value in facts if value not in {None, ""}]
    stages = [(name.removesuffix("_us"), us) for name, us in answer["timings"].items()]
    stages.append(("round trip", answer["round_trip_us"]))
    return [
        *aligned(rows),
        "",
        *aligned([("STAGE", "      MS"), *((name, f"{us / 1000:8.2f}") for name, us in stages)]),
    ]
