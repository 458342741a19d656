"""The stages of a start: they add up to the process's age, whatever their steps claim."""

from __future__ import annotations

import itertools
import subprocess
import sys

from app.start_stages import StartStages, process_age_s


def test_stages_add_up_to_the_age() -> None:
    """Each stage begins where the one before ended, the first with the process."""
    ages = iter([2.0, 3.5, 4.0])
    start = StartStages(lambda: next(ages))
    start.ended("import")
    start.ended("models", of_which={"fetch": 1.0})
    assert not start.is_over
    start.over("join")
    assert start.is_over
    assert start.seconds == {"import": 2.0, "fetch": 1.0, "models": 0.5, "join": 0.5}


def test_steps_that_claim_more_than_there_was_leave_nothing() -> None:
    """Steps are timed by another clock; the rest of their stage is never negative."""
    ages = itertools.repeat(1.0)
    start = StartStages(lambda: next(ages))
    start.ended("import")
    start.ended("models", of_which={"fetch": 1e-6})
    assert start.seconds["models"] == 0.0


def test_the_age_counts_from_the_process_not_from_its_first_line() -> None:
    """What the interpreter needs before it runs anything is a part of a start; the parent is older than its child."""
    code = "import time; begun = time.monotonic(); from app.start_stages import process_age_s as age; "
    code += "print(age() > time.monotonic() - begun, age())"
    told, age = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == "True"
    assert float(age) < process_age_s()
