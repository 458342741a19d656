"""A warm standby: it has joined its group with everything loaded, and gets partitions when nobody else is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiokafka.cluster import ClusterMetadata

STANDBY = b"standby"
"""What a standby says of itself when it joins; whoever is chosen to assign partitions leaves it out."""


class PrimariesFirst(RoundRobinPartitionAssignor):  # type: ignore[misc] # aiokafka is not typed
    """Round robin among the members that are no standbys; among these when there are no others.

    It has the name of aiokafka's own, so workers of an older release may be in the group. When one of them is chosen
    to assign partitions, standbys get some like everybody else.
    """

    user_data: ClassVar[bytes] = b""

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member says of itself."""
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), cls.user_data)

    @classmethod
    def assign(
        cls, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Who gets what, by member."""
        primaries = {member: said for member, said in members.items() if said.user_data != STANDBY}
        nothing = {member: ConsumerProtocolMemberAssignment(cls.version, [], b"") for member in members}
        return {**nothing, **super().assign(cluster, primaries or members)}


class StandbyMember(PrimariesFirst):
    """What a standby joins with."""

    user_data: ClassVar[bytes] = STANDBY


def assignor(*, is_standby: bool) -> type[PrimariesFirst]:
    """What a worker joins its group with.

    Example:
        >>> assignor(is_standby=True).metadata(["score-requests"]).user_data
        b'standby'

    """
    return StandbyMember if is_standby else PrimariesFirst
