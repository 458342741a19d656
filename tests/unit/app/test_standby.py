"""Who gets partitions: standbys only when nobody else is there, and everybody exactly the partitions of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from hypothesis import given
from hypothesis import strategies as st

from app.standby import PrimariesFirst, StandbyMember, assignor

if TYPE_CHECKING:
    from collections.abc import Iterable

TOPICS = ["score-requests"]


class Cluster(ClusterMetadata):  # type: ignore[misc] # aiokafka is not typed
    """Topics of four partitions each; the rest of a cluster is of no interest here."""

    def partitions_for_topic(self, topic: str) -> set[int]:
        """Numbers of its partitions."""
        return {0, 1, 2, 3} if topic in TOPICS else set()


def _partitions(assigner: type[PrimariesFirst], members: dict[str, type[PrimariesFirst]]) -> dict[str, list[int]]:
    said = {member: _sent(kind.metadata(TOPICS)) for member, kind in members.items()}
    assigned = assigner.assign(Cluster(), said)
    return {member: [tp.partition for tp in each.partitions()] for member, each in assigned.items()}


def _sent(said: ConsumerProtocolMemberMetadata) -> ConsumerProtocolMemberMetadata:
    """As it arrives over the wire."""
    return ConsumerProtocolMemberMetadata.decode(said.encode())


@pytest.mark.parametrize("assigner", [PrimariesFirst, StandbyMember])
@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a": PrimariesFirst, "s": StandbyMember}, {"a": [0, 1, 2, 3], "s": []}),
        ({"s": StandbyMember}, {"s": [0, 1, 2, 3]}),
        ({"s": StandbyMember, "t": StandbyMember}, {"s": [0, 2], "t": [1, 3]}),
        (
            {"a": PrimariesFirst, "b": PrimariesFirst, "s": StandbyMember, "t": StandbyMember},
            {"a": [0, 2], "b": [1, 3], "s": [], "t": []},
        ),
    ],
)
def test_standbys_come_last(
    assigner: type[PrimariesFirst], members: dict[str, type[PrimariesFirst]], expected: dict[str, list[int]]
) -> None:
    """Whoever of the group assigns, a standby or not."""
    assert _partitions(assigner, members) == expected


def _names(kinds: Iterable[bool]) -> dict[str, type[PrimariesFirst]]:
    return {f"m{i}": assignor(is_standby=is_standby) for i, is_standby in enumerate(kinds)}


@given(st.lists(st.booleans(), min_size=1, max_size=7))
def test_every_partition_has_one_owner(kinds: list[bool]) -> None:
    """However many of each there are; without a standby it is aiokafka's own round robin."""
    found = _partitions(PrimariesFirst, _names(kinds))
    assert found.keys() == _names(kinds).keys()
    assert sorted(p for partitions in found.values() for p in partitions) == [0, 1, 2, 3]
    if not any(kinds):
        said = {member: kind.metadata(TOPICS) for member, kind in _names(kinds).items()}
        plain = RoundRobinPartitionAssignor.assign(Cluster(), said)
        assert found == {member: [tp.partition for tp in each.partitions()] for member, each in plain.items()}


def test_an_older_release_may_be_in_the_group() -> None:
    """The protocol has the same name, and what it says of itself is read as a worker's that is no standby."""
    assert PrimariesFirst.name == StandbyMember.name == RoundRobinPartitionAssignor.name
    older = RoundRobinPartitionAssignor.metadata(TOPICS)
    assigned = PrimariesFirst.assign(Cluster(), {"old": older, "s": StandbyMember.metadata(TOPICS)})
    assert [tp.partition for tp in assigned["old"].partitions()] == [0, 1, 2, 3]
    assert assigned["s"].partitions() == []
