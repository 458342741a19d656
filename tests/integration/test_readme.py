"""The how-to of README.md, word for word: pack a model, start everything, score one request with kcat."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.shell_blocks import run_script

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WORKER = re.compile(r"^.*sluice worker.*$", re.MULTILINE)

pytestmark = pytest.mark.integration


def _section(title: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A folder that looks like a fresh clone with its environment; nothing of it runs afterwards."""
    for name in (".venv", "schemas"):
        (tmp_path / name).symlink_to(ROOT / name)
    if not (ROOT / ".venv").exists():
        pytest.skip("the how-to starts from the .venv that make installs")
    yield tmp_path
    subprocess.run([ROOT / ".venv/bin/sluice", "down"], cwd=tmp_path, check=False, capture_output=True)


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed; it is the stranger's client")
def test_the_how_to_works_word_for_word(clone: Path) -> None:
    """Whoever follows the section to the letter gets the answer of their own model, and leaves nothing running."""
    printed = _run(clone, _blocks("Score your own model"))
    (answer,) = [json.loads(line) for line in printed.splitlines() if line.startswith('{"request_id"')]
    assert (answer["request_id"], answer["status"], answer["model_name"]) == ("r1", "OK", "fraud")
    assert 0 < answer["score"] < 1


def test_models_in_operation_work_word_for_word(clone: Path) -> None:
    """Every command of the section does what it says, on the model and the worker of the how-to."""
    start, stop = _blocks("Score your own model")[0], _blocks("Score your own model")[-1]
    printed = _run(clone, [start, *_blocks("Models in operation"), stop])
    assert printed.count("READY") >= 3, printed
    assert re.search(r"status\s+OK", printed), printed


def _blocks(title: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", _section(title), re.MULTILINE | re.DOTALL)


def _run(clone: Path, blocks: list[str]) -> str:
    """What the shell blocks print, the worker in the background."""
    (python,) = re.findall(r"^```python\n(.*?)^```", _section("Score your own model"), re.MULTILINE | re.DOTALL)
    (clone / "pack.py").write_text(python)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready = (
        f"until curl -fsS http://127.0.0.1:{port}/v2/health/ready >/dev/null 2>&1; do kill -0 $worker; sleep 0.2; done"
    )
    script = WORKER.sub(lambda line: f"{line[0]} 2>worker.log & worker=$!\n{ready}", "\n".join(blocks))
    script = script.replace("sluice down", "kill $worker; wait $worker; sluice down")
    environment = {k: v for k, v in os.environ.items() if k not in {"KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL"}}
    return run_script(script, clone, environment | {"SLUICE_WEB__PORT": str(port)})
