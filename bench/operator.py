"""Somebody who runs ``sluice model`` commands: a process of its own, whose imports are done before it is asked.

A command's own start would take seconds of a core from what is measured beside it; a real operator sits elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agents import control, worker_watch  # noqa: F401 - the commands import them late, which would be in the measurement
from app import model_control_commands
from bench.stack import Bench, Ends
from schemas.topic_names import SCORES

if TYPE_CHECKING:
    from typing import Self

NICENESS = 5
"""Below the service on the cores that they share."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended well.

    Attributes:
        words: the command.
        began_s: monotonic.
        ended_s: monotonic.
        ends_before: end offset of each partition of ``scores``, asked for before the command began.
        ends: likewise, after it had ended.

    """

    words: tuple[str, ...]
    began_s: float
    ended_s: float
    ends_before: dict[int, int]
    ends: dict[int, int]


class Operator:
    """The process; ready when the constructor returns."""

    def __init__(self, bench: Bench, deployment: str) -> None:
        environment = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": bench.servers, "SLUICE_DEPLOYMENT": deployment}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.operator", "--servers", bench.servers],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._read()

    async def sluice_model(self, *words: str) -> Done:
        """Run ``sluice model ...``.

        Raises:
            RuntimeError: it ended with another exit code than 0.

        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = await asyncio.to_thread(self._read)
        if answer["code"]:
            msg = f"sluice model {' '.join(words)} ended with {answer['code']}:\n{answer['output']}"
            raise RuntimeError(msg)
        before, after = ({int(p): end for p, end in answer[name].items()} for name in ("ends_before", "ends"))
        return Done(words, answer["began_s"], answer["ended_s"], before, after)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            msg = "the operator's process has ended; its error is above"
            raise RuntimeError(msg)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        """It."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def _carry_out(cli: typer.Typer, words: list[str]) -> dict[str, Any]:
    output, began_s = io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = cli(words, standalone_mode=False)
    return {"began_s": began_s, "ended_s": time.monotonic(), "code": code or 0, "output": output.getvalue()}


async def _score_ends(servers: str) -> dict[int, int]:
    async with Ends(Bench(servers, "", Path(), is_quick=False)) as ends:
        return await ends.by_partition(SCORES)


def main() -> None:
    """The process's own entry."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", required=True)
    servers = parser.parse_args().servers
    os.nice(NICENESS)
    cli = typer.Typer()
    model_control_commands.register(cli)
    print(json.dumps({"is_ready": True}), flush=True)
    for line in sys.stdin:
        before = asyncio.run(_score_ends(servers))
        answer = _carry_out(cli, json.loads(line)) | {"ends_before": before}
        answer["ends"] = asyncio.run(_score_ends(servers))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
