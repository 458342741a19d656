"""The world of one scenario: brokers, store, links, workers and load, all real processes, and what happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from agents.topics import ensure_topics
from app.embedded.ports import free_ports
from app.embedded.stack import Stack
from app.settings import load_settings
from bench.workload import STORE_MODEL, fill_store
from chaos.clock import SteppedClock
from chaos.judge_client import JudgeClient
from chaos.load import Load
from chaos.patience import until
from chaos.proxy import Link
from chaos.servers import Servers
from chaos.service_process import ROOT, ServiceProcess
from chaos.verdict import Commit
from chaos.workload import PARTITIONS, Workload
from schemas import topic_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    from app.settings import Settings
    from chaos.scenario import Mode, Profile, Scenario

SESSION_S = 2.0
SETTLE_TIMEOUT_S = 150.0
LOOK_AT_COMMITS_EVERY_S = 0.5
POISON_SHARE = 0.01

IMPATIENT = {
    "SLUICE_KAFKA__SESSION_TIMEOUT_S": f"{SESSION_S:g}",
    "SLUICE_KAFKA__HEARTBEAT_S": "0.5",
    "SLUICE_KAFKA__REQUEST_TIMEOUT_S": "5",
    "SLUICE_DELIVERY__STALL_AFTER_S": "10",
    "SLUICE_MONITOR__WINDOW": "10s",
    "SLUICE_MONITOR__MATURITY_S": "5",
    "SLUICE_MONITOR__ALLOWED_LATENESS_S": "2",
}
"""A fault that lasts seconds must outlast every time-out; all other settings are those of production."""


class World:
    """Everything that a scenario may touch.

    Attributes:
        mode: what the workers promise.
        profile: how much harm.
        rng: seeded; every random choice of a scenario comes from it.
        servers: brokers and store.
        workers: scoring workers.
        monitors: monitor workers.
        load: the request generator, already running.
        judge: the judge's connection.
        kafka_link: the proxy before the first broker, with ``is_detoured``.
        store_link: the proxy before the store, with ``is_detoured``.
        clock: of the workers, with ``is_clock_stepped``.
        commits: looks at the group, for the verdict.
        extra: figures that a scenario adds.

    """

    kafka_link: Link
    store_link: Link

    def __init__(
        self, stage: Scenario, folder: Path, *, seed: int, mode: Mode, profile: Profile, say: Callable[[str], None]
    ) -> None:
        self.stage, self.folder, self.mode, self.profile = stage, folder, mode, profile
        self.rng, self.say = random.Random(seed), say
        self.workers: list[ServiceProcess] = []
        self.monitors: list[ServiceProcess] = []
        self.commits: list[Commit] = []
        self.extra: dict[str, object] = {}
        self.deployment = f"chaos-{seed}"
        self.workload = Workload(folder / "models", ROOT, seed, poison_share=POISON_SHARE)
        self.clock = SteppedClock(folder)
        self._tasks: list[asyncio.Task[None]] = []
        self._load_task: asyncio.Task[None] | None = None
        self._exits = AsyncExitStack()

    def pick(self, *, short: int, long: int) -> int:
        """How often, by profile."""
        return short if self.profile == "short" else long

    async def pause(self, low_s: float, high_s: float | None = None) -> None:
        """Let some time pass, random between two bounds if there are two."""
        await asyncio.sleep(low_s if high_s is None else self.rng.uniform(low_s, high_s))

    async def answer_count(self) -> int:
        """End offsets of ``scores``, summed."""
        return sum((await self.judge.ends(topic_names.SCORES)).values())

    async def progress(self, answers: int = 100, *, timeout_s: float = 90.0) -> None:
        """Wait until so many more answers have come.

        Raises:
            TimeoutError: they do not.

        """
        wanted = await self.answer_count() + answers

        async def is_there() -> bool:
            return await self.answer_count() >= wanted

        await until(is_there, f"{answers} more answers", timeout_s=timeout_s)

    async def serving_worker(self) -> ServiceProcess:
        """One of the scoring workers that have partitions now; waits for one."""
        serving: list[ServiceProcess] = []

        async def is_any() -> bool:
            serving[:] = [worker for worker in self.workers if await worker.is_ready()]
            return bool(serving)

        await until(is_any, "a worker that serves")
        return self.rng.choice(serving)

    async def look_at_commits(self) -> None:
        """Note what the group has committed and, asked for afterwards, where the answers end."""
        committed = await self.judge.committed(self.group, topic_names.REQUESTS)
        self.commits.append(Commit(committed, await self.judge.ends(topic_names.SCORES)))

    async def add_worker(self) -> ServiceProcess:
        """One more scoring worker, not waited for."""
        worker = ServiceProcess(self.folder, "scoring", f"worker-{len(self.workers)}", self.environment)
        self.workers.append(self._kept(worker))
        return worker

    @property
    def group(self) -> str:
        """Consumer group of the scoring workers."""
        return f"{self.deployment}-scoring"

    @property
    def monitor_group(self) -> str:
        """Consumer group of the monitors."""
        return f"{self.deployment}-monitor"

    def transactional_id(self, partition: int) -> str:
        """Under which a worker writes the answers of a partition, with ``exactly_once``."""
        return f"{self.group}-{topic_names.REQUESTS}-{partition}"

    def delete_monitor_store(self) -> None:
        """Delete what the monitors have on disk."""
        shutil.rmtree(self.folder / "monitor", ignore_errors=True)

    @property
    def settings(self) -> Settings:
        """Settings that lead to the servers themselves, past every proxy."""
        return load_settings(toml=self.folder / "none", environ=self._base_environment)

    @property
    def environment(self) -> dict[str, str]:
        """Settings of every worker."""
        stage, variables = self.stage, self._base_environment
        if stage.is_detoured:
            links = ",".join(f"127.0.0.1:{link.port}" for link in self._kafka_links)
            store = f"redis://127.0.0.1:{self.store_link.port}/0"
            variables |= {"KAFKA_BOOTSTRAP_SERVERS": links, "REDIS_URL": store}
        if stage.is_clock_stepped:
            variables |= self.clock.environment
        return variables | dict(stage.environment)

    @property
    def _base_environment(self) -> dict[str, str]:
        stage, info = self.stage, self.stack.info
        mode = {} if self.mode == "at_least_once" else {"SLUICE_DELIVERY__MODE": self.mode}
        return {
            "KAFKA_BOOTSTRAP_SERVERS": info.bootstrap_servers,
            "REDIS_URL": info.redis_url,
            "SLUICE_DEPLOYMENT": self.deployment,
            "SLUICE_SCHEMAS__FOLDER": str(ROOT / "schemas"),
            "SLUICE_MODELS__REPOSITORY": str(self.folder / "models"),
            "SLUICE_MODELS__NAME": STORE_MODEL,
            "SLUICE_KAFKA__PARTITIONS": str(PARTITIONS),
            "SLUICE_KAFKA__REPLICATION": str(stage.brokers),
            "SLUICE_MONITOR__STORE": str(self.folder / "monitor"),
            "SLUICE_MONITOR__REPORTS": str(self.folder / "reports"),
            **mode,
            **IMPATIENT,
        }

    async def settle(self) -> None:
        """Stop the load, heal everything, wait until all is answered, joined and committed, and drain the workers.

        Raises:
            TimeoutError: it does not come to rest.

        """
        if self._load_task is not None:
            self._load_task.cancel()
            await asyncio.gather(self._load_task, return_exceptions=True)
        await self.heal()
        await self.load.finish()
        await until(self._is_answered, "all requests to be committed", timeout_s=SETTLE_TIMEOUT_S)
        if self.monitors:
            await until(self._is_joined, "all outcomes to be joined", timeout_s=SETTLE_TIMEOUT_S)
        await self.look_at_commits()

    async def drain(self) -> dict[str, int | str]:
        """SIGTERM to all scoring workers; returns how those ended that served, for one that starts may just die."""
        serving = [worker for worker in self.workers if await worker.is_ready()]
        codes: dict[str, int | str] = {}
        for worker in serving:
            try:
                codes[worker.name] = await worker.terminate()
            except TimeoutError as exc:
                codes[worker.name] = f"nothing: {exc}"
        for worker in self.workers:
            worker.end()
        return codes

    async def heal(self) -> None:
        """Undo every fault."""
        for link in self._links():
            link.heal()
        for worker in (*self.workers, *self.monitors):
            worker.is_wanted = True
            if worker.is_frozen:
                worker.thaw()
        await self.servers.heal()
        self.clock.step_to(0.0)

    async def _is_answered(self) -> bool:
        return await self.judge.lag(self.group, topic_names.REQUESTS) == 0

    async def _is_joined(self) -> bool:
        behind = await self.judge.lag(self.monitor_group, topic_names.OUTCOMES)
        # Behind the last prediction of a transaction stands its marker, which no consumer commits.
        behind_log = await self.judge.lag(self.monitor_group, topic_names.PREDICTIONS)
        allowed = 0 if self.mode == "at_least_once" else PARTITIONS
        return behind == 0 and behind_log <= allowed

    async def _watch_commits(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AT_COMMITS_EVERY_S)
            with contextlib.suppress(KafkaError, TimeoutError):  # a broker is down: there is nothing to look at
                await self.look_at_commits()

    def _links(self) -> Iterator[Link]:
        if self.stage.is_detoured:
            yield from (*self._kafka_links, self.store_link)

    def _kept(self, process: ServiceProcess) -> ServiceProcess:
        self._exits.callback(process.end)
        self._tasks.append(asyncio.create_task(process.keep(), name=f"keep {process.name}"))
        return process

    async def _start_stack(self) -> None:
        stage = self.stage
        told, bound = free_ports(stage.brokers + 1), free_ports(stage.brokers)
        detours = list(zip(bound, told, strict=False)) if stage.is_detoured else []
        start = lambda: Stack.start(self.folder / "stack", brokers=stage.brokers, detours=detours)  # noqa: E731
        self.stack = self._exits.enter_context(await asyncio.to_thread(start))
        self.servers = Servers(self.stack)
        self._kafka_links = [Link(told_port, port, speaks_kafka=True) for port, told_port in detours]
        if stage.is_detoured:
            self.kafka_link = self._kafka_links[0]
            self.store_link = Link(told[-1], self.stack.info.redis_port, speaks_kafka=False)
        for link in self._links():
            await self._exits.enter_async_context(link)

    async def _start_load(self) -> None:
        info = self.stack.info
        self.judge = await self._exits.enter_async_context(JudgeClient(info.bootstrap_servers))
        self.load = Load(info.bootstrap_servers, self.workload, self.stage.rate, has_outcomes=bool(self.stage.monitors))
        await self.load.start()
        self._exits.push_async_callback(self.load.stop)

    async def __aenter__(self) -> Self:
        """Start everything; when this returns the workers serve and the load runs."""
        try:
            await self._start_stack()
            await ensure_topics(self.settings)
            await fill_store(self.settings, self.workload.bundle)
            await self._start_load()
            for _ in range(self.stage.workers):
                await self.add_worker()
            for number in range(self.stage.monitors):
                monitor = ServiceProcess(self.folder, "monitor", f"monitor-{number}", self.environment)
                self.monitors.append(self._kept(monitor))
            for process in (*self.workers, *self.monitors):
                await process.wait_ready()
            self._load_task = asyncio.create_task(self.load.run(), name="load")
            self._tasks.append(asyncio.create_task(self._watch_commits(), name="look at commits"))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop everything."""
        tasks = [*self._tasks, *([self._load_task] if self._load_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._exits.aclose()
