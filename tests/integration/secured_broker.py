"""A broker of the test's own that encrypts and asks who comes, and a relay that encrypts for a store that cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import subprocess
from typing import TYPE_CHECKING

from app.embedded import jars, readiness
from app.embedded.ports import free_ports
from app.embedded.servers import kafka_servers, new_cluster_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Self

    from app.embedded.servers import Server

USER, PASSWORD = "sluice-test", "s3cret-of-the-test"
LISTENERS = ("SSL", "SASL_PLAINTEXT", "SASL_SSL")
_LOGIN = "org.apache.kafka.common.security"


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=sluice-test", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


class SecuredBroker:
    """Kafka with a port for each way to connect; running within the block.

    ``SSL`` wants a certificate of the client too, ``SASL_PLAINTEXT`` takes SCRAM-SHA-256, ``SASL_SSL`` PLAIN.

    Args:
        folder: for everything on disk.

    Attributes:
        certificate: whom to trust, and a client certificate.
        key: of it.
        plain: address of the port that asks for nothing.

    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate, self.key = make_certificate(folder)
        self._ports = dict(zip(("PLAINTEXT", "CONTROLLER", *LISTENERS), free_ports(5), strict=True))
        self.plain = self.address("PLAINTEXT")
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, listener: str) -> str:
        """Bootstrap servers of a port."""
        return f"127.0.0.1:{self._ports[listener]}"

    def environment(self, listener: str) -> dict[str, str]:
        """Settings of a worker that comes by a port."""
        found = {"KAFKA_BOOTSTRAP_SERVERS": self.address(listener), "SLUICE_KAFKA__SECURITY_PROTOCOL": listener}
        if listener != "SASL_PLAINTEXT":
            found["SLUICE_KAFKA__SSL_CA_FILE"] = str(self.certificate)
        if listener == "SSL":
            found["SLUICE_KAFKA__SSL_CERT_FILE"] = str(self.certificate)
            found["SLUICE_KAFKA__SSL_KEY_FILE"] = str(self.key)
        else:
            found |= {"SLUICE_KAFKA__SASL_USERNAME": USER, "SLUICE_KAFKA__SASL_PASSWORD": PASSWORD}
            found["SLUICE_KAFKA__SASL_MECHANISM"] = "PLAIN" if listener == "SASL_SSL" else "SCRAM-SHA-256"
        return found

    def __enter__(self) -> Self:
        """Start it, and tell it of the user."""
        (self._folder / "logs").mkdir()
        ports = [(self._ports["PLAINTEXT"], self._ports["CONTROLLER"])]
        path = jars.class_path(print)
        [server] = kafka_servers(self._folder, ports, path, cluster_id=new_cluster_id(), throughput=False)
        with (self._folder / "kafka-1" / "server.properties").open("a", encoding="utf-8") as properties:
            properties.writelines(f"{key}={value}\n" for key, value in self._properties().items())
        with server.output.open("wb") as output:
            self._process = subprocess.Popen(
                server.argv, env={**os.environ, **server.env}, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            readiness.wait_for_cluster(self.plain, 60.0)
            self._add_user(server)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _add_user(self, server: Server) -> None:
        """For SCRAM the user is stored in the cluster."""
        java = server.argv[: server.argv.index("kafka.Kafka")]
        change = ["--alter", "--add-config", f"SCRAM-SHA-256=[password={PASSWORD}]"]
        user = ["--entity-type", "users", "--entity-name", USER]
        subprocess.run(
            [*java, "kafka.admin.ConfigCommand", "--bootstrap-server", self.plain, *change, *user],
            env={**os.environ, **server.env},
            check=True,
            capture_output=True,
        )

    def _properties(self) -> dict[str, str]:
        """What stands further down in the file counts."""
        both = self._folder / "both.pem"
        both.write_text(self.key.read_text() + self.certificate.read_text())
        clients = [f"{name}://{self.address(name)}" for name in ("PLAINTEXT", *LISTENERS)]
        protocols = ["CONTROLLER:PLAINTEXT", *(f"{name}:{name}" for name in ("PLAINTEXT", *LISTENERS))]
        plain = f'{_LOGIN}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        return {
            "listeners": ",".join([*clients, f"CONTROLLER://{self.address('CONTROLLER')}"]),
            "advertised.listeners": ",".join(clients),
            "listener.security.protocol.map": ",".join(protocols),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.certificate),
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": plain,
            "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;",
        }


@contextlib.asynccontextmanager
async def encrypting_relay(port: int, certificate: Path, key: Path) -> AsyncIterator[int]:
    """The port of a relay that takes TLS and hands on what is in it.

    Args:
        port: where to, on 127.0.0.1.
        certificate: of the relay.
        key: of it.

    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as server:
        yield int(server.sockets[0].getsockname()[1])
