"""The records of one fetch: read by aiokafka's C code, and what that cannot read by ours."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from app.inflation import CannotInflate
from app.record_reader import MAX_RECORD_BYTES, find_batch, inflated_batch, lost_records, read_records, without_excess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.record_reader import PlainRecord

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Rest:
    """What is still to be taken of a batch that our own reader reads.

    Attributes:
        records: in order.
        next_offset: first offset behind the batch.

    """

    records: Iterator[PlainRecord]
    next_offset: int


class FetchedRecords(MemoryRecords):  # type: ignore[misc]
    """aiokafka's reader, with its bytes kept, so that a batch can be read a second time.

    Attributes:
        raw: the batches as they came.
        rest: of a batch that the C code could not read; taken before the next batch.
        is_suspect: whether a ``PlainRecord`` may be among the records taken.

    """

    rest: Rest | None = None
    is_suspect = False
    _place = 0  # of the last batch that was looked up: they are read in order, so none is passed twice

    def __init__(self, raw: bytes) -> None:
        MemoryRecords.__init__(self, raw)  # super() costs, and there is one of these for each partition and fetch
        self.raw = raw

    def records_of(self, batch: Any, first_offset: int) -> list[Any] | None:  # noqa: ANN401 - C extension types
        """The records of the batch from an offset on; None when they are to be taken as the ``rest``.

        Raises:
            CorruptRecordException: the batch is of a format before Kafka 0.11 and cannot be read; nothing can be saved
                of it.

        """
        try:
            if isinstance(batch, DefaultRecordBatch) and batch.compression_type:
                return self._inflated(batch, first_offset)
            return _from_offset(batch, first_offset)
        except Exception as exc:  # whatever it is, the same batch would only come again  # noqa: BLE001
            self._read_again(batch, first_offset, exc)
            return None

    def take_rest(self, count: int) -> tuple[list[PlainRecord], int]:
        """At most ``count`` records of the rest, and the first offset behind them."""
        assert self.rest is not None
        records = list(islice(self.rest.records, count))
        if len(records) == count:
            return records, records[-1].offset + 1
        next_offset, self.rest = self.rest.next_offset, None
        return records, next_offset

    def _raw_of(self, batch: Any) -> bytes:  # noqa: ANN401
        self._place, end = find_batch(self.raw, batch.base_offset, self._place)
        return self.raw[self._place : end]

    def _inflated(self, batch: Any, first_offset: int) -> list[Any]:  # noqa: ANN401
        plain = inflated_batch(self._raw_of(batch))
        records = _from_offset(DefaultRecordBatch(plain), first_offset)
        if len(plain) <= MAX_RECORD_BYTES:
            return records
        self.is_suspect = True
        return [without_excess(record) for record in records]

    def _read_again(self, batch: Any, first_offset: int, problem: Exception) -> None:  # noqa: ANN401
        if not isinstance(batch, DefaultRecordBatch):
            msg = (
                f"the batch at offset {first_offset} is of a format before Kafka 0.11 and damaged "
                f"({problem!r}); move the group past it: kafka-consumer-groups --reset-offsets --to-offset"
            )
            raise CorruptRecordException(msg) from problem
        raw = self._raw_of(batch)
        if isinstance(problem, CannotInflate):
            records = lost_records(raw, str(problem), from_offset=first_offset)
        else:
            records = read_records(inflated_batch(raw), from_offset=first_offset)
        log.warning("batch at offset %d is read record by record: %r", batch.base_offset, problem)
        self.is_suspect = True
        self.rest = Rest(map(without_excess, records), batch.next_offset)


def _from_offset(batch: Any, first_offset: int) -> list[Any]:  # noqa: ANN401
    if isinstance(batch, DefaultRecordBatch) and batch.base_offset >= first_offset:
        return list(batch)
    return [record for record in batch if record.offset >= first_offset]
