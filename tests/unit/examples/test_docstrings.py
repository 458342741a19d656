"""The text demo: what is read, how it is split, and a proof that finds what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import torch

from app.models.bundle import Bundle, open_bundle
from app.models.runtime import ScoringModel
from app.postprocess import Postprocessor
from examples.docstrings.data import FAMILIES, TEN_PARTS, DocstringError, blanked, load_docstrings, part
from examples.docstrings.proof import figures, prove
from examples.docstrings.train import OTHERWISE, TOKENIZER, label_index, train, train_tokenizer
from examples.evidence import padded_logits
from schemas.records import Status

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 25


@pytest.fixture(scope="module")
def docstrings() -> pd.DataFrame:
    """A few docstrings of each family."""
    return load_docstrings(LIMIT)


@pytest.fixture(scope="module")
def bundle(docstrings: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model that has seen them once."""
    return open_bundle(train(docstrings, tmp_path_factory.mktemp("models"), epochs=1))


@pytest.fixture(scope="module")
def sent(docstrings: pd.DataFrame) -> pd.DataFrame:
    """Docstrings as requests."""
    return docstrings.set_index(pd.Index([f"d{k}" for k in range(len(docstrings))], name="request_id"))


@pytest.fixture
def log(bundle: Bundle, sent: pd.DataFrame) -> pd.DataFrame:
    """A prediction log as a right service writes it, in two bucket sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = ScoringModel(bundle)
        small, large = (padded_logits(model, sent, bucket) for bucket in (2, 16))
    finally:
        torch.set_num_threads(threads)
    is_small = np.arange(len(sent)) % 3 == 0
    scored = Postprocessor(bundle.spec.output, bundle.calibration).apply(np.where(is_small[:, None], small, large))
    decisions = [scored.decision_labels[i] for i in scored.decision]
    return sent[["text"]].assign(
        raw_score=scored.raw,
        score=scored.score,
        decision=decisions,
        outputs=list(scored.outputs),
        batch_bucket=np.where(is_small, 2, 16),
    )


def answers_of(log: pd.DataFrame) -> pd.DataFrame:
    """The answers that belong to it."""
    return log[["score", "decision", "outputs"]].assign(status=int(Status.OK))


def test_texts_are_many_different_and_of_all_families(docstrings: pd.DataFrame) -> None:
    """Every family has its share; no text stands twice; reading again gives the same."""
    assert set(docstrings["label"]) == set(FAMILIES)
    assert docstrings["label"].value_counts().min() >= LIMIT - 5
    assert not docstrings["text"].duplicated().any()
    pd.testing.assert_frame_equal(docstrings, load_docstrings(LIMIT))


def test_names_that_give_the_label_away_are_blanked(docstrings: pd.DataFrame) -> None:
    """No text names a family or its alias, and no example is left."""
    words = {word for text in docstrings["text"] for word in text.lower().replace(".", " ").split()}
    assert not words & {*FAMILIES, "np", "pd", "nx", "numpy", "pytorch", "scikit-learn", ">>>"}
    example = "Sum it.\n\n>>> import pandas as pd\n>>> pd.Series([1]).sum()\n1\n\nNotes\n-----\nSee np.sum."
    assert blanked(example).split() == ["Sum", "it.", "Notes", "-----", "See", ".sum."]


def test_a_family_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which, and what to do."""
    monkeypatch.setitem(FAMILIES, "nosuchpackage", ("nosuchpackage",))
    with pytest.raises(DocstringError, match="no docstring of nosuchpackage was found; install it"):
        load_docstrings(1)


def test_parts_share_no_file(docstrings: pd.DataFrame) -> None:
    """Each row is in one part, and all rows of a file are in the same one."""
    parts = [part(docstrings, name) for name in TEN_PARTS]
    assert sum(len(rows) for rows in parts) == len(docstrings)
    files = [set(rows["file"]) for rows in parts]
    assert sum(len(of_part) for of_part in files) == docstrings["file"].nunique()


