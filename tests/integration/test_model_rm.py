"""``sluice model rm`` looks up the labels on a real broker: what a label points to is not removed by mistake."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from agents.control import send_wishes
from app import model_commands
from app.errors import BundleError
from app.models.control import Wish, encode, of_label
from app.settings import KafkaSettings, Settings
from tests.integration.kafka_client import KafkaClient
from tests.samples import pack_sample, sample_spec

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


def test_a_labelled_version_stays_until_one_is_sure(
    tmp_path: Path, bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version goes without asking; after the label has moved on, so does this one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", bootstrap_servers)
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=bootstrap_servers))
    root = tmp_path / ".sluice" / "models"
    for version in (1, 2, 3):
        pack_sample(root, sample_spec(version=version))
    with KafkaClient(bootstrap_servers) as client:
        client.fresh_topics(settings)
    _label(settings, 1)
    assert _rm(2) == 0
    with pytest.raises(BundleError, match="sample version 1 was not removed: label stable points to it; add --yes"):
        _rm(1)
    _label(settings, 3)
    assert _rm(1) == 0
    assert [path.name for path in (root / "sample").iterdir()] == ["3"]


def _label(settings: Settings, version: int) -> None:
    asyncio.run(send_wishes(settings.kafka, [encode(of_label("sample", "stable"), Wish(version))]))


def _rm(version: int) -> int:
    result = CliRunner().invoke(model_commands.cli, ["rm", "sample", str(version)])
    if isinstance(result.exception, BundleError):
        raise result.exception
    return result.exit_code
