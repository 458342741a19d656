"""Settings: one frozen tree of small groups, each value with unit, bound and reason.

Read from ``sluice.toml``, then ``SLUICE_<GROUP>__<KEY>`` variables, then arguments; later ones win.
``KAFKA_BOOTSTRAP_SERVERS``, ``REDIS_URL`` and ``SCHEMA_REGISTRY_URL`` are accepted as they are.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from app.errors import SettingsError

PREFIX = "SLUICE_"
PLAIN_VARIABLES = {
    "KAFKA_BOOTSTRAP_SERVERS": ("kafka", "bootstrap_servers"),
    "REDIS_URL": ("redis", "url"),
    "SCHEMA_REGISTRY_URL": ("schemas", "registry_url"),
}
SECRETS = {"kafka.sasl_password", "redis.url"}
"""No message shows their values; nor that of a whole group, which may hold one."""


class _Group(BaseModel):
    # A wrong value may be a password, and pydantic's own error would show it in a traceback.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class KafkaSettings(_Group):
    """Connection to the brokers."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Field(description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL; SSL encrypts, SASL says who we are"),
    ] = "PLAINTEXT"
    ssl_ca_file: Annotated[
        Path | None, Field(description="PEM: who may vouch for brokers; none: the authorities of the system")
    ] = None
    ssl_cert_file: Annotated[Path | None, Field(description="PEM: our certificate, for brokers that ask for one")] = (
        None
    )
    ssl_key_file: Annotated[
        Path | None, Field(description="PEM: its key, without a passphrase; none: it is in ssl_cert_file too")
    ] = None
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], Field(description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
    ] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: Annotated[SecretStr | None, Field(description="never shown")] = None
    partitions: Annotated[int, Field(ge=1, le=4096, description="of every data topic, when we create it")] = 4
    replication: Annotated[int, Field(ge=1, le=9)] = 1
    session_timeout_s: Annotated[float, Field(ge=1, le=300, description="fail-over time after a kill -9")] = 6.0
    heartbeat_s: Annotated[float, Field(gt=0, le=60)] = 1.5
    group_instance_id: Annotated[
        str | None, Field(description="static membership: a restart within the session moves no partitions")
    ] = None
    standby: Annotated[
        bool, Field(description="join warm, but take partitions only while no worker without this setting is there")
    ] = False
    request_timeout_s: Annotated[float, Field(ge=1, le=300, description="a send without an answer is a failure")] = 30.0
    max_poll_records: Annotated[int, Field(ge=1, le=100_000, description="records of one event at most")] = 4096
    max_fetch_bytes: Annotated[int, Field(ge=4096, description="of one partition and fetch")] = 1_048_576
    producer_batch_bytes: Annotated[int, Field(ge=16_384, description="larger: fewer futures and requests")] = 524_288


class RedisSettings(_Group):
    """The online feature store."""

    url: Annotated[str, Field(description="rediss:// encrypts; user and password may stand in it")] = (
        "redis://127.0.0.1:6379/0"
    )
    ssl_ca_file: Annotated[
        Path | None, Field(description="PEM: who may vouch for a store at rediss://; none: the system's authorities")
    ] = None
    timeout_ms: Annotated[float, Field(gt=0, le=20, description="of one round trip; the hard cap is 20 ms")] = 20.0
    connect_timeout_ms: Annotated[
        float, Field(gt=0, le=5000, description="of a new connection; requests wait for it timeout_ms at most")
    ] = 50.0
    breaker_calls: Annotated[int, Field(ge=1, le=1000, description="the last calls that the breaker looks at")] = 20
    breaker_failed_share: Annotated[float, Field(gt=0, le=1, description="of those; opens the breaker")] = 0.5
    breaker_open_s: Annotated[float, Field(gt=0, description="then one probe, which no request waits for")] = 1.0
    last_known_max_age_s: Annotated[
        float, Field(ge=0, description="since it was read, a row answers for a store that cannot be asked; 0: never")
    ] = 300.0
    last_known_entries: Annotated[int, Field(ge=1, description="rows held for that, least recently used go")] = 100_000
    last_known_bytes: Annotated[int, Field(ge=1024, description="memory that they take, about")] = 67_108_864


class SchemaSettings(_Group):
    """Where schemas and their ids come from."""

    folder: Path = Path("schemas")
    registry_url: str | None = None


class BatchingSettings(_Group):
    """When a micro-batch fires."""

    max_batch_size: Annotated[
        int, Field(ge=1, le=65_536, description="rows; the model's largest bucket bounds it too")
    ] = 2048
    window_ms: Annotated[float, Field(ge=0, le=1000, description="a cap, from the first record's arrival")] = 5.0
    max_queued_rows: Annotated[int, Field(ge=1, description="above it the partitions are paused")] = 32_768
    max_in_flight_batches: Annotated[int, Field(ge=1, description="micro-batches that await their acks")] = 16


