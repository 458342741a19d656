"""The allow-list of networks that a bundle may name: the code is the operator's, the bundle brings only numbers.

Three ways lead onto it: the networks that come with Sluice, entry points of the group ``sluice.architectures`` of
installed packages, and ``register_architecture`` in a module that the setting ``models.architectures`` names.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, overload

import torch
from pydantic import ValidationError
from torch import nn
from torch.overrides import TorchFunctionMode

from app.errors import BundleError, SettingsError
from app.models.networks.linear import build_linear
from app.models.networks.tabular_mlp import build_tabular_mlp
from app.models.networks.text_bag import build_text_bag
from app.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from importlib.metadata import EntryPoint

    from app.models.spec import ModelSpec
    from app.preprocess import InputLayout

    Builder = Callable[[ModelSpec, InputLayout], nn.Module]

ENTRY_POINTS = "sluice.architectures"
MAX_PARAMETERS = 2**28
"""Bound on a network's size, 1 GiB: it is built before its weights are seen to fit, so a few lines of YAML must not
ask for more."""
RANDOM_FILLS = {
    *(torch.Tensor.normal_, torch.Tensor.uniform_),
    *(nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
}
"""What a network fills its weights with when it is made."""

_registered: dict[str, Builder] = {
    "tabular_mlp": build_tabular_mlp,
    "text_bag": build_text_bag,
    "linear": build_linear,
}


@overload
def register_architecture(name: str, builder: Builder) -> Builder: ...


@overload
def register_architecture(name: str) -> Callable[[Builder], Builder]: ...


def register_architecture(name: str, builder: Builder | None = None) -> Builder | Callable[[Builder], Builder]:
    """Put a network onto the allow-list; as a call, or as a decorator of its builder.

    Args:
        name: what ``architecture.name`` says in ``model.yaml``.
        builder: makes the network with fresh weights from the specification and the shapes of its inputs; the network
            is called with the inputs by name, and without text features these are ``numbers`` and ``codes``.

    Returns:
        The builder.

    Raises:
        SettingsError: another builder has this name.

    Example:
        >>> from app.models.networks.linear import Linear
        >>> @register_architecture("doubled_linear")
        ... def build_it(spec, layout):
        ...     return Linear(2 * layout.number_width)
        >>> "doubled_linear" in known_architectures()
        True

    """
    if builder is None:
        return lambda decorated: register_architecture(name, decorated)
    if _registered.setdefault(name, builder) is not builder:
        msg = f"architecture {name}: {_origin(_registered[name])} has this name already; rename {_origin(builder)}"
        raise SettingsError(msg)
    return builder


def load_architecture_modules(names: Iterable[str]) -> None:
    """Import the modules that register the operator's own networks; once, before any bundle is opened.

    Args:
        names: dotted, importable; the setting ``models.architectures``.

    Raises:
        SettingsError: one cannot be imported, or registers a name that is taken.

    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as exc:
            msg = f"models.architectures: {name} cannot be imported ({exc}); install it beside Sluice"
            raise SettingsError(msg) from exc


def known_architectures() -> tuple[str, ...]:
    """Names on the allow-list, in order.

    Example:
        >>> {"linear", "tabular_mlp", "text_bag"} <= set(known_architectures())
        True

    """
    return tuple(sorted({*_registered, *(point.name for point in _entry_points())}))


def build(spec: ModelSpec, layout: InputLayout | None = None) -> nn.Module:
    """The network that a bundle names, with fresh weights; for training.

    Args:
        spec: its specification.
        layout: of its inputs; none: as the specification alone says, which does unless there are text features.

    Raises:
        BundleError: it is not on the allow-list, its arguments do not fit, or it is too large.

    """
    layout = layout or Preprocessor(spec).layout
    skeleton(spec, layout)
    return _construct(spec, layout, "cpu")


def skeleton(spec: ModelSpec, layout: InputLayout) -> nn.Module:
    """The network that a bundle names, of tensors without memory: for weights to be put into.

    A network that cannot be built so (it looks at its numbers while it is built) has memory.

    Raises:
        BundleError: as ``build``.

    """
    try:
        module = _construct(spec, layout, "meta")
    except RuntimeError:  # what tensors without memory raise when they are read
        module = _construct(spec, layout, "cpu")
    count = sum(parameter.numel() for parameter in module.parameters())
    if count > MAX_PARAMETERS:
        msg = f"model.yaml: architecture.arguments: {count} parameters, at most {MAX_PARAMETERS}; choose smaller widths"
        raise BundleError(msg)
    return module


def _construct(spec: ModelSpec, layout: InputLayout, device: str) -> nn.Module:
    assert spec.architecture is not None, "only weights in safetensors need a network of ours"
    name = spec.architecture.name
    builder = _builder(name)
    try:
        with torch.device(device), _NoRandomFills() if device == "meta" else nullcontext():
            module = builder(spec, layout)
    except ValidationError as exc:
        fault = exc.errors()[0]
        path = ".".join(str(part) for part in fault["loc"])
        msg = f"model.yaml: architecture.arguments.{path}: {fault['msg']}"
        raise BundleError(msg) from exc
    except BundleError as exc:
        msg = f"model.yaml: architecture: {exc}"
        raise BundleError(msg) from exc
    except (TypeError, ValueError, LookupError, AttributeError) as exc:
        msg = f"model.yaml: architecture {name}: its builder refuses the model ({type(exc).__name__}: {exc})"
        raise BundleError(msg) from exc
    if not isinstance(module, nn.Module):
        msg = f"architecture {name}: its builder gives {type(module).__name__}, a torch.nn.Module is needed"
        raise BundleError(msg)
    return module


class _NoRandomFills(TorchFunctionMode):
    """Leaves tensors without memory alone; to fill them, torch would import its compilers, which takes 4 s."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function gives
        del types
        if func in RANDOM_FILLS:  # nn.init hands its tensor over by name
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _builder(name: str) -> Builder:
    points = [point for point in _entry_points() if point.name == name]
    if len(points) + (name in _registered) > 1:
        places = [*(point.value for point in points), *(_origin(b) for key, b in _registered.items() if key == name)]
        msg = f"architecture {name} stands more than once on the allow-list ({', '.join(places)}); rename one of them"
        raise BundleError(msg)
    if points:
        try:
            loaded: Builder = points[0].load()
        except (ImportError, AttributeError) as exc:
            msg = f"architecture {name}: its entry point {points[0].value} cannot be loaded ({exc}); install it again"
            raise BundleError(msg) from exc
        return loaded
    if name not in _registered:
        known = ", ".join(known_architectures())
        msg = f"model.yaml: architecture.name: {name!r} is not on the allow-list ({known})"
        raise BundleError(msg)
    return _registered[name]


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=ENTRY_POINTS))


def _origin(builder: Builder) -> str:
    return f"{getattr(builder, '__module__', '?')}.{getattr(builder, '__qualname__', repr(builder))}"
