"""``python -m examples.docstrings train | demo``: real text from request to answer.

``make demo-text`` runs the demo: it trains, starts Kafka, Redis and a scoring worker, sends the docstrings that
training has not seen, and proves what came back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from aiokafka import AIOKafkaProducer
from rich.console import Console

from agents.topics import REQUESTS, SCORES
from app.errors import SluiceError
from app.models.bundle import Bundle, open_bundle, versions
from app.settings import Settings, load_settings
from examples.account import conservation, record_counts
from examples.evidence import read_log
from examples.messages import Messages, encode_requests
from examples.servers import DemoError, as_variables, fresh_topics, servers
from examples.workers import WorkerError, Workers
from schemas.registry import SchemaBook

from .data import DOCSTRINGS_A_FAMILY, DocstringError, load_docstrings, part
from .proof import figures, prove, read_answers
from .train import MODEL, make_spec, train

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

PARTITIONS = 2
ANSWER_TIMEOUT_S = 60.0
POLL_S = 0.2
SHOWN = 6
SHOWN_CHARACTERS = 60
EVENT_US = 1_750_000_000_000_000
"""When the docstrings are said to be asked about: the same in every run."""

cli = typer.Typer(no_args_is_help=True, help=__doc__)
DataDir = Annotated[Path, typer.Option(help="where broker, store, models and logs lie")]


@dataclass(frozen=True, slots=True)
class Service:
    """What runs, and what it serves."""

    settings: Settings
    book: SchemaBook
    bundle: Bundle
    workers: Workers


@cli.command("train")
def train_command(*, data_dir: DataDir = Path(".sluice")) -> None:
    """Train the next version of the model, and print its folder."""
    with _told():
        _say(str(_trained(data_dir / "models", load_docstrings()).folder))


@cli.command()
def demo(
    *,
    data_dir: DataDir = Path(".sluice"),
    docstrings: Annotated[int, typer.Option(min=20, help="at most so many of each family")] = DOCSTRINGS_A_FAMILY,
    reset: Annotated[bool, typer.Option("--reset", envvar="RESET", help="Empty the topics of your own Kafka.")] = False,
) -> None:
    """Score the docstrings that training has not seen, and prove the answers."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with _told():
        data_dir = data_dir.absolute()
        _say("Docstrings: reading those of the installed packages")
        found = load_docstrings(docstrings)
        bundle = _newest(data_dir / "models") or _trained(data_dir / "models", found)
        rows = _requests(part(found, "held_out"))
        with servers(data_dir, _say) as addresses:
            is_proven = _served(data_dir, addresses, bundle, rows, reset=reset)
    sys.exit(0 if is_proven else 1)


def _served(data_dir: Path, addresses: dict[str, Any], bundle: Bundle, rows: pd.DataFrame, *, reset: bool) -> bool:
    folder = data_dir / "demo-text"
    overrides = _overrides(data_dir, addresses)
    settings = load_settings(overrides)
    _say("Topics: emptying")
    asyncio.run(fresh_topics(settings, reset=reset))
    shutil.rmtree(folder, ignore_errors=True)
    book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
    with Workers(folder, data_dir / "logs", as_variables(overrides)) as workers:
        worker = workers.start("scoring")
        _say(f"Worker: starting (log: {worker.log})")
        return asyncio.run(_played(Service(settings, book, bundle, workers), rows))


async def _played(service: Service, rows: pd.DataFrame) -> bool:
    await service.workers.wait_until_ready()
    bundle = service.bundle
    messages = encode_requests(rows.reset_index(), rows, bundle.spec, service.book, folder=bundle.folder)
    started_s = time.monotonic()
    await _ask(service, messages)
    _say(f"Answers: {len(rows):,} in {time.monotonic() - started_s:.1f} s\n")
    servers_address = service.settings.kafka.bootstrap_servers
    answers = await read_answers(servers_address, service.book)
    _show(rows, answers)
    account = await conservation(servers_address, answers)
    _say(f"conservation: {account.line()}")
    proof = prove(await read_log(service.settings, bundle, service.book), rows, answers, bundle)
    for line in proof.lines():
        _say(f"proof: {line}")
    return account.holds and proof.holds


