"""A worker: what agents/life.py, agents/scoring.py, app/pipeline.py, app/delivery.py and app/committer.py do, in order.

The ledger and the lanes are the product's. Around them stands the shell, written again without asyncio: where the shell
awaits, an event is planned here, so other workers, the cluster and faults come in between, and a crash may.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from app.ledger import Ledger
from app.transactions import TransactionLane
from tests.simulation.delivery.broker import OK
from tests.simulation.delivery.lane import LaneRunner
from tests.simulation.delivery.producer import Pending, Producer
from tests.simulation.delivery.source import DEAD_LETTERS, SCORES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.delivery.lane import Box
    from tests.simulation.delivery.source import Fetched
    from tests.simulation.delivery.world import World

TOPIC = "in"
BATCH_ROWS = 6
QUEUED_ROWS = 7
IN_FLIGHT = 3
BUFFERED_EVENTS = 2
COMMIT_TICKS = 12
LANE_TICKS, LANE_RECORDS = 15, 8
DRAIN_TICKS = 70


class Crashed(Exception):
    """The process is gone; nothing of it runs on."""


@dataclass(slots=True)
class Part:
    """Offsets ``start .. end - 1`` of a micro-batch."""

    partition: int
    start: int
    end: int
    offsets: tuple[int, ...]


@dataclass(slots=True)
class Emitted:
    """A micro-batch that awaits its acknowledgement."""

    parts: list[tuple[Part, list[Pending]]] = field(default_factory=list)
    answered: int = 0


class Worker:
    """One process, restarted by its supervisor whenever it ends.

    Args:
        world: all that is around it.
        name: of the process.

    Attributes:
        life: counts starts; what was planned in an earlier life does not happen.
        paused_until: the process is stopped till then (SIGSTOP).
        cut_until: the group's coordinator does not hear of it till then, and it goes on.

    """

    ledger_type: ClassVar[type[Ledger]] = Ledger
    lane_type: ClassVar[type[TransactionLane]] = TransactionLane

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.life = 0
        self.is_alive = False
        self.member = ""
        self.paused_until = self.cut_until = 0

    def start(self) -> None:
        """A new process: prepare, then join the group, under the old name where it is a static member."""
        self.life += 1
        self.is_alive = True
        self.generation = -1
        self.ledger = self.ledger_type()
        self.lanes: dict[int, LaneRunner] = {}
        self.positions: dict[int, int] = {}
        self.events: deque[tuple[int, list[Fetched]]] = deque()
        self.event: tuple[int, list[Fetched]] | None = None
        self.waiting: deque[Part] = deque()
        self.waiting_rows = 0
        self.emit_queue: deque[list[Part]] = deque()
        self.in_flight = 0
        self.unanswered = 0
        self.is_flowing = self.is_open = self.is_blocked = self.is_computing = self.is_committing = False
        self.on_quiet: Callable[[], None] | None = None
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.is_moving = False
        self._mail: deque[tuple[Any, ...]] = deque()
        self._told_at = 0
        self._commits = self._joins = self.hand_overs = 0
        old, self.member = self.member, f"{self.name}.{self.life}"
        self.producer = Producer(self)
        self.producer.start(self._idle)
        group = self.world.group
        if not (old and self.world.schedule.random() < 0.5 and group.replace(old, self.member, self)):
            self.later(1, self._join, self._joins)
        self.later(COMMIT_TICKS, self._commit_again)

    def _idle(self) -> None:
        """Nothing to do."""

    # The process: its events, its end.

    def later(self, ticks: int, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Plan something of this life."""
        self.world.schedule.after(ticks, self.run, self.life, call, *arguments)

    def run(self, life: int, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Do something planned, unless the process has ended or is stopped."""
        if life != self.life or not self.is_alive:
            return
        schedule = self.world.schedule
        if schedule.now < self.paused_until:
            schedule.after(self.paused_until - schedule.now, self.run, life, call, *arguments)
            return
        try:
            call(*arguments)
        except Crashed as crash:
            self._end(str(crash))

    def effect(self) -> None:
        """Stands before and after everything that others see: a place where the process may be killed."""
        if self.world.is_struck():
            raise Crashed("killed")  # noqa: EM101 - the reason is the whole message

    def crash(self, reason: str) -> None:
        """End the process at once, as the shell does on an error.

        Raises:
            Crashed: always.

        """
        raise Crashed(reason)

    def _end(self, reason: str) -> None:
        self.is_alive = False
        schedule = self.world.schedule
        schedule.note(self.name, "ends:", reason)
        self.world.has_ended(self, is_killed=reason == "killed")

    # Life: the group tells, one step after the other.

    def tell(self, what: str, member: str, *details: Any) -> None:  # noqa: ANN401
        """The coordinator says something; it arrives in order, and after the connection is back."""
        schedule = self.world.schedule
        self._told_at = max(self._told_at, schedule.now + schedule.some(4), self.cut_until)
        self._mail.append((what, member, *details))
        self.later(self._told_at - schedule.now, self._told)

    def _told(self) -> None:
        self.inbox.append(self._mail.popleft())
        if not self.is_moving:
            self._move()

    def _move(self) -> None:
        self.is_moving = bool(self.inbox)
        if not self.inbox:
            return
        what, member, *details = self.inbox.popleft()
        if what == "stop":
            self._hand_over(self._leave)
        elif member != self.member:
            self._move()
        elif what == "assigned":
            self._take_over(*details)
        else:
            if what == "lost":
                self.member = f"{self.name}.{self.life}.{self.world.schedule.now}"
            self._hand_over(self._rejoin)

    def _join(self, number: int) -> None:
        if number == self._joins:
            self.effect()
            self.world.group.join(self.member, self)

    def _rejoin(self) -> None:
        self.later(self.world.schedule.some(3), self._join, self._joins)
        self._move()

    def _leave(self) -> None:
        self.world.group.evict(self.member)
        self.crash("asked to")

    def _hand_over(self, then: Callable[[], None]) -> None:
        """Answer and commit what is in flight, give back the rest, forget all; a take-over under way is overtaken."""
        self.world.schedule.note(self.name, "hands over", self.ledger.in_flight())
        self._joins += 1  # a JoinGroup that is on its way comes from a member that is no more
        self.hand_overs += 1
        self.is_flowing = False
        self.events.clear()
        self.is_open = False
        for part in self.waiting:
            self.unanswered -= part.end - part.start
        self.waiting.clear()
        self.waiting_rows = 0
        self._make_room()
        deadline = [True]

        def give_up() -> None:
            if deadline:
                self.crash("not drained in time")

        def quiet() -> None:
            deadline.clear()
            self.commit(lambda: self._forget(then))

        self.later(DRAIN_TICKS, give_up)
        self.drain(quiet)

    def drain(self, then: Callable[[], None]) -> None:
        """Wait until all that was fired is answered."""
        if self.unanswered:
            self.on_quiet = then
        else:
            then()

    def _forget(self, then: Callable[[], None]) -> None:
        self.ledger.revoke()
        self.positions.clear()
        for lane in self.lanes.values():
            lane.stop()
        self.lanes = {}
        self.later(1, then)

    def _take_over(self, generation: int, partitions: list[int]) -> None:
        """Partitions are ours: fence their former owners first, ask for their offsets afterwards.

        Faust does so in a task of its own: the next rebalance does not wait for it.
        """
        self.generation = generation
        number = self.hand_overs
        self.world.schedule.note(self.name, "takes over", partitions, "generation", generation)
        self.take_over(partitions, lambda offsets: self._seek(offsets, number))
        self._move()

    def take_over(self, partitions: list[int], then: Callable[[dict[int, int]], None]) -> None:
        """Producers, then offsets."""
        self.assigned(partitions, lambda: self.fetch_offsets(partitions, then))

    def assigned(self, partitions: list[int], then: Callable[[], None]) -> None:
        """``Delivery.assigned``: a transactional producer for each partition."""
        if not self.world.is_exactly_once or not partitions:
            self.later(1, then)
            return
        starting = set(partitions)

        def started(partition: int) -> None:
            starting.discard(partition)
            if not starting:
                then()

        for partition in partitions:
            producer = self.new_producer(self.transactional_id(partition))
            core = self.lane_type(max_s=LANE_TICKS, max_records=LANE_RECORDS)
            self.lanes[partition] = LaneRunner(self, partition, core, producer)
            producer.start(lambda partition=partition: started(partition))

    def new_producer(self, name: str | None) -> Producer:
        """A producer of this process."""
        return Producer(self, name)

    def transactional_id(self, partition: int) -> str:
        """Bound to the partition: whoever has it fences who had it before."""
        return f"scoring-{TOPIC}-{partition}"

    def fetch_offsets(self, partitions: list[int], then: Callable[[dict[int, int]], None]) -> None:
        """OffsetFetch, again until it is answered."""

        def answered(offsets: dict[int, int] | None) -> None:
            if offsets is None:
                self.fetch_offsets(partitions, then)
            else:
                then(offsets)

        self.effect()
        self.world.network.request(self, answered, self.world.broker.offsets, partitions)

    def is_current(self, hand_overs: int) -> bool:
        """Whether nothing was handed over since a take-over began."""
        return hand_overs == self.hand_overs

    def _seek(self, offsets: dict[int, int], hand_overs: int) -> None:
        if not self.is_current(hand_overs):
            return
        self.effect()
        for partition, offset in offsets.items():
            self.world.judge.taken_over(partition, offset)
        self.positions = offsets
        self.is_open = True
        self.is_flowing = True
        self.later(0, self._poll, self.generation)

    # Intake: fetches become events, the agent hands their batches to the pipeline.

    def _poll(self, generation: int) -> None:
        if not self.is_flowing or generation != self.generation:
            return
        if len(self.events) < BUFFERED_EVENTS:
            batches = [self.world.source.fetch(*place) for place in self.positions.items()]
            bundle = [batch for batch in batches if batch is not None]
            for batch in bundle:
                self.positions[batch.partition] = batch.end
            if bundle:
                self.events.append((generation, bundle))
                self._agent()
        self.later(self.world.schedule.some(6), self._poll, generation)

    def _agent(self) -> None:
        while not self.is_blocked:
            if self.event is None or not self.event[1]:
                if not self.events:
                    self.event = None
                    return
                self.event = self.events.popleft()
            generation, batches = self.event
            batch = batches.pop(0)
            if self.is_taken(generation):
                self._submit(batch)

    def is_taken(self, generation: int) -> bool:
        """Whether a batch may be answered here: the partitions are ours, and it is not of an older generation."""
        return self.is_open and generation == self.generation

    def _submit(self, batch: Fetched) -> None:
        self.ledger.deliver((TOPIC, batch.partition), batch.start, batch.end)
        self.unanswered += batch.end - batch.start
        self.waiting.append(Part(batch.partition, batch.start, batch.end, batch.offsets))
        self.waiting_rows += len(batch.offsets)
        self._wake_form()
        self.is_blocked = self.waiting_rows >= QUEUED_ROWS

    def _make_room(self) -> None:
        if self.is_blocked and self.waiting_rows < QUEUED_ROWS:
            self.is_blocked = False
            self.later(0, self._agent)

    # The pipeline: micro-batches of several partitions, in order.

    def _wake_form(self) -> None:
        if not self.is_computing and self.waiting:
            self.is_computing = True
            self.later(self.world.schedule.some(3), self._form)

    def _form(self) -> None:
        parts: list[Part] = []
        room = BATCH_ROWS
        while self.waiting and room:
            part = self.waiting[0]
            if len(part.offsets) <= room:
                self.waiting.popleft()
            else:
                cut = part.offsets[room]
                part = Part(part.partition, part.start, cut, part.offsets[:room])
                whole = self.waiting[0]
                whole.start, whole.offsets = cut, whole.offsets[room:]
            parts.append(part)
            room -= len(part.offsets)
            self.waiting_rows -= len(part.offsets)
        self._make_room()
        if parts:
            self.later(self.world.schedule.some(4), self._computed, parts)
        else:
            self.is_computing = False

    def _computed(self, parts: list[Part]) -> None:
        self.emit_queue.append(parts)
        self.is_computing = False
        self._wake_form()
        self._emit()

    def _emit(self) -> None:
        while self.emit_queue and self.in_flight < IN_FLIGHT:
            self.in_flight += 1
            emitted = Emitted([(part, self.send(part)) for part in self.emit_queue.popleft()])
            self._acknowledge(emitted)

    def send(self, part: Part) -> list[Pending]:
        """``Delivery.send``: done when the part is answered."""
        self.effect()
        kinds = self.world.source.kinds[part.partition]
        answers = [offset for offset in part.offsets if kinds[offset] != "dead"]
        letters = [offset for offset in part.offsets if kinds[offset] != "good"]
        boxes: list[Box] = [(SCORES, answers), (DEAD_LETTERS, letters)]
        self.world.handed_over(self, part.partition, list(part.offsets))
        if not self.world.is_exactly_once:
            return [self.producer.send((topic, part.partition), offsets) for topic, offsets in boxes if offsets]
        lane = self.lanes.get(part.partition)
        if lane is None:
            self.crash(f"{part}: not ours any more")
        return [lane.hand_over(part.start, part.end, boxes)]

    def _acknowledge(self, emitted: Emitted) -> None:
        """Wait for the parts in their order; each is answered when all its futures are done."""
        while emitted.answered < len(emitted.parts):
            part, futures = emitted.parts[emitted.answered]
            for future in futures:
                if future.is_failed:
                    self.crash("a send has failed")
                if not future.is_done:
                    future.then = lambda: self._acknowledge(emitted)
                    return
            self.ledger.answer((TOPIC, part.partition), part.start, part.end)
            self.unanswered -= part.end - part.start
            emitted.answered += 1
        self.in_flight -= 1
        if not self.unanswered and self.on_quiet is not None:
            then, self.on_quiet = self.on_quiet, None
            self.later(0, self.drain, then)
        self.later(0, self._emit)

    def more_coming(self, partition: int, next_offset: int | None) -> bool:
        """``ExactlyOnce.more_coming``."""
        return next_offset is not None and self.ledger.delivered((TOPIC, partition)) > next_offset

    # The committer.

    def _commit_again(self) -> None:
        self.commit(self._idle)
        self.later(COMMIT_TICKS, self._commit_again)

    def commit(self, then: Callable[[], None]) -> None:
        """Commit what is answered; a commit that is under way is waited for, one without an answer is tried again."""
        if self.is_committing:
            self.later(2, self.commit, then)
            return
        offsets = self.ledger.committable()
        if not offsets:
            then()
            return
        if self.world.is_exactly_once:
            self.ledger.commit(offsets)
            then()
            return

        def answered(result: str | None) -> None:
            self.is_committing = False
            self.effect()
            if result == OK:
                self.ledger.commit(offsets)
            then()

        self.is_committing = True
        self._commits += 1
        self.effect()
        plain = {partition: offset for (_, partition), offset in offsets.items()}
        self.world.network.request(
            self, answered, self.world.broker.commit, self.member, self.generation, plain, self._commits
        )
