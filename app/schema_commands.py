"""``sluice schema``: generate, check, encode and decode, so that any Kafka client can be a producer or a reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from app.errors import SluiceError
from app.models.repository import configured_repository
from app.score_request import Envelope, RequestError, encode_request, time_us
from app.settings import load_settings
from schemas.columns import to_python
from schemas.generate import labelled_schema, prediction_schema, request_schema
from schemas.registry import SchemaBook, full_name, is_compatible
from schemas.registry import release as release_schemas
from schemas.topic_names import LABELLED, PREDICTIONS, REQUESTS
from schemas.wire import HEADER_BYTES, frame_header, schema_ids

if TYPE_CHECKING:
    from app.models.spec import ModelSpec

cli = typer.Typer(no_args_is_help=True, help=__doc__)
TOPICS = {"request": REQUESTS, "prediction": PREDICTIONS, "labelled_prediction": LABELLED}
Model = Annotated[str, typer.Argument(help="name of a model in the repository")]


class SchemaError(SluiceError):
    """A schema or a record does not fit; the message says where."""


@cli.command()
def generate(
    model: Model, *, out: Annotated[Path, typer.Option(help="folder for the .avsc files")] = Path("schemas")
) -> None:
    """Write the request, prediction and labelled schemas that belong to a model; refuses an incompatible change."""
    spec = _spec(model)
    out.mkdir(parents=True, exist_ok=True)
    for kind, schema in _model_schemas(spec).items():
        path = out / f"{spec.name}_{kind}.avsc"
        if path.exists():
            _refuse_incompatible(path, json.loads(path.read_text()), schema)
        path.write_text(json.dumps(schema, indent=2) + "\n")
        typer.echo(f"{path}  {full_name(schema)}")


@cli.command()
def check(old: Path, new: Path) -> None:
    """Refuse an edit of a schema that is not FULL-compatible: each must read what the other wrote."""
    _refuse_incompatible(new, json.loads(old.read_text()), json.loads(new.read_text()))
    typer.echo(f"{new} is FULL-compatible with {old}")


@cli.command()
def release() -> None:
    """Record new versions of the schema folder's .avsc files; refuses one that is not FULL-compatible."""
    try:
        added = release_schemas(load_settings().schemas.folder)
    except ValueError as exc:
        raise SchemaError(str(exc)) from exc
    typer.echo(f"recorded: {', '.join(added)}" if added else "nothing has changed")


@cli.command()
def encode(
    model: Model,
    *,
    out: Annotated[Path, typer.Option(help="folder; one file a request")],
    lines: Annotated[
        typer.FileText, typer.Argument(help="JSON requests, one a line; - for standard input")
    ] = sys.stdin,  # type: ignore[assignment]
) -> None:
    """Turn JSON requests into framed Avro, one file each, and print how to produce each with kcat.

    A line holds request_id, entity_id, event_time (unix micros or an ISO text) and features, for example
    {"request_id": "r1", "entity_id": "N14228", "event_time": 1362000000000000, "features": {"distance_mi": 1400}}.
    """
    spec = _spec(model)
    book = _book()
    prefix = frame_header(book.add(REQUESTS, request_schema(spec.name, spec.fields())))
    out.mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        request = _parse_line(line, number)
        path = out / f"{number:06d}.avro"
        path.write_bytes(_encode_request(spec, request, prefix, number))
        produce = "kcat -P -b $KAFKA_BOOTSTRAP_SERVERS -t score-requests -X partitioner=murmur2_random"
        typer.echo(f"{produce} -k {request['entity_id']} {path}")


@cli.command()
def decode() -> None:
    r"""Print framed Avro values as JSON lines, read from standard input as kcat's ``-f '%S\n%s'`` writes them."""
    book = _book()
    for value in _sized_values(sys.stdin.buffer):
        typer.echo(json.dumps(_decode_value(book, value), ensure_ascii=False))


def _encode_request(spec: ModelSpec, request: dict[str, Any], prefix: bytes, number: int) -> bytes:
    try:
        envelope = Envelope(
            str(request["request_id"]), str(request["entity_id"]), time_us("event_time", request["event_time"]),
            model=request.get("model"), unit_id=request.get("unit_id"),
        )  # fmt: skip
        return encode_request(spec, request.get("features", {}), envelope, prefix=prefix)
    except RequestError as exc:
        msg = "\n".join(f"line {number}: {fault}" for fault in str(exc).splitlines())
        raise SchemaError(msg) from exc


def _parse_line(line: str, number: int) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except json.JSONDecodeError as exc:
        msg = f"line {number}: not JSON: {exc}"
        raise SchemaError(msg) from exc
    missing = [
        name
        for name in ("request_id", "entity_id", "event_time")
        if not isinstance(request, dict) or name not in request
    ]
    if missing:
        msg = f"line {number}: {', '.join(missing)} missing"
        raise SchemaError(msg)
    return dict(request)


def _sized_values(stream: BinaryIO) -> list[bytes]:
    values = []
    while size := stream.readline():
        length = int(size)
        if length >= 0:
            values.append(stream.read(length))
    return values


def _decode_value(book: SchemaBook, value: bytes) -> dict[str, Any]:
    schema_id = int(schema_ids([value])[0])
    decoder = book.decoder(schema_id)
    if decoder is None:
        return {"error": f"schema id {schema_id} is unknown", "bytes": len(value)}
    decoded = decoder.decode([value], skip_bytes=HEADER_BYTES)
    if decoded.errors:
        return {"error": decoded.errors[0], "bytes": len(value)}
    record: dict[str, Any] = to_python(decoded.columns)[0]
    return record


def _model_schemas(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    fields = spec.fields()
    return {
        "request": request_schema(spec.name, fields),
        "prediction": prediction_schema(spec.name, fields),
        "labelled_prediction": labelled_schema(spec.name, fields),
    }


def _refuse_incompatible(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    problem = is_compatible(old, new)
    if problem is not None:
        remedy = "add fields with defaults only, or use a new name"
        msg = f"{path}: not FULL-compatible with the schema before it: {problem}; {remedy}"
        raise SchemaError(msg)


def _spec(model: str) -> ModelSpec:
    repository = configured_repository(load_settings().models)
    return repository.spec(model, repository.latest(model))


def _book() -> SchemaBook:
    settings = load_settings()
    book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
    for spec in configured_repository(settings.models).specs():
        for kind, schema in _model_schemas(spec).items():
            book.add(TOPICS[kind], schema)
    return book
