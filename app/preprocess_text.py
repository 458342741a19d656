"""Texts to token ids by a Hugging Face ``tokenizers`` file of the bundle, padded to one length, with their mask."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import numpy as np

from app.errors import BundleError
from schemas.columns import Column, TextColumn

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from app.models.spec import Feature

CHARACTERS_A_TOKEN = 32
"""Only so many characters a token of ``max_tokens`` are read: a text of a megabyte must not hold up its batch."""
PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>")
PROBE = "Aa zq 09 \u00e9 \u4e2d \U0001f980"
"""Letters, digits and signs of which some are in no vocabulary: what a tokenizer cannot take shows at load."""


class TokenizedText:
    """A text as ``max_tokens`` ids, the first ones of it, and a mask that is 1 where there is one.

    Args:
        feature: of type text.
        folder: where its tokenizer file lies.

    Attributes:
        max_tokens: columns of ids and mask.
        vocabulary_size: every id is below it.

    Raises:
        BundleError: there is no such file, or it is no tokenizer that these lengths fit.

    """

    def __init__(self, feature: Feature, folder: Path | None) -> None:
        assert feature.tokenizer is not None, feature.name
        assert feature.max_tokens is not None, feature.name
        if folder is None:
            msg = f"feature {feature.name}: the folder of {feature.tokenizer} is needed: Preprocessor(spec, folder)"
            raise BundleError(msg)
        self.max_tokens = feature.max_tokens
        self._tokenizer = _load(folder / feature.tokenizer)
        if self._tokenizer.num_special_tokens_to_add(is_pair=False) >= self.max_tokens:
            msg = f"feature {feature.name}: max_tokens: {self.max_tokens} leaves no room beside the special tokens"
            raise BundleError(msg)
        self._pad_id = _pad_id(self._tokenizer)
        self._tokenizer.no_padding()  # padded below, without a Python number for each place
        self._tokenizer.enable_truncation(self.max_tokens)
        known = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.vocabulary_size = 1 + max(self._pad_id, *known, *self._probe(folder / feature.tokenizer))

    def ids_and_mask(self, column: Column) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Both int64 (n, max_tokens); a missing text is padding only, an empty one its special tokens."""
        assert isinstance(column, TextColumn)
        rows = np.arange(len(column)) if column.valid is None else np.flatnonzero(column.valid)
        limit = CHARACTERS_A_TOKEN * self.max_tokens
        texts = [(text or "")[:limit] for text in column.take(rows).to_list()]
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        counts = np.zeros(len(column), np.int64)
        counts[rows] = [len(ids) for ids in encoded]
        mask = np.arange(self.max_tokens) < counts[:, None]
        ids = np.full(mask.shape, self._pad_id, np.int64)
        ids[mask] = np.fromiter(itertools.chain.from_iterable(encoded), np.int64, int(counts.sum()))
        return ids, mask.astype(np.int64)

    def _probe(self, path: Path) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(PROBE).ids
        except Exception as exc:
            msg = f"{path.name}: it cannot take every text ({exc}); give it an unknown token, and pack the bundle again"
            raise BundleError(msg) from exc
        return ids


def _load(path: Path) -> Tokenizer:
    # One thread a model is enough: more of them would take the cores from the event loop.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer  # noqa: PLC0415 - workers without text features never load it

    if not path.is_file():
        msg = f"{path.name}: no such file in the bundle; a text feature needs its tokenizer there"
        raise BundleError(msg)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing more special
        msg = f"{path.name}: no file of the tokenizers library ({exc}); write it with Tokenizer.save"
        raise BundleError(msg) from exc


def _pad_id(tokenizer: Tokenizer) -> int:
    if tokenizer.padding is not None:
        return int(tokenizer.padding["pad_id"])
    found = [tokenizer.token_to_id(token) for token in PAD_TOKENS]
    return next((number for number in found if number is not None), 0)