class BudgetSettings(_Group):
    """The latency budget in ms, split by stage; reported always, enforced by deadlines."""

    ingest_ms: Annotated[float, Field(ge=0)] = 5.0
    queue_ms: Annotated[float, Field(ge=0)] = 5.0
    features_ms: Annotated[float, Field(ge=0)] = 5.0
    preprocess_ms: Annotated[float, Field(ge=0)] = 3.0
    inference_ms: Annotated[float, Field(ge=0)] = 20.0
    postprocess_ms: Annotated[float, Field(ge=0)] = 2.0
    emit_ms: Annotated[float, Field(ge=0)] = 5.0
    headroom_ms: Annotated[float, Field(ge=0)] = 55.0

    @property
    def total_ms(self) -> float:
        """Sum of all stages and the headroom."""
        return float(sum(self.model_dump().values()))


class ModelSettings(_Group):
    """Which models serve, from where, and on what."""

    repository: Annotated[str, Field(description="a folder, or any fsspec URL")] = ".sluice/models"
    cache: Annotated[Path, Field(description="bundles of a remote repository, by digest")] = Path(".sluice/model-cache")
    trust_store: Annotated[Path, Field(description="digests of bundles that may run code when loaded (.pt2)")] = Path(
        ".sluice/trusted-models.json"
    )
    name: Annotated[str, Field(description="the default model, when `serve` is not set")] = "flight_delays"
    version: Annotated[int | None, Field(description="of it; none: the newest one")] = None
    serve: Annotated[
        str, Field(description="models as name, name@latest:2, name@all or name@3+5; the first is the default one")
    ] = ""
    poll_s: Annotated[float, Field(gt=0, le=3600, description="between two looks at the repository")] = 5.0
    device: Annotated[
        str,
        Field(
            pattern=r"^(cpu|cuda(:\d+)?|auto)(,(cpu|cuda(:\d+)?))*$",
            description="where models run; a list, such as cuda:0,cuda:1: an instance of each model on each",
        ),
    ] = "cpu"
    on_device_lost: Annotated[
        Literal["cpu", "stop"], Field(description="cpu: go on there, flagged; stop: end, so that others take over")
    ] = "cpu"
    memory_mb: Annotated[
        float | None, Field(gt=0, description="of each device; the model used longest ago goes first; none: no limit")
    ] = None
    max_run_ms: Annotated[
        float, Field(gt=0, description="a warm batch of the smallest bucket that takes longer fails the load")
    ] = 100.0
    threads: Annotated[int, Field(ge=1, le=256, description="torch's intra-op threads")] = 1
    architectures: Annotated[str, Field(description="modules that register networks of yours, separated by commas")] = (
        ""
    )

    @property
    def architecture_modules(self) -> list[str]:
        """``architectures``, one by one."""
        return self.architectures.replace(",", " ").split()


class DeliverySettings(_Group):
    """What a failure may repeat, and when offsets are committed."""

    mode: Annotated[
        Literal["at_least_once", "exactly_once"],
        Field(description="exactly_once: answers and offsets in one transaction; read answers with read_committed"),
    ] = "at_least_once"
    transaction_max_ms: Annotated[
        float, Field(ge=1, le=10_000, description="exactly_once: an older transaction takes no more records")
    ] = 50.0
    transaction_max_records: Annotated[int, Field(ge=1, description="exactly_once: nor does one with so many")] = 10_000
    commit_interval_ms: Annotated[float, Field(ge=1, le=10_000, description="work that a kill -9 repeats")] = 100.0
    drain_timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    stall_after_s: Annotated[float, Field(gt=0, description="lag and no progress: unready; twice that: exit")] = 30.0
    poison_window: Annotated[int, Field(ge=1, description="the last records that the poison circuit looks at")] = 200
    poison_share: Annotated[
        float,
        Field(gt=0, le=1, description="more of them undecodable: nothing is read until a probe is good; 1: off"),
    ] = 0.5
    poison_open_s: Annotated[float, Field(gt=0, description="from opening to a probe")] = 30.0
    poison_probe_records: Annotated[int, Field(ge=1, description="records of a probe")] = 16
    remembered_answers: Annotated[
        int, Field(ge=0, le=10_000_000, description="the same request_id gets its answer again, marked x-duplicate")
    ] = 100_000
    remembered_s: Annotated[float, Field(gt=0, description="for how long")] = 600.0
    max_request_bytes: Annotated[int, Field(ge=1, description="a larger value is a dead letter")] = 1_048_576


