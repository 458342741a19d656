"""``text_bag``: the mean of a text's token embeddings, beside numbers and embedded categories, then dense layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from app.errors import BundleError
from app.models.networks.layers import (
    EmbeddingWidth,
    Hidden,
    dense_layers,
    flat_if_single,
    output_count,
    parse_arguments,
)

if TYPE_CHECKING:
    from app.models.spec import ModelSpec
    from app.preprocess import InputLayout


class TextBagArguments(BaseModel):
    """Arguments of ``text_bag``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: EmbeddingWidth = 64
    hidden: Hidden = (64,)


class TextBag(nn.Module):
    """Order of the words does not matter; a missing text is a vector of zeros.

    Args:
        layout: of the inputs; with at least one text.
        arguments: widths; ``embedding_dim`` is that of tokens and categories alike.
        outputs: columns of the logits.

    """

    def __init__(self, layout: InputLayout, arguments: TextBagArguments, outputs: int = 1) -> None:
        super().__init__()
        dim = arguments.embedding_dim
        self._texts = tuple(layout.texts)
        self.tokens = nn.ModuleList(
            nn.EmbeddingBag(text.vocabulary_size, dim, mode="sum") for text in layout.texts.values()
        )
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in layout.code_sizes)
        width = layout.number_width + (len(self._texts) + len(layout.code_sizes)) * dim
        self.layers = dense_layers(width, arguments.hidden, outputs)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor, **texts: torch.Tensor) -> torch.Tensor:
        """Logits (n,) or (n, outputs).

        Args:
            numbers: shape (n, k).
            codes: int64, shape (n, c).
            texts: for each text its ``_ids`` and ``_mask``, int64, shape (n, max_tokens).

        """
        means = [
            bag(texts[f"{name}_ids"], per_sample_weights=token_shares(texts[f"{name}_mask"], numbers.dtype))
            for name, bag in zip(self._texts, self.tokens, strict=True)
        ]
        embedded = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        return flat_if_single(self.layers(torch.cat([*means, numbers, *embedded], dim=1)))


def token_shares(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What each token adds to the mean of its text; 0 for padding.

    The mean is a weighted sum, so that no array of shape (n, max_tokens, embedding_dim) is ever made.

    Args:
        mask: 1 for a token, 0 for padding, shape (n, max_tokens).
        dtype: of the embeddings.

    Example:
        >>> token_shares(torch.tensor([[1, 1, 0], [0, 0, 0]]), torch.float32).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]

    """
    return mask.to(dtype) / mask.sum(1, keepdim=True).clamp(min=1).to(dtype)


def build_text_bag(spec: ModelSpec, layout: InputLayout) -> nn.Module:
    """The network for a specification.

    Raises:
        BundleError: the model has no text feature.

    """
    if not layout.texts:
        msg = "text_bag needs a feature of type text; add one, or choose tabular_mlp"
        raise BundleError(msg)
    return TextBag(layout, parse_arguments(spec, TextBagArguments), output_count(spec))