def test_the_same_seed_gives_the_same_bundle(docstrings: pd.DataFrame, bundle: Bundle, tmp_path: Path) -> None:
    """Tokenizer, weights, calibration and thresholds: the digest of all is equal; another seed's is not."""
    digests = [open_bundle(train(docstrings, tmp_path / str(s), epochs=1, seed=s)).sha256 for s in (6, 7)]
    assert digests[0] == bundle.sha256 != digests[1]


def test_the_bundle_says_what_it_decides(bundle: Bundle) -> None:
    """A threshold for each label, a word for everything below, the tokenizer beside the weights, small buckets."""
    output = bundle.spec.output
    assert (set(output.thresholds), output.otherwise, output.kind) == (set(FAMILIES), OTHERWISE, "softmax")
    assert TOKENIZER in bundle.spec.files
    assert bundle.spec.buckets[-1] == 64
    assert bundle.calibration.kind == "temperature"


def test_the_tokenizer_takes_every_text() -> None:
    """What it has never seen becomes bytes, and comes back whole; case is folded."""
    tokenizer = train_tokenizer(["the mean of the values", "the values of the mean"] * 3)
    for text in ("the mean", "\U0001f980 crab \u4e2d\u6587 \U00010348", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text.lower()


def test_a_right_stream_is_proven(bundle: Bundle, sent: pd.DataFrame, log: pd.DataFrame) -> None:
    """Nothing differs, whatever the order of the log."""
    found = prove(log.sample(frac=1, random_state=1), sent, answers_of(log), bundle)
    assert found.holds, found.lines()
    assert all(line.endswith(f"all {len(sent)} equal") for line in found.lines())


@pytest.mark.parametrize(
    ("column", "value", "fault"),
    [
        ("raw_score", None, "scores_wrong"),
        ("score", None, "scores_wrong"),
        ("decision", "nobody", "scores_wrong"),
        ("text", "another text", "texts_wrong"),
    ],
)
def test_what_differs_in_the_log_is_found(
    bundle: Bundle, sent: pd.DataFrame, log: pd.DataFrame, column: str, value: str | None, fault: str
) -> None:  # fmt: skip
    """One bit of a score, another decision, another text."""
    answers = answers_of(log)
    wrong = log.index[5]
    log.loc[wrong, column] = np.nextafter(log.loc[wrong, column], 1.0) if value is None else value
    found = prove(log, sent, answers, bundle)
    assert wrong in getattr(found, fault)
    assert "DIFFER" in "".join(found.lines())


def test_lost_doubled_and_changed_answers_are_found(bundle: Bundle, sent: pd.DataFrame, log: pd.DataFrame) -> None:
    """An answer without a log record, a log record without an answer, one twice, another decision."""
    answers = answers_of(log).drop(index=log.index[6])
    answers.loc[log.index[5], "decision"] = "nobody"
    written = pd.concat([log.drop(index=log.index[8]), log.iloc[[9]]])
    assert prove(written, sent, answers, bundle).answers_wrong == tuple(sorted(log.index[[5, 6, 8, 9]]))


def test_figures_are_those_of_the_answers(sent: pd.DataFrame) -> None:
    """By hand: two right of four, one of them decided, ln 2 on each; an answer without a score does not count."""
    rows = sent.groupby("label").head(1).iloc[:2]
    rows = pd.concat([rows, rows.set_axis(["x1", "x2"]), rows.iloc[:1].set_axis(["x3"])])
    right = label_index(rows)
    outputs = np.zeros((5, len(FAMILIES)))
    outputs[np.arange(5), right] = 0.5
    outputs[[1, 2], (right[[1, 2]] + 1) % len(FAMILIES)] = 0.51
    decisions = ["networkx", "unsure", "unsure", "unsure", None]
    answers = pd.DataFrame(
        {"score": [0.5, 0.5, 0.5, 0.5, np.nan], "decision": decisions, "outputs": list(outputs)}, index=rows.index
    )
    found = figures(rows, answers)
    assert (found.count, found.accuracy, found.guess_accuracy) == (4, 0.5, 0.5)
    assert found.log_loss == pytest.approx(np.log(2))
    assert (found.decided_share, found.decided_accuracy) == (0.25, 1.0)
