"""Parity: rows from training go through the serving path when a bundle is packed, and again wherever it is verified.

Pack compares the network as it was trained, called on all rows at once, with the bundle as it is served, in padded
buckets, and keeps rows and results in ``parity.parquet``. ``sluice model verify`` repeats the second half anywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from app.errors import BundleError
from app.models.precision import scores_error
from app.models.runtime import ScoringModel
from app.postprocess import Postprocessor
from app.preprocess import Preprocessor

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from app.models.bundle import Bundle
    from app.models.spec import ModelSpec
    from app.preprocess import Inputs
    from schemas.columns import Column

PARITY_TOLERANCE = 1e-5
"""Largest difference of a score: what summing in another order does to float32, and a tenth of what a person sees."""
PARITY_ROWS = 64
"""Rows that are kept; a difference in preprocessing shows in the first few."""
PRECISION_ROWS = 8192
"""Rows that the error of a narrow precision is measured on; the largest error hardly grows with more."""
SCORE, LOGIT = "result.score", "result.logit_"
"""Columns beside the features, whose names have no dot."""
FACTS = b"sluice_parity"


@dataclasses.dataclass(frozen=True, slots=True)
class ParityReport:
    """What a replay came to.

    Attributes:
        rows: that were replayed.
        are_inputs_equal: the network was given the very same bits as when the bundle was packed.
        logit_difference: the largest, relative to the recorded one where that is above 1.
        score_difference: likewise.
        tolerance: what the scores may differ.
        packed_with: the libraries that made the record, for example ``torch 2.13.0, numpy 2.4.6``.
        replayed_with: those of this process.

    """

    rows: int
    are_inputs_equal: bool
    logit_difference: float
    score_difference: float
    tolerance: float
    packed_with: str
    replayed_with: str

    @property
    def is_bit_equal(self) -> bool:
        """Inputs, logits and scores are the same bits; expected of the same libraries on the same kind of processor."""
        return self.are_inputs_equal and self.logit_difference == 0 and self.score_difference == 0

    @property
    def is_within(self) -> bool:
        """The scores are the same as far as matters."""
        return self.score_difference <= self.tolerance


@dataclasses.dataclass(frozen=True, slots=True)
class _Record:
    """What ``parity.parquet`` holds: raw features, digest of the inputs, logits (n,) or (n, m), scores (n,)."""

    rows: pd.DataFrame
    inputs_sha256: str
    logits: NDArray[np.float32]
    score: NDArray[np.float64]
    libraries: str


def missing_columns(spec: ModelSpec, frame: pd.DataFrame) -> list[str]:
    """Model inputs that a frame lacks.

    Returns:
        Names of features, in the order of the signature.

    """
    return [f.name for f in spec.features if f.model_input and f.name not in frame.columns]


def record_parity(bundle: Bundle, module: torch.nn.Module | None, sample: pd.DataFrame, path: Path) -> None:
    """Compare training and serving on some rows, and keep rows and results.

    Args:
        bundle: the draft that is being packed.
        module: the network as trained; None: there is only the bundle, so nothing is compared.
        sample: raw features, at least one row; the first 64 count.
        path: file to write.

    Raises:
        BundleError: scores differ by more than 1e-5, or a row has no finite logit.

    """
    rows = sample[[f.name for f in bundle.spec.features if f.model_input]].head(PARITY_ROWS).reset_index(drop=True)
    preprocessor = Preprocessor(bundle.spec, bundle.folder)
    trained = preprocessor.transform(preprocessor.from_frame(rows))
    kept = pq.read_table(_parquet(rows)).to_pandas()
    served = preprocessor.transform(preprocessor.from_frame(kept))
    if inputs_digest(trained) != inputs_digest(served):
        msg = "sample: its rows are others when read back from Parquet; give times as int64 micros, categories as text"
        raise BundleError(msg)
    model = ScoringModel(bundle, "cpu")
    logits = _predict(model, served)
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits.reshape(len(logits), -1)).all(axis=1))[0])
        msg = f"sample: row {row} has no finite logit; scale its features, or train again"
        raise BundleError(msg)
    if module is not None:
        exact = _in_fp32(bundle, model)
        _refuse_difference(bundle, _predict(exact, served), _as_trained(module, trained))
    score = Postprocessor(bundle.spec.output, bundle.calibration).apply(logits).score
    path.write_bytes(_table(kept, logits, score, inputs_digest(served)))


def precision_error(bundle: Bundle, sample: pd.DataFrame) -> float:
    """The largest difference that bf16 or fp16 makes to an output of some rows, in units of the score.

    Raises:
        BundleError: a logit is not finite in that precision.

    """
    model = ScoringModel(bundle, "cpu")
    rows = sample.head(PRECISION_ROWS).reset_index(drop=True)
    inputs = model.preprocessor.transform(model.preprocessor.from_frame(rows))
    error = scores_error(_in_fp32(bundle, model), model, inputs)
    if not np.isfinite(error):
        msg = f"precision: in {bundle.spec.precision} a logit is not finite; choose bf16 or fp32, or scale the features"
        raise BundleError(msg)
    return error


def replay_parity(bundle: Bundle, device: str = "cpu") -> ParityReport:
    """Put the kept rows through the serving path again.

    Args:
        bundle: verified; it has a ``parity.parquet``.
        device: where the network runs.

    Raises:
        BundleError: it was packed without rows, or cannot be loaded here.

    """
    record = _read_record(bundle)
    model = ScoringModel(bundle, device)
    inputs = model.preprocessor.transform(model.preprocessor.from_frame(record.rows))
    logits = _predict(model, inputs)
    # The score of record is the bundle's own calibration's, whatever calibration is live today.
    score = Postprocessor(bundle.spec.output, bundle.calibration).apply(logits).score
    return ParityReport(
        rows=len(record.rows),
        are_inputs_equal=inputs_digest(inputs) == record.inputs_sha256,
        logit_difference=difference(logits, record.logits),
        score_difference=difference(score, record.score),
        tolerance=PARITY_TOLERANCE + (bundle.spec.precision_error or 0.0),
        packed_with=record.libraries,
        replayed_with=_libraries(),
    )


def parity_columns(bundle: Bundle) -> dict[str, Column] | None:
    """The kept rows as columns by feature, to warm up with when no request was recorded; None: there are none."""
    if bundle.parity_path is None:
        return None
    return Preprocessor(bundle.spec, bundle.folder).from_frame(_read_record(bundle).rows)


def inputs_digest(inputs: Inputs) -> str:
    """Hex sha256 of names, types, shapes and bits of a network's inputs.

    Example:
        >>> inputs_digest({"numbers": np.zeros((1, 2), np.float32)})[:16]
        '0a62f6e620ff5ce3'

    """
    digest = hashlib.sha256()
    for name in sorted(inputs):
        array = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def difference(these: NDArray[Any], those: NDArray[Any]) -> float:
    """The largest difference, relative where numbers are above 1; infinite where one is no number or shapes differ.

    Example:
        >>> difference(np.array([0.5, 1010.0]), np.array([0.5, 1000.0]))
        0.01

    """
    if these.shape != those.shape or not (np.isfinite(these).all() and np.isfinite(those).all()):
        return float("inf")
    these, those = these.astype(np.float64), those.astype(np.float64)
    return float(np.max(np.abs(these - those) / np.maximum(1.0, np.abs(those)), initial=0.0))


def _refuse_difference(bundle: Bundle, served: NDArray[np.float32], trained: NDArray[np.float32]) -> None:
    postprocessor = Postprocessor(bundle.spec.output, bundle.calibration)
    found = difference(postprocessor.apply(served).outputs, postprocessor.apply(trained).outputs)
    if found > PARITY_TOLERANCE:
        msg = (
            f"scores as served differ from those as trained by {found:.3g}, at most {PARITY_TOLERANCE:g}: the network "
            "must give a row the same score whatever rows stand beside it (eval mode, no statistics over the batch)"
        )
        raise BundleError(msg)


def _as_trained(module: torch.nn.Module, inputs: Inputs) -> NDArray[np.float32]:
    """Logits of the network as it left training, on all rows at once, unpadded."""
    was_training = module.training
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}
            logits: NDArray[np.float32] = module.eval()(**tensors).float().cpu().numpy()
            return logits
    finally:
        module.train(was_training)


def _in_fp32(bundle: Bundle, model: ScoringModel) -> ScoringModel:
    if bundle.spec.precision == "fp32":
        return model
    spec = bundle.spec.model_copy(update={"precision": "fp32", "precision_error": None})
    return ScoringModel(dataclasses.replace(bundle, spec=spec), "cpu")


def _predict(model: ScoringModel, inputs: Inputs) -> NDArray[np.float32]:
    """Logits as served: in batches of at most the largest bucket, each padded to one."""
    step = model.spec.buckets[-1]
    count = len(inputs["numbers"])
    pieces = [
        model.predict({name: array[at : at + step] for name, array in inputs.items()})[0]
        for at in range(0, count, step)
    ]
    return np.concatenate(pieces)


def _libraries() -> str:
    return f"torch {torch.__version__}, numpy {np.__version__}"


def _parquet(frame: pd.DataFrame) -> io.BytesIO:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    buffer.seek(0)
    return buffer


def _table(rows: pd.DataFrame, logits: NDArray[np.float32], score: NDArray[np.float64], inputs_sha256: str) -> bytes:
    by_output = logits.reshape(len(logits), -1)
    results = {f"{LOGIT}{i}": by_output[:, i] for i in range(by_output.shape[1])}
    table = pa.Table.from_pandas(rows.assign(**results, **{SCORE: score}), preserve_index=False)
    facts = {"inputs_sha256": inputs_sha256, "libraries": _libraries(), "is_flat": logits.ndim == 1}
    table = table.replace_schema_metadata({**table.schema.metadata, FACTS: json.dumps(facts, sort_keys=True)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _read_record(bundle: Bundle) -> _Record:
    path = bundle.parity_path
    if path is None:
        msg = (
            f"{bundle.spec.name} version {bundle.spec.version}: packed without rows to replay; pack the next version "
            "with a sample, or with a reference that has all features"
        )
        raise BundleError(msg)
    try:
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[FACTS])
        frame = table.to_pandas()
        logits = frame[[name for name in frame.columns if name.startswith(LOGIT)]].to_numpy(np.float32)
        return _Record(
            rows=frame[[name for name in frame.columns if "." not in name]],
            inputs_sha256=facts["inputs_sha256"],
            logits=logits[:, 0] if facts["is_flat"] else logits,
            score=frame[SCORE].to_numpy(np.float64),
            libraries=facts["libraries"],
        )
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as exc:
        msg = f"{path.parent.name}/{path.name}: not what pack writes ({exc}); pack the next version"
        raise BundleError(msg) from exc