class MonitorSettings(_Group):
    """Joining outcomes, windows, drift."""

    store: Path = Path(".sluice/monitor")
    window: Annotated[
        str, Field(pattern=r"^(month|week|day|hour|\d+s)$", description="tumbling, UTC event time; 900s: seconds")
    ] = "day"
    label_horizon_s: Annotated[float, Field(gt=0, description="an outcome later than this is an orphan")] = 7 * 86_400.0
    maturity_s: Annotated[float, Field(ge=0, description="a window is final this long after its end")] = 2 * 86_400.0
    allowed_lateness_s: Annotated[float, Field(ge=0)] = 3_600.0
    fetch_linger_ms: Annotated[
        float, Field(ge=0, le=5000, description="pause before each fetch: fewer, larger steps cost less")
    ] = 50.0
    idle_partition_s: Annotated[float, Field(gt=0, description="wall clock; then it holds no watermark")] = 10.0
    reports: Path = Path(".sluice/reports")
    report_sample_rows: Annotated[int, Field(ge=100, le=50_000, description="per side of an Evidently report")] = 5_000


class WebSettings(_Group):
    """The web views of every worker."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535, description="the next free one from here on")] = 6066
    allow_model_control: Annotated[
        bool, Field(description="POST /v2/repository/models/NAME/load and /unload, for whoever reaches the address")
    ] = False


class Settings(_Group):
    """All settings; ``load_settings`` makes one."""

    deployment: Annotated[
        str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$", description="start of group and transactional ids")
    ] = "sluice"
    data_dir: Path = Path(".sluice")
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    schemas: SchemaSettings = SchemaSettings()
    batching: BatchingSettings = BatchingSettings()
    budget: BudgetSettings = BudgetSettings()
    models: ModelSettings = ModelSettings()
    delivery: DeliverySettings = DeliverySettings()
    monitor: MonitorSettings = MonitorSettings()
    web: WebSettings = WebSettings()


def load_settings(
    overrides: dict[str, Any] | None = None,
    *,
    toml: Path = Path("sluice.toml"),
    environ: dict[str, str] | None = None,
) -> Settings:
    """Settings from file, environment and arguments.

    Args:
        overrides: nested like the tree, for example ``{"batching": {"window_ms": 2}}``; wins over all.
        toml: the file; a missing one counts as empty.
        environ: variables; none: the process's own.

    Raises:
        SettingsError: a key is unknown (the message names the nearest one) or a value does not fit.

    Example:
        >>> load_settings(environ={"SLUICE_BATCHING__WINDOW_MS": "2"}).batching.window_ms
        2.0

    """
    tree, origins = _merge_sources(overrides or {}, toml, dict(os.environ) if environ is None else environ)
    try:
        return Settings.model_validate(tree)
    except ValidationError as exc:
        raise SettingsError("\n".join(_explain(e, origins) for e in exc.errors())) from exc


def settings_origins(
    overrides: dict[str, Any] | None = None, *, toml: Path = Path("sluice.toml"), environ: dict[str, str] | None = None
) -> dict[str, str]:
    """Where each set value comes from, ``{"batching.window_ms": "environment SLUICE_BATCHING__WINDOW_MS"}``."""
    return _merge_sources(overrides or {}, toml, dict(os.environ) if environ is None else environ)[1]


def _merge_sources(
    overrides: dict[str, Any], toml: Path, environ: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if toml.exists():
        _put_all(tree, origins, _read_toml(toml), f"file {toml.name}")
    for variable, plain_path in PLAIN_VARIABLES.items():
        if environ.get(variable):
            _put(tree, origins, plain_path, environ[variable], f"environment {variable}")
    for variable, value in environ.items():
        if variable.startswith(PREFIX):
            path = tuple(variable.removeprefix(PREFIX).lower().split("__"))
            _put(tree, origins, path, value, f"environment {variable}")
    _put_all(tree, origins, overrides, "argument")
    return tree, origins


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as exc:
        msg = f"settings file {path.name} cannot be read as TOML: {exc}"
        raise SettingsError(msg) from exc


def _put_all(tree: dict[str, Any], origins: dict[str, str], source: dict[str, Any], origin: str) -> None:
    for key, value in source.items():
        if isinstance(value, dict):
            for inner, leaf in value.items():
                _put(tree, origins, (key, inner), leaf, origin)
        else:
            _put(tree, origins, (key,), value, origin)


def _put(tree: dict[str, Any], origins: dict[str, str], path: tuple[str, ...], value: object, origin: str) -> None:
    node = tree
    for part in path[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            msg = f"setting {'.'.join(path)} ({origin}): {part} is a value, not a group"
            raise SettingsError(msg)
        node = child
    node[path[-1]] = value
    origins[".".join(path)] = origin


def _explain(error: Any, origins: dict[str, str]) -> str:  # noqa: ANN401 - pydantic's own error dictionary
    path = ".".join(str(part) for part in error["loc"])
    origin = origins.get(path, "default")
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(path, _known_paths(), n=1, cutoff=0.0)[0]
        return f"setting {path} ({origin}) is unknown; did you mean {nearest}?"
    got = f", got {error['input']!r}" if path in _known_paths() and path not in SECRETS else ""
    return f"setting {path} ({origin}): {error['msg']}{got}"


def _known_paths() -> list[str]:
    paths = []
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, _Group):
            paths += [f"{name}.{key}" for key in group.model_fields]
        else:
            paths.append(name)
    return paths
