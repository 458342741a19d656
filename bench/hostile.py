"""A million hostile records through one worker: does it live, does its loop go on, does each offset end in one place.

Judged from outside: the topics are read again from the beginning, and compared with what was sent.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

import httpx
import numpy as np
import pandas as pd
import psutil
import torch
from aiokafka import AIOKafkaProducer

from app.calibration import Calibration
from app.models.architectures import build
from app.models.bundle import open_bundle
from app.models.packing import pack_bundle
from app.models.spec import Architecture, Feature, ModelSpec, Standardise
from bench.contenders import OURS, Running, wait_until_ready
from bench.kafka_batches import COMPRESS, ReadyBatch, batch, record
from bench.mutators import FOREIGN_SCHEMAS, MUTATORS, RARE, Seeds, hostile_record
from bench.reader import Reader
from bench.stack import PARTITIONS, Bench, fresh_topics
from schemas.columnar import Decoder
from schemas.deadletter import PREFIX
from schemas.records import Status
from schemas.registry import load_schema
from schemas.topic_names import REQUESTS, REQUESTS_DLQ, SCORES
from schemas.wire import HEADER_BYTES, parse_source_mark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.models.bundle import Bundle
    from bench.mutators import Hostile
    from schemas.columns import EnumColumn
    from schemas.records import RecordBatch

MODEL = "hostile"
SEED = 20
COUNT, QUICK_COUNT = 1_000_000, 5_000
BATCH_RECORDS = 400
BATCH_BYTES = 1_090_000
BOMBS, BOMB_RECORDS, BOMB_BYTES = 5, 3, 30 * 2**20
"""Batches that inflate to 90 MiB each."""
BOMB = "bomb"
NAMES = (*MUTATORS, *RARE, BOMB)
POLL_S = 0.02
TIMEOUT_S = 1800.0
OWN_HEADERS = 9
"""What a dead letter has behind the record's own headers: where it came from, what was wrong, and the mark."""
STAGES = {b"decode", b"schema", b"features", b"preprocess", b"inference", b"postprocess", b"encode"}


@dataclass
class Sent:
    """What went into one partition; a list's index is the offset.

    Attributes:
        digests: of key, value and headers.
        made_by: index into ``NAMES``.

    """

    digests: list[int] = field(default_factory=list)
    made_by: list[int] = field(default_factory=list)


@dataclass
class Found:
    """What came out for one partition, by source offset.

    Attributes:
        scores: how many answers.
        status: of the last one; -1 where there is none.
        letters: how many dead letters, copies of INVALID and ERROR requests included.
        altered: dead letters whose key, value, headers or origin are not the record's.

    """

    scores: np.ndarray
    status: np.ndarray
    letters: np.ndarray
    altered: int = 0


@dataclass
class Watched:
    """What was seen of the worker while it worked.

    Attributes:
        stall_s: longest wait for the health page.
        stall_cpu_s: most CPU time that the worker, all its threads, used during one such wait: how long its loop stood
            still at most, had nothing else used the cores.
        seconds: from the first look to the last answer.
        rss_mb: records consumed and resident set, again and again.

    """

    stall_s: float = 0.0
    stall_cpu_s: float = 0.0
    seconds: float = 0.0
    rss_mb: list[tuple[int, float]] = field(default_factory=list)


async def run(bench: Bench) -> dict[str, Any]:
    """Send, let the worker answer, read everything again."""
    count = QUICK_COUNT if bench.is_quick else COUNT
    bundle = hostile_bundle(bench.repository)
    environment = {
        "SLUICE_SCHEMAS__FOLDER": str(_schema_folder(bench)),
        "SLUICE_DELIVERY__POISON_SHARE": "1",
        "SLUICE_DELIVERY__REMEMBERED_ANSWERS": "0",
    }
    await fresh_topics(bench)
    sent = await _send(bench, bundle, count)
    total = sum(len(partition.digests) for partition in sent)
    with Running(bench, OURS, MODEL, env=environment) as running:
        watched = await _watch(running, await wait_until_ready(running, bench), total)
    figures = _verdict(sent, await _read_again(bench, sent)) | {
        "requests": total,
        "seed": SEED,
        "crashes": 0,  # a worker that ends is an error here, with the end of its log
        "stall_s": round(watched.stall_s, 3),
        "stall_cpu_s": round(watched.stall_cpu_s, 3),
        "requests_per_s": round(total / watched.seconds),
        **_memory(watched, total),
    }
    shown = {name: value for name, value in figures.items() if name not in {"mutators", "rss_points"}}
    print(f"  {shown}", flush=True)
    return figures


