"""Bad bundles dropped into the repository of a worker under load: the old version answers on, and everybody is told."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from app import model_control_commands
from app.models.bundle_files import WEIGHTS
from tests.integration.delays_service import MODEL, Deployment, Service, model_spec, pack_model, running_service
from tests.integration.request_load import RequestLoad, message
from tests.integration.worker_process import until
from tests.spoilt_bundles import SPOILT, half_copy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.worker_process import WorkerProcess

pytestmark = pytest.mark.integration
CLI = typer.Typer()
model_control_commands.register(CLI)
BAD = dict(enumerate(SPOILT, start=2))
"""How each version after the first is spoilt."""
ASKED_FOR = ("corrupt", "half copied", "not trusted", "infinite answers", "too slow")
"""Those that an operator also asks for by command, which takes a second each."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, bootstrap_servers: str, redis_url: str) -> Iterator[Service]:
    """Fresh topics; a repository that the worker looks at five times a second."""
    often = {"SLUICE_MODELS__POLL_S": "0.2"}
    folder = tmp_path_factory.mktemp("refusals")
    with running_service("refusals", folder, bootstrap_servers, redis_url, environment=often) as service:
        yield service


def pack_aside(deployment: Deployment, version: int) -> Path:
    """A good bundle of a version, outside the repository."""
    spec = model_spec().model_copy(update={"version": version})
    return pack_model(deployment.folder / "aside", spec).folder


def drop(deployment: Deployment, folder: Path) -> Path:
    """Copy a bundle into the repository."""
    return Path(shutil.copytree(folder, deployment.folder / "models" / MODEL / folder.name, symlinks=True))


def states(worker: WorkerProcess) -> dict[int, dict[str, Any]]:
    """What the worker says of each version."""
    return {row["version"]: row for row in worker.figures()["models"]["versions"]}


def test_bad_bundles_under_load(service: Service) -> None:
    """Every answer is the old version's; the reason is in /stats, once in the log, and in the answer of `load`."""
    deployment, worker = service.deployment, service.worker
    with RequestLoad(deployment, partial(message, deployment)) as load:
        load.wait_for(100)
        for version, name in BAD.items():
            folder = pack_aside(deployment, version)
            SPOILT[name][0](folder)
            drop(deployment, folder)
        until(lambda: all(states(worker).get(v, {}).get("state") == "FAILED" for v in BAD), "all of them refused")
        load.wait_for(200)
        rows, log = states(worker), worker.log()
        for version, name in BAD.items():
            assert re.search(SPOILT[name][1], rows[version]["reason"]), (name, rows[version])
            assert log.count(f"{MODEL} version {version} is not loaded: {rows[version]['reason']}") == 1, name
        assert (rows[1]["state"], rows[1]["labels"]) == ("READY", ["champion"])
        for version, name in BAD.items():
            if name in ASKED_FOR:
                check_load_is_refused(deployment, version, SPOILT[name][1])
        assert worker.get("/v2/health/ready").status_code == 200
    load.check_complete()
    assert {(row["model_version"], row["status"]) for row in load.rows()} <= {(1, "OK"), (1, "DEGRADED")}


def check_load_is_refused(deployment: Deployment, version: int, reason: str) -> None:
    """What an operator is told who asks for it."""
    done = CliRunner(env=deployment.variables).invoke(CLI, ["load", MODEL, str(version)])
    assert done.exit_code == model_control_commands.EXIT_FAILED, done.output
    assert "FAILED" in done.stdout
    assert re.search(reason, done.stdout), done.output


def test_a_copy_that_arrives_in_halves_under_load(service: Service) -> None:
    """Refused while it is half there; once it is whole it takes over, in every partition once and for good."""
    deployment, worker, version = service.deployment, service.worker, max(BAD) + 1
    with RequestLoad(deployment, partial(message, deployment)) as load:
        load.wait_for(100)
        whole = pack_aside(deployment, version)
        half = Path(shutil.copytree(whole, deployment.folder / "half" / whole.name))
        half_copy(half)
        arrived = drop(deployment, half)
        until(lambda: states(worker).get(version, {}).get("state") == "FAILED", "the half refused")
        load.wait_for(100)
        shutil.copy(whole / WEIGHTS, arrived)
        until(lambda: states(worker)[version]["state"] == "READY", "the whole ready")
        load.wait_for(100)
    load.check_complete()
    for rows in load.answers().values():
        versions = [row["model_version"] for row in rows]
        assert versions == sorted(versions), "no answer of the old version after one of the new"
        assert {versions[0], versions[-1]} == {1, version}
