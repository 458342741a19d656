"""``sluice dlq``: look at dead letters, and send them again once their cause is gone."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.dead_letter_text import details_lines, letter_details, letter_json, letter_line, summary_lines
from app.dead_letter_topic import find_ranges, read_letters
from app.dead_letters import DeadLetterError, Selection, counted, parse_place, parse_time
from app.models.repository import configured_repository
from app.replay import Replay, ReplayOrder
from app.replay_journal import ReplayJournal
from app.settings import load_settings
from app.topic_reader import find_cluster, open_reader
from schemas.generate import request_schema
from schemas.registry import SchemaBook
from schemas.topic_names import OUTCOMES_DLQ, REQUESTS, REQUESTS_DLQ

if TYPE_CHECKING:
    from app.dead_letter_text import FindSchema
    from app.dead_letters import DeadLetter
    from app.replay import ReplayPlan
    from app.settings import Settings

cli = typer.Typer(no_args_is_help=True, help=__doc__)
JOURNAL = "dlq-replays.jsonl"


class DlqTopic(StrEnum):
    """The dead-letter topics."""

    REQUESTS = REQUESTS_DLQ
    OUTCOMES = OUTCOMES_DLQ


Topic = Annotated[DlqTopic, typer.Option(help="the dead-letter topic")]
Stage = Annotated[str | None, typer.Option(help="only those that failed there: decode, schema, features, ...")]
Fault = Annotated[str | None, typer.Option("--error", help="only those of that class, for example TruncatedRecord")]
Since = Annotated[str | None, typer.Option(help="dead since then: 90s, 15m, 1h, 7d ago or an ISO time (UTC)")]
Until = Annotated[str | None, typer.Option(help="dead before then, written alike")]
Partition = Annotated[int | None, typer.Option(min=0, help="only that partition")]
Limit = Annotated[int | None, typer.Option(min=1, help="the first so many")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text")]


@cli.command("list")
def list_letters(  # noqa: PLR0913 - one option a filter
    *,
    topic: Topic = DlqTopic.REQUESTS,
    stage: Stage = None,
    error: Fault = None,
    since: Since = None,
    until: Until = None,
    partition: Partition = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """One line a dead letter, up to those that are there now, then how many there are by stage and class.

    With --json the lines are JSON objects, and the summary goes to standard error.
    """
    selection = _selection(stage, error, since, until, partition)
    asyncio.run(_list(load_settings(), topic.value, selection, limit=limit, as_json=as_json))


@cli.command()
def show(
    place: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="as `sluice dlq list` prints it")],
    *,
    topic: Topic = DlqTopic.REQUESTS,
    raw: Annotated[Path | None, typer.Option(help="also write the value's bytes, untouched, to this file")] = None,
    as_json: AsJson = False,
) -> None:
    """Everything about one: source, fault, key, headers, bytes, and its fields as far as they can be decoded."""
    settings = load_settings()
    partition, offset = parse_place(place)
    letter = asyncio.run(_find(settings, topic.value, partition, offset))
    find_schema = _schema_finder(settings)
    if as_json:
        typer.echo(json.dumps(letter_details(letter, find_schema), ensure_ascii=False))
    else:
        typer.echo("\n".join(details_lines(letter, find_schema)))
    if raw is not None:
        _write_raw(raw, letter)


@cli.command()
def replay(  # noqa: PLR0913 - one option a filter
    places: Annotated[
        list[str] | None, typer.Argument(metavar="[PARTITION:OFFSET]...", help="only these; none: all that fit")
    ] = None,
    *,
    topic: Topic = DlqTopic.REQUESTS,
    stage: Stage = None,
    error: Fault = None,
    since: Since = None,
    until: Until = None,
    partition: Partition = None,
    limit: Limit = None,
    to: Annotated[str | None, typer.Option(help="topic to send to; else each goes where it came from")] = None,
    without_deadline: Annotated[bool, typer.Option("--without-deadline", help="drop x-deadline-unix-ms")] = False,
    again: Annotated[bool, typer.Option("--again", help="also what was replayed before")] = False,
    journal: Annotated[Path | None, typer.Option(help=f"what was replayed; else {JOURNAL} in the data folder")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="send; without it the command only says what it would do")] = False,
) -> None:
    """Send dead letters again: original key, bytes and headers, the same partition, header x-attempt one higher.

    What was sent is written into a journal and not sent twice; a replay that was interrupted goes on where it was.
    Those of class UnreadableRecord are left out: their value is what was left of a damaged record.
    """
    settings = load_settings()
    wanted = frozenset(parse_place(place) for place in places or ())
    selection = _selection(stage, error, since, until, partition, wanted)
    order = ReplayOrder(selection, to, limit, again, with_deadline=not without_deadline)
    path = journal or settings.data_dir / JOURNAL
    asyncio.run(_replay(settings, topic.value, order, path, is_confirmed=yes))


async def _list(settings: Settings, topic: str, selection: Selection, *, limit: int | None, as_json: bool) -> None:
    cluster = await find_cluster(settings.kafka)
    counts: Counter[tuple[str, str]] = Counter()
    present: Counter[tuple[str, str]] = Counter()
    async with open_reader(settings.kafka) as reader:
        ranges = await find_ranges(reader, topic, cluster.count(topic), selection)
        async for letter in read_letters(reader, ranges):
            present[letter.stage, letter.error_class] += 1
            if not selection.takes(letter):
                continue
            counts[letter.stage, letter.error_class] += 1
            typer.echo(json.dumps(letter_json(letter), ensure_ascii=False) if as_json else letter_line(letter))
            if counts.total() == limit:
                break
    shown = [f"{counted(counts.total())} of {topic}", *summary_lines(counts)]
    if not counts and present:
        shown += ["these are there, and do not fit:", *summary_lines(present)]
    typer.echo("\n".join(shown), err=as_json)


async def _find(settings: Settings, topic: str, partition: int, offset: int) -> DeadLetter:
    cluster = await find_cluster(settings.kafka)
    selection = Selection(places=frozenset({(partition, offset)}))
    async with open_reader(settings.kafka) as reader:
        ranges = await find_ranges(reader, topic, cluster.count(topic), selection)
        async for letter in read_letters(reader, ranges):
            return letter
        start, end = await reader.bounds(topic, partition)
    there = f"it has {start} to {end - 1}" if end > start else "it is empty"
    msg = f"{topic} has no dead letter {partition}:{offset}; of partition {partition} {there}; see `sluice dlq list`"
    raise DeadLetterError(msg)


async def _replay(settings: Settings, topic: str, order: ReplayOrder, path: Path, *, is_confirmed: bool) -> None:
    kafka = settings.kafka
    cluster = await find_cluster(kafka)
    partitions = cluster.count(topic)
    with ReplayJournal(path, cluster.name, topic) as journal:
        async with open_reader(kafka) as reader:
            ranges = await find_ranges(reader, topic, partitions, order.selection)
            job = Replay(kafka, cluster, reader, ranges, journal=journal, order=order)
            arrived = await job.settle()
            if arrived:
                typer.echo(f"An earlier replay was interrupted; of its last parcel {counted(arrived)} had arrived.")
            plan = await job.plan(int(time.time() * 1000))
            typer.echo("\n".join(_plan_lines(plan, order, path)))
            if not is_confirmed or not plan.total:
                typer.echo("Nothing was sent." + (" Add --yes to send." if plan.total else ""))
                return
            await job.run()
    typer.echo(f"Sent and confirmed: {job.sent_text()}.")


def _plan_lines(plan: ReplayPlan, order: ReplayOrder, journal: Path) -> list[str]:
    lines = [f"{counted(plan.total)} to send:" if plan.total else "No dead letter to send."]
    lines += [f"{n:>7,}  {stage:<10}  {name}  to {to}" for (stage, name, to), n in plan.counts.most_common()]
    if plan.replayed_count:
        lines.append(f"Replayed before, left out: {plan.replayed_count:,} (journal {journal}; --again sends them too).")
    if plan.homeless_count:
        some = _some(plan.homeless, plan.homeless_count)
        lines.append(f"Without a header that says where from, left out: {plan.homeless_count:,} ({some}).")
    if plan.unreadable_count:
        some = _some(plan.unreadable, plan.unreadable_count)
        lines.append(
            f"Damaged as they came, so their own bytes are not there, left out: {plan.unreadable_count:,} ({some}); "
            "let the producer send them again."
        )
    if plan.overdue_count:
        lines.append(
            f"Past their deadline: {plan.overdue_count:,} (a worker would answer EXPIRED; --without-deadline drops it)."
        )
    if not plan.total and not plan.left_out_count and plan.stages and order.selection != Selection():
        lines += ["These are there, and do not fit:", *summary_lines(plan.stages)]
    return lines


def _some(places: list[str], count: int) -> str:
    return ", ".join(places) + (", ..." if count > len(places) else "")


def _selection(
    stage: str | None,
    error: str | None,
    since: str | None,
    until: str | None,
    partition: int | None,
    places: frozenset[tuple[int, int]] = frozenset(),
) -> Selection:
    now_ms = int(time.time() * 1000)
    since_ms, until_ms = (None if text is None else parse_time(text, now_ms) for text in (since, until))
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        msg = f"--since {since} is not before --until {until}, so nothing can lie between; swap them"
        raise DeadLetterError(msg)
    return Selection(stage, error, since_ms, until_ms, partition, places)


def _schema_finder(settings: Settings) -> FindSchema:
    """Looks in the schema folder and at the models, then asks the registry; it registers nothing."""
    known = SchemaBook(settings.schemas.folder)
    for spec in configured_repository(settings.models).specs():
        known.add(REQUESTS, request_schema(spec.name, spec.fields()))
    registry = SchemaBook(None, settings.schemas.registry_url)

    def find(schema_id: int) -> dict[str, Any] | None:
        return known.schema(schema_id) or registry.schema(schema_id)

    return find


def _write_raw(path: Path, letter: DeadLetter) -> None:
    if letter.value is None:
        msg = f"{letter.place} has no value (a tombstone), so nothing was written to {path}"
        raise DeadLetterError(msg)
    try:
        path.write_bytes(letter.value)
    except OSError as exc:
        msg = f"{path} cannot be written ({exc.strerror}); name another file"
        raise DeadLetterError(msg) from exc
    typer.echo(f"{len(letter.value):,} bytes written to {path}", err=True)
