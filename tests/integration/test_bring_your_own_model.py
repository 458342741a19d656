"""docs/bring-your-own-model.md, word for word: its files, its commands, and what a reader must see at the end."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.shell_blocks import run_script

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "bring-your-own-model.md"
FILE = re.compile(r"^`([\w.]+)`.*:\n\n```(?:python|yaml)\n((?s:.*?))^```", re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
WORKER = re.compile(r"^.*sluice worker.*$", re.MULTILINE)

pytestmark = pytest.mark.integration


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A folder that looks like a fresh clone with its environment; nothing of it runs afterwards."""
    if not (ROOT / ".venv").exists():
        pytest.skip("the page starts from the .venv that make installs")
    for name in (".venv", "schemas"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield tmp_path
    subprocess.run([ROOT / ".venv/bin/sluice", "down"], cwd=tmp_path, check=False, capture_output=True)


def test_every_code_block_is_a_file_or_a_command() -> None:
    """No block of the page stays untried but the sample of an answer."""
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name, _ in FILE.findall(text)] == [
        "churn.yaml", "churn.py", "my_networks.py", "spend.yaml", "spend.py",
    ]  # fmt: skip
    assert text.count("\n```\n") == 5 + len(SHELL.findall(text)) + text.count("```text\n")


@pytest.mark.slow  # starts a stack, two workers and a dozen commands: more than a minute
def test_the_page_works_word_for_word(clone: Path) -> None:
    """Three packed versions, one worker, four scores, a switch of the version; and nothing is left running."""
    text = PAGE.read_text(encoding="utf-8")
    for name, body in FILE.findall(text):
        (clone / name).write_text(body)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready = (
        f"until curl -fsS http://127.0.0.1:{port}/v2/health/ready >/dev/null 2>&1; do kill -0 $worker; sleep 0.2; done"
    )
    script = WORKER.sub(lambda line: f"{line[0]} >worker.log 2>&1 & worker=$!\n{ready}", "\n".join(SHELL.findall(text)))
    script = script.replace("sluice down", "kill $worker; wait $worker; sluice down")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "KAFKA_", "REDIS_", "SCHEMA_"))}
    printed = run_script(script, clone, environment | {"SLUICE_WEB__PORT": str(port)})
    sample = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    assert sample is not None
    assert re.sub(r"\d+", "0", sample[1]) in re.sub(r"\d+", "0", printed), printed
    assert re.findall(r"^model +(.*)$", printed, re.MULTILINE) == [
        "churn version 1", "spend version 1", "spend version 2", "spend version 2",
    ]  # fmt: skip
    euros = [float(score) for score in re.findall(r"^output euros +(.*)$", printed, re.MULTILINE)]
    assert len(set(euros)) == 1, printed
    assert 105 < euros[0] < 115, "three euros a visit and twenty more in fr"
    assert re.search(r"spend +2 +READY +champion", printed), printed
