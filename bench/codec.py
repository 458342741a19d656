"""Micro-benchmarks of the codec against fastavro: microseconds a record, in batches of 512."""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastavro

from bench.peers.place import Contender
from bench.peers.work import Work
from bench.workload import MODEL, make_bundle, make_requests
from schemas.columnar import Decoder, Encoder
from schemas.generate import prediction_schema, request_schema
from schemas.registry import load_schema
from schemas.wire import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.stack import Bench

ROWS = 512
ROUNDS = 41


async def run(bench: Bench) -> dict[str, Any]:
    """Decode and encode of all three record types, both codecs; medians, interleaved."""
    bundle = make_bundle(bench.repository)
    work = Work(Contender(bench.servers, bench.redis_url, "codec", bench.repository, MODEL))
    _, requests = make_requests(bundle, 0, ROWS)
    answers = work.answer(work.decode(requests))
    fields = bundle.spec.fields()
    cases = {
        "request": (request_schema(MODEL, fields), requests),
        "score": (load_schema(Path("schemas"), "score"), answers.scores),
        "prediction": (prediction_schema(MODEL, fields), answers.predictions),
    }
    rounds = 3 if bench.is_quick else ROUNDS
    table = {name: _compare(schema, values, rounds) for name, (schema, values) in cases.items()}
    for name, row in table.items():
        print(f"  {name:10} {row}", flush=True)
    return {"rows": ROWS, "rounds": rounds, "records": table}


def _compare(schema: dict[str, Any], values: list[bytes], rounds: int) -> dict[str, float]:
    from bench.peers.work import _plain

    decoder, encoder, plain = Decoder(schema), Encoder(schema), fastavro.parse_schema(_plain(schema))
    columns = decoder.decode(values, skip_bytes=HEADER_BYTES).columns
    bodies = [value[HEADER_BYTES:] for value in values]
    rows = [fastavro.schemaless_reader(io.BytesIO(body), plain, None) for body in bodies]
    assert encoder.encode(columns, prefix=b"") == bodies, "the codecs disagree"

    def write() -> None:
        for row in rows:
            fastavro.schemaless_writer(io.BytesIO(), plain, row)

    spent = _interleaved(rounds, {
        "decode_us": lambda: decoder.decode(values, skip_bytes=HEADER_BYTES),
        "fastavro_decode_us": lambda: [fastavro.schemaless_reader(io.BytesIO(b), plain, None) for b in bodies],
        "encode_us": lambda: encoder.encode(columns, prefix=b""),
        "fastavro_encode_us": write,
    })  # fmt: skip
    found = {name: round(seconds * 1e6 / len(values), 3) for name, seconds in spent.items()}
    return {
        **found,
        "decode_ratio": round(found["fastavro_decode_us"] / found["decode_us"], 1),
        "encode_ratio": round(found["fastavro_encode_us"] / found["encode_us"], 1),
    }


def _interleaved(rounds: int, ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started_s = time.process_time()
            way()
            spent[name].append(time.process_time() - started_s)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}
