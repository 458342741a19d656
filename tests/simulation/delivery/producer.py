"""``OutputProducer`` and what of aiokafka stands behind it: one request at a time for each partition, in sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.simulation.delivery.broker import CONCURRENT, OFFSETS, OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.delivery.broker import Place
    from tests.simulation.delivery.worker import Worker

TRIES = 2
"""A produce request is tried so often before ``OutputProducer`` gives up."""
START_TRIES = 30


class Pending:
    """A future: ``then`` is called when it is done or has failed."""

    __slots__ = ("is_done", "is_failed", "then")

    def __init__(self) -> None:
        self.is_done = self.is_failed = False
        self.then: Callable[[], None] | None = None

    def resolve(self, *, is_failed: bool = False) -> None:
        """Done, or failed."""
        self.is_done, self.is_failed = not is_failed, is_failed
        if self.then is not None:
            then, self.then = self.then, None
            then()


class Producer:
    """Sends lists of records and says when the broker has them.

    Args:
        worker: whose process it lives in.
        name: transactional id; None: no transactions.

    """

    def __init__(self, worker: Worker, name: str | None = None) -> None:
        self.worker, self.name = worker, name
        self.broker, self._request = worker.world.broker, worker.world.network.request
        self.pid, self.epoch = 0, 0
        self.has_failed = False
        self._sequences: dict[Place, int] = {}
        self._waiting: dict[Place, list[tuple[list[int], Pending]]] = {}
        self._busy: set[Place] = set()
        self._added: set[Place] = set()
        self._starts = 0

    def start(self, then: Callable[[], None]) -> None:
        """InitProducerId, again until it is known to have worked."""
        if self.name is None:
            self.pid = self.broker.new_pid()
            then()
            return
        self._starts += 1
        if self._starts > START_TRIES:
            self.worker.crash("no producer")
        self.worker.effect()
        self._request(self.worker, lambda result: self._started(result, then), self.broker.init, self.name)

    def _started(self, result: Any, then: Callable[[], None]) -> None:  # noqa: ANN401
        if result is None or result == CONCURRENT:
            self.worker.later(2, self.start, then)
            return
        self.pid, self.epoch = result
        then()

    def send(self, place: Place, offsets: list[int]) -> Pending:
        """Hand records over; fails at once when a send has failed before."""
        if self.has_failed:
            self.worker.crash("an earlier send has failed")
        pending = Pending()
        self._waiting.setdefault(place, []).append((offsets, pending))
        self.worker.effect()
        self._pump(place)
        return pending

    def begin(self) -> None:
        """A transaction begins; brokers hear of it with its first partition."""
        self._added.clear()

    def commit(self, partition: int, offset: int, then: Callable[[], None]) -> None:
        """Offsets, then the end of the transaction; an unknown fate ends the process, nothing is sent twice."""
        identity = (self.name, self.pid, self.epoch)

        def ended() -> None:
            if self.broker.adds:
                self.epoch += 1
                self._sequences.clear()
            then()

        def staged() -> None:
            self._once(ended, self.broker.end, *identity)

        def added() -> None:
            self._once(staged, self.broker.stage, *identity, {partition: offset})

        if self.broker.adds:
            added()
        else:
            self._insist(added, self.broker.add, *identity, OFFSETS)

    def _once(self, then: Callable[[], None], call: Callable[..., str], *arguments: Any) -> None:  # noqa: ANN401
        def answered(result: str | None) -> None:
            self.worker.effect()
            if result == CONCURRENT:  # it was not applied
                self.worker.later(2, self._once, then, call, *arguments)
                return
            if result != OK:
                self.unknown_fate(result, then, call, arguments)
                return
            then()

        self.worker.effect()
        self._request(self.worker, answered, call, *arguments)

    def unknown_fate(self, result: str | None, then: Callable[[], None], call: Any, arguments: Any) -> None:  # noqa: ANN401, ARG002
        """A request of a commit was refused or not answered: crash-only."""
        self.worker.crash(f"{call.__name__}: {result}")

    def _insist(self, then: Callable[[], None], call: Callable[..., str], *arguments: Any) -> None:  # noqa: ANN401
        """A request that may be repeated without harm."""

        def answered(result: str | None) -> None:
            if result is None or result == CONCURRENT:
                self.worker.later(2, self._insist, then, call, *arguments)
            elif result == OK:
                then()
            else:
                self.worker.crash(f"{call.__name__}: {result}")

        self.worker.effect()
        self._request(self.worker, answered, call, *arguments)

    def _pump(self, place: Place) -> None:
        waiting = self._waiting.get(place)
        if not waiting or place in self._busy:
            return
        self._busy.add(place)
        self._waiting[place] = []
        if self.name is None or self.broker.adds or place in self._added:
            self._produce(place, waiting, TRIES)
            return
        self._added.add(place)
        identity = (self.name, self.pid, self.epoch)
        self._insist(lambda: self._produce(place, waiting, TRIES), self.broker.add, *identity, place)

    def _produce(self, place: Place, parcels: list[tuple[list[int], Pending]], tries: int) -> None:
        offsets = [offset for part, _ in parcels for offset in part]
        sequence = self._sequences.get(place, 0)

        def answered(result: str | None) -> None:
            self.worker.effect()
            if result == OK:
                self._sequences[place] = sequence + len(offsets)
                self._busy.discard(place)
                for _, pending in parcels:
                    pending.resolve()
                self._pump(place)
            elif result is None and tries > 1:
                self._produce(place, parcels, tries - 1)
            elif result == CONCURRENT:
                self.worker.later(2, self._produce, place, parcels, tries)
            else:
                self.failed(place, parcels)

        self._request(
            self.worker, answered, self.broker.produce, place, (self.name, self.pid, self.epoch), sequence, offsets
        )

    def failed(self, place: Place, parcels: list[tuple[list[int], Pending]]) -> None:
        """Nothing more is sent after a failed send."""
        self.has_failed = True
        self._busy.discard(place)
        waiting = [parcel for queue in self._waiting.values() for parcel in queue]
        self._waiting.clear()
        for _, pending in parcels + waiting:
            pending.resolve(is_failed=True)
