"""The feature store under faults, on a real Valkey: each micro-batch is answered at once, and says what it lacks."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvloop

from app.features import FeatureWriter, RedisFeatureStore, ViewCodec
from app.lookup import Lookup, ViewLookup, store_column
from app.metrics import Metrics
from app.models.spec import FeatureView, ViewColumn
from app.settings import BudgetSettings, RedisSettings
from schemas.columns import TextColumn, to_python
from tests.integration.valkey_process import ValkeyProcess
from tests.samples import sample_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

VIEWS = tuple(FeatureView(name=name, key=("tailnum",), columns=(ViewColumn(name="x"),)) for name in ("a", "b", "c"))
SPEC = sample_spec(features=tuple(f for f in sample_spec().features if f.source == "request"), views=VIEWS)
ROWS = 100
NOW_US = 1_750_000_000_000_000
TAILS = [f"N{i}" for i in range(ROWS)]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store that runs, empty."""
    found = ValkeyProcess(tmp_path)
    found.start()
    yield found
    found.kill()


class Service:
    """The feature stage of a worker: lookup and store, with the settings as they come, and the figures of both."""

    def __init__(self, valkey: ValkeyProcess) -> None:
        self.valkey = valkey
        self.store = RedisFeatureStore(RedisSettings(url=valkey.url))
        self.metrics = Metrics(BudgetSettings(), now_s=time.monotonic)
        self.lookup = ViewLookup(SPEC, self.store, metrics=self.metrics)

    async def fill(self) -> None:
        """A row a second old for every plane in every view, with the plane's number."""
        writer = FeatureWriter(self.valkey.url, VIEWS)
        for view in VIEWS:
            rows = [((tail,), NOW_US // 1000 - 1000, {"x": float(i)}) for i, tail in enumerate(TAILS)]
            await writer.put(view.name, rows)
        await writer.close()

    async def ask(self) -> Lookup:
        """One micro-batch."""
        return await self.lookup.fetch({"tailnum": TextColumn.from_values(TAILS)}, np.full(ROWS, NOW_US))

    async def until(self, letter: str) -> int:
        """Ask until all rows of all views have a letter, every answer sound; returns how often it asked."""
        for asked in itertools.count(1):
            lookup = await self.ask()
            check_values(lookup)
            if letters(lookup) == {letter}:
                return asked
            assert asked < 2000, f"not {letter} but {letters(lookup)}: {lookup.error}"
            await asyncio.sleep(0.01)
        raise AssertionError


@pytest.fixture
async def service(valkey: ValkeyProcess) -> AsyncIterator[Service]:
    """The feature stage, with all rows in the store and read once."""
    found = Service(valkey)
    await found.fill()
    await found.until("f")
    yield found
    await found.store.close()


def letters(lookup: Lookup) -> set[str]:
    """The different letters of all rows of all views."""
    return {chr(letter) for rows in lookup.views.values() for letter in rows.letters.tolist()}


def check_values(lookup: Lookup) -> None:
    """Every row has its own plane's number and true age, or no value at all where the letter says so."""
    for name, rows in lookup.views.items():
        had = np.isin(rows.letters, np.frombuffer(b"fs", np.uint8)).tolist()
        assert to_python(store_column(lookup, name, "x")) == [float(i) if ok else None for i, ok in enumerate(had)]
        assert rows.age_ms.tolist() == [1000 if ok else -1 for ok in had]


async def test_a_micro_batch_is_one_command(service: Service) -> None:
    """Three views of a hundred rows, four hundred times, by four tasks at once: the server counts 400 MGETs."""
    before = service.valkey.calls()

    async def load() -> None:
        for _ in range(100):
            check_values(await service.ask())

    await asyncio.gather(*(load() for _ in range(4)))
    after = service.valkey.calls()
    spent = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    assert spent.pop("mget") == 400
    assert set(spent) <= {"client|setinfo", "hello", "config|get"}, "those of the test's own client"
    counters = service.metrics.snapshot()["counters"]
    assert counters["feature_rows{status=fresh,view=a}"] == counters["feature_rows{status=fresh,view=c}"] >= 40_000


async def test_hung_and_thawed(service: Service) -> None:
    """SIGSTOP: the last known rows at once, and the frozen server is spared; SIGCONT: fresh again."""
    service.valkey.send(signal.SIGSTOP)
    for _ in range(200):
        lookup = await service.ask()
        assert letters(lookup) == {"s"}
        assert "TimeoutError" in (lookup.error or "")
        check_values(lookup)
        await asyncio.sleep(0.001)
    service.valkey.send(signal.SIGCONT)
    await service.until("f")
    figures = service.metrics.snapshot()
    assert figures["gauges"]["feature_store_up"] == 1
    assert figures["counters"]["feature_last_known{view=b}"] >= 200 * ROWS
    calls = service.valkey.calls()["mget"]
    assert calls <= 5, f"{calls} MGETs reached a server that hung for 200 micro-batches"


async def test_hung_without_last_known_rows(valkey: ValkeyProcess) -> None:
    """A worker that starts beside a frozen store: defaults at once; the store's rows when it thaws."""
    service = Service(valkey)
    await service.fill()
    valkey.send(signal.SIGSTOP)
    for _ in range(50):
        assert letters(await service.ask()) == {"d"}
    valkey.send(signal.SIGCONT)
    await service.until("f")
    await service.store.close()


async def test_killed_and_restarted_empty_and_filled(service: Service) -> None:
    """Killed: last known rows; back without data: missing, the old rows are forgotten; filled: fresh."""
    service.valkey.kill()
    for _ in range(50):
        lookup = await service.ask()
        assert letters(lookup) == {"s"}
        check_values(lookup)
    service.valkey.start()
    await service.until("m")
    service.valkey.kill()
    assert letters(await service.ask()) == {"d"}
    service.valkey.start()
    await service.fill()
    await service.until("f")


async def test_a_restart_between_two_micro_batches_costs_nothing(service: Service) -> None:
    """The connection that the server closed is made anew within the same call: no row is degraded."""
    for _ in range(3):
        service.valkey.kill()
        service.valkey.start()
        await service.fill()
        lookup = await service.ask()
        assert (letters(lookup), lookup.error) == ({"f"}, None)


async def test_connections_that_the_server_drops_cost_nothing(service: Service) -> None:
    """As with a server's ``timeout`` for idle clients."""
    with service.valkey.client() as client:
        for _ in range(20):
            client.client_kill_filter(_type="normal", skipme=True)
            lookup = await service.ask()
            assert (letters(lookup), lookup.error) == ({"f"}, None)


async def test_slow_now_and_then(service: Service) -> None:
    """Pauses longer than the budget: last known rows, then fresh ones, and never another micro-batch's answer."""
    with service.valkey.client() as client:
        for _ in range(10):
            client.client_pause(timeout=80, all=True)
            lookup = await service.ask()
            assert letters(lookup) == {"s"}
            check_values(lookup)
            await service.until("f")


async def test_flushed(service: Service) -> None:
    """Nothing is wrong with a store that is empty: missing, not degraded, and no old rows once it is gone."""
    with service.valkey.client() as client:
        client.flushall()
    lookup = await service.ask()
    assert (letters(lookup), lookup.error) == ({"m"}, None)
    service.valkey.kill()
    assert letters(await service.ask()) == {"d"}


async def test_what_is_no_row_costs_its_own_row_alone(service: Service) -> None:
    """A hash, a list, garbage, a truncated row, another version: missing in that view; garbage counts as corrupt."""
    codec = ViewCodec(VIEWS[0])
    good = codec.pack(NOW_US // 1000 - 1000, {"x": 0.0})
    keys = [codec.key([tail]) for tail in TAILS]
    with service.valkey.client() as client:
        client.delete(*keys[:2])
        client.hset(keys[0], "x", "1")
        client.rpush(keys[1], "1")
        client.set(keys[2], os.urandom(len(good)))
        client.set(keys[3], good[:-1])
        client.set(keys[4], b"")
        client.set(keys[5], ViewCodec(VIEWS[0].model_copy(update={"version": 2})).pack(1, {"x": 5.0}))
    lookup = await service.ask()
    assert lookup.error is None
    assert lookup.views["a"].letters.tobytes() == b"mmmmmm" + b"f" * (ROWS - 6)
    assert lookup.views["b"].letters.tobytes() == b"f" * ROWS
    check_values(lookup)
    assert service.metrics.snapshot()["counters"]["feature_corrupt{view=a}"] == 4
    service.valkey.kill()
    lookup = await service.ask()
    assert lookup.views["a"].letters.tobytes() == b"dd" + b"s" * (ROWS - 2), "what was good before the garbage"
    check_values(lookup)


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_an_answer_that_came_while_the_loop_was_busy_is_taken(valkey: ValkeyProcess, loop_factory: object) -> None:
    """The budget is the store's: our own loop stands still for longer, and what has come meanwhile is in time."""

    async def run() -> None:
        service = Service(valkey)
        await service.fill()
        await service.until("f")
        keys = [ViewCodec(view).key([tail]) for view in VIEWS for tail in TAILS] * 24  # several reads of the socket
        for _ in range(20):
            before = valkey.calls()["mget"]
            asking = asyncio.create_task(service.store.fetch(keys))
            await asyncio.sleep(0)  # it has sent
            time.sleep(0.03)  # noqa: ASYNC251 - what a busy loop does, longer than the budget
            while valkey.calls()["mget"] == before:
                time.sleep(0.01)  # noqa: ASYNC251
            assert (await asking)[-1] == ViewCodec(VIEWS[-1]).pack(NOW_US // 1000 - 1000, {"x": float(ROWS - 1)})
        await service.store.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:  # type: ignore[arg-type]
        runner.run(run())


async def test_a_call_that_is_cancelled_leaves_no_answer_behind(service: Service) -> None:
    """Cancelled at any moment of a round trip: the next call gets its own rows."""
    for turns in range(12):
        asking = asyncio.create_task(service.ask())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
        key = ViewCodec(VIEWS[1]).key(["N7"])
        assert await service.store.fetch([key]) == [ViewCodec(VIEWS[1]).pack(NOW_US // 1000 - 1000, {"x": 7.0})]
