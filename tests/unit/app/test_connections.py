"""Settings of encryption and of who we are: what clients get, what is refused, and that no secret is shown."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth

from app.connections import connection_arguments, store_arguments
from app.errors import SettingsError
from app.faust_app import broker_credentials
from app.settings import KafkaSettings, RedisSettings, Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret-of-ours"
NAMED: dict[str, Any] = {"sasl_username": "sluice", "sasl_password": SECRET}


def kafka(**changes: Any) -> KafkaSettings:  # noqa: ANN401 - values of every setting
    """Settings, validated as those of a file would be."""
    return KafkaSettings.model_validate({"bootstrap_servers": "kafka:9093", **changes})


def test_sasl_hands_on_name_and_password() -> None:
    """Only there does the password stand in clear."""
    settings = kafka(security_protocol="SASL_PLAINTEXT", sasl_mechanism="SCRAM-SHA-512", **NAMED)
    assert connection_arguments(settings) == {
        "bootstrap_servers": "kafka:9093",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "sluice",
        "sasl_plain_password": SECRET,
    }


def test_ssl_checks_the_certificate_and_the_name() -> None:
    """There is no way to switch that off."""
    context = connection_arguments(kafka(security_protocol="SSL"))["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"security_protocol": "SSL"},
        {"security_protocol": "SASL_PLAINTEXT", **NAMED},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-256", **NAMED},
    ],
    ids=lambda changes: changes.get("security_protocol", "PLAINTEXT"),
)
def test_faust_connects_as_our_own_clients_do(changes: dict[str, Any]) -> None:
    """What Faust makes of its credentials are the same arguments."""
    wanted = connection_arguments(kafka(**changes))
    made = dict(credentials_to_aiokafka_auth(broker_credentials(kafka(**changes))))
    del wanted["bootstrap_servers"]
    contexts = [found.pop("ssl_context", None) for found in (wanted, made)]
    assert made == wanted
    assert [context is None for context in contexts] == [not wanted["security_protocol"].endswith("SSL")] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs a name and a password; set SLUICE_KAFKA__SASL_USERNAME and"),
        ({"security_protocol": "SASL_SSL", "sasl_username": "sluice"}, "needs a name and a password"),
        ({"ssl_ca_file": "ca.pem"}, "kafka.ssl_ca_file set, but kafka.security_protocol PLAINTEXT does not encrypt"),
        (
            {"security_protocol": "SASL_PLAINTEXT", "ssl_cert_file": "a", "ssl_key_file": "b", **NAMED},
            "kafka.ssl_cert_file and kafka.ssl_key_file set, but .* set SLUICE_KAFKA__SECURITY_PROTOCOL to SSL or",
        ),
        ({"security_protocol": "SSL", **NAMED}, "tells the brokers no name; set .* to SASL_SSL or SASL_PLAINTEXT"),
        ({"security_protocol": "SSL", "ssl_key_file": "key.pem"}, "without kafka.ssl_cert_file; set the certificate"),
        ({"security_protocol": "SSL", "ssl_ca_file": "none.pem"}, r"ssl_ca_file none.pem cannot be used \(No such"),
        ({"security_protocol": "SSL", "ssl_cert_file": "none.pem"}, "kafka.ssl_cert_file none.pem cannot be used"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    """A certificate or a password that would not be used is an error, and so is one that lacks."""
    with pytest.raises(SettingsError, match=message) as refused:
        connection_arguments(kafka(**changes))
    assert SECRET not in str(refused.value)


def test_a_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    """OpenSSL's own words are in the message."""
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    with pytest.raises(SettingsError, match=r"ca\.pem cannot be used .* name a PEM file"):
        connection_arguments(kafka(security_protocol="SSL", ssl_ca_file=path))


def test_an_address_of_the_store_that_does_not_encrypt_takes_no_certificate(tmp_path: Path) -> None:
    """With rediss:// it is handed on."""
    ca = tmp_path / "ca.pem"
    assert store_arguments(RedisSettings(url="rediss://store/0", ssl_ca_file=ca)) == {"ssl_ca_certs": str(ca)}
    with pytest.raises(SettingsError, match="begin it with rediss://"):
        store_arguments(RedisSettings(url="redis://store/0", ssl_ca_file=ca))


def test_settings_never_show_the_password() -> None:
    """Neither printed, nor as JSON, and an error that has to do with it does not either."""
    environ = {"SLUICE_KAFKA__SASL_PASSWORD": SECRET, "SLUICE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}
    settings = load_settings(environ=environ)
    assert settings.kafka.sasl_password is not None
    assert settings.kafka.sasl_password.get_secret_value() == SECRET
    assert SECRET not in f"{settings}{settings!r}{settings.model_dump_json()}{settings.model_dump()}"


@pytest.mark.parametrize(
    "overrides",
    [{"kafka": {"sasl_password": [SECRET]}}, {"redis": {"url": [SECRET]}}, {"kafka": f'{{"password": "{SECRET}"}}'}],
    ids=["a list", "an address", "a whole group as text"],
)  # fmt: skip
def test_an_error_in_a_secret_does_not_show_it(overrides: dict[str, Any]) -> None:
    """The message names the setting; neither it nor pydantic's own, which a traceback prints, has the value."""
    with pytest.raises(SettingsError, match=r"setting (kafka|redis)\S*") as refused:
        load_settings(overrides, environ={})
    assert SECRET not in f"{refused.value}{refused.value.__cause__}"
    with pytest.raises(SettingsError, match=r"got 0$"):
        load_settings({"kafka": {"partitions": 0}}, environ={})


def test_an_unknown_group_is_still_said() -> None:
    """What is hidden are values alone."""
    with pytest.raises(SettingsError, match=r"kafka\.sasl_pasword .* did you mean kafka.sasl_password"):
        load_settings({"kafka": {"sasl_pasword": SECRET}}, environ={})
    assert Settings().kafka.security_protocol == "PLAINTEXT"
