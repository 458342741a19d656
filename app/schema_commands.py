"""``sluice schema``: generate, check, encode and decode, so that any Kafka client can be a producer or a reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from app.errors import SluiceError
from app.models.repository import configured_repository
from app.settings import load_settings
from schemas.columnar import Encoder
from schemas.columns import NumberColumn, RecordColumn, TextColumn, to_python
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

    A line holds request_id, entity_id, event_time (unix micros) and features, for example
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
    schema = request_schema(spec.name, spec.fields())
    known = {f.name for f in spec.features if f.source == "request"}
    given = request.get("features", {})
    unknown = sorted(set(given) - known)
    if unknown:
        msg = (
            f"line {number}: {spec.name} has no request feature {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
        raise SchemaError(msg)
    columns: dict[str, Any] = {}
    for feature in spec.features:
        if feature.source == "request":
            columns[feature.name] = _column(feature.type, given.get(feature.name), f"line {number}: {feature.name}")
    envelope = RecordColumn({
        "request_id": TextColumn.from_values([str(request["request_id"])]),
        "entity_id": TextColumn.from_values([str(request["entity_id"])]),
        "unit_id": TextColumn.from_values([request.get("unit_id")]),
        "event_time": _column("time", request["event_time"], f"line {number}: event_time"),
        "model": TextColumn.from_values([request.get("model")]),
        "features": RecordColumn(columns, 1),
    }, 1)  # fmt: skip
    return Encoder(schema).encode(envelope, prefix=prefix)[0]


def _column(kind: str, value: Any, where: str) -> TextColumn | NumberColumn:  # noqa: ANN401 - any JSON
    import numpy as np  # noqa: PLC0415

    if kind in {"category", "text"}:
        if not isinstance(value, str | None):
            msg = f"{where}: a string is expected"
            raise SchemaError(msg)
        return TextColumn.from_values([value])
    if value is not None and not isinstance(value, int | float):
        msg = f"{where}: a number is expected"
        raise SchemaError(msg)
    dtype = {"time": np.int64, "flag": np.bool_}.get(kind, np.float64)
    valid = None if value is not None else np.zeros(1, bool)
    return NumberColumn(np.array([value or 0], dtype=dtype), valid)


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
