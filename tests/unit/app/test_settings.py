"""Settings from file, environment and arguments, and messages that say where a wrong one comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.errors import SettingsError
from app.settings import BudgetSettings, Settings, load_settings, settings_origins

NOWHERE = Path("no-such-file.toml")


def _load(overrides: dict[str, Any] | None = None, *, toml: Path = NOWHERE, **environ: str) -> Settings:
    return load_settings(overrides, toml=toml, environ=environ)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """A settings file with a few values."""
    path = tmp_path / "sluice.toml"
    path.write_text('deployment = "blue"\n[batching]\nwindow_ms = 7\nmax_batch_size = 64\n[kafka]\npartitions = 12\n')
    return path


def test_without_any_source_the_defaults_hold() -> None:
    """An empty environment gives what the documentation lists."""
    assert _load() == Settings()


def test_later_sources_win(toml: Path) -> None:
    """File, then environment, then arguments; what a later one leaves alone stays."""
    settings = _load(
        {"batching": {"max_batch_size": 256}},
        toml=toml,
        SLUICE_BATCHING__MAX_BATCH_SIZE="128",
        SLUICE_KAFKA__PARTITIONS="6",
    )
    assert settings.batching.max_batch_size == 256
    assert settings.batching.window_ms == 7
    assert settings.kafka.partitions == 6
    assert settings.deployment == "blue"


def test_each_value_knows_its_origin(toml: Path) -> None:
    """A person who asks why a value is what it is gets file, variable or argument."""
    origins = settings_origins(
        {"web": {"port": 1}}, toml=toml, environ={"SLUICE_KAFKA__PARTITIONS": "6", "REDIS_URL": "redis://r"}
    )
    assert origins == {
        "deployment": "file sluice.toml",
        "batching.window_ms": "file sluice.toml",
        "batching.max_batch_size": "file sluice.toml",
        "kafka.partitions": "environment SLUICE_KAFKA__PARTITIONS",
        "redis.url": "environment REDIS_URL",
        "web.port": "argument",
    }


def test_the_usual_variables_are_taken_as_they_are() -> None:
    """KAFKA_BOOTSTRAP_SERVERS, REDIS_URL and SCHEMA_REGISTRY_URL; our own names win over them, empty ones are none."""
    settings = _load(KAFKA_BOOTSTRAP_SERVERS="k:1", REDIS_URL="redis://r", SCHEMA_REGISTRY_URL="", PATH="/bin")
    assert (settings.kafka.bootstrap_servers, settings.redis.url) == ("k:1", "redis://r")
    assert settings.schemas.registry_url is None
    both = _load(KAFKA_BOOTSTRAP_SERVERS="k:1", SLUICE_KAFKA__BOOTSTRAP_SERVERS="k:2")
    assert both.kafka.bootstrap_servers == "k:2"


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "SLUICE_BATCHING__WINDOW",
            "batching.window (environment SLUICE_BATCHING__WINDOW) is unknown; did you mean batching.window_ms?",
        ),
        ("SLUICE_KAFAK__PARTITIONS", "setting kafak (default) is unknown; did you mean kafka"),
        ("SLUICE_DEPLOYMEMT", "deploymemt (environment SLUICE_DEPLOYMEMT) is unknown; did you mean deployment?"),
        ("SLUICE_KAFKA__A__B", "kafka.a"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(variable: str, message: str) -> None:
    """A misspelt setting never silently does nothing."""
    with pytest.raises(SettingsError) as caught:
        _load(**{variable: "1"})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SLUICE_BATCHING__MAX_BATCH_SIZE", "0"),
        ("SLUICE_BATCHING__MAX_BATCH_SIZE", "many"),
        ("SLUICE_BATCHING__WINDOW_MS", "nan"),
        ("SLUICE_REDIS__TIMEOUT_MS", "21"),
        ("SLUICE_MODELS__DEVICE", "gpu"),
        ("SLUICE_MODELS__VERSION", ""),
        ("SLUICE_MONITOR__WINDOW", "fortnight"),
        ("SLUICE_DEPLOYMENT", "-x"),
        ("SLUICE_WEB__PORT", "65536"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_its_origin(variable: str, value: str) -> None:
    """The message holds the path, the variable and the value."""
    with pytest.raises(SettingsError) as caught:
        _load(**{variable: value})
    path = variable.removeprefix("SLUICE_").lower().replace("__", ".")
    assert f"setting {path} (environment {variable}): " in str(caught.value)
    assert repr(value) in str(caught.value)


def test_all_faults_are_named_at_once() -> None:
    """One line each, so that nobody starts the worker five times."""
    with pytest.raises(SettingsError) as caught:
        _load(SLUICE_WEB__PORT="x", SLUICE_KAFKA__PARTITIONS="0", SLUICE_WEB__PROT="1")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["batching = ", "[batching]\nwindow_ms = 1\nwindow_ms = 2", "\udcff"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str) -> None:
    """The message says which file and where in it."""
    path = tmp_path / "sluice.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SettingsError, match=r"sluice\.toml"):
        _load(toml=path)


@pytest.mark.parametrize("environ", [{"SLUICE_KAFKA": "x"}, {"SLUICE_KAFKA": "x", "SLUICE_KAFKA__PARTITIONS": "3"}])
def test_a_group_is_no_value(environ: dict[str, str]) -> None:
    """A variable that names a whole group is refused."""
    with pytest.raises(SettingsError, match="kafka"):
        _load(**environ)


def test_settings_never_change() -> None:
    """A worker's settings are those it started with."""
    with pytest.raises(ValueError, match="frozen"):
        _load().batching.window_ms = 3  # type: ignore[misc]


def test_the_budget_is_the_sum_of_its_stages() -> None:
    """100 ms by default, headroom included."""
    assert BudgetSettings().total_ms == 100
    assert BudgetSettings(ingest_ms=6).total_ms == 101
