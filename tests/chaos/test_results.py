"""The catalogue, and the page of the results."""

from __future__ import annotations

from typing import Any

from chaos.catalogue import SCENARIOS
from chaos.results import page
from chaos.runner import Result

TOPIC = {"records": 12, "lost": 0, "doubled": 2, "doubled_by_mark": 0, "out_of_order": 0}

WORK = {"times": 2, "median_s": 0.05, "longest_s": 0.11}


def document(name: str, seed: int, problems: list[str]) -> dict[str, Any]:
    """A result as it is saved."""
    figures: dict[str, Any] = {"requests": 10, "bit_equal": 12, "of_two_attempts": 0}
    figures |= {
        "scores": TOPIC,
        "predictions-log": TOPIC,
        "repeated_work": WORK,
        "exits": {"worker-0": [-9, 0, -9]},
        "stop_seconds": {"worker-0": [0.4, 1.2], "worker-1": []},
    }
    return {
        **Result(name, seed, "at_least_once", "long", problems, figures).as_json(),
        "date": "2026-01-01 00:00 UTC",
        "commit": "abc",
        "machine": {"cpu": "a cpu", "cores": 2, "memory_gb": 8, "python": "3.11"},
        "versions": {"aiokafka": "0", "faust-streaming": "0"},
    }


def test_there_are_twenty_scenarios_with_a_name_and_a_sentence_each() -> None:
    """Names differ, and each docstring says in a sentence what is done."""
    names = [each.name for each in SCENARIOS]
    assert len(set(names)) == len(names) >= 20
    assert all(each.sentence.endswith(".") for each in SCENARIOS)


def test_the_page_sums_seeds_and_hides_no_failure() -> None:
    """Two seeds make one row; the broken promise stands below with the command that shows it again."""
    written = page([document("zombie", 1, []), document("zombie", 2, ["something was lost"])])
    row = "| `zombie` | at least once | 1-2 | 4 | 20 | 0 | 4 | 0 | 0 | 0 "
    row += "| 4 times, 0.05 and 0.11 s | 24 of 24 | 1.2 s of 4 | 1 of 2 |"
    assert row in written.splitlines()
    assert "1 of 2 runs kept every promise" in written
    assert "`python -m chaos zombie --seed 2 --mode at_least_once`\n    * something was lost" in written


def test_a_run_that_broke_before_its_verdict_is_on_the_page() -> None:
    """A world that broke has no figures; it counts as not kept."""
    broken = document("zombie", 3, ["the world broke: OSError()"]) | {"figures": {}}
    row = "| `zombie` | at least once | 3 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |  | 0 of 0 |  | 0 of 1 |"
    assert row in page([broken]).splitlines()
