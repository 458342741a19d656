"""Schema ids: from a Confluent-compatible registry when one is named, else from the schemas' own fingerprints."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import Schema, parse

from schemas.columnar import Decoder, SchemaNotSupported

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

LOCAL_ID_BASE = 2**30
"""Ids made from fingerprints lie here and above, so that they never collide with a registry's."""
REGISTRY_TIMEOUT_S = 2.0
RELEASES = "released.json"
MAX_UNKNOWN = 256
"""Unknown ids asked for within ``ASK_AGAIN_S``; they come from outside, and must not flood the registry."""
ASK_AGAIN_S = 10.0
"""An id that the registry did not know, or did not answer for, is asked for again after this long."""
CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"


class RegistryError(ValueError):
    """The registry cannot be reached, or refuses a schema; the message says which and what to do."""


def subject(topic: str, schema: dict[str, Any]) -> str:
    """Subject by TopicRecordNameStrategy, ``<topic>-<full record name>``.

    Example:
        >>> subject("scores", {"type": "record", "name": "Score", "namespace": "sluice", "fields": []})
        'scores-sluice.Score'

    """
    return f"{topic}-{full_name(schema)}"


def full_name(schema: dict[str, Any]) -> str:
    """Name of a record with its namespace."""
    name = str(schema["name"])
    return name if "." in name or not schema.get("namespace") else f"{schema['namespace']}.{name}"


def local_id(schema: dict[str, Any]) -> int:
    """Id made from the whole schema, defaults and logical types included, in ``[2**30, 2**31)``.

    The canonical form alone would give two schemas that differ in a default the same id.

    Example:
        >>> local_id({"type": "record", "name": "A", "fields": []}) >= 2**30
        True

    """
    text = json.dumps(_without_docs(schema), sort_keys=True, separators=(",", ":"))
    return LOCAL_ID_BASE | (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & (LOCAL_ID_BASE - 1))


