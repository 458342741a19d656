"""How to reach Kafka and the store: the settings of encryption and of who we are, as arguments of the client libraries.

Nothing here connects. What does not fit together is refused, for whoever names a certificate or a password means to be
safe with it.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from app.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from app.settings import KafkaSettings, RedisSettings


def connection_arguments(kafka: KafkaSettings) -> dict[str, Any]:
    """Arguments of every aiokafka client: consumer, producer and admin.

    The password is among them in clear, so they are handed on and never kept or printed.

    Args:
        kafka: the settings.

    Returns:
        ``bootstrap_servers`` and ``security_protocol``; with SSL ``ssl_context``, with SASL ``sasl_mechanism``,
        ``sasl_plain_username`` and ``sasl_plain_password``.

    Raises:
        SettingsError: settings contradict one another or lack something, or a file cannot be used.

    Example:
        >>> from app.settings import KafkaSettings
        >>> connection_arguments(KafkaSettings(bootstrap_servers="kafka-1:9092"))
        {'bootstrap_servers': 'kafka-1:9092', 'security_protocol': 'PLAINTEXT'}

    """
    arguments: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.endswith("SSL"):
        arguments["ssl_context"] = _ssl_context(kafka)
    else:
        _refuse(kafka, ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"), "does not encrypt", "SSL or SASL_SSL")
    if kafka.security_protocol.startswith("SASL"):
        arguments |= _sasl(kafka)
    else:
        _refuse(kafka, ("sasl_username", "sasl_password"), "tells the brokers no name", "SASL_SSL or SASL_PLAINTEXT")
    return arguments


def access_hint(kafka: KafkaSettings) -> str:
    """What else may be wrong when no broker answers, as the end of a message; empty where there is nothing else.

    Example:
        >>> from app.settings import KafkaSettings
        >>> access_hint(KafkaSettings())
        ''
        >>> access_hint(KafkaSettings(security_protocol="SSL"))
        '; it is asked by SSL: aiokafka has logged what was wrong with certificate, name or password'

    """
    if kafka.security_protocol == "PLAINTEXT":
        return ""
    return (
        f"; it is asked by {kafka.security_protocol}: aiokafka has logged what was wrong with certificate, name or "
        "password"
    )


def store_arguments(redis: RedisSettings) -> dict[str, Any]:
    """Arguments of redis-py's ``from_url``, beside the address.

    Args:
        redis: the settings.

    Raises:
        SettingsError: a certificate is named, but the address does not encrypt.

    Example:
        >>> from app.settings import RedisSettings
        >>> store_arguments(RedisSettings(url="rediss://store:6380/0", ssl_ca_file="ca.pem"))
        {'ssl_ca_certs': 'ca.pem'}

    """
    if redis.ssl_ca_file is None:
        return {}
    if not redis.url.startswith("rediss://"):
        msg = "redis.ssl_ca_file is set, but the address in redis.url does not encrypt; begin it with rediss://"
        raise SettingsError(msg)
    return {"ssl_ca_certs": str(redis.ssl_ca_file)}


def _sasl(kafka: KafkaSettings) -> dict[str, str]:
    if kafka.sasl_username is None or kafka.sasl_password is None:
        msg = (
            f"kafka.security_protocol is {kafka.security_protocol}, which needs a name and a password; set "
            "SLUICE_KAFKA__SASL_USERNAME and SLUICE_KAFKA__SASL_PASSWORD"
        )
        raise SettingsError(msg)
    return {
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": kafka.sasl_password.get_secret_value(),
    }


def _refuse(kafka: KafkaSettings, names: tuple[str, ...], why: str, instead: str) -> None:
    given = [f"kafka.{name}" for name in names if getattr(kafka, name) is not None]
    if given:
        msg = (
            f"{' and '.join(given)} set, but kafka.security_protocol {kafka.security_protocol} {why}; "
            f"set SLUICE_KAFKA__SECURITY_PROTOCOL to {instead}"
        )
        raise SettingsError(msg)


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    """Checks the broker's certificate and its host name, always."""
    if kafka.ssl_key_file is not None and kafka.ssl_cert_file is None:
        msg = "kafka.ssl_key_file is set without kafka.ssl_cert_file; set the certificate that the key belongs to too"
        raise SettingsError(msg)
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file)
    except OSError as exc:  # ssl.SSLError is one too
        raise _unusable(exc, "kafka.ssl_ca_file", kafka.ssl_ca_file) from exc
    if kafka.ssl_cert_file is not None:
        try:
            context.load_cert_chain(kafka.ssl_cert_file, kafka.ssl_key_file, password=_no_passphrase)
        except OSError as exc:
            raise _unusable(exc, "kafka.ssl_cert_file", kafka.ssl_cert_file) from exc
    return context


def _no_passphrase() -> str:
    """Without it, OpenSSL would ask on the terminal and a worker would wait for ever."""
    return ""


def _unusable(cause: OSError, setting: str, path: Path | None) -> SettingsError:
    reason = cause.strerror or str(cause)
    return SettingsError(f"{setting} {path} cannot be used ({reason}); name a PEM file, its key without a passphrase")
