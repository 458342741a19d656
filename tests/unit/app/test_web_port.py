"""Workers that start at once choose different web ports."""

from __future__ import annotations

import subprocess
import sys

from app.faust_app import next_free_port

CHOOSE = """
import sys
from app.faust_app import next_free_port
print(next_free_port("127.0.0.1", int(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def test_two_processes_choose_different_ports() -> None:
    """A port is taken once it is chosen, although nobody listens on it yet, and free when its worker ends."""
    first = next_free_port("127.0.0.1", 0)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHOOSE, str(first)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    chosen = [int(child.stdout.readline()) for child in children if child.stdout]
    for child in children:
        child.communicate("")
    assert len({first, *chosen}) == 3
    assert next_free_port("127.0.0.1", min(chosen)) == min(chosen)
