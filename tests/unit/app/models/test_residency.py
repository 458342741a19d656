"""What has to go so that a model fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import DeviceFull
from app.models.residency import Resident, plan_unloads

RESIDENTS = st.lists(
    st.builds(
        Resident,
        key=st.tuples(st.sampled_from("abc"), st.integers(1, 3)),
        device=st.sampled_from(("cpu", "cuda:0")),
        memory_bytes=st.integers(0, 50),
        last_used_s=st.sampled_from((0.0, 1.0, 2.0, 3.0)),
        is_pinned=st.booleans(),
    ),
    max_size=8,
)


@given(RESIDENTS, st.integers(0, 120), st.integers(0, 200))
def test_the_plan_makes_room_and_spares_what_it_can(residents: list[Resident], needed: int, budget: int) -> None:
    """It fits afterwards; pinned and foreign models stay; nothing goes in vain; the oldest go first."""
    here = [resident for resident in residents if resident.device == "cuda:0"]
    pinned = {resident.key for resident in here if resident.is_pinned}

    def taken(gone: set[tuple[str, int]]) -> int:
        return sum(resident.memory_bytes for resident in here if resident.key not in gone)

    movable = {resident.key for resident in here} - pinned
    try:
        plan = plan_unloads(residents, device="cuda:0", needed_bytes=needed, budget_bytes=budget)
    except DeviceFull:
        assert taken(movable) + needed > budget, "it would have fitted"
        return
    assert len(set(plan)) == len(plan)
    assert set(plan) <= movable
    assert taken(set(plan)) + needed <= budget
    assert not plan or taken(set(plan[:-1])) + needed > budget, "the last one went in vain"
    first_used = {key: min(r.last_used_s for r in here if r.key == key) for key in movable}
    assert all(first_used[key] <= first_used[other] for key in plan for other in movable - set(plan))


def test_what_cannot_fit_says_who_holds_the_memory() -> None:
    """The message names device, sizes, the pinned models, and the setting."""
    residents = [Resident(("demo", 2), "cuda:0", 3 * 2**20, 0.0, is_pinned=True)]
    message = r"cuda:0: 2\.0 MiB do not fit into the budget of 4\.0 MiB .*demo version 2 \(3\.0 MiB\).*memory_mb"
    with pytest.raises(DeviceFull, match=message):
        plan_unloads(residents, device="cuda:0", needed_bytes=2 * 2**20, budget_bytes=4 * 2**20)
