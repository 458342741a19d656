"""What the answers are worth, and whether they are what the bundle says offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from agents.topics import SCORES
from examples.evidence import rescored
from examples.records import decode_all, whole_topic
from schemas.columns import to_python
from schemas.records import Status

from .train import OTHERWISE, label_index

if TYPE_CHECKING:
    from app.models.bundle import Bundle
    from schemas.registry import SchemaBook


@dataclass(frozen=True, slots=True)
class Figures:
    """How good some answers are.

    Attributes:
        count: answers with outputs.
        accuracy: share in which the most probable label is right.
        guess_accuracy: of always saying the most frequent label.
        log_loss: mean of -ln of the probability of the right label.
        decided_share: answers whose label reached its threshold.
        decided_accuracy: share of these that are right.

    """

    count: int
    accuracy: float
    guess_accuracy: float
    log_loss: float
    decided_share: float
    decided_accuracy: float


@dataclass(frozen=True, slots=True)
class Proof:
    """Request ids that differ; all empty when the stream is proven right.

    Attributes:
        count: records of the log.
        texts_wrong: the logged text is not the one that was sent.
        scores_wrong: score or decision differ, in any bit, from the offline run in the logged batch bucket.
        answers_wrong: the answer on `scores` differs from the log, or one of the two is missing or doubled.

    """

    count: int
    texts_wrong: tuple[str, ...]
    scores_wrong: tuple[str, ...]
    answers_wrong: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return not (self.texts_wrong or self.scores_wrong or self.answers_wrong)

    def lines(self) -> list[str]:
        """The findings, for people."""
        kinds = (
            ("texts as used = texts as sent", self.texts_wrong),
            ("scores = offline run in the same bucket, bit by bit", self.scores_wrong),
            ("answers = log", self.answers_wrong),
        )
        return [
            f"{what}: all {self.count:,} equal" if not wrong else f"{what}: {len(wrong):,} DIFFER ({wrong[0]} …)"
            for what, wrong in kinds
        ]


async def read_answers(bootstrap_servers: str, book: SchemaBook) -> pd.DataFrame:
    """All answers on `scores`.

    Returns:
        Index request_id; ``status`` (of ``Status``), ``score`` (NaN: none), ``decision`` (None: none), ``outputs``.

    """
    rows = []
    async for values in whole_topic(bootstrap_servers, SCORES):
        if values:
            rows += to_python(decode_all(book, values, SCORES).columns)
    frame = pd.DataFrame(rows, columns=["request_id", "status", "score", "decision", "outputs"])
    return frame.assign(status=frame["status"].map(lambda name: int(Status[name]))).set_index("request_id")


def figures(docstrings: pd.DataFrame, answers: pd.DataFrame) -> Figures:
    """How good the answers are.

    Args:
        docstrings: index request_id, with ``label``.
        answers: as ``read_answers`` gives them.

    """
    scored = answers[answers["score"].notna()]
    rows = docstrings.loc[scored.index]
    outputs, labels = np.array(scored["outputs"].tolist()), label_index(rows)
    right = outputs.argmax(axis=1) == labels
    decided = (scored["decision"] != OTHERWISE).to_numpy()
    return Figures(
        count=len(scored),
        accuracy=float(right.mean()),
        guess_accuracy=float(rows["label"].value_counts().iloc[0] / len(rows)),
        log_loss=float(-np.log(outputs[np.arange(len(labels)), labels]).mean()),
        decided_share=float(decided.mean()),
        decided_accuracy=float(right[decided].mean()),
    )


def prove(log: pd.DataFrame, docstrings: pd.DataFrame, answers: pd.DataFrame, bundle: Bundle) -> Proof:
    """Compares log, texts, answers and an offline run.

    Args:
        log: as ``read_log`` gives it, index request_id.
        docstrings: what was sent, index request_id.
        answers: as ``read_answers`` gives them.
        bundle: the one that served.

    """
    offline = rescored(bundle, log)
    decisions = np.array([*offline.decision_labels, ""], dtype=object)[offline.decision]  # the log's "" is no decision
    same_score = (log["raw_score"] == offline.raw) & (log["score"] == offline.score) & (log["decision"] == decisions)
    same_text = log["text"] == docstrings["text"].reindex(log.index)
    scored = answers[answers["score"].notna()].fillna({"decision": ""})
    doubled = set(log.index[log.index.duplicated()]) | set(answers.index[answers.index.duplicated()])
    both = log[["score", "decision"]].join(scored, how="inner", rsuffix="_answered")
    unequal = both.index[(both["score"] != both["score_answered"]) | (both["decision"] != both["decision_answered"])]
    odd = scored.index.symmetric_difference(log.index)
    return Proof(
        count=len(log),
        texts_wrong=tuple(log.index[~same_text]),
        scores_wrong=tuple(log.index[~same_score]),
        answers_wrong=tuple(sorted({*odd, *unequal, *doubled})),
    )
