"""``sluice dlq`` where it can do nothing: every refusal names cause and next step."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from app import cli, dlq_commands
from app.dead_letters import DeadLetterError
from app.errors import TopicError

if TYPE_CHECKING:
    from typer.testing import Result


def dlq(*arguments: str, servers: str = "127.0.0.1:1") -> Result:
    """Run ``sluice dlq`` in this process."""
    return CliRunner(env={"KAFKA_BOOTSTRAP_SERVERS": servers}).invoke(dlq_commands.cli, arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "--since", "yesterday"), "'yesterday' is no time; write a span before now"),
        (("list", "--since", "1h", "--until", "2h"), "--since 1h is not before --until 2h"),
        (("show", "17"), "'17' is no place of a dead letter; write PARTITION:OFFSET"),
        (("replay", "0-17"), "'0-17' is no place of a dead letter"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str) -> None:
    """They are refused before anything is asked of a broker."""
    refused = dlq(*arguments)
    assert isinstance(refused.exception, DeadLetterError)
    assert message in str(refused.exception)


@pytest.mark.parametrize(
    "arguments", [("list", "--topic", "scores"), ("list", "--limit", "0"), ("list", "--partition", "-1")]
)
def test_arguments_out_of_range(arguments: tuple[str, ...]) -> None:
    """The command line's own checks end with code 2 and the usage."""
    refused = dlq(*arguments)
    assert refused.exit_code == 2
    assert arguments[1] in refused.output


@pytest.mark.parametrize("arguments", [("list",), ("show", "0:1"), ("replay", "--yes", "--journal", "unused")])
def test_no_broker(arguments: tuple[str, ...]) -> None:
    """Where no broker answers, the address and the way to start one are named."""
    with socket.socket() as probe:  # bound, but it does not listen
        probe.bind(("127.0.0.1", 0))
        servers = f"127.0.0.1:{probe.getsockname()[1]}"
        refused = dlq(*arguments, servers=servers)
    assert isinstance(refused.exception, TopicError), refused.output
    assert f"Kafka at {servers} does not answer" in str(refused.exception)
    assert "sluice up" in str(refused.exception)


def test_the_group_is_part_of_the_command_line() -> None:
    """``sluice dlq`` has its three commands."""
    shown = CliRunner().invoke(cli.cli, ["dlq", "--help"]).output
    assert all(name in shown for name in ("list", "show", "replay"))
