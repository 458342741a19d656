"""Schema ids: from a Confluent-compatible registry when one is named, else from the schemas' own fingerprints."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import Schema, parse

from schemas.columnar import Decoder, SchemaNotSupported

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

LOCAL_ID_BASE = 2**30
"""Ids made from fingerprints lie here and above, so that they never collide with a registry's."""
REGISTRY_TIMEOUT_S = 2.0
RELEASES = "released.json"
MAX_UNKNOWN = 256
"""Unknown ids asked for within ``ASK_AGAIN_S``; they come from outside, and must not flood the registry."""
ASK_AGAIN_S = 10.0
"""An id that the registry did not know, or did not answer for, is asked for again after this long."""
ASKERS = 4
"""Questions to the registry at a time."""
_SILENT: dict[str, Any] = {}
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


class RegistrySilent(RegistryError):
    """The registry cannot be reached or does not answer in time; another question would wait as long."""


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
        self._silent_s = -math.inf
        self._askers = ThreadPoolExecutor(ASKERS, thread_name_prefix="registry")  # no thread before the first question
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

    def schema(self, schema_id: int, *, may_ask: bool = True) -> dict[str, Any] | None:
        """The schema behind an id; None when nobody knows it.

        Args:
            schema_id: any number.
            may_ask: ask the registry for an id that is new here, which takes up to ``REGISTRY_TIMEOUT_S``; on an event
                loop ``fetch`` it first and pass False.

        """
        if may_ask and self.is_askable(schema_id):
            self._learn_answer(schema_id, self._answer(schema_id))
        return self._by_id.get(schema_id)

    def decoder(self, schema_id: int, *, may_ask: bool = True) -> Decoder | None:
        """Cached decoder for the records of an id; None when the id is unknown or its schema is refused."""
        if schema_id not in self._decoders:
            schema = self.schema(schema_id, may_ask=may_ask)
            if schema is None:
                return None
            try:
                self._decoders[schema_id] = Decoder(schema)
            except SchemaNotSupported:
                self._decoders[schema_id] = None
        return self._decoders[schema_id]

    def is_askable(self, schema_id: int) -> bool:
        """Whether the registry is worth asking for an id: it is a registry's, new here, and was not asked for lately.

        A registry that did not answer is not asked for anything for ``ASK_AGAIN_S``: records of unknown ids are dead
        letters meanwhile, and those of known ones never wait for it.
        """
        if schema_id in self._by_id or self._registry is None or not 0 <= schema_id < LOCAL_ID_BASE:
            return False
        recent_s = time.monotonic() - ASK_AGAIN_S
        while self._unknown and next(iter(self._unknown.values())) <= recent_s:  # the oldest stands first
            del self._unknown[next(iter(self._unknown))]
        return self._silent_s <= recent_s and schema_id not in self._unknown and len(self._unknown) < MAX_UNKNOWN

    async def fetch(self, schema_ids: Iterable[int]) -> None:
        """Ask the registry for ids that are new here, in threads, together at most ``REGISTRY_TIMEOUT_S``.

        Afterwards each of them is known, or not askable for a while. Costs nothing when all are known.
        """
        wanted = [schema_id for schema_id in schema_ids if self.is_askable(schema_id)][:MAX_UNKNOWN]
        if not wanted or self._registry is None:
            return
        loop = asyncio.get_running_loop()
        asked = {loop.run_in_executor(self._askers, self._answer, schema_id): schema_id for schema_id in wanted}
        done, late = await asyncio.wait(asked, timeout=REGISTRY_TIMEOUT_S)
        for answer in done:
            self._learn_answer(asked[answer], answer.result())
        for answer in late:
            answer.cancel()
            self._learn_answer(asked[answer], _SILENT)

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

    def _answer(self, schema_id: int) -> dict[str, Any] | None:
        """What the registry says, from any thread; None for an unknown id, ``_SILENT`` when it says nothing."""
        assert self._registry is not None
        try:
            answer = _ask(self._registry, "GET", f"schemas/ids/{schema_id}", None)
            schema: dict[str, Any] = json.loads(answer["schema"])
            _parse(schema)
        except RegistrySilent:
            return _SILENT
        except (RegistryError, ValueError, KeyError):
            return None
        return schema

    def _learn_answer(self, schema_id: int, answer: dict[str, Any] | None) -> None:
        if answer is not None and answer is not _SILENT:
            self._by_id[schema_id] = answer
            return
        now_s = time.monotonic()
        self._unknown.pop(schema_id, None)
        self._unknown[schema_id] = now_s
        if answer is _SILENT:
            self._silent_s = now_s
            log.warning("the schema registry does not answer; records of new schema ids are dead letters until it does")


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
        raise RegistrySilent(msg) from exc
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
