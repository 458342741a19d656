"""The replay: flights as requests, arrivals as outcomes, tick by tick of event time, at any speed and without leakage.

A tick sends the requests of its fifteen minutes and waits for all answers; only then does the store learn what happened
in the meantime. So a feature never knows more than was known at the tick's begin, however fast the replay runs.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import redis.asyncio
from aiokafka import AIOKafkaProducer

from agents.topics import OUTCOMES, REQUESTS
from app.features import FeatureWriter, ViewCodec

from .answers import ScoreReader
from .data import NEVER
from .features import TICK_US, VIEWS, Facts, FlightState, timeline, view_rows
from .messages import outcome_messages, request_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.models.spec import ModelSpec
    from app.settings import Settings
    from examples.messages import Messages
    from schemas.registry import SchemaBook

    from .answers import Answers
    from .data import FlightData
    from .features import Row, Tick

NO_ANSWER = -1
KEYS_A_DELETE = 1000
LINGER_MS = 1
"""Long enough for the records of a tick to leave in one produce request, so that the worker gets them together."""


class ReplayError(Exception):
    """The service did not answer as it must; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the replay is.

    Attributes:
        event_us: begin of the tick, UTC micros.
        answered_count: flights so far.
        flight_count: flights of the whole replay.
        elapsed_s: wall seconds since the first tick.

    """

    event_us: int
    answered_count: int
    flight_count: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay.

    Attributes:
        answers: one row a flight (index as in ``FlightData.flights``): ``month``, ``status`` (of ``Status``), ``score``
            (NaN without one), ``latency_ms`` (sending to fetching the answer, as the client sees it).
        outcome_count: outcomes sent.
        tick_count: ticks with requests.
        elapsed_s: wall seconds.

    """

    answers: pd.DataFrame
    outcome_count: int
    tick_count: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to play.

    Attributes:
        days: only the first so many days of the months; none: all.
        speed: event seconds for each wall second; none: as fast as the answers allow.
        answer_timeout_s: how long a tick waits for its answers.
        check: called while waiting; raises when a worker has died.
        on_progress: called after each tick.

    """

    days: float | None = None
    speed: float | None = None
    answer_timeout_s: float = 30.0
    check: Callable[[], None] = lambda: None
    on_progress: Callable[[Progress], None] = lambda _: None


class Replay:
    """One replay of some months.

    Args:
        data: flights and weather.
        months: consecutive, such as ``("2013-03", "2013-04")``.
        spec: of the model that serves.
        settings: where Kafka and Redis are.
        book: gives ids to the schemas of requests and outcomes, and knows that of scores.
        options: how to play.

    """

    def __init__(
        self,
        data: FlightData,
        months: Sequence[str],
        *,
        spec: ModelSpec,
        settings: Settings,
        book: SchemaBook,
        options: ReplayOptions = ReplayOptions(),
    ) -> None:
        self._data = data
        self._settings = settings
        self._options = options
        flights = replayed_flights(data, months, options.days)
        self._first = int(flights.index[0])
        self._ledger = _Ledger(flights)
        self._requests = request_messages(flights, spec, book)
        with_outcome = flights[flights["arrival_us"] != NEVER]
        self._outcomes = outcome_messages(with_outcome, settings.schemas.folder, book)
        self._outcome_place = {flight: place for place, flight in enumerate(with_outcome.index.tolist())}
        self._state, self._facts = FlightState(), Facts(data)
        self._reader = ScoreReader(settings.kafka.bootstrap_servers, book)
        self._writer = FeatureWriter(settings.redis.url, VIEWS)
        self._producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", enable_idempotence=True, linger_ms=LINGER_MS
        )
        self._sending: list[asyncio.Future[Any]] = []

    async def run(self) -> Replayed:
        """Plays it.

        Raises:
            ReplayError: an answer is missing, or one came that nobody asked for.

        """
        await self._reader.start()
        await self._producer.start()
        try:
            return await self._play()
        finally:
            await self._producer.stop()
            await self._reader.stop()
            await self._writer.close()

    async def _play(self) -> Replayed:
        first, end = self._first, self._first + len(self._ledger)
        tick_count = 0
        started_s, start_us = 0.0, 0
        for tick in timeline(self._data, TICK_US):
            if len(tick.departures) and tick.departures[0] < first:
                self._state.advance(self._facts.arrivals(tick.arrivals), self._facts.weather(tick.weather))
                continue
            if not len(tick.departures) or tick.departures[0] >= end:
                break
            if tick_count == 0:
                await self._load_store(tick)
                started_s, start_us = time.monotonic(), tick.start_us
            else:
                await self._publish(tick)
            await self._pace(started_s, tick.start_us - start_us)
            await self._ask(tick)
            tick_count += 1
            elapsed_s = time.monotonic() - started_s
            self._options.on_progress(
                Progress(tick.start_us, self._ledger.answered_count, len(self._ledger), elapsed_s)
            )
        await self._send_outcomes(self._outcome_place)
        await self._acknowledged()
        return Replayed(self._ledger.table(), len(self._outcomes.values), tick_count, time.monotonic() - started_s)

    async def _load_store(self, tick: Tick) -> None:
        """Everything that is known before the first tick; rows of an earlier replay would tell the future."""
        await forget_rows(self._settings.redis.url)
        self._state.advance(self._facts.arrivals(tick.arrivals), self._facts.weather(tick.weather))
        await self._write(self._state.rows)

    async def _publish(self, tick: Tick) -> None:
        """What became known since the last tick: to the store, and as outcomes."""
        changed = self._state.advance(self._facts.arrivals(tick.arrivals), self._facts.weather(tick.weather))
        await self._write(changed)
        await self._send_outcomes([flight for flight in tick.arrivals.tolist() if flight in self._outcome_place])

    async def _write(self, rows: dict[str, dict[str, Row]]) -> None:
        await asyncio.gather(*(self._writer.put(view, changed) for view, changed in view_rows(rows)))

    async def _send_outcomes(self, flights: Sequence[int] | dict[int, int]) -> None:
        places = [self._outcome_place[flight] for flight in flights]
        await self._send(OUTCOMES, self._outcomes, places)
        for flight in list(flights):
            del self._outcome_place[flight]

    async def _send(self, topic: str, messages: Messages, places: Sequence[int]) -> None:
        keys, values = messages.keys, messages.values
        self._sending += [await self._producer.send(topic, key=keys[place], value=values[place]) for place in places]

    async def _acknowledged(self) -> None:
        """All that was sent is with the broker."""
        sending, self._sending = self._sending, []
        await asyncio.gather(*sending)

    async def _pace(self, started_s: float, event_us: int) -> None:
        if self._options.speed is not None:
            await asyncio.sleep(max(0.0, started_s + event_us / 1e6 / self._options.speed - time.monotonic()))

    async def _ask(self, tick: Tick) -> None:
        places = tick.departures - self._first
        self._ledger.ask(places.tolist(), time.monotonic())
        try:
            async with asyncio.timeout(self._options.answer_timeout_s):
                await self._send(REQUESTS, self._requests, places.tolist())
                while self._ledger.waiting_count:
                    answers = await self._reader.fetch()
                    if answers is not None:
                        self._ledger.take(answers)
                    else:
                        self._options.check()
                await self._acknowledged()
        except TimeoutError as exc:
            when = pd.Timestamp(tick.start_us, unit="us")
            msg = (
                f"tick {when}: {self._ledger.waiting_count} of {len(places)} answers are missing after "
                f"{self._options.answer_timeout_s:.0f} s; look at the scoring worker's log and at its /v2/health/ready"
            )
            raise ReplayError(msg) from exc


class _Ledger:
    """Which flights have their answer; a flight that gets two is an error, as is an answer that nobody asked for."""

    def __init__(self, flights: pd.DataFrame) -> None:
        self._place = {request_id: place for place, request_id in enumerate(flights["request_id"])}
        self._flights = flights
        count = len(flights)
        self._status = np.full(count, NO_ANSWER, np.int8)
        self._score = np.full(count, np.nan)
        self._latency_ms = np.full(count, np.nan)
        self._waiting: set[int] = set()
        self._asked_s = 0.0
        self.answered_count = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def ask(self, places: list[int], now_s: float) -> None:
        self._waiting.update(places)
        self._asked_s = now_s

    def take(self, answers: Answers) -> None:
        for request_id, status, score in zip(
            answers.request_ids, answers.statuses.tolist(), answers.scores.tolist(), strict=True
        ):
            place = self._place.get(request_id, NO_ANSWER)
            if place not in self._waiting:
                what = (
                    "a second answer to" if place != NO_ANSWER and self._status[place] != NO_ANSWER else "an answer to"
                )
                msg = (
                    f"{what} {request_id} came, which nobody waits for; does another worker or replay use these topics?"
                )
                raise ReplayError(msg)
            self._waiting.remove(place)
            self._status[place] = status
            self._score[place] = score
            self._latency_ms[place] = (answers.received_s - self._asked_s) * 1000
        self.answered_count += len(answers.request_ids)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "month": self._flights["month"],
                "status": self._status,
                "score": self._score,
                "latency_ms": self._latency_ms,
            },
            index=self._flights.index,
        )


def replayed_flights(data: FlightData, months: Sequence[str], days: float | None = None) -> pd.DataFrame:
    """The flights of consecutive months, or of their first days; with December its last evening, 2014 by UTC.

    Raises:
        ReplayError: there are no flights in a month, or months are left out in between.

    """
    known = sorted(data.flights["month"].unique())
    wanted = sorted(months)
    if not wanted or wanted != [m for m in known if wanted[0] <= m <= wanted[-1]]:
        msg = f"months {wanted} are not consecutive months of {known[0]} .. {known[-1]}"
        raise ReplayError(msg)
    if wanted[-1] == "2013-12":
        wanted.append("2014-01")
    flights = data.months(tuple(wanted))
    if days is None:
        return flights
    start_us = pd.Timestamp(f"{wanted[0]}-01").value // 1000
    return flights[flights["departure_us"] < start_us + int(days * 86_400_000_000)]


async def forget_rows(redis_url: str) -> None:
    """Deletes all rows of the flights' views."""
    client = redis.asyncio.Redis.from_url(redis_url)
    try:
        for view in VIEWS:
            keys = [key async for key in client.scan_iter(f"{ViewCodec(view).prefix}*", count=KEYS_A_DELETE)]
            for at in range(0, len(keys), KEYS_A_DELETE):
                await client.delete(*keys[at : at + KEYS_A_DELETE])
    finally:
        await client.aclose()
