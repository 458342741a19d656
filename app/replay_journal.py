"""What was replayed, in a file, so that the same dead letter is not sent twice.

A parcel is written down before it is sent and again when the brokers have confirmed it; the first without the second
is in doubt, and the next replay looks for its records in the target.
"""

from __future__ import annotations

import fcntl
import json
import os
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from app.dead_letters import DeadLetterError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from io import BufferedRandom
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from app.dead_letters import DeadLetter

State = Literal["sending", "sent", "not sent"]
"""A parcel is sending first; then some or all of its offsets are sent, and the others are not."""


class Run(NamedTuple):
    """Offsets ``first`` to ``last`` of replayed dead letters, none of them younger than ``newest_ms``."""

    first: int
    last: int
    newest_ms: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """Dead letters of one partition that were sent together.

    Attributes:
        partition: of the dead-letter topic.
        offsets: increasing.
        newest_ms: timestamp of the youngest, unix ms.
        target: topic that they were sent to.
        target_partition: of that topic.
        target_offset: its end before they were sent.

    """

    partition: int
    offsets: tuple[int, ...]
    newest_ms: int
    target: str
    target_partition: int
    target_offset: int

    def only(self, offsets: Iterable[int]) -> Parcel:
        """The same parcel with some of its offsets."""
        kept = tuple(sorted(set(offsets) & set(self.offsets)))
        return Parcel(self.partition, kept, self.newest_ms, self.target, self.target_partition, self.target_offset)


class ReplayedOffsets:
    """Which offsets of a partition were replayed, as disjoint runs.

    Example:
        >>> replayed = ReplayedOffsets()
        >>> replayed.add(Run(5, 9, newest_ms=100))
        >>> replayed.holds(7, 90), replayed.holds(4, 90)
        (True, False)

        A younger record at the same offset is another one: somebody made the topic anew.

        >>> replayed.holds(7, 101)
        False

    """

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def add(self, run: Run) -> None:
        """Take a run in; where it overlaps earlier ones, it stands. O(1) behind the last one, as replays go."""
        if not self._runs or run.first > self._runs[-1].last:
            self._runs.append(run)
            return
        kept = []
        for old in self._runs:
            if old.last < run.first or old.first > run.last:
                kept.append(old)
                continue
            if old.first < run.first:
                kept.append(old._replace(last=run.first - 1))
            if old.last > run.last:
                kept.append(old._replace(first=run.last + 1))
        self._runs = kept
        insort(self._runs, run)

    def holds(self, offset: int, timestamp_ms: int) -> bool:
        """Whether the dead letter of that offset and time was replayed."""
        index = bisect_right(self._runs, offset, key=lambda run: run.first) - 1
        return index >= 0 and offset <= self._runs[index].last and timestamp_ms <= self._runs[index].newest_ms


@dataclass
class ReplayJournal:
    """The part of a journal that is about one topic of one cluster; use it as a context manager.

    Attributes:
        path: of the file; made when it is missing.
        cluster: id of the Kafka cluster.
        topic: the dead-letter topic.

    Raises:
        DeadLetterError: on entering: another replay has the file, or it is no journal.

    """

    path: Path
    cluster: str
    topic: str
    _replayed: dict[int, ReplayedOffsets] = field(default_factory=dict)
    _open: dict[tuple[int, tuple[int, ...]], Parcel] = field(default_factory=dict)
    _file: BufferedRandom | None = None

    def has(self, letter: DeadLetter) -> bool:
        """Whether it was replayed and confirmed."""
        replayed = self._replayed.get(letter.partition)
        return replayed is not None and replayed.holds(letter.offset, letter.timestamp_ms)

    def in_doubt(self) -> list[Parcel]:
        """Parcels that were being sent when a replay ended."""
        return list(self._open.values())

    def record(self, state: State, parcel: Parcel) -> None:
        """Write a state down; when this returns it is on the disk."""
        assert self._file is not None, "enter the context first"
        entry = {
            "state": state, "cluster": self.cluster, "topic": self.topic, "partition": parcel.partition,
            "runs": _as_runs(parcel.offsets), "newest_ms": parcel.newest_ms, "to": parcel.target,
            "to_partition": parcel.target_partition, "to_offset": parcel.target_offset,
        }  # fmt: skip
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._take(state, parcel)

    def _take(self, state: str, parcel: Parcel) -> None:
        if state == "sending":
            self._open[parcel.partition, parcel.offsets] = parcel
            return
        done = set(parcel.offsets)
        for key, doubtful in list(self._open.items()):
            if doubtful.partition == parcel.partition and done & set(doubtful.offsets):
                del self._open[key]
                rest = doubtful.only(set(doubtful.offsets) - done)
                if rest.offsets:
                    self._open[rest.partition, rest.offsets] = rest
        if state == "sent":
            replayed = self._replayed.setdefault(parcel.partition, ReplayedOffsets())
            for first, last in _as_runs(parcel.offsets):
                replayed.add(Run(first, last, parcel.newest_ms))

    def _load(self) -> None:
        assert self._file is not None
        whole = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                break  # the power went while it was written; what it was about is still in doubt
            whole += len(line)
            try:
                self._load_entry(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as exc:
                msg = f"{self.path}: line {number} is no entry of a replay journal ({exc!r}); name another --journal"
                raise DeadLetterError(msg) from exc
        self._file.truncate(whole)
        self._file.seek(whole)

    def _load_entry(self, entry: dict[str, Any]) -> None:
        if (entry["cluster"], entry["topic"]) != (self.cluster, self.topic):
            return
        offsets = tuple(offset for first, last in entry["runs"] for offset in range(first, last + 1))
        target = (entry["to"], entry["to_partition"], entry["to_offset"])
        self._take(entry["state"], Parcel(entry["partition"], offsets, entry["newest_ms"], *target))

    def __enter__(self) -> Self:
        """Lock the file and read it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self._file = self.path.open("r+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._close()
            msg = f"another replay is using {self.path}; wait for its end, or name another --journal"
            raise DeadLetterError(msg) from exc
        except OSError as exc:
            msg = f"the journal {self.path} cannot be opened ({exc.strerror}); name another --journal"
            raise DeadLetterError(msg) from exc
        try:
            self._load()
        except DeadLetterError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the file."""
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _as_runs(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each stretch without a gap.

    Example:
        >>> _as_runs([3, 4, 5, 9])
        [(3, 5), (9, 9)]

    """
    if not offsets:
        return []
    gaps = [(a, b) for a, b in pairwise(offsets) if b != a + 1]
    firsts = [offsets[0], *(b for _, b in gaps)]
    lasts = [*(a for a, _ in gaps), offsets[-1]]
    return list(zip(firsts, lasts, strict=True))
