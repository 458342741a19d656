"""Durable state of one partition: a RocksDB, one write batch for each record batch, the offsets inside it.

State and position cannot part, whatever dies when: either all of a batch is in the store, or none of it. The lock of
RocksDB is the fence: a second process that opens the same partition is refused.

Keys by first byte: ``e`` entry of a request id, ``x`` expiry bucket, ``w`` window counts, ``c`` closing of a window,
``s`` sampled row of a window, ``r`` frozen reference of a model version, ``m`` offsets, clocks and counters.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rocksdict import BlockBasedOptions, Options, Rdict, WriteBatch

from monitors.join import TALLIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NO_CLOCK = -1
"""No event seen yet."""
WRITE_BUFFER_BYTES = 16 << 20
_META_KEY = b"m"
_META = struct.Struct(f"<4q{len(TALLIES)}q")
_INDEX = struct.Struct(">qq")
_WINDOW = struct.Struct(">Iq")


class StoreError(ValueError):
    """The store cannot be opened or read; the message names the folder and the next step."""


class StoreInUse(StoreError):
    """Another process, or another part of this one, owns the partition."""


class WindowKey(NamedTuple):
    """What window counts belong to.

    Attributes:
        model_name: of the model.
        model_version: of the model.
        start_us: start of the window, UTC micros, >= 0.

    """

    model_name: str
    model_version: int
    start_us: int

    def pack(self) -> bytes:
        """Bytes that sort by model, version and start.

        Example:
            >>> WindowKey.unpack(WindowKey("demo", 3, 5).pack())
            WindowKey(model_name='demo', model_version=3, start_us=5)

        """
        return self.model_name.encode() + b"\0" + _WINDOW.pack(self.model_version, self.start_us)

    @classmethod
    def unpack(cls, data: bytes) -> WindowKey:
        """The key behind its bytes."""
        return cls(data[: -_WINDOW.size - 1].decode(), *_WINDOW.unpack(data[-_WINDOW.size :]))


@dataclass(slots=True)
class Meta:
    """Position, clocks and counters of a partition.

    Attributes:
        predictions_offset: next offset of the prediction log to take in.
        outcomes_offset: next offset of the outcomes to take in.
        predictions_clock_us: highest event time of a prediction so far, or ``NO_CLOCK``.
        outcomes_clock_us: highest outcome time so far, or ``NO_CLOCK``.
        tallies: counters by name, those of ``join.TALLIES``.

    """

    predictions_offset: int = 0
    outcomes_offset: int = 0
    predictions_clock_us: int = NO_CLOCK
    outcomes_clock_us: int = NO_CLOCK
    tallies: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TALLIES, 0))

    def pack(self) -> bytes:
        """Bytes for the store."""
        return _META.pack(self.predictions_offset, self.outcomes_offset, self.predictions_clock_us,
                          self.outcomes_clock_us, *(self.tallies[name] for name in TALLIES))  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> Meta:
        """What the store holds.

        Raises:
            StoreError: another version wrote it.

        """
        if len(data) != _META.size:
            msg = "the store is of another version; delete its folder, the monitor rebuilds it from the topics"
            raise StoreError(msg)
        numbers = _META.unpack(data)
        tallies = dict(zip(TALLIES, numbers[4:], strict=True))
        return cls(numbers[0], numbers[1], numbers[2], numbers[3], tallies)


class PartitionStore:
    """The store of one partition.

    Args:
        folder: made when it is missing.

    Raises:
        StoreInUse: somebody else has it open.
        StoreError: RocksDB cannot open it.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(str(folder), _options())
        except Exception as exc:  # rocksdict raises plain Exception
            if "lock" in str(exc).lower():
                msg = f"{folder} is open in another process; stop that monitor, or give this one another folder"
                raise StoreInUse(msg) from exc
            msg = f"{folder} cannot be opened ({exc}); delete the folder, the monitor rebuilds it from the topics"
            raise StoreError(msg) from exc
        self._expired_to = 0

    def close(self) -> None:
        """Release the folder."""
        self._db.close()

    def meta(self) -> Meta:
        """Position, clocks and counters; those of a new store are zero."""
        data = self._db.get(_META_KEY)
        return Meta() if data is None else Meta.unpack(data)

    def entries(self, request_ids: list[bytes]) -> dict[bytes, bytes | None]:
        """Entry of each request id; None where there is none. 0.6 us a miss, 2.4 us a hit."""
        found: list[bytes | None] = cast("Any", self._db.get([b"e" + request_id for request_id in request_ids]))
        return dict(zip(request_ids, found, strict=True))

    def get(self, key: bytes) -> bytes | None:
        """Value of a key, or None."""
        value: bytes | None = self._db.get(key)
        return value

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys (without the prefix) and values below a prefix, in order."""
        cursor = self._db.iter()
        cursor.seek(prefix)
        while cursor.valid():
            key = cursor.key()
            if not key.startswith(prefix):
                return
            yield key[len(prefix) :], cursor.value()
            cursor.next()

    def due(self, before_bucket: int, limit: int) -> tuple[list[bytes], list[bytes]]:
        """Request ids whose expiry bucket is below ``before_bucket``, and the index keys that named them.

        Args:
            before_bucket: exclusive.
            limit: stop after at least so many ids; the rest comes next time.

        """
        if before_bucket <= self._expired_to:
            return [], []
        ids: list[bytes] = []
        keys: list[bytes] = []
        cursor = self._db.iter()
        # Start where the last look ended: the tombstones before it would be walked again and again.
        cursor.seek(b"x" + _INDEX.pack(self._expired_to, 0))
        while cursor.valid() and len(ids) < limit:
            key = cursor.key()
            if not key.startswith(b"x") or _INDEX.unpack_from(key, 1)[0] >= before_bucket:
                break
            ids += _split(cursor.value())
            keys.append(key)
            cursor.next()
        if keys:
            self._expired_to = _INDEX.unpack_from(keys[-1], 1)[0]
        return ids, keys

    def reopen_bucket(self, bucket: int) -> None:
        """An index key was written to a bucket that has been looked at already."""
        self._expired_to = min(self._expired_to, bucket)

    def write(self, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes], meta: Meta) -> None:
        """All of a step, or nothing; meta goes along."""
        batch = WriteBatch(raw_mode=True)
        for key, value in puts:
            batch.put(key, value)
        for key in deletes:
            batch.delete(key)
        batch.put(_META_KEY, meta.pack())
        self._db.write(batch)


def index_entry(bucket: int, topic: bytes, offset: int, request_ids: list[bytes]) -> tuple[bytes, bytes]:
    """Key and value that name the entries of one record batch which expire in one bucket."""
    value = b"".join(len(request_id).to_bytes(4, "little") + request_id for request_id in request_ids)
    return b"x" + _INDEX.pack(bucket, offset) + topic, value


def _split(value: bytes) -> list[bytes]:
    ids, at = [], 0
    while at < len(value):
        size = int.from_bytes(value[at : at + 4], "little")
        ids.append(value[at + 4 : at + 4 + size])
        at += 4 + size
    return ids


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)  # noqa: FBT003 - RocksDB's own signature
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_keep_log_file_num(2)
    tables = BlockBasedOptions()
    # Most look-ups are for ids that are not there: a Bloom filter answers them without touching a block.
    tables.set_bloom_filter(10, block_based=False)
    options.set_block_based_table_factory(tables)
    return options
