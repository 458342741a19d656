"""Sending dead letters again: the original key, bytes and headers, to where they came from, each at most once.

First a plan, which sends nothing. Then parcel by parcel: written into the journal, sent, confirmed, written again; so
order is kept in each partition, and a replay that ends half-way knows what it has done.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from app.dead_letter_topic import read_letters
from app.dead_letters import ORIGIN_HEADER, DeadLetterError, counted, replay_headers
from app.errors import DeliveryError
from app.replay_journal import Parcel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.dead_letter_topic import Range
    from app.dead_letters import DeadLetter, Selection
    from app.producer import OutputProducer
    from app.replay_journal import ReplayJournal
    from app.settings import KafkaSettings
    from app.topic_reader import Cluster, TopicReader

PARCEL_LETTERS = 500
PARCEL_BYTES = 2**20
"""Of one parcel, and so what a replay holds in memory; a single larger dead letter is a parcel of its own."""
PLACES_SHOWN = 5
UNREADABLE_RECORD = "UnreadableRecord"
"""Of a Kafka record that was damaged as it came: the value of its dead letter is what was left, not the record's own,
so it would be another record that is sent."""


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """What is to be sent again, and how.

    Attributes:
        selection: which dead letters.
        to: topic to send to; None: each to the topic it came from.
        limit: how many at most, the first ones; None: all.
        again: also those that were replayed before.
        with_deadline: False leaves deadlines out.

    """

    selection: Selection
    to: str | None = None
    limit: int | None = None
    again: bool = False
    with_deadline: bool = True


@dataclass
class ReplayPlan:
    """What an order comes to.

    Attributes:
        counts: letters to send by stage, class and target topic.
        replayed_count: letters that were replayed before, and are left out.
        overdue_count: letters to send whose deadline has passed.
        homeless: places of letters that no header gives a source; only a few.
        homeless_count: all of them.
        unreadable: places of letters whose value is not that of the record; only a few.
        unreadable_count: all of them.
        stages: stages and classes of all that is there, wanted or not.

    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    replayed_count: int = 0
    overdue_count: int = 0
    homeless: list[str] = field(default_factory=list)
    homeless_count: int = 0
    unreadable: list[str] = field(default_factory=list)
    unreadable_count: int = 0
    stages: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Letters to send."""
        return self.counts.total()

    @property
    def left_out_count(self) -> int:
        """Letters that are wanted and not sent."""
        return self.replayed_count + self.homeless_count + self.unreadable_count


class Replay:
    """One order on one dead-letter topic.

    Args:
        kafka: connection.
        cluster: what there is.
        reader: connected.
        ranges: where the dead letters are.
        journal: entered.
        order: what to send.

    """

    def __init__(
        self,
        kafka: KafkaSettings,
        cluster: Cluster,
        reader: TopicReader,
        ranges: list[Range],
        *,
        journal: ReplayJournal,
        order: ReplayOrder,
    ) -> None:
        self._kafka, self._cluster, self._reader = kafka, cluster, reader
        self._ranges, self._journal, self._order = ranges, journal, order
        self.sent: dict[int, tuple[int, int]] = {}
        """Partition of the dead-letter topic to how many were sent and confirmed, and the last offset of them."""

    async def settle(self) -> int:
        """Find out what became of the parcels of a replay that ended half-way; returns how many letters had arrived."""
        arrived = 0
        for parcel in self._journal.in_doubt():
            found = parcel.only(await self._arrived(parcel))
            if found.offsets:
                self._journal.record("sent", found)
            lost = parcel.only(set(parcel.offsets) - set(found.offsets))
            if lost.offsets:
                self._journal.record("not sent", lost)
            arrived += len(found.offsets)
        return arrived

    async def plan(self, now_ms: int) -> ReplayPlan:
        """What would be sent.

        Args:
            now_ms: the current time, unix ms; deadlines before it have passed.

        Raises:
            DeadLetterError: a target has too few partitions, or is the dead-letter topic itself.
            TopicError: a target is missing.

        """
        plan = ReplayPlan()
        async for letter, target in self._wanted(plan):
            self._check_target(letter, target)
            plan.counts[letter.stage, letter.error_class, target[0]] += 1
            plan.overdue_count += self._order.with_deadline and letter.is_overdue(now_ms)
        return plan

    async def run(self) -> None:
        """Send all that the plan counted; ``sent`` says how far it came, also after an error.

        Raises:
            DeadLetterError: a parcel was not confirmed.

        """
        from app.producer import OutputProducer  # noqa: PLC0415 - brings Faust, a second that no other command needs

        producer = OutputProducer(self._kafka, client_id="sluice-dlq")
        try:
            await producer.start()
            async for letters, target in _parcels(self._wanted(ReplayPlan())):
                await self._send(producer, letters, target)
        except (KafkaError, DeliveryError) as exc:
            cause = str(exc).partition(";")[0]  # what follows is advice for a worker
            msg = (
                f"not all was sent: {cause}\nconfirmed: {self.sent_text()}\nPut that right, then run the same command "
                f"again: it looks in the target for the parcel under way, and leaves out what {self._journal.path} has"
            )
            raise DeadLetterError(msg) from exc
        finally:
            await producer.stop()

    def sent_text(self) -> str:
        """How many letters were sent and confirmed, and up to which of each partition."""
        total = sum(count for count, _ in self.sent.values())
        up_to = ", ".join(f"{partition}:{last}" for partition, (_, last) in sorted(self.sent.items()))
        return counted(total) + (f", the last of each partition {up_to}" if up_to else "")

    async def _wanted(self, plan: ReplayPlan) -> AsyncIterator[tuple[DeadLetter, tuple[str, int]]]:
        """Letters to send with target topic and partition; what is left out is counted in the plan."""
        order, left = self._order, self._order.limit
        async for letter in read_letters(self._reader, self._ranges):
            plan.stages[letter.stage, letter.error_class] += 1
            if not order.selection.takes(letter):
                continue
            if letter.error_class == UNREADABLE_RECORD:
                plan.unreadable_count += 1
                plan.unreadable += [letter.place] * (len(plan.unreadable) < PLACES_SHOWN)
            elif letter.source is None:
                plan.homeless_count += 1
                plan.homeless += [letter.place] * (len(plan.homeless) < PLACES_SHOWN)
            elif self._journal.has(letter) and not order.again:
                plan.replayed_count += 1
            else:
                yield letter, (order.to or letter.source[0], letter.source[1])
                left = None if left is None else left - 1
                if left == 0:
                    return

    def _check_target(self, letter: DeadLetter, target: tuple[str, int]) -> None:
        topic, partition = target
        if topic == letter.topic:
            msg = f"{topic} is the dead-letter topic itself; name another with --to, or leave it out"
            raise DeadLetterError(msg)
        if partition >= self._cluster.count(topic):
            msg = (
                f"{letter.place} came from partition {partition}, which {topic} does not have; "
                f"name a topic of more than {partition} partitions with --to"
            )
            raise DeadLetterError(msg)

    async def _send(self, producer: OutputProducer, letters: list[DeadLetter], target: tuple[str, int]) -> None:
        _, end = await self._reader.bounds(*target)
        parcel = Parcel(
            partition=letters[0].partition,
            offsets=tuple(letter.offset for letter in letters),
            newest_ms=max(letter.timestamp_ms for letter in letters),
            target=target[0],
            target_partition=target[1],
            target_offset=end,
        )
        self._journal.record("sending", parcel)
        headers = [replay_headers(letter, with_deadline=self._order.with_deadline) for letter in letters]
        keys, values = [letter.key for letter in letters], [letter.value for letter in letters]
        await (await producer.send(*target, keys, values, headers))
        self._journal.record("sent", parcel)
        count, _ = self.sent.get(parcel.partition, (0, -1))
        self.sent[parcel.partition] = (count + len(letters), parcel.offsets[-1])

    async def _arrived(self, parcel: Parcel) -> set[int]:
        """Offsets of a parcel's dead letters that lie in its target behind the end that was written down."""
        topic, partition = parcel.target, parcel.target_partition
        if self._cluster.partitions.get(topic, 0) <= partition:
            return set()
        start, end = await self._reader.bounds(topic, partition)
        marks = {f"{self._journal.topic}:{parcel.partition}:{offset}".encode(): offset for offset in parcel.offsets}
        found = set()
        async for records in self._reader.read(topic, partition, max(start, parcel.target_offset), end):
            for record in records:
                found |= {marks[value] for name, value in record.headers if name == ORIGIN_HEADER and value in marks}
        return found


async def _parcels(
    wanted: AsyncIterator[tuple[DeadLetter, tuple[str, int]]],
) -> AsyncIterator[tuple[list[DeadLetter], tuple[str, int]]]:
    """Neighbours with the same partition and target, together."""
    letters: list[DeadLetter] = []
    target, size = ("", -1), 0
    async for letter, own_target in wanted:
        own_size = len(letter.value or b"")
        is_full = len(letters) >= PARCEL_LETTERS or size + own_size > PARCEL_BYTES
        if letters and (is_full or own_target != target or letter.partition != letters[0].partition):
            yield letters, target
            letters, size = [], 0
        letters.append(letter)
        target, size = own_target, size + own_size
    if letters:
        yield letters, target
