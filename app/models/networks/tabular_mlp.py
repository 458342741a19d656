"""``tabular_mlp``: numbers beside embedded categories, then dense layers."""

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


class TabularMLPArguments(BaseModel):
    """Arguments of ``tabular_mlp``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: Hidden = (64, 32)
    embedding_dim: EmbeddingWidth = 8


class TabularMLP(nn.Module):
    """Numbers beside one embedding for each category, then linear layers with ReLU.

    Args:
        layout: of the inputs; without texts.
        arguments: widths.
        outputs: columns of the logits.

    """

    def __init__(self, layout: InputLayout, arguments: TabularMLPArguments, outputs: int = 1) -> None:
        super().__init__()
        dim = arguments.embedding_dim
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in layout.code_sizes)
        self.layers = dense_layers(layout.number_width + len(layout.code_sizes) * dim, arguments.hidden, outputs)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits (n,) or (n, outputs), from numbers (n, k) and codes int64 (n, c)."""
        embedded = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        return flat_if_single(self.layers(torch.cat([numbers, *embedded], dim=1)))


def build_tabular_mlp(spec: ModelSpec, layout: InputLayout) -> nn.Module:
    """The network for a specification.

    Raises:
        BundleError: the model has text features.

    """
    if layout.texts:
        msg = f"tabular_mlp takes no text ({', '.join(layout.texts)}); choose text_bag, or remove the text features"
        raise BundleError(msg)
    return TabularMLP(layout, parse_arguments(spec, TabularMLPArguments), output_count(spec))
