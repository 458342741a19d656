"""The proof: what the stream did equals what an offline run does, feature by feature and bit by bit.

Read back from `predictions-log`: the features as used must equal those that `simulate` computes from the raw files, and
the scores must equal the same bundle's, run offline in the logged batch bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from examples.evidence import rescored

from .model import request_frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.bundle import Bundle

STORE_NOT_HAD = "d"


@dataclass(frozen=True, slots=True)
class Verification:
    """What the comparison found; all ``*_wrong`` are request ids, empty when the stream is proven right.

    Attributes:
        prediction_count: records of the log.
        bucket_counts: rows for each logged batch bucket.
        store_not_had_count: rows that fell back because the store did not answer in time; their features are not
            compared with the simulation, their scores are.
        features_wrong: a feature differs from the offline simulation.
        scores_wrong: the score differs, in any bit, from the offline run in the same bucket.
        answers_wrong: the answer on `scores` differs from the log, or one of the two is missing.

    """

    prediction_count: int
    bucket_counts: dict[int, int]
    store_not_had_count: int
    features_wrong: tuple[str, ...]
    scores_wrong: tuple[str, ...]
    answers_wrong: tuple[str, ...]

    @property
    def is_proven(self) -> bool:
        """Whether nothing differs."""
        return not (self.features_wrong or self.scores_wrong or self.answers_wrong)

    def lines(self) -> list[str]:
        """The findings, for people."""
        buckets = ", ".join(f"{rows:,} in {bucket}" for bucket, rows in sorted(self.bucket_counts.items()))
        count = self.prediction_count
        compared = count - self.store_not_had_count
        lines = [
            _line("features as used = offline simulation", compared, self.features_wrong),
            _line("scores = offline run in the same bucket, bit by bit", count, self.scores_wrong),
            _line("answers = log", count, self.answers_wrong),
            f"rows by batch bucket: {buckets}",
        ]
        if self.store_not_had_count:
            lines.append(
                f"{self.store_not_had_count:,} rows were answered DEGRADED without the store, within its budget"
            )
        return lines


def compare(log: pd.DataFrame, expected: pd.DataFrame, bundle: Bundle, answers: pd.DataFrame) -> Verification:
    """Compares the log with an offline run.

    Args:
        log: as ``read_log`` gives it, index request_id.
        expected: every feature of the model for every replayed flight, index request_id.
        bundle: the one that served.
        answers: ``score`` as it came on `scores`, index request_id.

    """
    names = [f.name for f in bundle.spec.features]
    not_had = log["feature_status"].str.contains(STORE_NOT_HAD).to_numpy(bool)
    differs = _different(log[names], expected.loc[log.index, names]) & ~not_had
    offline = rescored(bundle, log)
    same_score = (offline.raw == log["raw_score"]) & (offline.score == log["score"])
    scored = answers["score"].dropna()
    doubled = log.index.duplicated()
    logged = log.loc[~doubled, "score"]
    both = scored.index.intersection(logged.index)
    odd = scored.index.symmetric_difference(logged.index)
    unequal = both[scored.loc[both].to_numpy() != logged.loc[both].to_numpy()]
    buckets, rows = np.unique(log["batch_bucket"], return_counts=True)
    return Verification(
        prediction_count=len(log),
        bucket_counts=dict(zip(buckets.tolist(), rows.tolist(), strict=True)),
        store_not_had_count=int(not_had.sum()),
        features_wrong=tuple(log.index[differs]),
        scores_wrong=tuple(log.index[~same_score.to_numpy(bool)]),
        answers_wrong=(*odd, *unequal, *log.index[doubled]),
    )


def expected_features(flights: pd.DataFrame, simulated: pd.DataFrame) -> pd.DataFrame:
    """Request and store features of flights, index request_id."""
    frame = pd.concat([request_frame(flights), simulated.loc[flights.index]], axis=1)
    return frame.set_index(pd.Index(flights["request_id"], name="request_id"))


def _different(found: pd.DataFrame, expected: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows with a cell that differs; missing equals missing, and nothing else does."""
    differs = np.zeros(len(found), bool)
    for name in found.columns:
        one, other = found[name].to_numpy(), expected[name].to_numpy()
        missing, also_missing = pd.isna(one), pd.isna(other)
        differs |= (missing != also_missing) | (~missing & ~also_missing & (one != other))
    return differs


def _line(what: str, count: int, wrong: tuple[str, ...]) -> str:
    if not wrong:
        return f"{what}: all {count:,} equal"
    return f"{what}: {len(wrong):,} of {count:,} DIFFER, the first ones {', '.join(wrong[:5])}"