def is_compatible(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """None when each reads what the other wrote (FULL compatibility), else why not."""
    for reader, writer in ((one, other), (other, one)):
        checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
        result = checker.get_compatibility(_parse(reader), _parse(writer))
        if result.compatibility is not SchemaCompatibilityType.compatible:
            return f"{', '.join(sorted(result.messages))} at {', '.join(sorted(result.locations))}"
    return None


class SchemaBook:
    """All schemas that a process knows, by id, and their decoders.

    Args:
        folder: every ``*.avsc`` below it is known from the start, under its local id.
        registry_url: of a Confluent-compatible registry; only https or loopback.

    Raises:
        RegistryError: the registry's address is neither https nor loopback.
        ValueError: a file is no schema, or two schemas share a local id.

    """

    def __init__(self, folder: Path | None = None, registry_url: str | None = None) -> None:
        self._by_id: dict[int, dict[str, Any]] = {}
        self._decoders: dict[int, Decoder | None] = {}
        self._unknown: dict[int, float] = {}
        self._registry = _registry_client(registry_url) if registry_url else None
        for path in sorted(folder.rglob("*.avsc")) if folder else ():
            self._learn(json.loads(path.read_text()), str(path.name))
        for name, schemas in read_releases(folder).items() if folder else ():
            for number, schema in enumerate(schemas, start=1):
                self._learn(schema, f"{name} version {number}")

    def add(self, topic: str, schema: dict[str, Any]) -> int:
        """Id under which records of ``schema`` are written to ``topic``; registers it when there is a registry.

        Raises:
            RegistryError: the registry refuses the schema or does not answer.

        """
        local = self._learn(schema, full_name(schema))
        if self._registry is None:
            return local
        path = f"subjects/{subject(topic, schema)}/versions"
        answer = _ask(self._registry, "POST", path, {"schema": json.dumps(schema)})
        schema_id = int(answer["id"])
        self._by_id[schema_id] = schema
        return schema_id

    def schema(self, schema_id: int) -> dict[str, Any] | None:
        """The schema behind an id; None when nobody knows it. Asks the registry once for a new id."""
        if schema_id not in self._by_id and self._registry is not None and 0 <= schema_id < LOCAL_ID_BASE:
            self._fetch(schema_id)
        return self._by_id.get(schema_id)

    def decoder(self, schema_id: int) -> Decoder | None:
        """Cached decoder for the records of an id; None when the id is unknown or its schema is refused."""
        if schema_id not in self._decoders:
            schema = self.schema(schema_id)
            if schema is None:
                return None
            try:
                self._decoders[schema_id] = Decoder(schema)
            except SchemaNotSupported:
                self._decoders[schema_id] = None
        return self._decoders[schema_id]

    def ids(self) -> Iterable[int]:
        """All known ids."""
        return self._by_id.keys()

    def _learn(self, schema: dict[str, Any], origin: str) -> int:
        _parse(schema)
        schema_id = local_id(schema)
        known = self._by_id.setdefault(schema_id, schema)
        if _without_docs(known) != _without_docs(schema):
            msg = f"{origin}: its fingerprint collides with that of {full_name(known)}; rename a field of one of them"
            raise ValueError(msg)
        return schema_id

    def _fetch(self, schema_id: int) -> None:
        now_s = time.monotonic()
        self._unknown = {known: at_s for known, at_s in self._unknown.items() if now_s < at_s + ASK_AGAIN_S}
        if schema_id in self._unknown or len(self._unknown) >= MAX_UNKNOWN:
            return
        assert self._registry is not None
        try:
            answer = _ask(self._registry, "GET", f"schemas/ids/{schema_id}", None)
            schema = json.loads(answer["schema"])
            _parse(schema)
        except (RegistryError, ValueError, KeyError):
            self._unknown[schema_id] = now_s
            return
        self._by_id[schema_id] = schema


def read_releases(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every version of each ``.avsc`` file that was ever written with, oldest first; records of all stay readable."""
    path = folder / RELEASES
    releases: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if path.exists() else {}
    return releases


def release(folder: Path) -> list[str]:
    """Add every new or changed ``.avsc`` file to the releases; returns the names that were added.

    Raises:
        ValueError: a change is not FULL-compatible with every earlier version; nothing is written.

    """
    releases = read_releases(folder)
    added = []
    for path in sorted(folder.glob("*.avsc")):
        schema = json.loads(path.read_text())
        versions = releases.setdefault(path.stem, [])
        if versions and local_id(versions[-1]) == local_id(schema):
            continue
        for number, version in enumerate(versions, start=1):
            problem = is_compatible(version, schema)
            if problem is not None:
                msg = f"{path.name} is not FULL-compatible with its version {number}: {problem}"
                raise ValueError(msg)
        versions.append(schema)
        added.append(path.stem)
    if added:
        (folder / RELEASES).write_text(json.dumps(releases, indent=1) + "\n")
    return added


def load_schema(folder: Path, name: str) -> dict[str, Any]:
    """The schema in ``<folder>/<name>.avsc``."""
    schema: dict[str, Any] = json.loads((folder / f"{name}.avsc").read_text())
    return schema


def _registry_client(url: str) -> httpx.Client:
    address = httpx.URL(url)
    if address.scheme != "https" and address.host not in {"localhost", "127.0.0.1", "::1"}:
        msg = f"registry {address.host}: plain http is for loopback only; use https"
        raise RegistryError(msg)
    return httpx.Client(base_url=url.rstrip("/") + "/", timeout=REGISTRY_TIMEOUT_S, follow_redirects=False)


def _ask(client: httpx.Client, method: str, path: str, body: object) -> dict[str, Any]:
    try:
        response = client.request(method, path, json=body, headers={"Content-Type": CONTENT_TYPE})
    except httpx.HTTPError as exc:
        msg = f"schema registry {client.base_url.host} does not answer ({exc}); start it, or unset SCHEMA_REGISTRY_URL"
        raise RegistryError(msg) from exc
    if not response.is_success:
        msg = f"schema registry refuses {method} {path}: {response.status_code} {response.text[:300]}"
        raise RegistryError(msg)
    answer: dict[str, Any] = response.json()
    return answer


def _parse(schema: dict[str, Any]) -> Schema:
    try:
        return parse(json.dumps(schema))
    except Exception as exc:
        msg = f"not an Avro schema: {exc}"
        raise ValueError(msg) from exc


def _without_docs(node: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(node, dict):
        # A default is data: it may well have a key of that name.
        return {k: v if k == "default" else _without_docs(v) for k, v in node.items() if k != "doc"}
    if isinstance(node, list):
        return [_without_docs(item) for item in node]
    return node
