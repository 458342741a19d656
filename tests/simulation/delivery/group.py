"""The group coordinator: members, generations, who has which partition; the eager protocol, as Faust uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.delivery.broker import Broker
    from tests.simulation.delivery.schedule import Schedule
    from tests.simulation.delivery.worker import Worker

SESSION_TICKS = 40
"""A member that is not heard of for so long is dead to the group."""
REBALANCE_TICKS = 90
"""So long the group waits for members to join again."""


class Group:
    """Moves partitions between workers.

    Attributes:
        owners: for each partition the member that has it.
        is_rebalancing: members are asked to join again.

    """

    def __init__(self, schedule: Schedule, broker: Broker, partitions: int) -> None:
        self._schedule, self._broker = schedule, broker
        self._partitions = partitions
        self._members: dict[str, Worker] = {}
        self._joined: set[str] = set()
        self.owners: dict[int, str] = {}
        self.is_rebalancing = False
        self._round = 0
        self._gone: set[str] = set()

    def join(self, member: str, worker: Worker) -> None:
        """JoinGroup; refused when the group has given the member up, which it is being told."""
        if member in self._gone:
            return
        self._members[member] = worker
        self._broker.members[member] = 0
        if not self.is_rebalancing:
            self.rebalance(asked_by=member)
        self._joined.add(member)
        self._complete_if_all_joined()

    def replace(self, old: str, new: str, worker: Worker) -> bool:
        """JoinGroup of a static member that was restarted: it gets what it had, and nobody else is disturbed."""
        if old not in self._members or self.is_rebalancing:
            return False
        self._remove(old)
        self._members[new] = worker
        self._broker.members[new] = 0
        mine = [partition for partition, owner in self.owners.items() if owner == old]
        self.owners.update(dict.fromkeys(mine, new))
        worker.tell("assigned", new, self._broker.generation, mine)
        return True

    def evict(self, member: str) -> None:
        """LeaveGroup, or its session is over."""
        if member not in self._members:
            return
        self._schedule.note("group: without", member)
        worker = self._members[member]
        self._remove(member)
        worker.tell("lost", member)
        if self.is_rebalancing:
            self._complete_if_all_joined()
        elif self._members:
            self.rebalance()

    def rebalance(self, asked_by: str = "") -> None:
        """Ask all members to join again."""
        if self.is_rebalancing:
            return
        self.is_rebalancing = True
        self._joined = set()
        self._round += 1
        for member, worker in self._members.items():
            if member != asked_by:
                worker.tell("revoke", member)
        self._schedule.after(REBALANCE_TICKS, self._give_up_waiting, self._round)

    def _remove(self, member: str) -> None:
        self._gone.add(member)
        del self._members[member]
        del self._broker.members[member]
        self._joined.discard(member)

    def _give_up_waiting(self, number: int) -> None:
        if not self.is_rebalancing or number != self._round:
            return
        for member in [member for member in self._members if member not in self._joined]:
            self.evict(member)

    def _complete_if_all_joined(self) -> None:
        if not self.is_rebalancing or len(self._joined) < len(self._members):
            return
        self.is_rebalancing = False
        if not self._members:
            return
        self._broker.generation += 1
        members = sorted(self._members)
        turn = self._schedule.some(len(members))
        self.owners = {p: members[(p + turn) % len(members)] for p in range(self._partitions)}
        self._schedule.note("group: generation", self._broker.generation, self.owners)
        for member in members:
            mine = [partition for partition, owner in self.owners.items() if owner == member]
            self._members[member].tell("assigned", member, self._broker.generation, mine)
