"""Ids from fingerprints, and from a registry that speaks Confluent's protocol on a loopback port."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from schemas.registry import (
    LOCAL_ID_BASE,
    MAX_UNKNOWN,
    RegistryError,
    SchemaBook,
    full_name,
    is_compatible,
    load_schema,
    local_id,
    subject,
)
from tests.schema_registry import running_registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.schema_registry import RegistryHandler

A: dict[str, Any] = {"type": "record", "name": "A", "namespace": "n", "fields": [{"name": "x", "type": "int"}]}
WITH_DEFAULT: dict[str, Any] = {**A, "fields": [{"name": "x", "type": "int", "default": 1}]}


def test_an_id_is_made_from_the_schema_alone() -> None:
    """Order of keys and texts for people do not matter, what changes a record's meaning does."""
    shuffled = {
        "fields": [{"type": "int", "name": "x", "doc": "a number"}],
        "doc": "d",
        **{k: A[k] for k in ("namespace", "name")},
    }
    assert local_id({**shuffled, "type": "record"}) == local_id(A)
    assert local_id(WITH_DEFAULT) != local_id(A)
    timestamp = {**A, "fields": [{"name": "x", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}
    plain = {**A, "fields": [{"name": "x", "type": {"type": "long"}}]}
    assert local_id(timestamp) != local_id(plain)


def test_local_ids_lie_above_a_registrys() -> None:
    """Ids from 2**30 on fit the frame and never meet those that a registry counts up from 1."""
    for number in range(50):
        schema = {**A, "name": f"A{number}"}
        assert LOCAL_ID_BASE <= local_id(schema) < 2**31


def test_a_field_named_doc_is_part_of_the_schema() -> None:
    """Only the attribute ``doc`` is left out of the fingerprint, not a default that has such a key."""
    one = {**A, "fields": [{"name": "m", "type": {"type": "map", "values": "int"}, "default": {"doc": 1}}]}
    other = {**A, "fields": [{"name": "m", "type": {"type": "map", "values": "int"}, "default": {"doc": 2}}]}
    assert local_id(one) != local_id(other)


@pytest.mark.parametrize(
    ("schema", "name"),
    [(A, "n.A"), ({**A, "namespace": ""}, "A"), ({**A, "name": "other.A"}, "other.A")],
)
def test_subjects_name_topic_and_record(schema: dict[str, Any], name: str) -> None:
    """TopicRecordNameStrategy: several record types on one topic evolve apart."""
    assert full_name(schema) == name
    assert subject("scores", schema) == f"scores-{name}"


def test_a_book_knows_the_schemas_of_its_folder(tmp_path: Path) -> None:
    """Every .avsc below the folder is known by its id from the start, with a decoder that is made once."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.avsc").write_text(json.dumps(A))
    book = SchemaBook(tmp_path)
    assert book.schema(local_id(A)) == A
    assert list(book.ids()) == [local_id(A)]
    decoder = book.decoder(local_id(A))
    assert decoder is not None
    assert book.decoder(local_id(A)) is decoder
    assert decoder.decode([b"\0\0\0\0\0\2"]).columns.fields["x"].values.tolist() == [1]  # type: ignore[union-attr]
    assert load_schema(tmp_path / "deep", "a") == A


def test_an_unknown_id_is_none_and_may_become_known() -> None:
    """Nobody knows it now; once the schema is added its records are read."""
    book = SchemaBook()
    assert (book.schema(local_id(A)), book.decoder(local_id(A))) == (None, None)
    assert book.add("t", A) == local_id(A)
    assert book.decoder(local_id(A)) is not None


def test_a_file_that_is_no_schema_is_named(tmp_path: Path) -> None:
    """A broken file stops the start with a message, instead of records that nobody can read."""
    (tmp_path / "a.avsc").write_text(json.dumps({"type": "record", "name": "A"}))
    with pytest.raises(ValueError, match="not an Avro schema"):
        SchemaBook(tmp_path)


def test_a_schema_that_the_codec_refuses_has_no_decoder() -> None:
    """A recursive schema has an id and is known, but is not read."""
    book = SchemaBook()
    chain = {"type": "record", "name": "Chain", "fields": [{"name": "next", "type": ["null", "Chain"]}]}
    schema_id = book.add("t", chain)
    assert book.schema(schema_id) == chain
    assert book.decoder(schema_id) is None


def test_two_schemas_with_one_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in 2**30 pairs collides; then a message is better than records read with the wrong schema."""
    monkeypatch.setattr("schemas.registry.local_id", lambda _: LOCAL_ID_BASE)
    book = SchemaBook()
    book.add("t", A)
    book.add("t", {**A, "doc": "the same"})
    with pytest.raises(ValueError, match="collides"):
        book.add("t", WITH_DEFAULT)


def test_compatibility_says_what_is_wrong() -> None:
    """None for what both sides read; else the place and the reason."""
    assert is_compatible(A, A) is None
    assert is_compatible(A, {**A, "fields": []}) is not None
    problem = is_compatible(A, {**A, "fields": [{"name": "x", "type": "string"}]})
    assert problem is not None
    assert "int" in problem


@pytest.fixture
def registry() -> Iterator[tuple[str, type[RegistryHandler]]]:
    """Address of a registry, and its handler with what it saw."""
    with running_registry() as started:
        yield started


def test_a_registry_gives_the_ids(registry: tuple[str, type[RegistryHandler]]) -> None:
    """Schemas are registered under topic and record name; both the given and the local id are read."""
    url, handler = registry
    book = SchemaBook(None, url)
    assert (book.add("scores", A), book.add("scores", WITH_DEFAULT), book.add("scores", A)) == (1, 2, 1)
    assert handler.requests[0] == "/subjects/scores-n.A/versions"
    assert json.loads(handler.schemas[1]) == A
    assert book.schema(1) == A
    assert book.decoder(local_id(A)) is not None


def test_a_foreign_id_is_asked_for_once(registry: tuple[str, type[RegistryHandler]]) -> None:
    """A producer's new schema is fetched when its first record comes, and an unknown id costs one question."""
    url, handler = registry
    handler.schemas[77] = json.dumps(A)
    book = SchemaBook(None, url)
    for _ in range(3):
        assert book.schema(77) == A
        assert book.schema(78) is None
        assert book.decoder(78) is None
    assert handler.requests == ["/schemas/ids/77", "/schemas/ids/78"]


def test_an_unknown_id_is_asked_for_again_later(
    registry: tuple[str, type[RegistryHandler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that was down, or a schema registered late, costs dead letters for some seconds, not for ever."""
    url, handler = registry
    book = SchemaBook(None, url)
    assert book.schema(78) is None
    handler.schemas[78] = json.dumps(A)
    assert book.schema(78) is None
    monkeypatch.setattr("schemas.registry.ASK_AGAIN_S", 0.0)
    assert book.schema(78) == A


def test_made_up_ids_do_not_flood_the_registry(registry: tuple[str, type[RegistryHandler]]) -> None:
    """After some hundred unknown ids no more are asked for; local ids never are."""
    url, handler = registry
    book = SchemaBook(None, url)
    for schema_id in range(1, MAX_UNKNOWN + 20):
        assert book.schema(schema_id) is None
    assert len(handler.requests) == MAX_UNKNOWN
    handler.requests.clear()
    fresh = SchemaBook(None, url)
    assert fresh.schema(LOCAL_ID_BASE + 5) is None
    assert handler.requests == []


@pytest.mark.parametrize(
    "text",
    [
        '"string"',
        '["null", "string"]',
        '{"type": "array", "items": "int"}',
        '{"type": "enum", "name": "E", "symbols": ["A"]}',
    ],
)
def test_a_registered_schema_that_is_no_record_is_refused(
    registry: tuple[str, type[RegistryHandler]], text: str
) -> None:
    """Others may register any Avro type; what is no record has no decoder, and nothing raises."""
    url, handler = registry
    handler.schemas[5] = text
    assert SchemaBook(None, url).decoder(5) is None


@pytest.mark.parametrize("text", ["not JSON", '{"type": "record"}'])
def test_what_is_no_schema_is_unknown(registry: tuple[str, type[RegistryHandler]], text: str) -> None:
    """A registry that answers nonsense makes dead letters, not a crash."""
    url, handler = registry
    handler.schemas[5] = text
    assert SchemaBook(None, url).schema(5) is None


def test_a_refusal_is_handed_on(registry: tuple[str, type[RegistryHandler]]) -> None:
    """The registry's own words, with the subject and the code."""
    url, _ = registry
    with pytest.raises(RegistryError, match=r"subjects/refused-n\.A/versions: 409 .*incompatible"):
        SchemaBook(None, url).add("refused", A)


def test_a_registry_that_is_not_there_is_named() -> None:
    """Cause and next step."""
    book = SchemaBook(None, "http://127.0.0.1:1")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1 does not answer .* start it, or unset SCHEMA_REGISTRY_URL"):
        book.add("t", A)
    assert book.schema(3) is None


async def test_ids_are_fetched_together_and_off_the_loop(registry: tuple[str, type[RegistryHandler]]) -> None:
    """Afterwards they are known without another question; the loop goes on while the answers are out."""
    url, handler = registry
    gate = threading.Event()
    handler.gate = gate
    handler.schemas.update({7: json.dumps(A), 8: json.dumps(WITH_DEFAULT)})
    book = SchemaBook(None, url)
    fetching = asyncio.create_task(book.fetch([7, 8, 9, LOCAL_ID_BASE + 1]))
    async with asyncio.timeout(30):
        while len(handler.requests) < 3:  # noqa: ASYNC110 - the questions arrive in other threads
            await asyncio.sleep(0.001)
    # All three are out, and none is answered before this loop, which evidently goes on, opens the gate.
    assert book.schema(7, may_ask=False) is None
    gate.set()
    await fetching
    assert (book.schema(7, may_ask=False), book.schema(8, may_ask=False), book.schema(9, may_ask=False)) == (
        A, WITH_DEFAULT, None,
    )  # fmt: skip
    await book.fetch([7, 8, 9])
    assert sorted(handler.requests) == ["/schemas/ids/7", "/schemas/ids/8", "/schemas/ids/9"]


async def test_a_silent_registry_is_asked_once_in_a_while(
    registry: tuple[str, type[RegistryHandler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who does not answer in time is not asked again for any id, until the time is over; known ids stay known."""
    url, handler = registry
    handler.gate = gate = threading.Event()
    monkeypatch.setattr("schemas.registry.REGISTRY_TIMEOUT_S", 0.05)
    book = SchemaBook(None, url)
    known = book._learn(A, "A")
    await book.fetch([7])
    assert [book.is_askable(i) for i in (7, 8)] == [False, False]
    await book.fetch([8])
    assert len(handler.requests) == 1
    assert book.schema(8) is None
    assert book.decoder(known) is not None
    gate.set()
    handler.schemas[8] = json.dumps(A)
    monkeypatch.setattr("schemas.registry.ASK_AGAIN_S", 0.0)
    monkeypatch.setattr("schemas.registry.REGISTRY_TIMEOUT_S", 5.0)
    await book.fetch([8])
    assert book.schema(8, may_ask=False) == A


async def test_no_registry_no_question() -> None:
    """Without a registry nothing is worth asking for, and a fetch returns at once."""
    book = SchemaBook()
    assert not book.is_askable(3)
    await book.fetch([3])
    assert book.schema(3) is None


@pytest.mark.parametrize(
    "url", ["http://schemas.example:8081", "http://localhost.example", "http://localhost@schemas.example"]
)
def test_plain_http_is_for_loopback_only(url: str) -> None:
    """Schemas decide how bytes are read; they come over https or from the same machine."""
    with pytest.raises(RegistryError, match="use https"):
        SchemaBook(None, url)
