"""Networks on the allow-list, and how one gets there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import app.models.architectures
from app.errors import BundleError, SettingsError
from app.models.architectures import (
    build,
    known_architectures,
    load_architecture_modules,
    register_architecture,
    skeleton,
)
from app.models.networks.layers import MAX_WIDTH
from app.models.spec import Architecture, Output
from app.preprocess import InputLayout, TextShape
from tests.samples import sample_module, sample_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.models.spec import ModelSpec

ROOT = Path(__file__).parents[4]
TEXT = InputLayout(1, (3,), {"body": TextShape(4, 10), "title": TextShape(2, 20)})
THREE = Output(kind="softmax", labels=("a", "b", "c"))


def _architecture(name: str = "tabular_mlp", **arguments: Any) -> ModelSpec:  # noqa: ANN401
    return sample_spec(architecture=Architecture(name=name, arguments=arguments))


@pytest.fixture(autouse=True)
def allow_list() -> Iterator[None]:
    """The allow-list is one for the process; each test leaves it as it was."""
    before = dict(app.models.architectures._registered)
    yield
    app.models.architectures._registered.clear()
    app.models.architectures._registered.update(before)
    app.models.architectures._entry_points.cache_clear()


def test_the_network_takes_what_preprocessing_gives() -> None:
    """Two sines and cosines, three numbers, three indicators, one embedding: one logit a row."""
    module = build(sample_spec())
    assert module(torch.zeros(5, 11), torch.zeros(5, 1, dtype=torch.int64)).shape == (5,)


def test_names_of_weights_are_those_of_older_bundles() -> None:
    """A bundle outlives the code that packed it."""
    assert {name: tuple(t.shape) for name, t in build(sample_spec()).state_dict().items()} == {
        "embeddings.0.weight": (4, 4),
        "layers.0.weight": (8, 15),
        "layers.0.bias": (8,),
        "layers.2.weight": (1, 8),
        "layers.2.bias": (1,),
    }


def test_without_hidden_layers_it_is_a_linear_model() -> None:
    """Twice the number, twice the logit, but for the bias."""
    module = sample_module(_architecture(hidden=[], embedding_dim=1))
    codes = torch.zeros(1, 1, dtype=torch.int64)
    zero, one, two = (
        module(torch.full((1, 11), float(x)), codes) - module(torch.zeros(1, 11), codes) for x in (0, 1, 2)
    )
    assert torch.allclose(two, 2 * one, atol=1e-5)
    assert zero.item() == 0


@pytest.mark.parametrize("name", ["tabular_mlp", "text_bag", "linear"])
def test_several_outputs_are_columns(name: str) -> None:
    """As many as the output has labels or names."""
    layout = {"tabular_mlp": InputLayout(2, (3,)), "text_bag": TEXT, "linear": InputLayout(2, ())}[name]
    module = build(sample_spec(architecture=Architecture(name=name), output=THREE), layout)
    inputs = {
        "numbers": torch.zeros(5, layout.number_width),
        "codes": torch.zeros(5, len(layout.code_sizes), dtype=torch.int64),
    }
    for text, shape in layout.texts.items():
        inputs |= {f"{text}_{kind}": torch.zeros(5, shape.max_tokens, dtype=torch.int64) for kind in ("ids", "mask")}
    assert module(**inputs).shape == (5, 3)


def test_a_bag_is_the_mean_of_the_tokens_that_are_there() -> None:
    """Padding, whatever its ids, adds nothing; a missing text is zeros; each text has its own embeddings."""
    spec = sample_spec(architecture=Architecture(name="text_bag", arguments={"embedding_dim": 2, "hidden": []}))
    module: Any = build(spec, TEXT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.tokens[0].weight[3] = torch.tensor([1.0, 0.0])
        module.tokens[0].weight[4] = torch.tensor([4.0, 0.0])
        module.tokens[1].weight[3] = torch.tensor([100.0, 0.0])
        module.layers[0].weight[0] = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    logits = module(
        numbers=torch.zeros(3, 1),
        codes=torch.zeros(3, 1, dtype=torch.int64),
        body_ids=torch.tensor([[3, 4, 9, 9], [3, 9, 9, 9], [9, 9, 9, 9]]),
        body_mask=torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]),
        title_ids=torch.tensor([[0, 0], [3, 0], [0, 0]]),
        title_mask=torch.tensor([[0, 0], [1, 0], [0, 0]]),
    )
    assert logits.tolist() == [2.5, 101.0, 0.0]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("os_system", {}, r"'os_system' is not on the allow-list \(.*linear.*tabular_mlp, text_bag\)"),
        ("tabular_mlp", {"hiden": [8]}, r"architecture\.arguments\.hiden: "),
        ("tabular_mlp", {"hidden": ["wide"]}, r"architecture\.arguments\.hidden\.0: "),
        ("tabular_mlp", {"hidden": [8] * 17}, r"architecture\.arguments\.hidden: "),
        ("tabular_mlp", {"hidden": [0]}, r"architecture\.arguments\.hidden\.0: .*greater than or equal to 1"),
        ("tabular_mlp", {"hidden": [8, MAX_WIDTH + 1]}, r"arguments\.hidden\.1: .*less than or equal to 65536"),
        ("tabular_mlp", {"embedding_dim": 0}, r"architecture\.arguments\.embedding_dim: "),
        ("tabular_mlp", {"embedding_dim": 10**9}, r"architecture\.arguments\.embedding_dim: "),
        ("text_bag", {}, "text_bag needs a feature of type text; add one, or choose tabular_mlp"),
        ("linear", {}, "linear takes numbers alone; encode categories as one_hot"),
        ("linear", {"hidden": []}, r"architecture\.arguments\.hidden: "),
    ],
)
def test_what_is_not_allowed_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    """A name that is not on the list, an argument that it does not take, inputs that it has no use for."""
    with pytest.raises(BundleError, match=message):
        build(_architecture(name, **arguments))


def test_a_network_without_text_refuses_text() -> None:
    """It would score as if nothing had been written."""
    with pytest.raises(BundleError, match=r"tabular_mlp takes no text \(body, title\); choose text_bag"):
        build(sample_spec(), TEXT)


def test_the_bound_counts_every_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number that is compared with the bound is that of the network itself: one less is refused."""
    spec = _architecture(hidden=[8, 3], embedding_dim=4)
    count = sum(parameter.numel() for parameter in build(spec).parameters())
    monkeypatch.setattr(app.models.architectures, "MAX_PARAMETERS", count)
    build(spec)
    monkeypatch.setattr(app.models.architectures, "MAX_PARAMETERS", count - 1)
    with pytest.raises(BundleError, match=f"{count} parameters, at most {count - 1}"):
        build(spec)


