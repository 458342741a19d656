"""The commands ``sluice up``, ``sluice down`` and ``sluice status``.

Exit statuses: 0 done (for ``status``: everything runs), 1 it failed and the message says why, 3 (``status`` only) not
all of it runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.embedded.errors import EmbeddedError, ProcessDied, StackConflict
from app.embedded.ports import answers
from app.embedded.stack import Stack, exit_statuses, remove_data, stop_processes
from app.embedded.stack_file import Process, StackInfo, load, running
from app.embedded.supervisor import STOP_GRACE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

NOT_RUNNING = 3
_WATCH_S = 0.5
_DEFAULT_DIR = ".sluice"

DataDir = Annotated[Path, typer.Option("--data-dir", help="Where partitions, logs and stack.json are kept.")]
Clean = Annotated[bool, typer.Option("--clean", help="Delete the data of earlier runs.")]


def register(cli: typer.Typer) -> None:
    """Add the three commands to ``cli``."""
    for command in (up, down, status):
        cli.command()(command)


def up(
    *,
    brokers: Annotated[int, typer.Option(help="1, or 3 for a cluster that survives the loss of one.")] = 1,
    kafka_port: Annotated[int | None, typer.Option(help="Port of the first broker; default: a free one.")] = None,
    redis_port: Annotated[int | None, typer.Option(help="Port of Valkey; default: a free one.")] = None,
    data_dir: DataDir = Path(_DEFAULT_DIR),
    clean: Clean = False,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running; `sluice down` stops it.")] = False,
    throughput: Annotated[bool, typer.Option("--throughput", help="Give Kafka 1 GB and full compilation.")] = False,
) -> None:
    """Start Kafka and Valkey on this machine and watch them until Ctrl-C."""
    if brokers not in {1, 3}:
        raise typer.BadParameter(message="1 or 3", param_hint="--brokers")
    with _reported(), _signals_as_interrupt():
        _warn_about_own_servers()
        if clean:
            _clean_before_start(data_dir)
        start = Stack.start(
            data_dir,
            brokers=brokers,
            kafka_port=kafka_port,
            redis_port=redis_port,
            throughput=throughput,
            on_progress=typer.echo,
        )
        with start as stack:
            _show_addresses(stack.info)
            if detach:
                stack.detach()
            if stack.is_owner:
                _watch(stack)
            else:
                typer.echo("It runs in the background; `sluice status` looks at it, `sluice down` stops it.")


def down(*, data_dir: DataDir = Path(_DEFAULT_DIR), clean: Clean = False) -> None:
    """Stop what `sluice up` started from this data directory."""
    data_dir = data_dir.absolute()
    with _reported():
        info = load(data_dir)
        if info is None:
            typer.echo(f"Nothing runs from {data_dir}.")
        else:
            stop_processes(info)
            typer.echo(f"Stopped {', '.join(each.name for each in info.processes[1:])}.")
        if clean and data_dir.exists():
            remove_data(data_dir)
            typer.echo(f"Deleted the stack's data in {data_dir}.")


def status(*, data_dir: DataDir = Path(_DEFAULT_DIR)) -> None:
    """Show the processes of the stack; exit with 0 if all of them run and answer, else with 3."""
    data_dir = data_dir.absolute()
    info = load(data_dir)
    if info is None:
        typer.echo(f"Nothing runs from {data_dir}. `sluice up` starts Kafka and Valkey.")
        raise typer.Exit(NOT_RUNNING)
    exits = exit_statuses(data_dir)
    row = "{:<11} {:>8} {:>6}  {:<22} {:>7} {:>9}  {}".format
    typer.echo(row("process", "pid", "port", "state", "RSS MB", "up s", "log"))
    for each in info.processes:
        typer.echo(row(*_status_cells(each, exits.get(each.pid))).rstrip())
    if running(data_dir) is None:
        typer.echo("Not all of it runs. `sluice down`, then `sluice up` starts it again; the data is kept.")
        raise typer.Exit(NOT_RUNNING)
    _show_settings(info)


def _status_cells(process: Process, returncode: int | None) -> tuple[str, ...]:
    living = process.find()
    port = str(process.port or "-")
    if living is None:
        state = "not running" if returncode is None else f"died, status {returncode}"
        return process.name, str(process.pid), port, state, "-", "-", str(process.log)
    rss_mb = living.memory_info().rss // 2**20
    up_s = max(0, int(time.time() - process.started_unix_s))
    state = "running" if not process.port or answers(process.port) else "does not answer"
    return process.name, str(process.pid), port, state, str(rss_mb), str(up_s), str(process.log)


def _show_addresses(info: StackInfo) -> None:
    _show_settings(info)
    for each in info.processes:
        typer.echo(f"  {each.name:<11} pid {each.pid:<8} log {each.log}")


def _show_settings(info: StackInfo) -> None:
    typer.echo(f"KAFKA_BOOTSTRAP_SERVERS={info.bootstrap_servers}")
    typer.echo(f"REDIS_URL={info.redis_url}")


def _warn_about_own_servers() -> None:
    for name in ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL"):
        if os.environ.get(name):
            typer.echo(f"Note: {name} is set, so workers started from this shell use {os.environ[name]}.", err=True)


def _clean_before_start(data_dir: Path) -> None:
    data_dir = data_dir.absolute()
    if running(data_dir) is not None:
        raise StackConflict(
            cause=f"a stack runs in {data_dir}, its data is in use", next_step="`sluice down --clean` first"
        )
    if data_dir.exists() and any(data_dir.iterdir()):
        remove_data(data_dir)


def _watch(stack: Stack) -> None:
    """Look after the stack until Ctrl-C, a death, or its end by `sluice down`."""
    try:
        typer.echo("Running; Ctrl-C stops it.")
        while True:
            time.sleep(_WATCH_S)
            stack.check()
    except KeyboardInterrupt:
        typer.echo("Stopping")
    except ProcessDied as error:
        if error.returncode is None and _ends_in_order(stack.info):
            typer.echo("Stopped by another command")
            return
        raise


def _ends_in_order(info: StackInfo) -> bool:
    """Wait for a supervisor that is stopping its servers; tell whether it finished (it then removes stack.json)."""
    deadline = time.monotonic() + STOP_GRACE_S
    while load(info.data_dir) is not None and info.supervisor.find() and time.monotonic() < deadline:
        time.sleep(0.1)
    return load(info.data_dir) is None


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn our errors into a message and exit status 1, Ctrl-C while starting into 130."""
    try:
        yield
    except EmbeddedError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("Interrupted; nothing is left running", err=True)
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C, so that `kill` and a closed terminal end in an orderly stop too."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = {each: signal.signal(each, interrupt) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)
