"""What numbers of half the width do to the scores of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from app.postprocess import Postprocessor

if TYPE_CHECKING:
    from app.models.runtime import ScoringModel
    from app.preprocess import Inputs


def scores_error(exact: ScoringModel, narrow: ScoringModel, inputs: Inputs) -> float:
    """The largest absolute difference of a calibrated output between two precisions of one model.

    Args:
        exact: computes in fp32.
        narrow: computes in bf16 or fp16.
        inputs: n rows, n >= 1, as many as you like.

    Returns:
        In units of the score; infinite when the narrow one gives a logit that is not finite.

    """
    rows, step = len(inputs["numbers"]), exact.spec.buckets[-1]
    postprocess = Postprocessor(exact.spec.output, exact.bundle.calibration)
    largest = 0.0
    for start in range(0, rows, step):
        piece = {name: array[start : start + step] for name, array in inputs.items()}
        logits = narrow.predict(piece)[0]
        if not np.isfinite(logits).all():
            return float("inf")
        wide = postprocess.apply(exact.predict(piece)[0]).outputs
        largest = max(largest, float(np.abs(postprocess.apply(logits).outputs - wide).max()))
    return largest