def _wide(spec: ModelSpec, layout: InputLayout) -> nn.Module:
    del spec, layout
    return nn.Linear(2**20, 2**20)


def test_a_network_of_the_operator_is_bounded_too() -> None:
    """Four tebibytes are refused before one byte of them is allocated."""
    register_architecture("wide", _wide)
    with pytest.raises(BundleError, match="1099512676352 parameters, at most"):
        build(_architecture("wide"))


def test_a_network_that_looks_at_its_numbers_while_it_is_built() -> None:
    """Tensors without memory have none to look at; it is built with memory then."""

    @register_architecture("scaled")
    def scaled(spec: ModelSpec, layout: InputLayout) -> nn.Module:
        del spec
        layer = nn.Linear(layout.number_width, 1)
        layer.scale = layer.weight[0, 0].item()  # type: ignore[assignment]
        return layer

    module: Any = skeleton(_architecture("scaled"), InputLayout(3, ()))
    assert module.scale == module.weight[0, 0]


LOADS_LITTLE = """
import sys
from app.models.architectures import skeleton
from app.models.spec import Architecture
from app.preprocess import InputLayout, TextShape
from tests.samples import sample_spec

for name, layout in {
    "tabular_mlp": InputLayout(2, (3,)),
    "text_bag": InputLayout(1, (3,), {"body": TextShape(4, 10)}),
    "linear": InputLayout(2, ()),
}.items():
    module = skeleton(sample_spec(architecture=Architecture(name=name)), layout)
    assert all(parameter.is_meta for parameter in module.parameters())
assert "torch._dynamo" not in sys.modules
"""


