"""A model bundle on disk: a folder ``<repository>/<name>/<version>/`` whose every file is vouched for by its sha256."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from safetensors import SafetensorError

from app.errors import BundleError, DigestMismatch, UnsafeBundle
from app.models.spec import ModelSpec, parse_spec
from app.postprocess import Calibration

if TYPE_CHECKING:
    import pandas as pd
    import torch

SPEC, WEIGHTS, CALIBRATION, REFERENCE = "model.yaml", "weights.safetensors", "calibration.json", "reference.parquet"
MAX_SPEC_BYTES = 4 * 2**20
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".pt2"}
VERSION_PATTERN = re.compile(r"[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle.

    Attributes:
        folder: where it lies.
        spec: its ``model.yaml``.
        calibration: its calibration map.
        sha256: hex digest of ``model.yaml``, which names the digests of all other files: it stands for the bundle.
        preprocess_sha256: hex digest of the declared features and views.
        calibration_sha256: hex digest of the calibration.

    """

    folder: Path
    spec: ModelSpec
    calibration: Calibration
    sha256: str
    preprocess_sha256: str
    calibration_sha256: str

    @property
    def reference_path(self) -> Path:
        """The drift reference."""
        return self.folder / REFERENCE

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors by name, checked to be finite.

        Raises:
            BundleError: the file is no safetensors file, or a weight is NaN or infinite.

        """
        from safetensors.torch import load_file  # noqa: PLC0415 - brings torch; whoever only reads model.yaml is spared

        try:
            tensors: dict[str, torch.Tensor] = load_file(self.folder / WEIGHTS)
        except (SafetensorError, OSError) as exc:
            msg = f"{self.folder.name}/{WEIGHTS}: not a safetensors file ({exc}); pack the bundle again"
            raise BundleError(msg) from exc
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                msg = f"{self.folder.name}/{WEIGHTS}: {name} holds NaN or infinite numbers; train again"
                raise BundleError(msg)
        return tensors


def pack_bundle(
    repository: Path, spec: ModelSpec, module: torch.nn.Module, calibration: Calibration, reference: pd.DataFrame
) -> Path:
    """Write a bundle; complete or not at all.

    Args:
        repository: root folder of all models.
        spec: without digests; they are filled in.
        module: the trained network; its state goes into ``weights.safetensors``.
        calibration: fitted on data the network has not seen.
        reference: raw features as used, ``raw_score``, ``score`` and ``label``.

    Returns:
        The folder.

    Raises:
        BundleError: this version exists already; versions are never overwritten.

    """
    from safetensors.torch import save_file  # noqa: PLC0415 - see Bundle.weights

    target = repository / spec.name / str(spec.version)
    if target.exists():
        msg = f"{spec.name} version {spec.version} exists in {repository}; choose the next version"
        raise BundleError(msg)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{spec.version}-", dir=target.parent))
    try:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, draft / WEIGHTS)
        (draft / CALIBRATION).write_text(calibration.to_json())
        keys_only = [
            f.name for f in spec.features if not f.model_input
        ]  # a tail number is new every day: that is no drift
        reference.drop(columns=keys_only, errors="ignore").to_parquet(draft / REFERENCE, index=False)
        files = {name: _sha256(draft / name) for name in (WEIGHTS, CALIBRATION, REFERENCE)}
        document = spec.model_copy(update={"files": files}).model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump({"format": spec.format, **document}, sort_keys=False, allow_unicode=True)
        (draft / SPEC).write_text(text)
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target


def open_bundle(folder: Path) -> Bundle:
    """The bundle in ``folder``, every file checked against its digest.

    Raises:
        BundleError: the folder is no bundle; the message names the file and the field.
        DigestMismatch: a file is not the one that was packed.
        UnsafeBundle: it holds a pickle, or a link or name that leads out of it.

    """
    _refuse_unsafe(folder)
    spec, digest = _read_spec(folder)
    for needed in (WEIGHTS, CALIBRATION, REFERENCE):
        if needed not in spec.files:
            msg = f"{folder.name}/{SPEC}: files: no digest for {needed}; pack the bundle again"
            raise BundleError(msg)
    for name, expected in spec.files.items():
        _verify(folder, name, expected)
    try:
        calibration = Calibration.from_json((folder / CALIBRATION).read_text())
    except ValueError as exc:
        msg = f"{folder.name}/{CALIBRATION}: {exc}"
        raise BundleError(msg) from exc
    features = spec.model_dump(mode="json", include={"features", "views"})
    return Bundle(
        folder=folder,
        spec=spec,
        calibration=calibration,
        sha256=digest,
        preprocess_sha256=hashlib.sha256(json.dumps(features, sort_keys=True).encode()).hexdigest(),
        calibration_sha256=spec.files[CALIBRATION],
    )


def read_spec(folder: Path) -> ModelSpec:
    """The specification of a bundle, without looking at its other files.

    Raises:
        BundleError: there is none, or it does not hold together.

    """
    return _read_spec(folder)[0]


def all_specs(repository: Path) -> list[ModelSpec]:
    """The specification of every bundle, by name and version folder; empty when there is no repository.

    Raises:
        BundleError: one does not hold together.

    """
    return [read_spec(path.parent) for path in sorted(repository.glob("*/*/model.yaml"))] if repository.is_dir() else []


def versions(repository: Path, name: str) -> list[int]:
    """Version numbers of a model, increasing; empty when there are none."""
    folder = repository / name
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if VERSION_PATTERN.fullmatch(p.name) and p.is_dir())


def latest_version(repository: Path, name: str) -> int:
    """The newest version of a model.

    Raises:
        BundleError: there is none.

    """
    found = versions(repository, name)
    if not found:
        msg = f"no model {name} in {repository}; pack one there, or name another repository (SLUICE_MODELS__REPOSITORY)"
        raise BundleError(msg)
    return found[-1]


def _refuse_unsafe(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        msg = f"{folder}: no such bundle folder (links are not followed)"
        raise BundleError(msg)
    for path in folder.rglob("*"):
        if path.is_symlink():
            msg = f"{folder.name}/{path.name}: a link; a bundle holds plain files only"
            raise UnsafeBundle(msg)
        if path.suffix.lower() in PICKLES:
            msg = f"{folder.name}/{path.name}: pickles can run code when loaded; save the weights as safetensors"
            raise UnsafeBundle(msg)


def _read_spec(folder: Path) -> tuple[ModelSpec, str]:
    path = folder / SPEC
    if not path.is_file() or path.stat().st_size > MAX_SPEC_BYTES:
        msg = f"{folder}: no readable {SPEC} of at most {MAX_SPEC_BYTES} bytes"
        raise BundleError(msg)
    raw = path.read_bytes()
    try:
        document = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a date such as 2020-99-99 is a ValueError
        msg = f"{folder.name}/{SPEC}: not YAML: {exc}"
        raise BundleError(msg) from exc
    return parse_spec(document, origin=f"{folder.name}/{SPEC}"), hashlib.sha256(raw).hexdigest()


def _verify(folder: Path, name: str, expected: str) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        msg = f"{folder.name}/{SPEC}: files: {name} lies outside the bundle"
        raise UnsafeBundle(msg)
    if not path.is_file():
        msg = f"{folder.name}/{name}: missing; copy the bundle again"
        raise BundleError(msg)
    if _sha256(path) != expected:
        msg = f"{folder.name}/{name}: its sha256 is not the one in {SPEC}; copy or pack the bundle again"
        raise DigestMismatch(msg)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
