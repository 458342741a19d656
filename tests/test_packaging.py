"""What is shipped beside the code: lock files, wheel, Makefile, image, compose file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from app.settings import load_settings

ROOT = Path(__file__).parents[1]
ROOMS = ("app", "schemas", "agents", "monitors")
LOCKS = ("requirements.lock", "requirements-bench.lock", "requirements-uv.lock", "deploy/requirements.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
WORKERS = ("topics", "scoring", "monitor")


def _pins(lock: str) -> dict[str, list[Requirement]]:
    """Requirements of a lock file by name; a name repeats when its version depends on the Python version."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\"))
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def _version(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    return Version(specifier.version)


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_pin_every_file_by_digest_and_name_no_index(lock: str) -> None:
    """A lock holds exact versions and sha256 digests, and leaves the choice of the registry to the machine."""
    text = (ROOT / lock).read_text()
    assert not re.search(r"://|^\s*--?(index|extra-index|find-links|i |f )", text, re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        head, *digests = entry.split("\\\n")
        assert re.match(r"[a-z0-9.-]+(\[[a-z,]+\])?==[^ ]+( ; .+)? $", head), head
        assert digests, f"{head} has no digest"
        assert all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64} ?", digest) for digest in digests), head


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("requirements.lock", ("demo", "dev")), ("requirements-bench.lock", ("bench",)), ("deploy/requirements.lock", ())],
)
def test_locks_satisfy_what_the_project_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    """Every declared requirement is in its lock, in a version that fits; if not, `make lock` was forgotten."""
    asked = [*PROJECT["dependencies"]]
    for extra in extras:
        asked += PROJECT["optional-dependencies"][extra]
    pins = _pins(lock)
    for requirement in map(Requirement, asked):
        locked = pins.get(canonicalize_name(requirement.name), [])
        assert locked, f"{requirement.name} is missing in {lock}; run make lock"
        for pin in locked:
            assert requirement.specifier.contains(_version(pin)), f"{lock} has {pin}, asked for {requirement}"


@pytest.mark.parametrize("lock", ["requirements-bench.lock", "deploy/requirements.lock"])
def test_locks_agree_with_one_another(lock: str) -> None:
    """A package that stands in two locks has one version, so that peers install beside the service unharmed."""
    main = _pins("requirements.lock")
    for name, pins in _pins(lock).items():
        if name in main:
            assert {_version(pin) for pin in pins} == {_version(pin) for pin in main[name]}, name


def test_the_running_interpreter_has_what_the_lock_says() -> None:
    """The tests judge the versions that are locked: torch, faust and numpy are those of the lock."""
    for name in ("torch", "faust-streaming", "aiokafka", "numpy"):
        (pin,) = [p for p in _pins("requirements.lock")[name] if not p.marker or p.marker.evaluate()]
        assert Version(Version(version(name)).public) == _version(pin)


def test_the_wheel_carries_schemas_and_pages(tmp_path: Path) -> None:
    """A wheel built from the tree holds every module, schema, page and license, and the console script."""
    for name in (*ROOMS, "pyproject.toml", "LICENSE", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    build = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as wheel:
        inside = set(wheel.namelist())
        scripts = wheel.read(next(name for name in inside if name.endswith("entry_points.txt"))).decode()
    shipped = {
        str(path.relative_to(tmp_path))
        for room in ROOMS
        for path in (tmp_path / room).rglob("*")
        if path.is_file() and path.suffix in {".py", ".avsc", ".html", ".js", ".css", ".svg", ".toml", ".properties"}
    }
    assert shipped <= inside, sorted(shipped - inside)
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert "sluice = app.cli:main" in scripts


def test_make_help_names_every_target() -> None:
    """`make help` prints a line for each target that a person may call."""
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    for target in targets[1].split():
        assert re.search(rf"^  make {target} +\S", done.stdout, re.MULTILINE), target


def test_make_uses_the_uv_that_is_pinned() -> None:
    """The series of uv that the Makefile accepts from the PATH is that of the pinned one."""
    series = re.search(r"^UV_SERIES := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert series
    (pin,) = _pins("requirements-uv.lock")["uv"]
    assert ".".join(str(_version(pin)).split(".")[:2]) == series[1]


def test_ci_script_is_a_program_that_parses() -> None:
    """The check of a clean checkout can be run, and bash finds no fault in its grammar."""
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)


def _instructions(keyword: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(keyword).strip() for line in joined.splitlines() if line.startswith(keyword + " ")]


def test_the_image_copies_what_exists_and_what_is_let_in() -> None:
    """Each COPY names a path that is in the tree and that .dockerignore does not keep out."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [word for copy in _instructions("COPY") if "--from" not in copy for word in copy.split()[:-1]]
    assert set(ROOMS) <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in let_in, f".dockerignore keeps {source} out"


def test_the_image_runs_as_nobody_special_with_real_settings() -> None:
    """The image leaves root behind, and each SLUICE_ variable that it sets is a setting."""
    assert _instructions("USER") == ["sluice"]
    environ = dict(word.split("=", 1) for line in _instructions("ENV") for word in line.split())
    settings = load_settings(environ=environ, toml=Path("no-such-file.toml"))
    assert settings.web.host == "0.0.0.0"
    assert settings.models.repository == "/var/lib/sluice/models"


def _environment(service: str) -> dict[str, str]:
    environment: dict[str, str] = COMPOSE["services"][service]["environment"]
    return environment


@pytest.mark.parametrize("service", WORKERS)
def test_compose_variables_are_settings(service: str) -> None:
    """The workers' variables load as settings and lead to the compose file's own broker and store."""
    settings = load_settings(environ=_environment(service), toml=Path("no-such-file.toml"))
    assert settings.kafka.bootstrap_servers == "kafka:19092"
    assert settings.redis.url.startswith("redis://store:")
    assert settings.kafka.partitions == 12


@pytest.mark.parametrize("service", WORKERS)
def test_compose_commands_are_commands(service: str) -> None:
    """Each word of a worker's command is one that the command line offers."""
    words: list[str] = []
    for word in COMPOSE["services"][service]["command"]:
        command = [sys.executable, "-m", "app.cli", *words, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert re.search(rf"\b{word}\b", done.stdout), f"{' '.join(command[2:])} does not offer {word}"
        words.append(word)


def test_compose_services_fit_together() -> None:
    """Dependencies, conditions, volumes and ports of the compose file refer to things that exist."""
    services: dict[str, dict[str, Any]] = COMPOSE["services"]
    for name, service in services.items():
        assert service.get("restart") == ("on-failure" if name == "topics" else "always"), name
        assert {"image", "build"} & set(service), name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, needed
            finishes = services[needed]["restart"] == "on-failure"
            assert how["condition"] == ("service_completed_successfully" if finishes else "service_healthy")
            assert finishes or "healthcheck" in services[needed] or "build" in services[needed]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} answers beyond this machine: {port}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source.startswith(("$", ".")) or source in COMPOSE["volumes"], volume
    grace_s = float(services["scoring"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > load_settings(environ={}, toml=Path("no-such-file.toml")).delivery.drain_timeout_s


def test_compose_runs_the_kafka_that_is_embedded() -> None:
    """The broker in compose has the version of the embedded one, so that both behave alike."""
    spec = tomllib.loads((ROOT / "app/embedded/jgo.toml").read_text())
    (kafka,) = [c.split(":")[2] for c in spec["dependencies"]["coordinates"] if c.startswith("org.apache.kafka:")]
    assert COMPOSE["services"]["kafka"]["image"] == f"apache/kafka:{kafka}"
