"""The catalogue, and the page of the results."""

from __future__ import annotations

from typing import Any

from chaos.catalogue import SCENARIOS
from chaos.results import page
from chaos.runner import Result

TOPIC = {"records": 12, "lost": 0, "doubled": 2, "doubled_by_mark": 0, "out_of_order": 0}


def document(name: str, seed: int, problems: list[str]) -> dict[str, Any]:
    """A result as it is saved."""
    figures = {"requests": 10, "scores": TOPIC, "predictions-log": TOPIC, "bit_equal": 12, "of_two_attempts": 0}
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
    row = "| `zombie` | at least once | 1, 2 | 20 | 0 | 4 | 0 | 0 | 0 | 24 of 24 | 1 of 2 |"
    assert row in written.splitlines()
    assert "1 of 2 runs kept every promise" in written
    assert "`python -m chaos zombie --seed 2 --mode at_least_once`\n    * something was lost" in written


def test_a_run_that_broke_before_its_verdict_is_on_the_page() -> None:
    """A world that broke has no figures; it counts as not kept."""
    broken = document("zombie", 3, ["the world broke: OSError()"]) | {"figures": {}}
    assert "| `zombie` | at least once | 3 | 0 | 0 | 0 | 0 | 0 | 0 | 0 of 0 | 0 of 1 |" in page([broken]).splitlines()
