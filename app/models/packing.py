"""Writing a bundle: complete, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from app.errors import BundleError
from app.models.bundle_files import CALIBRATION, REFERENCE, SPEC, WEIGHTS, sha256_of

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from app.calibration import Calibration
    from app.models.spec import ModelSpec


class _PlainDumper(yaml.SafeDumper):
    """Writes a value that stands twice out twice: readers refuse aliases."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


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
        files = {name: sha256_of(draft / name) for name in (WEIGHTS, CALIBRATION, REFERENCE)}
        document = spec.model_copy(update={"files": files}).model_dump(mode="json", exclude_defaults=True)
        text = yaml.dump({"format": spec.format, **document}, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
        (draft / SPEC).write_text(text)
        draft.chmod(0o755)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target