def hostile_bundle(repository: Path) -> Bundle:
    """A small model with a feature of every type, all of the request."""
    features = (
        Feature(name="amount", required=True, standardise=Standardise(mean=30, scale=20)),
        Feature(name="country", type="category", vocabulary=("de", "fr", "us")),
        Feature(name="seen_at", type="time", parts=("hour_of_day",)),
        Feature(name="is_new", type="flag"),
    )
    folder = repository / MODEL / "1"
    if not folder.exists():
        spec = ModelSpec(
            name=MODEL, version=1, features=features,
            architecture=Architecture(name="tabular_mlp", arguments={"hidden": [16], "embedding_dim": 4}),
        )  # fmt: skip
        torch.manual_seed(0)
        reference = pd.DataFrame({
            "amount": [1.0], "country": ["fr"], "seen_at": [0], "is_new": [True], "raw_score": [0.5], "score": [0.5],
            "label": [0.0],
        })  # fmt: skip
        pack_bundle(repository, spec, build(spec), Calibration(), reference)
    return open_bundle(folder)


def _schema_folder(bench: Bench) -> Path:
    """The contract's schemas and foreign ones, so that their ids mean something to the worker."""
    folder = bench.folder / "hostile-schemas"
    folder.mkdir(exist_ok=True)
    for path in (*Path("schemas").glob("*.avsc"), *Path("schemas").glob("*.json")):
        shutil.copy(path, folder)
    for name, schema in FOREIGN_SCHEMAS.items():
        (folder / f"{name}.avsc").write_text(json.dumps(schema))
    return folder


async def _send(bench: Bench, bundle: Bundle, count: int) -> list[Sent]:
    """Batches of every codec, the partitions in turn."""
    chance = Random(SEED)
    seeds = Seeds(bundle, chance)
    sent = [Sent() for _ in range(PARTITIONS)]
    producer = AIOKafkaProducer(bootstrap_servers=bench.servers, max_request_size=2 * 2**20)
    await producer.start()
    try:
        bombs, wanted = 0, 1 if bench.is_quick else BOMBS
        for turn, group in enumerate(_groups(chance, seeds, count)):
            partition = turn % PARTITIONS
            await _send_group(producer, group, chance.choice(tuple(COMPRESS)), sent[partition], partition)
            if bombs < wanted and sum(len(one.digests) for one in sent) > count * bombs // BOMBS:
                bombs += 1
                await _send_bomb(producer, sent[partition], partition)
    finally:
        await producer.stop()
    return sent


def _groups(chance: Random, seeds: Seeds, count: int) -> Iterator[list[tuple[str, Hostile]]]:
    """Names of mutators and what they made, as much at a time as a batch takes."""
    group: list[tuple[str, Hostile]] = []
    size = 0
    for _ in range(count):
        name, hostile = hostile_record(chance, seeds)
        if group and (len(group) == BATCH_RECORDS or size + hostile.max_bytes > BATCH_BYTES):
            yield group
            group, size = [], 0
        group.append((name, hostile))
        size += hostile.max_bytes
    yield group


async def _send_group(
    producer: AIOKafkaProducer, group: list[tuple[str, Hostile]], codec: int, sent: Sent, partition: int
) -> None:
    sent.digests += [_digest_of(hostile) for _, hostile in group]
    sent.made_by += [NAMES.index(name) for name, _ in group]
    records = [
        record(hostile.value, key=hostile.key, headers=hostile.headers, place=place)
        for place, (_, hostile) in enumerate(group)
    ]
    await _deliver(producer, batch(records, codec=codec), len(records), sent, partition)


async def _send_bomb(producer: AIOKafkaProducer, sent: Sent, partition: int) -> None:
    records = [record(bytes(BOMB_BYTES), key=b"bomb", place=place) for place in range(BOMB_RECORDS)]
    sent.digests += [0] * BOMB_RECORDS
    sent.made_by += [NAMES.index(BOMB)] * BOMB_RECORDS
    await _deliver(producer, batch(records, codec=1), BOMB_RECORDS, sent, partition)


async def _deliver(producer: AIOKafkaProducer, raw: bytes, count: int, sent: Sent, partition: int) -> None:
    done = await (await producer.send_batch(ReadyBatch(raw, count), REQUESTS, partition=partition))
    expected = len(sent.digests) - count
    if done.offset != expected:
        msg = f"partition {partition}: a batch went to offset {done.offset}, not {expected}; is somebody else sending?"
        raise RuntimeError(msg)


async def _watch(running: Running, url: str, total: int) -> Watched:
    """Ask for the worker's health all the time: an answer that takes long means a loop that stood still."""
    watched, started_s = Watched(), time.monotonic()
    consumed, next_look_s = 0, 0.0
    process = psutil.Process(running.processes[0].pid)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        while True:
            running.check()
            asked_s, cpu_s = time.monotonic(), sum(process.cpu_times()[:2])
            await client.get("/v2/health/live")
            now_s = time.monotonic()
            watched.stall_s = max(watched.stall_s, now_s - asked_s)
            watched.stall_cpu_s = max(watched.stall_cpu_s, sum(process.cpu_times()[:2]) - cpu_s)
            if now_s > next_look_s:
                next_look_s = now_s + 10 * POLL_S
                conservation = await _conservation(client)
                consumed = conservation["consumed"]
                watched.rss_mb.append((consumed, round(running.rss_mb(), 1)))
                if consumed >= total and not conservation["in_flight"]:
                    watched.seconds = now_s - started_s
                    return watched
            if now_s - started_s > TIMEOUT_S:
                msg = f"{consumed} of {total} records after {TIMEOUT_S:.0f} s"
                raise TimeoutError(msg)
            await asyncio.sleep(POLL_S)


