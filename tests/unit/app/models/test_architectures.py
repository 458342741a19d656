"""Networks on the allow-list."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import app.models.architectures
from app.errors import BundleError
from app.models.architectures import MAX_WIDTH, build
from app.models.spec import Architecture
from tests.samples import sample_module, sample_spec


def _architecture(name: str = "tabular_mlp", **arguments: Any) -> Any:  # noqa: ANN401
    return sample_spec(architecture=Architecture(name=name, arguments=arguments))


def test_the_network_takes_what_preprocessing_gives() -> None:
    """Two sines and cosines, three numbers, three indicators, one embedding: one logit a row."""
    spec = sample_spec()
    module = build(spec)
    assert module(torch.zeros(5, 11), torch.zeros(5, 1, dtype=torch.int64)).shape == (5,)


def test_without_hidden_layers_it_is_a_linear_model() -> None:
    """Twice the number, twice the logit, but for the bias."""
    module = sample_module(_architecture(hidden=[], embedding_dim=1))
    codes = torch.zeros(1, 1, dtype=torch.int64)
    zero, one, two = (
        module(torch.full((1, 11), float(x)), codes) - module(torch.zeros(1, 11), codes) for x in (0, 1, 2)
    )
    assert torch.allclose(two, 2 * one, atol=1e-5)
    assert zero.item() == 0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("os_system", {}, r"'os_system' is not on the allow-list \(tabular_mlp\)"),
        ("tabular_mlp", {"hiden": [8]}, r"architecture\.arguments\.hiden: "),
        ("tabular_mlp", {"hidden": ["wide"]}, r"architecture\.arguments\.hidden\.0: "),
        ("tabular_mlp", {"hidden": [8] * 17}, r"architecture\.arguments\.hidden: "),
        ("tabular_mlp", {"hidden": [0]}, r"each width must be 1 \.\. 65536"),
        ("tabular_mlp", {"hidden": [MAX_WIDTH + 1]}, r"each width must be 1 \.\. 65536"),
        ("tabular_mlp", {"embedding_dim": 0}, r"architecture\.arguments\.embedding_dim: "),
        ("tabular_mlp", {"embedding_dim": 10**9}, r"architecture\.arguments\.embedding_dim: "),
    ],
)
def test_what_is_not_allowed_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    """A name that is not on the list, an argument that it does not take, a width beyond the bound."""
    with pytest.raises(BundleError, match=message):
        build(_architecture(name, **arguments))


def test_the_bound_counts_every_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that is compared with the bound is that of the network itself: one less is refused."""
    spec = _architecture(hidden=[8, 3], embedding_dim=4)
    count = sum(parameter.numel() for parameter in build(spec).parameters())
    monkeypatch.setattr(app.models.architectures, "MAX_PARAMETERS", count)
    build(spec)
    monkeypatch.setattr(app.models.architectures, "MAX_PARAMETERS", count - 1)
    with pytest.raises(BundleError, match=f"{count} parameters, at most {count - 1}"):
        build(spec)