def test_a_network_without_memory_is_made_without_compilers() -> None:
    """Filling it with random numbers would import torch's compilers, and each worker would start 4 s later."""
    subprocess.run([sys.executable, "-c", LOADS_LITTLE], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (lambda _spec, layout: nn.Linear(layout.width, 1), "AttributeError"),
        (lambda spec, _layout: nn.Linear(spec.architecture.arguments["width"], 1), "refuses the model .KeyError: 'wid"),
        (lambda _spec, _layout: nn.Linear("3", 1), "refuses the model .TypeError"),
        (lambda _spec, _layout: "a network", "its builder gives str, a torch.nn.Module is needed"),
    ],
    ids=["attribute", "argument", "type", "no module"],
)
def test_a_builder_that_fails_is_named(builder: Any, message: str) -> None:  # noqa: ANN401
    """The operator sees which one, and why."""
    register_architecture("mine", builder)
    with pytest.raises(BundleError, match=f"architecture mine: .*{message}"):
        build(_architecture("mine"))


def test_a_name_is_given_once() -> None:
    """Registering the same again does nothing; another under the same name is an error that names both."""
    register_architecture("wide", _wide)
    assert register_architecture("wide", _wide) is _wide
    with pytest.raises(SettingsError, match=r"architecture wide: .*_wide has this name already; rename .*lambda"):
        register_architecture("wide", lambda _spec, _layout: nn.Identity())
    with pytest.raises(SettingsError, match=r"tabular_mlp: app\.models\.networks\.tabular_mlp\.build_tabular_mlp has"):
        register_architecture("tabular_mlp", _wide)


MODULE = """
from torch import nn
from app.models.architectures import register_architecture

@register_architecture("of_a_module")
def build_it(spec, layout):
    return nn.Linear(layout.number_width, 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which modules are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_module_named_in_the_settings_registers_its_networks(folder: Path) -> None:
    """It is imported by its dotted name; before, its networks are unknown."""
    (folder / "networks_of_mine.py").write_text(MODULE)
    with pytest.raises(BundleError, match="not on the allow-list"):
        build(_architecture("of_a_module"))
    load_architecture_modules(["networks_of_mine"])
    try:
        assert build(_architecture("of_a_module")).in_features == 11
    finally:
        del sys.modules["networks_of_mine"]


@pytest.mark.parametrize("text", [None, "import nothing_like_this"])
def test_a_module_that_cannot_be_imported_is_an_error_of_the_settings(folder: Path, text: str | None) -> None:
    """There is none, or one that it needs is missing."""
    if text is not None:
        (folder / "broken_networks.py").write_text(text)
    with pytest.raises(SettingsError, match=r"models\.architectures: broken_networks cannot be imported \(No module"):
        load_architecture_modules(["broken_networks"])


def _install(folder: Path, entry: str) -> None:
    (folder / "networks_of_a_package.py").write_text(
        "from torch import nn\nbuild_it = lambda spec, layout: nn.Linear(7, 1)"
    )
    installed = folder / "a_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[sluice.architectures]\n{entry}\n")
    app.models.architectures._entry_points.cache_clear()


def test_an_installed_package_brings_networks_by_entry_points(folder: Path) -> None:
    """They are on the list without being imported, and built when a bundle names one."""
    _install(folder, "of_a_package = networks_of_a_package:build_it")
    assert "of_a_package" in known_architectures()
    assert "networks_of_a_package" not in sys.modules
    try:
        assert build(_architecture("of_a_package")).in_features == 7
    finally:
        sys.modules.pop("networks_of_a_package", None)


@pytest.mark.parametrize(
    ("entry", "name", "message"),
    [
        ("linear = networks_of_a_package:build_it", "linear", r"linear stands more than once .*networks_of_a_package"),
        ("gone = networks_of_a_package:no_such_thing", "gone", "gone: its entry point .* cannot be loaded"),
        ("gone = no_such_module:build_it", "gone", "gone: its entry point .* cannot be loaded"),
    ],
)
def test_an_entry_point_that_clashes_or_leads_nowhere_is_refused(
    folder: Path, entry: str, name: str, message: str
) -> None:
    """No order of installation decides which network a bundle gets."""
    _install(folder, entry)
    with pytest.raises(BundleError, match=message):
        build(_architecture(name), InputLayout(2, ()))
