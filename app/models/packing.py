"""Writing a bundle: complete, checked against training, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import yaml

from app.errors import BundleError
from app.models.archive import strip_archive
from app.models.bundle import Bundle, preprocess_digest
from app.models.bundle_files import CALIBRATION, EXPORTED, PARITY, REFERENCE, SPEC, WEIGHTS, sha256_of
from app.postprocess import check_calibration
from app.threshold import best_threshold_for_cost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from torch import nn

    from app.calibration import Calibration
    from app.models.spec import ModelSpec


class Costs(NamedTuple):
    """What wrong decisions cost, in any unit.

    Attributes:
        false_positive: to decide for the second label when the first was right.
        false_negative: the other way round.

    """

    false_positive: float
    false_negative: float


def pack_bundle(  # noqa: PLR0913 - one argument a part of the bundle
    repository: Path,
    spec: ModelSpec,
    module: nn.Module | Path | None,
    calibration: Calibration,
    reference: pd.DataFrame | None = None,
    *,
    sample: pd.DataFrame | None = None,
    tokenizers: Mapping[str, Path] | None = None,
    exported: Path | None = None,
    costs: Costs | None = None,
) -> Path:
    """Write a bundle, after rows from training gave the same scores as served; complete or not at all.

    Args:
        repository: root folder of all models.
        spec: without digests; they are filled in.
        module: the trained network, whose state goes into ``weights.safetensors``, or a safetensors file of it. With
            ``exported``: what the program was made from, to compare with, or None.
        calibration: fitted on data the network has not seen.
        reference: raw features as used, ``raw_score``, ``score`` and ``label``; None: no drift is judged of this
            version.
        sample: raw features of training rows for the parity check; None: the first rows of ``reference``, when it has
            all model inputs.
        tokenizers: file of each tokenizer that text features name.
        costs: what wrong decisions cost; the threshold is chosen so that they cost least on ``reference``. None: the
            threshold of ``spec`` stays.
        exported: the program of ``torch.export`` when ``spec.weights`` is pt2; its example inputs are left out.

    Returns:
        The folder.

    Raises:
        BundleError: this version exists already (versions are never overwritten), parts do not fit together, or
            training and serving give different scores.
        UnsafeBundle: the exported program holds pickles.

    """
    target = repository / spec.name / str(spec.version)
    _refuse_existing(target, repository, spec)
    _check_parts(spec, calibration, module, exported, set(tokenizers or {}))
    if costs is not None:
        spec = _with_cheapest_threshold(spec, reference, costs)
    with _draft_of(target) as draft:
        _write_network(draft, module, exported)
        (draft / CALIBRATION).write_text(calibration.to_json())
        for name, path in (tokenizers or {}).items():
            shutil.copyfile(path, draft / name)
        if reference is not None:
            _write_reference(draft, spec, reference)
        bundle = _draft_bundle(draft, spec, calibration)
        spec = _check_parity(bundle, module, _sample_of(spec, sample, reference))
        (draft / SPEC).write_text(_yaml(spec.model_copy(update={"files": _digests(draft)})))
        draft.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:  # somebody was faster
            _refuse_existing(target, repository, spec)
            raise
    return target


def _refuse_existing(target: Path, repository: Path, spec: ModelSpec) -> None:
    if target.exists():
        msg = f"{spec.name} version {spec.version} exists in {repository}; choose the next version"
        raise BundleError(msg)


def _with_cheapest_threshold(spec: ModelSpec, reference: pd.DataFrame | None, costs: Costs) -> ModelSpec:
    if spec.output.kind != "sigmoid" or len(spec.output.output_names) != 1:
        msg = "costs: they choose the threshold of one sigmoid output; set `thresholds` of others in the specification"
        raise BundleError(msg)
    if reference is None or not {"score", "label"} <= set(reference.columns):
        msg = "costs: the threshold is chosen on `reference`, which needs the columns score and label"
        raise BundleError(msg)
    scores, labels = (reference[name].to_numpy(np.float64) for name in ("score", "label"))
    try:
        threshold, _ = best_threshold_for_cost(scores, labels, **costs._asdict())
    except ValueError as exc:
        msg = f"costs: {exc}"
        raise BundleError(msg) from exc
    output = spec.output.model_copy(update={"threshold": min(threshold, 1.0)})
    return spec.model_copy(update={"output": output})


def _check_parts(
    spec: ModelSpec,
    calibration: Calibration,
    module: nn.Module | Path | None,
    exported: Path | None,
    tokenizers: set[str],
) -> None:
    if (spec.weights == "pt2") != (exported is not None):
        msg = f"weights: {spec.weights} is declared; give an exported program with pt2, and only then"
        raise BundleError(msg)
    if module is None and exported is None:
        msg = "weights: safetensors is declared; give the trained module, or its safetensors file"
        raise BundleError(msg)
    if tokenizers != set(spec.tokenizer_files()):
        wanted = ", ".join(spec.tokenizer_files()) or "none"
        msg = f"tokenizers: the features name {wanted}; given: {', '.join(sorted(tokenizers)) or 'none'}"
        raise BundleError(msg)
    check_calibration(spec.output, calibration)


@contextmanager
def _draft_of(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards unless it was renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_network(draft: Path, module: nn.Module | Path | None, exported: Path | None) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415 - brings torch; a command that packs nothing is spared it

    from app.models.weights import mapped_weights  # noqa: PLC0415 - likewise

    if exported is not None:
        strip_archive(exported, draft / EXPORTED)
    elif isinstance(module, Path):
        mapped_weights(module)  # what is none is refused under the name that the person knows
        shutil.copyfile(module, draft / WEIGHTS)
    elif module is not None:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, draft / WEIGHTS)


def _write_reference(draft: Path, spec: ModelSpec, reference: pd.DataFrame) -> None:
    # A tail number is new every day, and so is a text: that is no drift.
    left_out = [f.name for f in spec.features if not f.model_input or f.type == "text"]
    reference.drop(columns=left_out, errors="ignore").to_parquet(draft / REFERENCE, index=False)


def _draft_bundle(draft: Path, spec: ModelSpec, calibration: Calibration) -> Bundle:
    """The draft as the serving path takes it; its digests come last, since parity is one of its files."""
    return Bundle(
        folder=draft,
        spec=spec,
        calibration=calibration,
        sha256="",
        preprocess_sha256=preprocess_digest(spec),
        calibration_sha256="",
        is_trusted=True,  # whoever packs a program has made or chosen it
    )


def _sample_of(spec: ModelSpec, sample: pd.DataFrame | None, reference: pd.DataFrame | None) -> pd.DataFrame | None:
    from app.models.parity import missing_columns  # noqa: PLC0415 - brings torch, see above

    if sample is not None:
        missing = missing_columns(spec, sample)
        if missing or sample.empty:
            msg = f"sample: {'lacks ' + ', '.join(missing) if missing else 'has no row'}; give rows with all features"
            raise BundleError(msg)
        return sample
    has_all = reference is not None and not reference.empty and not missing_columns(spec, reference)
    return reference if has_all else None


def _check_parity(bundle: Bundle, module: nn.Module | Path | None, sample: pd.DataFrame | None) -> ModelSpec:
    """The specification, completed by what the check measured."""
    from app.models.parity import precision_error, record_parity  # noqa: PLC0415 - brings torch, see above
    from app.models.runtime import ScoringModel  # noqa: PLC0415 - likewise

    trained = None if isinstance(module, Path) else module
    if sample is None:
        if trained is None:
            ScoringModel(bundle, "cpu")  # a file from elsewhere: whether it fits what is declared shows now
        return bundle.spec
    record_parity(bundle, trained, sample, bundle.folder / PARITY)
    if bundle.spec.precision == "fp32":
        return bundle.spec
    return bundle.spec.model_copy(update={"precision_error": precision_error(bundle, sample)})


def _digests(draft: Path) -> dict[str, str]:
    """Those of all files, the network's first."""
    fixed = [WEIGHTS, EXPORTED, CALIBRATION, REFERENCE, PARITY]
    order = {name: place for place, name in enumerate(fixed)}
    names = sorted((path.name for path in draft.iterdir()), key=lambda name: (order.get(name, len(order)), name))
    return {name: sha256_of(draft / name) for name in names}


class _PlainDumper(yaml.SafeDumper):
    """Writes a value that stands twice out twice: readers refuse aliases."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _yaml(spec: ModelSpec) -> str:
    document = spec.model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.dump({"format": spec.format, **document}, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    return text
