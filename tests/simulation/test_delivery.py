"""Delivery under faults, in simulated time: the real ledger and lanes, 100,000 seeds, and mutants that must fail.

A failing seed is shown by ``python -m tests.simulation.delivery --seed N --trace``; more seeds: ``make simulate``.
"""

from __future__ import annotations

import pytest

from tests.simulation.delivery.mutants import MUTANTS
from tests.simulation.delivery.run import advice, problem_of, run_campaign, run_seeds, trace

SEEDS = 100_000
PROCESSES = 2
MUTANT_SEEDS = 3000
"""The rarest mistake shows in about one of 350 runs."""


def test_no_seed_loses_repeats_or_reorders_anything() -> None:
    """Whatever is killed, cut off, lost, late or moved, the invariants hold and everything is answered in the end."""
    *_, tally = run_campaign(0, SEEDS, PROCESSES)
    assert not tally.failures, advice(tally.failures)
    assert tally.runs == SEEDS
    for what in ("kills", "crashes", "zombies", "rebalances", "aborted", "duplicates"):
        assert getattr(tally.total, what) > SEEDS // 10, f"the runs had hardly any {what}: {tally}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_mistake_is_found(mutant: type) -> None:
    """A shell or core with one mistake breaks an invariant within a few thousand seeds."""
    mode = MUTANTS[mutant]
    assert any(problem_of(seed, mutant, is_exactly_once=mode) for seed in range(MUTANT_SEEDS)), mutant.__doc__


def test_a_seed_gives_the_same_run_twice() -> None:
    """A failing seed can be looked at again: trace and outcome are the same."""
    assert [trace(seed) for seed in range(20)] == [trace(seed) for seed in range(20)]
    assert run_seeds(0, 50) == run_seeds(0, 50)