async def _ask(service: Service, messages: Messages) -> None:
    """Sends all requests, and waits until each has its answer."""
    address = service.settings.kafka.bootstrap_servers
    producer = AIOKafkaProducer(bootstrap_servers=address, acks="all", enable_idempotence=True, linger_ms=5)
    await producer.start()
    try:
        sending = [
            await producer.send(REQUESTS, key=key, value=value)
            for key, value in zip(messages.keys, messages.values, strict=True)
        ]
        await asyncio.gather(*sending)
    finally:
        await producer.stop()
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    while (count := (await record_counts(address, (SCORES,)))[SCORES]) < len(messages.keys):
        service.workers.check()
        if time.monotonic() > deadline_s:
            missing = len(messages.keys) - count
            msg = f"{missing} answers are missing after {ANSWER_TIMEOUT_S:.0f} s; look at the scoring worker's log"
            raise DemoError(msg)
        await asyncio.sleep(POLL_S)


def _show(rows: pd.DataFrame, answers: pd.DataFrame) -> None:
    for row in rows.iloc[:: -(-len(rows) // SHOWN)].join(answers).itertuples():
        start = " ".join(str(row.text).split())[:SHOWN_CHARACTERS]
        _say(f"{start:{SHOWN_CHARACTERS}}  {row.decision!s:9} {row.score:4.0%}  from {row.label}")
    found = figures(rows, answers)
    _say(
        f"\naccuracy {found.accuracy:.1%} (always the most frequent label: {found.guess_accuracy:.1%}), "
        f"log loss {found.log_loss:.3f}"
    )
    _say(
        f"{found.decided_share:.1%} reach the threshold of their label; of these {found.decided_accuracy:.1%} are right"
    )


def _requests(docstrings: pd.DataFrame) -> pd.DataFrame:
    """The docstrings with what a request needs beside the text; index request_id."""
    numbered = docstrings.assign(
        request_id=[f"docstring-{number:05d}" for number in range(len(docstrings))],
        entity_id=docstrings["file"],
        event_us=EVENT_US,
    )
    return numbered.set_index("request_id")


def _trained(repository: Path, docstrings: pd.DataFrame) -> Bundle:
    started_s = time.monotonic()
    bundle = open_bundle(train(docstrings, repository))
    _say(f"Model: {MODEL} version {bundle.spec.version}, trained in {time.monotonic() - started_s:.1f} s")
    return bundle


def _newest(repository: Path) -> Bundle | None:
    """The newest bundle, if it is of today's kind."""
    found = versions(repository, MODEL)[-1:]
    if not found:
        return None
    bundle = open_bundle(repository / MODEL / str(found[0]))
    wanted = make_spec(bundle.spec.version)
    is_same = (bundle.spec.features, bundle.spec.output.labels) == (wanted.features, wanted.output.labels)
    return bundle if is_same else None


def _overrides(data_dir: Path, addresses: dict[str, Any]) -> dict[str, Any]:
    """The settings of this run; a fresh deployment, so that nothing is committed for its groups."""
    addresses["kafka"]["partitions"] = int(os.environ.get("SLUICE_KAFKA__PARTITIONS", PARTITIONS))
    return addresses | {
        "deployment": f"docstrings-{int(time.time())}",
        "models": {"repository": str(data_dir / "models"), "name": MODEL},
        "schemas": {"folder": str(Path("schemas").absolute())},
    }


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """An error that is expected is one message, not a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _say("Stopped.")
        sys.exit(130)
    except (DemoError, DocstringError, WorkerError, SluiceError) as exc:
        Console(stderr=True, soft_wrap=True).print(f"demo: {exc}", style="red", highlight=False, markup=False)
        sys.exit(1)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    cli()
