"""What the networks share: their bounds, their arguments, dense layers."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, Field
from torch import nn

if TYPE_CHECKING:
    import torch

    from app.models.spec import ModelSpec

MAX_WIDTH = 65_536
"""Of one layer; the parameters of all together are bounded in ``app.models.architectures``."""
Hidden = Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...], Field(max_length=16)]
EmbeddingWidth = Annotated[int, Field(ge=1, le=1024)]
Arguments = TypeVar("Arguments", bound=BaseModel)


def parse_arguments(spec: ModelSpec, model: type[Arguments]) -> Arguments:
    """The arguments under ``architecture`` in ``model.yaml``, checked.

    Args:
        spec: of a model that names an architecture.
        model: says which arguments there are; ``extra="forbid"`` refuses others.

    Raises:
        ValidationError: they do not fit; ``app.models.architectures.build`` makes a message of it.

    """
    assert spec.architecture is not None, "only weights in safetensors need a network of ours"
    return model.model_validate(spec.architecture.arguments)


def output_count(spec: ModelSpec) -> int:
    """How many numbers a row's logits are."""
    return len(spec.output.output_names)


def dense_layers(width: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them.

    Args:
        width: columns of the input.
        hidden: widths in between; none: one linear layer.
        outputs: columns of the output.

    Example:
        >>> [type(layer).__name__ for layer in dense_layers(3, (8,), 1)]
        ['Linear', 'ReLU', 'Linear']

    """
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise([width, *hidden]):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((width, *hidden)[-1], outputs))


def flat_if_single(logits: torch.Tensor) -> torch.Tensor:
    """Shape (n,) for one output, (n, m) for several."""
    return logits.squeeze(1) if logits.shape[1] == 1 else logits
