"""Text from request to score, on real processes: missing, empty, foreign, endless; then what a monitor makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch

from agents import topics
from app.calibration import Calibration
from app.models.architectures import build
from app.models.bundle import open_bundle
from app.models.packing import pack_bundle
from app.models.runtime import ScoringModel
from app.models.spec import Architecture, Feature, ModelSpec, Output
from app.postprocess import Postprocessor
from app.preprocess import Preprocessor
from app.score_request import Envelope, encode_request
from app.settings import load_settings
from examples.docstrings.train import train_tokenizer
from examples.evidence import padded_logits, rescored
from examples.messages import encode_requests
from schemas.columnar import Encoder
from schemas.columns import Constant, NumberColumn, RecordColumn, TextColumn, to_python
from schemas.generate import prediction_schema, request_schema
from schemas.registry import SchemaBook, load_schema
from schemas.wire import frame_header, schema_ids
from tests.integration.kafka_client import KafkaClient, Message, header
from tests.integration.worker_process import ROOT, WorkerProcess, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.embedded.stack import StackInfo
    from app.models.bundle import Bundle
    from app.settings import Settings

pytestmark = pytest.mark.integration

EVENT_US = 1_750_000_000_000_000
TOKENIZER = "words.json"
MEGABYTE = "\u00e9" * 500_000
"""A million bytes of UTF-8: what a request of 1 MiB has room for."""
NOTES: dict[str, tuple[str | None, str | None]] = {
    "plain": ("A great product", "I like the colour of it"),
    "no-body": ("A great product", None),
    "empty": ("", ""),
    "no-title": (None, "I like the colour of it"),
    "foreign": (
        "\U0001f980\U0001f680 \U00010348 \u4e2d\u6587",
        "nul \0 joined \U0001f469\u200d\U0001f680",
    ),
    "long": ("great " * 20_000, "colour " * 20_000),
    "megabyte": ("A great product", MEGABYTE),
    "too-large": ("A great product", MEGABYTE + "\u00e9" * 30_000),
}
ROWS = 12
"""Requests to each of the models without text."""


def notes_spec() -> ModelSpec:
    """Two texts, one of which may be missing; a softmax that may decide nothing in particular."""
    texts = (
        Feature(name="title", type="text", required=True, tokenizer=TOKENIZER, max_tokens=8),
        Feature(name="body", type="text", tokenizer=TOKENIZER, max_tokens=32),
    )
    output = Output(kind="softmax", labels=("praise", "question", "blame"), threshold=0.4, otherwise="unsure")
    network = Architecture(name="text_bag", arguments={"embedding_dim": 16, "hidden": [16]})
    return ModelSpec(
        name="notes", version=1, architecture=network, features=texts, output=output, buckets=(1, 2, 4, 8, 16)
    )


def other_spec(name: str, output: Output) -> ModelSpec:
    """One number in."""
    return ModelSpec(
        name=name, version=1, architecture=Architecture(name="linear"), features=(Feature(name="size"),), output=output
    )


def pack(repository: Path, spec: ModelSpec, tokenizers: dict[str, Path] | None = None) -> Bundle:
    """A bundle with weights from a fixed seed, large enough to tell rows apart."""
    folder = next(iter(tokenizers.values())).parent if tokenizers else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = build(spec, Preprocessor(spec, folder).layout)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
    reference = pd.DataFrame({"raw_score": np.linspace(0, 1, 300), "score": np.linspace(0, 1, 300), "label": 0.0})
    return open_bundle(pack_bundle(repository, spec, module, Calibration(), reference, tokenizers=tokenizers))


@dataclass
class TextService:
    """A worker that has answered everything, and what it wrote."""

    kafka: KafkaClient
    book: SchemaBook
    settings: Settings
    environment: dict[str, str]
    folder: Path
    notes: Bundle
    requests: dict[str, bytes]

    def records(self, topic: str) -> pd.DataFrame:
        """All records of an output topic, index request_id."""
        values = [record.value for record in self.kafka.read(topic)]
        ids = schema_ids(values)
        rows: list[dict[str, Any]] = []
        for schema_id in np.unique(ids).tolist():
            decoder = self.book.decoder(schema_id)
            assert decoder is not None
            decoded = decoder.decode([values[place] for place in np.flatnonzero(ids == schema_id)])
            assert not decoded.errors
            rows += to_python(decoded.columns)
        return pd.DataFrame(rows).set_index("request_id")

    def log(self) -> pd.DataFrame:
        """The evidence of the texts: features as used and what came of them."""
        found = self.records(topics.PREDICTIONS)
        found = found[found["model_name"] == "notes"]
        texts = pd.DataFrame(found["features"].tolist(), index=found.index)
        return texts.astype(object).where(texts.notna(), None).join(found.drop(columns="features"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str) -> Iterator[TextService]:
    """One worker that serves texts, a regression and several labels, and has answered all requests."""
    folder = tmp_path_factory.mktemp("text")
    train_tokenizer(["a great product", "the colour of it", "what is it"]).save(str(folder / TOKENIZER))
    models = folder / "models"
    notes = pack(models, notes_spec(), {TOKENIZER: folder / TOKENIZER})
    price = pack(models, other_spec("price", Output(name="price", kind="identity")))
    tags = pack(models, other_spec("tags", Output(names=("urgent", "spam"))))
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers, "REDIS_URL": redis_url, "SLUICE_DEPLOYMENT": "text",
        "SLUICE_SCHEMAS__FOLDER": str(ROOT / "schemas"), "SLUICE_MODELS__REPOSITORY": str(models),
        "SLUICE_MODELS__SERVE": "notes,price,tags", "SLUICE_KAFKA__PARTITIONS": "4",
        "SLUICE_MONITOR__STORE": str(folder / "monitor"), "SLUICE_MONITOR__REPORTS": str(folder / "reports"),
    }  # fmt: skip
    settings = load_settings(toml=folder / "none.toml", environ=environment)
    book = SchemaBook(settings.schemas.folder)
    for bundle in (notes, price, tags):
        book.add(topics.PREDICTIONS, prediction_schema(bundle.spec.name, bundle.spec.fields()))
    with KafkaClient(bootstrap_servers) as kafka, WorkerProcess(folder, environment) as worker:
        kafka.fresh_topics(settings)
        worker.start().wait_ready()
        requests = note_requests(notes, book)
        sent = [Message(f"e-{name}".encode(), value) for name, value in requests.items()]
        sent += [message for bundle in (price, tags) for message in number_requests(bundle.spec, book)]
        kafka.produce(sent)
        until(lambda: kafka.count(topics.SCORES) + 1 >= len(sent), "an answer to each but one", timeout_s=90)
        until(lambda: kafka.count(topics.REQUESTS_DLQ) >= 2, "two dead letters")
        yield TextService(kafka, book, settings, environment, folder, notes, requests)


def note_requests(bundle: Bundle, book: SchemaBook) -> dict[str, bytes]:
    """A request to the default model for each note."""
    texts = pd.DataFrame(NOTES, index=["title", "body"]).T
    rows = pd.DataFrame({"request_id": list(NOTES), "entity_id": [f"e-{name}" for name in NOTES], "event_us": EVENT_US})
    messages = encode_requests(rows, texts, bundle.spec, book, folder=bundle.folder)
    return dict(zip(NOTES, messages.values, strict=True))


def number_requests(spec: ModelSpec, book: SchemaBook) -> list[Message]:
    """Requests to another model, by its name."""
    prefix = frame_header(book.add(topics.REQUESTS, request_schema(spec.name, spec.fields())))
    ids = [f"{spec.name}-{number}" for number in range(ROWS)]
    envelopes = [Envelope(request_id, f"e-{request_id}", EVENT_US, spec.name) for request_id in ids]
    return [
        Message(e.entity_id.encode(), encode_request(spec, {"size": 10.0 * number}, e, prefix=prefix))
        for number, e in enumerate(envelopes)
    ]


def test_every_text_has_its_answer(service: TextService) -> None:
    """A missing optional text, an empty, a foreign and an endless one are scored; a missing required one is INVALID."""
    answers = service.records(topics.SCORES)
    notes = answers[answers["model_name"] == "notes"]
    assert notes["status"].to_dict() == {
        name: "INVALID" if name == "no-title" else "OK" for name in NOTES if name != "too-large"
    }
    assert "title" in notes.loc["no-title", "reason"]
    scored = notes.drop("no-title")
    assert np.array(scored["outputs"].tolist()).sum(axis=1) == pytest.approx(1.0)
    assert set(scored["decision"]) <= {"praise", "question", "blame", "unsure"}
    assert len(set(scored["score"])) > 3


def test_texts_are_logged_whole_and_scores_are_proven(service: TextService) -> None:
    """The log has every character that was sent; the same bundle gives the same bits offline in the logged bucket."""
    log = service.log()
    logged = {name: (row["title"], row["body"]) for name, row in log.iterrows()}
    assert logged == {name: texts for name, texts in NOTES.items() if name not in {"no-title", "too-large"}}
    offline = rescored(service.notes, log)
    assert offline.raw.tolist() == log["raw_score"].tolist()
    assert offline.score.tolist() == log["score"].tolist()
    assert offline.outputs.tolist() == log["outputs"].tolist()
    answers = service.records(topics.SCORES).loc[log.index]
    assert answers["score"].tolist() == log["score"].tolist()


def test_of_an_endless_text_the_first_tokens_count(service: TextService) -> None:
    """A megabyte is scored as its beginning is, to the bit: more than max_tokens can never be seen."""
    row = service.log().loc["megabyte"]
    beginning = pd.DataFrame({"title": [row["title"]], "body": [MEGABYTE[:64]]})
    logits = padded_logits(ScoringModel(service.notes), beginning, int(row["batch_bucket"]))
    scored = Postprocessor(service.notes.spec.output, service.notes.calibration).apply(logits)
    assert scored.score.tolist() == [row["score"]]


def test_what_is_too_large_is_a_dead_letter(service: TextService) -> None:
    """Beyond max_request_bytes a record is not read, and kept whole; the INVALID one has its copy there too."""
    letters = {bytes(record.value): record for record in service.kafka.read(topics.REQUESTS_DLQ)}
    assert set(letters) == {service.requests["too-large"], service.requests["no-title"]}
    message = header(letters[service.requests["too-large"]], "__connect.errors.exception.message")
    assert b"1048576" in (message or b"")


def test_a_monitor_joins_labels_of_every_kind(service: TextService) -> None:
    """Class numbers, prices and several labels: all joined, no dead letter, no quality made up."""
    predictions = service.records(topics.PREDICTIONS)
    labels = [float(k % 3) if model != "price" else -2.5 * k for k, model in enumerate(predictions["model_name"])]
    service.kafka.produce(outcomes(service, predictions, labels), topics.OUTCOMES)
    with WorkerProcess(service.folder, service.environment, role="monitor", name="monitor") as monitor:
        monitor.start().wait_ready()
        until(
            lambda: monitor.figures()["counters"]["joined"] == len(predictions),
            f"all joined; {monitor.log()[-1000:]}",
        )
        figures = monitor.figures()
        assert monitor.get("/v2/health/ready").status_code == 200
        windows = {window["model_name"]: window for window in figures["windows"]}
    assert figures["counters"]["undecodable"] == figures["counters"]["undecodable_predictions"] == 0
    assert service.kafka.count(topics.OUTCOMES_DLQ) == 0
    assert service.kafka.count(topics.LABELLED) == len(predictions)
    assert {name: window["predictions"] for name, window in windows.items()} == {
        "notes": len(NOTES) - 2, "price": ROWS, "tags": ROWS,
    }  # fmt: skip
    for window in windows.values():
        assert (window["auc"], window["accuracy"], window["brier"]) == (None, None, None)
        assert "quality is not judged" in window["reasons"]["auc"]


def outcomes(service: TextService, predictions: pd.DataFrame, labels: list[float]) -> list[Message]:
    """What happened, an hour later."""
    schema, count = load_schema(service.settings.schemas.folder, "outcome"), len(labels)
    columns = RecordColumn({
        "request_id": TextColumn.from_values(predictions.index.tolist()),
        "entity_id": TextColumn.from_values(predictions["entity_id"].tolist()),
        "label": NumberColumn(np.array(labels)),
        "outcome_time": NumberColumn(np.full(count, EVENT_US + 3_600_000_000)),
        "revision": Constant(0, count), "retracted": Constant(False, count), "source": Constant("test", count),
    }, count)  # fmt: skip
    values = Encoder(schema).encode(columns, prefix=frame_header(service.book.add(topics.OUTCOMES, schema)))
    return [Message(key.encode(), value) for key, value in zip(predictions["entity_id"], values, strict=True)]


def test_the_demo_proves_its_answers(stack: StackInfo, tmp_path: Path) -> None:
    """`make demo-text`, with less text: trained, answered, accounted for, proven; then nothing is left running."""
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": stack.bootstrap_servers, "REDIS_URL": stack.redis_url,
        "SLUICE_KAFKA__PARTITIONS": "4", "RESET": "1",
    }  # fmt: skip
    argv = ["-m", "examples.docstrings", "demo", "--data-dir", str(tmp_path), "--docstrings", "60"]
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    account = re.search(r"conservation: consumed (\d+) = (\d+) OK \+ 0 DEGRADED \+ 0 INVALID", done.stdout)
    assert account is not None, done.stdout
    assert account[1] == account[2] != "0"
    proofs = [line for line in done.stdout.splitlines() if line.startswith("proof: ")]
    assert [line.rpartition(": ")[2] for line in proofs] == [f"all {account[1]} equal"] * 3
    assert re.search(r"accuracy \d\d\.\d%", done.stdout)
