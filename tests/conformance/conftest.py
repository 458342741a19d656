"""One bundle of every kind of network, packed once a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn

from app.calibration import Calibration
from app.models.architectures import build, register_architecture
from app.models.bundle import Bundle, open_bundle
from app.models.packing import pack_bundle
from app.models.spec import Architecture, Feature, ModelSpec, Output
from app.models.trust import TrustStore
from app.preprocess import Inputs, Preprocessor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from app.preprocess import InputLayout

BUCKETS = (1, 4, 16)
WORDS = ("[PAD]", "[UNK]", "late", "early", "storm", "sun")
NUMBERS = tuple(Feature(name=f"n{i}") for i in range(5))
CODES = (
    Feature(name="carrier", type="category", vocabulary=("AA", "B6")),
    Feature(name="hub", type="category", vocabulary=("X",)),
)
TEXTS = (
    Feature(name="title", type="text", tokenizer="tokenizer.json", max_tokens=3),
    Feature(name="body", type="text", tokenizer="tokenizer.json", max_tokens=6),
)
TWO_OUTPUTS = Output(kind="identity", names=("low", "high"))
THREE_LABELS = Output(kind="softmax", labels=("a", "b", "c"))


@register_architecture("of_the_operator")
class OfTheOperator(nn.Module):
    """A network as an operator may bring: a buffer that is not saved, and logits of shape (n, 3)."""

    steps: torch.Tensor

    def __init__(self, spec: ModelSpec, layout: InputLayout) -> None:
        super().__init__()
        self.layer = nn.Linear(layout.number_width, len(spec.output.output_names))
        self.register_buffer("steps", torch.arange(3.0), persistent=False)

    def forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, 3)."""
        logits: torch.Tensor = self.layer(numbers) + self.steps.to(numbers.dtype) * codes[:, :1]
        return logits


class NamedTexts(nn.Module):
    """``text_bag`` with its texts as arguments of their own: ``torch.export`` cannot make ``**texts`` dynamic."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(  # noqa: D102 - see the class
        self,
        numbers: torch.Tensor,
        codes: torch.Tensor,
        title_ids: torch.Tensor,
        title_mask: torch.Tensor,
        body_ids: torch.Tensor,
        body_mask: torch.Tensor,
    ) -> torch.Tensor:
        texts = {"title_ids": title_ids, "title_mask": title_mask, "body_ids": body_ids, "body_mask": body_mask}
        logits: torch.Tensor = self.network(numbers, codes, **texts)
        return logits


SPECS: dict[str, dict[str, Any]] = {
    "tabular_mlp": {
        "features": NUMBERS + CODES,
        "architecture": Architecture(name="tabular_mlp", arguments={"hidden": [16, 8], "embedding_dim": 3}),
    },
    "text_bag": {
        "features": NUMBERS[:1] + CODES[:1] + TEXTS,
        "architecture": Architecture(name="text_bag", arguments={"hidden": [8], "embedding_dim": 4}),
    },
    "linear": {"features": NUMBERS, "architecture": Architecture(name="linear"), "output": TWO_OUTPUTS},
    "of_the_operator": {
        "features": NUMBERS + CODES,
        "architecture": Architecture(name="of_the_operator"),
        "output": THREE_LABELS,
    },
    "pt2": {"features": NUMBERS + CODES, "weights": "pt2"},
    "pt2_text": {"features": NUMBERS[:1] + CODES[:1] + TEXTS, "weights": "pt2"},
}  # fmt: skip
"""By name; the programs of ``torch.export`` are made from the network before them that has their features."""
MADE_FROM = {"pt2": "tabular_mlp", "pt2_text": "text_bag"}


@dataclass(frozen=True, slots=True)
class Packed:
    """A bundle and the network that was packed.

    Attributes:
        bundle: opened.
        module: as it left training, in fp32 on the CPU.

    """

    bundle: Bundle
    module: nn.Module

    def inputs(self, rows: int, seed: int = 1) -> Inputs:
        """Random inputs as the preprocessor makes them."""
        return random_inputs(Preprocessor(self.bundle.spec, self.bundle.folder).layout, rows, seed)


def random_inputs(layout: InputLayout, rows: int, seed: int = 1) -> Inputs:
    """Random inputs; some texts are missing."""
    random = np.random.default_rng(seed)
    inputs: Inputs = {
        "numbers": random.normal(size=(rows, layout.number_width)).astype(np.float32),
        "codes": np.column_stack(
            [random.integers(0, size, rows) for size in layout.code_sizes] or [np.empty((rows, 0), np.int64)]
        ),
    }
    for name, text in layout.texts.items():
        lengths = random.integers(0, text.max_tokens + 1, rows)
        mask = (np.arange(text.max_tokens) < lengths[:, None]).astype(np.int64)
        inputs[f"{name}_ids"] = random.integers(1, text.vocabulary_size, mask.shape) * mask
        inputs[f"{name}_mask"] = mask
    return inputs


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Packed]:
    """Makes the bundle of a kind of network and precision, once."""
    root = tmp_path_factory.mktemp("kinds")
    made: dict[tuple[str, str], Packed] = {}

    def pack(kind: str, precision: str = "fp32") -> Packed:
        if (kind, precision) not in made:
            made[kind, precision] = _pack(root / precision, kind, precision)
        return made[kind, precision]

    return pack


def _pack(root: Path, kind: str, precision: str) -> Packed:
    root.mkdir(exist_ok=True)
    spec = ModelSpec(name=kind, version=1, buckets=BUCKETS, precision=precision, **SPECS[kind])
    tokenizers = {name: _tokenizer(root / name) for name in spec.tokenizer_files()}
    made_from = spec.model_copy(update={"weights": "safetensors", **SPECS[MADE_FROM.get(kind, kind)]})
    module = seeded(build(made_from, Preprocessor(spec, root).layout))
    layout = Preprocessor(spec, root).layout
    exported = None
    if spec.weights == "pt2":
        program = NamedTexts(module) if layout.texts else module
        exported = export(program, random_inputs(layout, 4), root / f"{kind}.pt2")
    folder = pack_bundle(root, spec, module, Calibration(), tokenizers=tokenizers, exported=exported)
    trust = TrustStore(root / "trusted.json")
    if exported is not None:
        from app.models.bundle_files import SPEC, sha256_of

        trust.add(sha256_of(folder / SPEC), name=kind, version=1)
    return Packed(open_bundle(folder, trust=trust), module)


def seeded(module: nn.Module, seed: int = 7) -> nn.Module:
    """The network with weights that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module.eval()


def export(module: nn.Module, inputs: Inputs, path: Path) -> Path:
    """The network as a program that takes any number of rows."""
    samples = {name: torch.from_numpy(array) for name, array in inputs.items()}
    rows = torch.export.Dim("rows", min=1, max=BUCKETS[-1])
    program = torch.export.export(module, (), samples, dynamic_shapes={name: {0: rows} for name in samples})
    torch.export.save(program, path)
    return path


def _tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path
