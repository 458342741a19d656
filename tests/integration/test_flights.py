"""The demo as a person runs it: real broker, store and workers, real flights, every answer accounted for and proven."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.embedded.stack import StackInfo

pytestmark = pytest.mark.integration

STEP_TIMEOUT_S = 120.0
GONE_TIMEOUT_S = 30.0

ROOT = Path(__file__).parents[2]


class RunningDemo:
    """A demo process, and the lines that it has said."""

    def __init__(self, stack: StackInfo, data_dir: Path, *, by_make: bool = False, **variables: str) -> None:
        environ = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": stack.bootstrap_servers,
            "REDIS_URL": stack.redis_url,
            "MONTHS": "1",
            "DAYS": "1",
            "SLUICE_KAFKA__PARTITIONS": "4",  # the topics stay behind, for the tests that follow
            **variables,
        }
        argv = [sys.executable, "-m", "examples.flights.demo", "--data-dir", str(data_dir)]
        if by_make and any(ROOT.glob(".venv/.installed-*")):  # else this is no environment of make's
            argv = ["make", "--no-print-directory", "-C", str(ROOT), "demo", f"ARGS=--data-dir {data_dir}"]
            environ.pop("MAKEFLAGS", None)  # of the make that runs this test
        self.process = subprocess.Popen(
            argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.lines: list[str] = []

    def read_until(self, start: str) -> str:
        """The first line that starts so; fails when the demo ends before it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith(start):
                return line
        pytest.fail("\n".join(["the demo ended:", *self.lines]))

    def finish(self) -> int:
        """Reads to the end and returns the exit status."""
        out, _ = self.process.communicate(timeout=STEP_TIMEOUT_S)
        self.lines += out.splitlines()
        return self.process.returncode

    def text(self) -> str:
        """All it has said."""
        return "\n".join(self.lines)

    def workers(self) -> list[psutil.Process]:
        """The worker processes that it has started."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [p for p in below if "worker" in p.cmdline()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs: the model of the first is there for the others."""
    return tmp_path_factory.mktemp("flights")


@pytest.fixture(scope="module")
def played(stack: StackInfo, data_dir: Path) -> Iterator[RunningDemo]:
    """A whole run of the first day of March, ended by itself."""
    demo = RunningDemo(stack, data_dir, by_make=True, ONCE="1", RESET="1")
    demo.finish()
    yield demo
    _kill(demo)


def _kill(demo: RunningDemo) -> None:
    if demo.process.poll() is None:
        demo.process.kill()
        demo.process.wait()
    assert demo.process.stdout is not None
    demo.process.stdout.close()


def _wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still live after a generous time."""
    _, left = psutil.wait_procs(processes, timeout=GONE_TIMEOUT_S)
    return left


def test_every_flight_is_answered_once_and_nothing_is_lost(played: RunningDemo) -> None:
    """Exit status 0; consumed = the sum of all statuses = the flights of the day."""
    assert played.process.returncode == 0, played.text()
    account = re.search(r"conservation: consumed ([\d,]+) = ([\d,]+) OK \+ ([\d,]+) DEGRADED(.*)", played.text())
    assert account is not None, played.text()
    consumed, ok, degraded = (int(group.replace(",", "")) for group in account.groups()[:3])
    assert consumed == ok + degraded == 946
    assert account[4] == " + 0 INVALID + 0 EXPIRED + 0 SHED + 0 ERROR + 0 undecodable"


def test_stream_equals_offline_run(played: RunningDemo) -> None:
    """Features, scores and answers are proven equal; the table shows that the store pays."""
    proofs = [line for line in played.lines if line.startswith("proof: ")]
    assert len(proofs) >= 4, played.text()
    assert all(" equal" in proof for proof in proofs[:3]), played.text()
    row = next(line for line in played.lines if "2013-03 " in line and "." in line).split()
    auc, auc_without_store = float(row[5]), float(row[6])
    assert auc > auc_without_store


def test_report_and_pages_are_named(played: RunningDemo) -> None:
    """The last lines say where to look, and the report is there."""
    report = re.search(r"report: (\S+\.html), http://127\.0\.0\.1:\d+/reports/", played.text())
    assert report is not None, played.text()
    assert os.path.getsize(report[1]) > 10_000  # noqa: PTH202
    assert "pages: http://127.0.0.1:" in played.text()


def test_a_kafka_with_records_is_left_alone(played: RunningDemo, stack: StackInfo, data_dir: Path) -> None:
    """Without RESET the demo refuses to empty topics that are not its own, and says what to set."""
    assert played.process.returncode == 0
    demo = RunningDemo(stack, data_dir, ONCE="1")
    assert demo.finish() == 1
    assert "RESET=1" in demo.text()
    assert "score-requests (946)" in demo.text()


def test_sigterm_ends_everything(played: RunningDemo, stack: StackInfo, data_dir: Path) -> None:
    """In the middle of a replay: workers drain and end, and the model of the earlier run was used again."""
    assert played.process.returncode == 0
    demo = RunningDemo(stack, data_dir, RESET="1", SPEED="60")
    try:
        demo.read_until("Replay")
        workers = demo.workers()
        demo.process.send_signal(signal.SIGTERM)
        assert demo.finish() == 130, demo.text()
        assert len(workers) == 2
        assert _wait_until_gone(workers) == []
        assert "training" not in demo.text()
    finally:
        _kill(demo)


def test_workers_do_not_outlive_a_killed_demo(played: RunningDemo, stack: StackInfo, data_dir: Path) -> None:
    """After kill -9 of the demo no worker is left."""
    assert played.process.returncode == 0
    demo = RunningDemo(stack, data_dir, RESET="1", SPEED="60")
    try:
        demo.read_until("Replay")
        below = psutil.Process(demo.process.pid).children(recursive=True)
        demo.process.kill()
        demo.process.wait()
        assert len(below) >= 3
        assert _wait_until_gone(below) == []
    finally:
        _kill(demo)
