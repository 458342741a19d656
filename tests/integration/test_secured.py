"""Encrypted connections with a name and a password, to a real broker and store; and nobody tells the password."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
from aiokafka.errors import KafkaError
from typer.testing import CliRunner

from agents import topics
from app import cli
from app.connections import connection_arguments
from app.errors import FeatureStoreError, TopicError
from app.features import FeatureWriter, RedisFeatureStore
from app.producer import OutputProducer
from app.settings import RedisSettings, Settings, load_settings
from app.topic_reader import find_cluster, open_reader
from monitors.rebuild import read_ranges
from tests.integration.delays_service import WEATHER, Deployment
from tests.integration.kafka_client import KafkaClient
from tests.integration.secured_broker import LISTENERS, PASSWORD, SecuredBroker, encrypting_relay, make_certificate
from tests.integration.valkey_process import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from schemas.records import RecordBatch

pytestmark = [
    pytest.mark.slow,  # brokers of its own, a minute
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate"),
]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    """One for all tests here."""
    with SecuredBroker(tmp_path_factory.mktemp("secured")) as started:
        yield started


def settings_of(environment: dict[str, str], folder: Path) -> Settings:
    """Settings of nothing but an environment."""
    return load_settings(toml=folder / "none", environ=environment)


async def _sent_and_read(settings: Settings) -> list[bytes | None]:
    """What is read back of two records, by the reader of ranges and by the one of a lost store."""
    kafka = settings.kafka
    await topics.ensure_topics(settings)
    assert topics.REQUESTS in (await find_cluster(kafka)).partitions
    producer = OutputProducer(kafka)
    await producer.start()
    try:
        await (await producer.send(topics.REQUESTS, 0, [b"k", b"k"], [b"one", b"two"]))
    finally:
        await producer.stop()
    found: list[bytes | None] = []
    async with open_reader(kafka) as reader:
        start, end = await reader.bounds(topics.REQUESTS, 0)
        async for records in reader.read(topics.REQUESTS, 0, max(start, end - 2), end):
            found += [record.value for record in records]

    async def take(batch: RecordBatch) -> None:
        found.extend(batch.values)

    await read_ranges(connection_arguments(kafka), {(topics.REQUESTS, 0): (end - 2, end)}, take)
    return found


@pytest.mark.parametrize("listener", LISTENERS)
def test_our_clients_connect(broker: SecuredBroker, listener: str, tmp_path: Path) -> None:
    """Admin, producer and both readers, by each way that the broker knows."""
    settings = settings_of(broker.environment(listener), tmp_path)
    assert asyncio.run(_sent_and_read(settings)) == [b"one", b"two"] * 2


@pytest.mark.parametrize(
    ("listener", "change"),
    [
        ("SASL_PLAINTEXT", {"SLUICE_KAFKA__SASL_PASSWORD": "wrong-" + PASSWORD}),
        ("SASL_SSL", {"SLUICE_KAFKA__SASL_PASSWORD": "wrong-" + PASSWORD}),
        ("SASL_SSL", {"SLUICE_KAFKA__SSL_CA_FILE": ""}),
    ],
    ids=["a wrong password", "a wrong password, encrypted", "a certificate that nobody vouches for"],
)
def test_who_does_not_fit_is_refused(
    broker: SecuredBroker, listener: str, change: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The commands say so, without the password, and nothing is sent."""
    environment = {**broker.environment(listener), **change}
    environment = {name: value for name, value in environment.items() if value}
    with pytest.raises((TopicError, KafkaError)) as refused:
        asyncio.run(topics.ensure_topics(settings_of(environment, tmp_path)))
    done = CliRunner(env=environment).invoke(cli.cli, ["dlq", "list"])
    assert isinstance(done.exception, TopicError)
    assert f"it is asked by {listener}" in str(done.exception)
    assert PASSWORD not in f"{refused.value}{done.output}{done.exception}{caplog.text}"


@pytest.mark.parametrize("listener", ["SSL", "SASL_SSL"])
def test_a_worker_answers_by_it_and_tells_no_secret(
    broker: SecuredBroker, listener: str, tmp_path: Path, redis_url: str
) -> None:
    """A scoring worker, Faust's consumer among its clients; its log, figures and metrics have no password."""
    with KafkaClient(broker.plain) as kafka:
        deployment = Deployment(
            "secured", tmp_path, kafka, broker.plain, redis_url, environment=broker.environment(listener)
        )
        kafka.fresh_topics(deployment.settings)
        with deployment.worker() as worker:
            worker.start().wait_ready()
            kafka.produce(deployment.numbered(20))
            deployment.wait_answered()
            shown = "".join(worker.get(path).text for path in ("/stats", "/metrics", "/"))
        assert kafka.count(topics.SCORES) == 20
        assert PASSWORD not in shown + worker.log()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    """A store that knows no encryption."""
    process = ValkeyProcess(tmp_path)
    process.start()
    yield process
    process.kill()


async def _fetched(store: RedisFeatureStore, key: str, patience: int) -> bytes | None:
    """A row; the first calls may be refused while the connection is being made."""
    while True:
        try:
            return (await store.fetch([key]))[0]
        except FeatureStoreError:
            patience -= 1
            if patience == 0:
                raise
            await asyncio.sleep(0.05)


async def test_the_store_is_asked_encrypted(valkey: ValkeyProcess, tmp_path: Path) -> None:
    """Rows are written and read by TLS where the certificate is vouched for, and not at all where it is not."""
    certificate, key = make_certificate(tmp_path)
    async with encrypting_relay(valkey.port, certificate, key) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        writer = FeatureWriter(url, [WEATHER], ssl_ca_file=certificate)
        await writer.put("weather", [(("JFK",), 1000, {"temp_c": 21.5})])
        await writer.close()
        asks = {"url": url, "connect_timeout_ms": 5000, "breaker_open_s": 0.01}
        trusting = RedisFeatureStore(RedisSettings.model_validate({**asks, "ssl_ca_file": certificate}))
        wary = RedisFeatureStore(RedisSettings.model_validate(asks))
        try:
            assert await _fetched(trusting, "fs:weather:v1:JFK", patience=200) is not None
            with pytest.raises(FeatureStoreError, match=r"certificate verify failed"):
                await _fetched(wary, "fs:weather:v1:JFK", patience=10)
        finally:
            await trusting.close()
            await wary.close()
