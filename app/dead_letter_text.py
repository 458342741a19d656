"""Dead letters as text and as JSON: one line, a summary, and everything about one."""

from __future__ import annotations

import base64
import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from app.dead_letters import printable
from app.partial_record import decode_as_far
from schemas.columnar import SchemaNotSupported
from schemas.wire import HEADER_BYTES, NOT_FRAMED, schema_ids

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from app.dead_letters import DeadLetter

    FindSchema = Callable[[int], dict[str, Any] | None]

MESSAGE_CHARS = 80
VALUE_CHARS = 200
DUMP_BYTES = 512
"""Of a hex dump; the whole value goes to a file."""
DUMP_WIDTH = 16


def iso_time(timestamp_ms: int) -> str:
    """UTC with milliseconds.

    Example:
        >>> iso_time(1_362_000_000_123)
        '2013-02-27T21:20:00.123Z'

    """
    try:
        moment = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shortened(text: str, chars: int) -> str:
    """At most ``chars`` characters, the last an ellipsis when some are missing.

    Example:
        >>> shortened("abcdef", 4)
        'abc…'

    """
    return text if len(text) <= chars else text[: chars - 1] + "…"


def letter_line(letter: DeadLetter) -> str:
    """Place, time, source, stage, class and the message, shortened."""
    attempt = f" (attempt {letter.attempt})" if letter.attempt else ""
    return (
        f"{letter.place:<10} {iso_time(letter.timestamp_ms)}  {_source_text(letter)}  {letter.stage}  "
        f"{letter.error_class}  {shortened(letter.message, MESSAGE_CHARS)}{attempt}"
    )


def letter_json(letter: DeadLetter) -> dict[str, Any]:
    """The same for programs; a source of None means that no header names it."""
    source = letter.source
    return {
        "place": letter.place,
        "topic": letter.topic,
        "timestamp": iso_time(letter.timestamp_ms),
        "source": None if source is None else dict(zip(("topic", "partition", "offset"), source, strict=True)),
        "stage": letter.stage,
        "error_class": letter.error_class,
        "message": letter.message,
        "attempt": letter.attempt,
        "value_bytes": None if letter.value is None else len(letter.value),
    }


def summary_lines(counts: Counter[tuple[str, str]]) -> list[str]:
    """A table of stages and classes, the most frequent first.

    Example:
        >>> from collections import Counter
        >>> summary_lines(Counter({("decode", "TruncatedRecord"): 12, ("join", "Late"): 1}))
        ['     12  decode      TruncatedRecord', '      1  join        Late']

    """
    return [f"{count:>7,}  {stage:<10}  {name}" for (stage, name), count in counts.most_common()]


def hex_dump(value: bytes) -> list[str]:
    r"""Offsets, bytes and the ASCII that is among them; the first 512 bytes.

    Example:
        >>> hex_dump(b"\x00flight")
        ['000000  00 66 6c 69 67 68 74                             |.flight|']

    """
    shown = value[:DUMP_BYTES]
    lines = []
    for start in range(0, len(shown), DUMP_WIDTH):
        row = shown[start : start + DUMP_WIDTH]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):<{3 * DUMP_WIDTH}} |{text}|")
    if len(value) > len(shown):
        lines.append(f"... {len(value) - len(shown):,} more bytes; --raw FILE writes all")
    return lines


def letter_details(letter: DeadLetter, find_schema: FindSchema) -> dict[str, Any]:
    """Everything about one, ready for JSON.

    Args:
        letter: which.
        find_schema: the schema of an id, or None when nobody knows it.

    """
    value = letter.value
    return {
        **letter_json(letter),
        "key": _bytes_json(letter.key),
        "headers": [[printable(name), _bytes_json(header)] for name, header in letter.headers],
        "value_base64": None if value is None else base64.b64encode(value).decode(),
        "record": _record_json(value, find_schema),
    }


def details_lines(letter: DeadLetter, find_schema: FindSchema) -> list[str]:
    """Everything about one, for a person."""
    value = letter.value
    lines = [
        f"dead letter  {letter.topic} {letter.place}, {iso_time(letter.timestamp_ms)}",
        f"source       {_source_text(letter)}, written {_written_text(letter)}, attempt {letter.attempt}",
        f"fault        {letter.stage}, {letter.error_class}: {letter.message}",
        f"key          {_bytes_text(letter.key)}",
        *(f"header       {printable(name)} = {_bytes_text(header)}" for name, header in letter.headers),
        f"value        {'none (a tombstone)' if value is None else f'{len(value):,} bytes'}",
        *(f"  {line}" for line in hex_dump(value or b"")),
    ]
    return lines + _record_lines(_record_json(value, find_schema))


def _record_lines(record: dict[str, Any]) -> list[str]:
    lines = [f"schema       {record['schema']}"]
    for name, value in record.get("fields", {}).items():
        text = printable(value) if isinstance(value, str) else repr(value)
        lines.append(f"field        {name} = {shortened(text, VALUE_CHARS)}")
    if "stopped_at" in record:
        where = f"in field {record['stopped_in']}" if record["stopped_in"] else "after the last field"
        lines.append(f"stopped      at byte {record['stopped_at']:,}, {where}: {record['reason']}")
    return lines


def _record_json(value: bytes | None, find_schema: FindSchema) -> dict[str, Any]:
    schema_id = int(schema_ids([value])[0])
    if value is None or schema_id == NOT_FRAMED:
        return {"schema": "none: the value does not start with a zero byte and a schema id (Confluent frame)"}
    schema = find_schema(schema_id)
    if schema is None:
        hint = "set SCHEMA_REGISTRY_URL, SLUICE_SCHEMAS__FOLDER or SLUICE_MODELS__REPOSITORY to where it is known"
        return {"schema": f"id {schema_id}, unknown here; {hint}", "schema_id": schema_id}
    found: dict[str, Any] = {"schema": f"id {schema_id}, {schema.get('name')}", "schema_id": schema_id}
    try:
        partial = decode_as_far(schema, value, HEADER_BYTES)
    except SchemaNotSupported as exc:
        return {**found, "schema": f"id {schema_id}, {schema.get('name')}, refused: {exc}"}
    found["fields"] = {name: _value_json(field) for name, field in partial.fields}
    if partial.stopped_at is not None:
        found |= {"stopped_at": partial.stopped_at, "stopped_in": partial.stopped_in, "reason": partial.reason}
    return found


def _value_json(value: Any) -> Any:  # noqa: ANN401 - any Avro value
    if isinstance(value, bytes):
        return _bytes_json(value)
    if isinstance(value, dict):
        return {name: _value_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_value_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return value


def _bytes_json(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _bytes_text(value: bytes | None) -> str:
    return "none" if value is None else shortened(printable(_bytes_json(value) or ""), VALUE_CHARS)


def _source_text(letter: DeadLetter) -> str:
    source = letter.source
    return "source unknown" if source is None else f"{source[0]} {source[1]}:{source[2]}"


def _written_text(letter: DeadLetter) -> str:
    timestamp_ms = letter.facts.get("timestamp", "")
    return iso_time(int(timestamp_ms)) if re.fullmatch(r"[0-9]{1,18}", timestamp_ms) else "at an unknown time"
