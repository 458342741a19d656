"""The command line: ``sluice up``, ``sluice worker``, ``sluice schema`` and the rest."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app import dlq_commands, model_commands, model_control_commands, schema_commands, score_command
from app.embedded import commands as embedded_commands
from app.embedded.stack import running
from app.errors import SluiceError
from app.settings import load_settings

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
embedded_commands.register(cli)
cli.add_typer(schema_commands.cli, name="schema")
cli.add_typer(dlq_commands.cli, name="dlq")
model_control_commands.register(model_commands.cli)
cli.add_typer(model_commands.cli, name="model")
score_command.register(cli)


class Role(StrEnum):
    """What a worker does."""

    SCORING = "scoring"
    MONITOR = "monitor"


@cli.command()
def worker(
    role: Role, *, log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info"
) -> None:
    """Run one worker until SIGTERM; more throughput is more of them."""
    from app.worker import run_worker

    run_worker(role.value, log_level)


@cli.command()
def topics() -> None:
    """Create the topics that are missing, and check that their partitions fit together."""
    from agents.topics import ensure_topics

    for name, count in asyncio.run(ensure_topics(load_settings())).items():
        typer.echo(f"{name:24} {count} partitions")


@cli.command()
def env(*, data_dir: Annotated[Path, typer.Option(help="that of `sluice up`")] = Path(".sluice")) -> None:
    """Print the addresses of what `sluice up` runs as shell exports: eval "$(sluice env)"."""
    info = running(data_dir)
    if info is None:
        typer.echo(f"sluice: nothing runs in {data_dir}; start it with `sluice up --detach`", err=True)
        raise typer.Exit(3)
    typer.echo(f"export KAFKA_BOOTSTRAP_SERVERS={info.bootstrap_servers}")
    typer.echo(f"export REDIS_URL={info.redis_url}")


def main() -> None:
    """Run the command line; an error of ours is one message and exit code 1, not a traceback."""
    try:
        cli()
    except SluiceError as exc:
        typer.echo(f"sluice: {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
