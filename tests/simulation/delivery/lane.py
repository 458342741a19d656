"""What ``_LaneRunner`` of app/exactly_once.py does, step by step, around the real ``TransactionLane``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from app.transactions import Action, Parcel
from tests.simulation.delivery.producer import Pending, Producer

if TYPE_CHECKING:
    from app.transactions import TransactionLane
    from tests.simulation.delivery.worker import Worker

Box = tuple[str, list[int]]
"""A topic and the input offsets whose terminal records go there."""


class LaneRunner:
    """Carries out the steps of a lane.

    Args:
        worker: whose process it lives in.
        partition: of the input.
        core: decides.
        producer: with the partition's transactional id.

    """

    def __init__(self, worker: Worker, partition: int, core: TransactionLane, producer: Producer) -> None:
        self._worker, self._partition, self._core, self._producer = worker, partition, core, producer
        self._futures: dict[int, Pending] = {}
        self._is_stopped = False
        self._is_committing = False
        self._wake = math.inf

    def stop(self) -> None:
        """Nothing more is sent or committed; an open transaction is left to be aborted by the next owner."""
        self._is_stopped = True

    def hand_over(self, start: int, end: int, boxes: list[Box]) -> Pending:
        """Terminal records of a part; done when they are committed."""
        self._core.hand_over(Parcel(start, end, sum(len(offsets) for _, offsets in boxes), boxes))
        self._futures[start] = future = Pending()
        self._worker.later(0, self.run)
        return future

    def run(self) -> None:
        """Carry out steps until there is none to take now."""
        while not self._is_stopped and not self._is_committing:
            now = self._worker.world.schedule.now
            step = self._core.step(
                now_s=now, more_coming=self._worker.more_coming(self._partition, self._core.next_offset)
            )
            if step is None:
                self._sleep(now)
                return
            self._worker.effect()
            match step.action:
                case Action.BEGIN:
                    self._producer.begin()
                case Action.SEND:
                    for parcel in step.parcels:
                        self._send(parcel)
                case Action.COMMIT:
                    self._is_committing = True
                    self._producer.commit(self._partition, step.offset, self._committed)

    def _sleep(self, now: int) -> None:
        wake = self._core.wake_at_s()
        if math.isinf(wake) or wake == self._wake:
            return
        self._wake = wake
        self._worker.later(max(math.ceil(wake) - now, 0), self.run)

    def _send(self, parcel: Parcel) -> None:
        boxes: list[Box] = parcel.content  # type: ignore[assignment]
        pending = [self._producer.send((topic, self._partition), offsets) for topic, offsets in boxes if offsets]

        def advance() -> None:
            for one in pending:
                if one.is_failed:
                    self._core.fail()
                    self._worker.crash("a send of a transaction has failed")
                if not one.is_done:
                    one.then = advance
                    return
            if not self._is_stopped:
                self._core.acknowledged(1)
                self._worker.later(0, self.run)

        advance()

    def _committed(self) -> None:
        if self._is_stopped:
            return
        self._is_committing = False
        for parcel in self._core.committed():
            self._futures.pop(parcel.start).resolve()
        self.run()
