"""``linear``: a weighted sum of the numbers, as scikit-learn's linear and logistic regressions are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from app.errors import BundleError
from app.models.networks.layers import flat_if_single, output_count, parse_arguments

if TYPE_CHECKING:
    from app.models.spec import ModelSpec
    from app.preprocess import InputLayout


class LinearArguments(BaseModel):
    """``linear`` takes none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Linear(nn.Module):
    """``numbers @ weight.T + bias``; ``weight`` and ``bias`` are scikit-learn's ``coef_`` and ``intercept_``.

    Args:
        number_width: columns of ``numbers``.
        outputs: columns of the logits.

    Example:
        >>> model = Linear(2)
        >>> fitted = {"weight": torch.tensor([[2.0, 1.0]]), "bias": torch.tensor([0.5])}
        >>> _ = model.load_state_dict(fitted)
        >>> model(torch.tensor([[1.0, 3.0]]), torch.empty(1, 0)).tolist()
        [5.5]

    """

    def __init__(self, number_width: int, outputs: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, number_width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits (n,) or (n, outputs), from numbers (n, k); ``codes`` has no columns."""
        del codes
        return flat_if_single(nn.functional.linear(numbers, self.weight, self.bias))


def build_linear(spec: ModelSpec, layout: InputLayout) -> nn.Module:
    """The network for a specification.

    Raises:
        BundleError: the model has inputs that are no numbers.

    """
    parse_arguments(spec, LinearArguments)
    if layout.code_sizes or layout.texts:
        msg = "linear takes numbers alone; encode categories as one_hot, or choose tabular_mlp or text_bag"
        raise BundleError(msg)
    return Linear(layout.number_width, output_count(spec))
