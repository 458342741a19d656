"""Networks that a bundle may name: the code is ours, the bundle brings only numbers."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from app.errors import BundleError
from app.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.models.spec import ModelSpec

MAX_WIDTH = 65_536
"""Bound on a layer's width."""
MAX_PARAMETERS = 2**28
"""Bound on a network's size, 1 GiB: it is built before its weights are seen to fit, so a few lines of YAML must not
ask for more."""


class TabularMLPArguments(BaseModel):
    """Arguments of ``tabular_mlp``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[int, ...] = Field(default=(64, 32), max_length=16)
    embedding_dim: int = Field(default=8, ge=1, le=1024)


class TabularMLP(nn.Module):
    """Numbers beside one embedding for each category, then linear layers with ReLU.

    Args:
        number_width: columns of ``numbers``, >= 0.
        code_sizes: for each category its vocabulary size + 1 (index 0: unknown or missing).
        arguments: widths.

    """

    def __init__(self, number_width: int, code_sizes: list[int], arguments: TabularMLPArguments) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, arguments.embedding_dim) for size in code_sizes)
        widths = [number_width + len(code_sizes) * arguments.embedding_dim, *arguments.hidden]
        layers: list[nn.Module] = []
        for inside, outside in itertools.pairwise(widths):
            layers += [nn.Linear(inside, outside), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (n,), from numbers float32 (n, k) and codes int64 (n, c)."""
        embedded = [table(codes[:, i]) for i, table in enumerate(self.embeddings)]
        logits: torch.Tensor = self.layers(torch.cat([numbers, *embedded], dim=1))
        return logits.squeeze(1)


def _tabular_mlp(spec: ModelSpec, number_width: int, code_sizes: list[int]) -> nn.Module:
    arguments = TabularMLPArguments.model_validate(spec.architecture.arguments)
    if any(not 1 <= width <= MAX_WIDTH for width in arguments.hidden):
        msg = f"model.yaml: architecture.arguments.hidden: each width must be 1 .. {MAX_WIDTH}"
        raise BundleError(msg)
    widths = [number_width + len(code_sizes) * arguments.embedding_dim, *arguments.hidden, 1]
    count = sum(code_sizes) * arguments.embedding_dim + sum((a + 1) * b for a, b in itertools.pairwise(widths))
    if count > MAX_PARAMETERS:
        msg = f"model.yaml: architecture.arguments: {count} parameters, at most {MAX_PARAMETERS}; choose smaller widths"
        raise BundleError(msg)
    return TabularMLP(number_width, code_sizes, arguments)


ARCHITECTURES: dict[str, Callable[[ModelSpec, int, list[int]], nn.Module]] = {"tabular_mlp": _tabular_mlp}
"""The allow-list: name to builder."""


def build(spec: ModelSpec) -> nn.Module:
    """The network that a bundle names, with fresh weights.

    Raises:
        BundleError: it is not on the allow-list, or its arguments do not fit.

    """
    builder = ARCHITECTURES.get(spec.architecture.name)
    if builder is None:
        known = ", ".join(sorted(ARCHITECTURES))
        msg = f"model.yaml: architecture.name: {spec.architecture.name!r} is not on the allow-list ({known})"
        raise BundleError(msg)
    layout = Preprocessor(spec)
    try:
        return builder(spec, layout.number_width, layout.code_sizes)
    except ValidationError as exc:
        fault = exc.errors()[0]
        path = ".".join(str(part) for part in fault["loc"])
        msg = f"model.yaml: architecture.arguments.{path}: {fault['msg']}"
        raise BundleError(msg) from exc
