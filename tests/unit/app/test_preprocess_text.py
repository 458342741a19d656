"""Texts to token ids, with tokenizers made here."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from app.errors import BundleError
from app.models.spec import Feature
from app.preprocess import InputLayout, Preprocessor, TextShape
from app.preprocess_text import CHARACTERS_A_TOKEN, TokenizedText
from schemas.columns import TextColumn
from tests.samples import sample_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = {"[PAD]": 3, "[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "good": 4, "day": 5, "\u00e9t\u00e9": 9}


def _feature(**changes: Any) -> Feature:  # noqa: ANN401 - any field
    fields: dict[str, Any] = {"name": "body", "type": "text", "tokenizer": "words.json", "max_tokens": 4}
    return Feature(**{**fields, **changes})


def _save(folder: Path, *, special: bool = True, **changes: Any) -> None:  # noqa: ANN401 - arguments of WordLevel
    tokenizer = Tokenizer(models.WordLevel(**{"vocab": WORDS, "unk_token": "[UNK]", **changes}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    tokenizer.save(str(folder / "words.json"))


def _column(values: list[str | None]) -> TextColumn:
    return TextColumn.from_values(values)


def test_ids_are_padded_and_the_mask_says_where_they_end(tmp_path: Path) -> None:
    """Too long: cut, with its special tokens; unknown words have their id; missing: padding only; empty: a text."""
    _save(tmp_path)
    ids, mask = TokenizedText(_feature(), tmp_path).ids_and_mask(
        _column(["good day day", "good", None, "", "\u00e9t\u00e9 what"])
    )
    assert ids.tolist() == [[1, 4, 5, 2], [1, 4, 2, 3], [3, 3, 3, 3], [1, 2, 3, 3], [1, 9, 0, 2]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize("values", [[], [None], [None, None]])
def test_without_any_text_there_is_padding(tmp_path: Path, values: list[str | None]) -> None:
    """No rows, or none with a text."""
    _save(tmp_path)
    ids, mask = TokenizedText(_feature(), tmp_path).ids_and_mask(_column(values))
    assert ids.shape == mask.shape == (len(values), 4)
    assert (ids == 3).all()
    assert not mask.any()


def test_the_vocabulary_covers_every_id(tmp_path: Path) -> None:
    """Ids may have gaps: an embedding of this size has a row for the largest."""
    _save(tmp_path)
    assert TokenizedText(_feature(), tmp_path).vocabulary_size == 10


def test_the_files_own_padding_names_the_id_but_not_the_length(tmp_path: Path) -> None:
    """What the bundle declares counts; the id for padding is the tokenizer's."""
    _save(tmp_path, special=False)
    tokenizer = Tokenizer.from_file(str(tmp_path / "words.json"))
    tokenizer.enable_padding(pad_id=7, length=50)
    tokenizer.enable_truncation(1)
    tokenizer.save(str(tmp_path / "words.json"))
    ids, _ = TokenizedText(_feature(), tmp_path).ids_and_mask(_column(["good day"]))
    assert ids.tolist() == [[4, 5, 7, 7]]


def test_only_the_beginning_of_a_huge_text_is_read(tmp_path: Path) -> None:
    """What lies behind so many characters a token changes nothing."""
    _save(tmp_path, special=False)
    reader = TokenizedText(_feature(), tmp_path)
    blank = " " * (CHARACTERS_A_TOKEN * 4)
    assert reader.ids_and_mask(_column([blank[:-4] + "good day", blank + "good"]))[0].tolist() == [
        [4, 3, 3, 3],
        [3] * 4,
    ]


def test_texts_of_frames_and_of_requests_make_the_same_inputs(tmp_path: Path) -> None:
    """Names and shapes are those of the layout; numbers and codes are there, and empty."""
    _save(tmp_path)
    preprocessor = Preprocessor(sample_spec(features=(_feature(),), views=()), tmp_path)
    assert preprocessor.layout == InputLayout(0, (), {"body": TextShape(4, 10)})
    served = preprocessor.transform({"body": _column(["good", None])})
    trained = preprocessor.transform(preprocessor.from_frame(pd.DataFrame({"body": ["good", None]})))
    assert list(served) == ["numbers", "codes", "body_ids", "body_mask"]
    assert served["numbers"].shape == served["codes"].shape == (2, 0)
    assert all(np.array_equal(served[name], trained[name]) for name in served)


def _no_file(folder: Path) -> None:
    (folder / "words.json").unlink()


def _broken(folder: Path) -> None:
    (folder / "words.json").write_text("{}")


def _no_unknown(folder: Path) -> None:
    _save(folder, vocab={"good": 0}, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (_no_file, {}, "no such file"),
        (_broken, {}, r"words\.json: no file of the tokenizers library"),
        (_no_unknown, {}, "cannot take every text"),
        (None, {"max_tokens": 2}, "no room beside the special tokens"),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_refused_at_load(
    tmp_path: Path,
    damage: Callable[[Path], None] | None,
    changes: dict[str, int],
    message: str,
) -> None:
    """Not at the first request that has a strange word."""
    _save(tmp_path)
    if damage is not None:
        damage(tmp_path)
    with pytest.raises(BundleError, match=message):
        TokenizedText(_feature(**changes), tmp_path)


def test_without_a_folder_the_message_says_where_to_put_it() -> None:
    """A preprocessor for a text needs the bundle's folder."""
    with pytest.raises(BundleError, match=r"Preprocessor\(spec, folder\)"):
        Preprocessor(sample_spec(features=(_feature(),), views=()))


def test_workers_without_texts_never_load_the_library() -> None:
    """Its import is paid by those who use it, and it starts no threads beside the event loop."""
    code = (
        "import os, sys, app.preprocess, app.postprocess; assert 'tokenizers' not in sys.modules;"
        "from app.preprocess_text import _load; from app.errors import BundleError; from pathlib import Path\n"
        "try: _load(Path('/nowhere'))\n"
        "except BundleError: print(os.environ['TOKENIZERS_PARALLELISM'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "false\n"