async def _conservation(client: httpx.AsyncClient) -> dict[str, int]:
    document = (await client.get("/stats")).json()
    conservation: dict[str, int] = document["workers"][document["worker"]]["stats"]["conservation"]
    return conservation


async def _read_again(bench: Bench, sent: list[Sent]) -> list[Found]:
    found = [
        Found(np.zeros(n, np.int64), np.full(n, -1), np.zeros(n, np.int64))
        for n in (len(partition.digests) for partition in sent)
    ]
    decoder = Decoder(load_schema(Path("schemas"), "score"))
    for topic in (SCORES, REQUESTS_DLQ):
        async with Reader(bench, topic, from_end=False) as reader:
            while batches := await reader.fetch(2.0):
                for fetched in batches:
                    if topic == SCORES:
                        _note_scores(fetched, decoder, found)
                    else:
                        _note_letters(fetched, sent, found)
    return found


def _note_scores(fetched: RecordBatch, decoder: Decoder, found: list[Found]) -> None:
    values = cast("list[bytes]", fetched.values)
    statuses = cast("EnumColumn", decoder.decode(values, skip_bytes=HEADER_BYTES).columns.fields["status"]).codes
    for headers, status in zip(fetched.headers, statuses.tolist(), strict=True):
        _, partition, offset, _ = parse_source_mark(headers[-1][1])
        found[partition].scores[offset] += 1
        found[partition].status[offset] = status


def _note_letters(fetched: RecordBatch, sent: list[Sent], found: list[Found]) -> None:
    for key, value, headers in zip(fetched.keys, fetched.values, fetched.headers, strict=True):
        _, partition, offset, _ = parse_source_mark(headers[-1][1])
        facts = {name.removeprefix(PREFIX): content for name, content in headers[-OWN_HEADERS:]}
        found[partition].letters[offset] += 1
        digest = sent[partition].digests[offset]
        is_same = digest in {0, hash((key, value, headers[:-OWN_HEADERS]))}
        names_origin = (facts["partition"], facts["offset"]) == (b"%d" % partition, b"%d" % offset)
        if not (is_same and names_origin and facts["stage"] in STAGES):
            found[partition].altered += 1


def _digest_of(hostile: Hostile) -> int:
    headers = tuple((name.decode(errors="backslashreplace"), value) for name, value in hostile.headers)
    return hash((hostile.key, hostile.value, headers))


def _verdict(sent: list[Sent], found: list[Found]) -> dict[str, Any]:
    """Lost, doubled, altered; and what became of the records of each mutator."""
    made_by = np.concatenate([np.array(partition.made_by) for partition in sent])
    scores, status, letters = (
        np.concatenate([getattr(partition, name) for partition in found]) for name in ("scores", "status", "letters")
    )
    is_copied = np.isin(status, (Status.INVALID, Status.ERROR))
    terminal = scores + np.where(scores == 0, letters, 0)
    misplaced = (letters > 0) & (scores > 0) & ~is_copied  # a dead letter beside a score that is no refusal
    mutators = {}
    for index, name in enumerate(NAMES):
        mine = made_by == index
        outcomes = {s.name: int((status[mine] == s).sum()) for s in Status if (status[mine] == s).any()}
        dead = int(((letters > 0) & (scores == 0) & mine).sum())
        mutators[name] = {"sent": int(mine.sum()), **outcomes, **({"dead letter": dead} if dead else {})}
    good = made_by == NAMES.index("valid")
    return {
        "lost": int((terminal == 0).sum()),
        "doubled": int((terminal > 1).sum() + (letters > 1).sum()),
        "misplaced": int(misplaced.sum() + (is_copied & (letters == 0)).sum()),
        "altered_dead_letters": sum(partition.altered for partition in found),
        "dead_letters": int(((letters > 0) & (scores == 0)).sum()),
        "valid_not_scored": int((~np.isin(status[good], (Status.OK, Status.DEGRADED))).sum()),
        "mutators": mutators,
    }


def _memory(watched: Watched, total: int) -> dict[str, Any]:
    sizes = [rss_mb for _, rss_mb in watched.rss_mb]
    early = next(rss_mb for consumed, rss_mb in watched.rss_mb if consumed >= total // 4)
    return {
        "after_a_quarter_mb": early,
        "end_mb": sizes[-1],
        "largest_mb": max(sizes),
        "growth_mb": round(sizes[-1] - early, 1),
        "rss_points": watched.rss_mb[:: max(1, len(sizes) // 20)],
    }
