"""A model bundle on disk: a folder ``<repository>/<name>/<version>/`` whose every file is vouched for by its sha256."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from app.calibration import Calibration
from app.errors import BundleError, DigestMismatch, UnsafeBundle
from app.models.archive import check_archive, refuse_disguised
from app.models.bundle_files import (
    CALIBRATION,
    EXPORTED,
    MAX_SPEC_BYTES,
    PARITY,
    REFERENCE,
    SPEC,
    WEIGHTS,
    check_all_named,
    check_names,
    open_plain,
    refuse_unsafe,
    verify_file,
)
from app.models.spec import ModelSpec, parse_spec
from app.postprocess import check_calibration

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from app.models.trust import TrustStore

VERSION_PATTERN = re.compile(r"[1-9][0-9]{0,9}")
MAX_YAML_DEPTH = 32
"""Brackets within brackets; a specification has six."""
NETWORKS = {"safetensors": WEIGHTS, "pt2": EXPORTED}
"""The file of the network, by what ``weights`` says in ``model.yaml``."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle.

    Attributes:
        folder: where it lies.
        spec: its ``model.yaml``.
        calibration: its calibration map, or a newer one of its own version.
        sha256: hex digest of ``model.yaml``, which names the digests of all other files: it stands for the bundle.
        preprocess_sha256: hex digest of the declared features and views, and of the tokenizers they name.
        calibration_sha256: hex digest of the calibration's file.
        calibration_revision: of a calibration that was added later; None: the bundle's own.
        is_trusted: whether the trust store named its digest when it was opened.

    """

    folder: Path
    spec: ModelSpec
    calibration: Calibration
    sha256: str
    preprocess_sha256: str
    calibration_sha256: str
    calibration_revision: int | None = None
    is_trusted: bool = False

    @property
    def reference_path(self) -> Path | None:
        """The drift reference; None: this version has none, so the monitor judges no drift of it."""
        return self._path(REFERENCE)

    @property
    def parity_path(self) -> Path | None:
        """Rows with what they came to when the bundle was packed; None: it was packed without."""
        return self._path(PARITY)

    @property
    def program_path(self) -> Path:
        """The exported program.

        Raises:
            UnsafeBundle: the bundle is not trusted.

        """
        if not self.is_trusted:
            raise UnsafeBundle(_untrusted(self.spec))
        return self.folder / EXPORTED

    def program(self) -> io.BytesIO:
        """The exported program's bytes, compared once more with the digest that is trusted.

        Whoever may write the folder could swap the file between its verification and its loading; what is in memory
        cannot be swapped.

        Raises:
            UnsafeBundle: the bundle is not trusted.
            DigestMismatch: the file is another by now.

        """
        with open_plain(self.program_path) as file:
            content = file.read()
        if self.spec.files.get(EXPORTED) not in (None, hashlib.sha256(content).hexdigest()):
            msg = f"{self.folder.name}/{EXPORTED}: was replaced while it was loaded; look at who did, and trust it anew"
            raise DigestMismatch(msg)
        return io.BytesIO(content)

    @property
    def weight_bytes(self) -> int:
        """Size of the network's file, which is about the memory that its weights take."""
        return (self.folder / NETWORKS[self.spec.weights]).stat().st_size

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors by name, mapped from the file and checked to be finite.

        Raises:
            BundleError: the file is no safetensors file, or a weight is NaN or infinite.

        """
        from app.models.weights import mapped_weights  # noqa: PLC0415 - brings torch; readers of model.yaml are spared

        return mapped_weights(self.folder / WEIGHTS)

    def _path(self, name: str) -> Path | None:
        return self.folder / name if name in self.spec.files else None


def open_bundle(folder: Path, *, trust: TrustStore | None = None) -> Bundle:
    """The bundle in ``folder``, every file checked against its digest.

    Args:
        folder: ``.../<name>/<version>``.
        trust: names the bundles that may run code; None: there is none, so an exported program is refused.

    Raises:
        BundleError: the folder is no bundle; the message names the file and the field.
        DigestMismatch: a file is not the one that was packed.
        UnsafeBundle: it holds a pickle, a link or name that leads out of it, or a program that is not trusted.

    """
    refuse_unsafe(folder)
    spec, digest = _read_spec(folder)
    check_place(folder, spec)
    check_names(spec.files, origin=f"{folder.name}/{SPEC}")
    _check_complete(folder, spec)
    is_trusted = trust is not None and trust.has(digest)
    if spec.weights == "pt2" and not is_trusted:
        raise UnsafeBundle(_untrusted(spec))
    for name, expected in spec.files.items():
        verify_file(folder, name, expected)
        if name == EXPORTED:
            check_archive(folder / name)
        else:
            refuse_disguised(folder / name)
    return Bundle(
        folder=folder,
        spec=spec,
        calibration=parse_calibration((folder / CALIBRATION).read_bytes(), spec, origin=f"{folder.name}/{CALIBRATION}"),
        sha256=digest,
        preprocess_sha256=preprocess_digest(spec),
        calibration_sha256=spec.files[CALIBRATION],
        is_trusted=is_trusted,
    )


def read_spec(folder: Path) -> ModelSpec:
    """The specification of a bundle, without looking at its other files.

    Raises:
        BundleError: there is none, or it does not hold together.

    """
    return _read_spec(folder)[0]


def parse_spec_bytes(raw: bytes, *, origin: str) -> ModelSpec:
    """The specification in the bytes of a ``model.yaml``.

    Args:
        raw: the file.
        origin: how messages name it.

    Raises:
        BundleError: it is no YAML of plain values, or does not hold together.

    """
    return parse_spec(parse_yaml(raw, origin=origin), origin=origin)


def parse_yaml(raw: bytes, *, origin: str) -> object:
    """The values in a YAML file from strangers.

    Args:
        raw: the file.
        origin: how messages name it.

    Raises:
        BundleError: it is no YAML, holds aliases or a key twice, or is nested too deep.

    """
    try:
        _check_events(raw)
        return yaml.load(raw, Loader=_StrictLoader)  # noqa: S506 - derives from the safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as exc:  # a date such as 2020-99-99 is a ValueError
        msg = f"{origin}: not YAML: {exc}"
        raise BundleError(msg) from exc


def parse_calibration(raw: bytes, spec: ModelSpec, *, origin: str) -> Calibration:
    """The calibration in the bytes of a file.

    Args:
        raw: the file.
        spec: of the version that it is for.
        origin: how messages name the file.

    Raises:
        BundleError: it is none, belongs to another model or version, or does not fit the output.

    """
    try:
        calibration = Calibration.from_json(raw.decode())
    except ValueError as exc:
        msg = f"{origin}: {exc}"
        raise BundleError(msg) from exc
    said = (calibration.model or spec.name, calibration.model_version or spec.version)
    if said != (spec.name, spec.version):
        msg = f"{origin}: was fitted for {said[0]} version {said[1]}, not for {spec.name} version {spec.version}"
        raise BundleError(msg)
    try:
        check_calibration(spec.output, calibration)
    except BundleError as exc:
        msg = f"{origin}: {exc}"
        raise BundleError(msg) from exc
    return calibration


def preprocess_digest(spec: ModelSpec) -> str:
    """Hex digest of all that decides what the network is given."""
    declared = spec.model_dump(mode="json", include={"features", "views"}, exclude_defaults=True)
    tokenizers = {name: spec.files.get(name) for name in spec.tokenizer_files()}
    document = {**declared, **({"tokenizers": tokenizers} if tokenizers else {})}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def versions(repository: Path, name: str) -> list[int]:
    """Version numbers of a model, increasing; empty when there are none."""
    folder = repository / name
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if VERSION_PATTERN.fullmatch(p.name) and p.is_dir())


def _untrusted(spec: ModelSpec) -> str:
    return (
        f"{spec.name} version {spec.version}: an exported program can run code when loaded, and this bundle is not in "
        f"the trust store; if you know who packed it: sluice model trust {spec.name} {spec.version}"
    )


def check_place(folder: Path, spec: ModelSpec) -> None:
    """Refuse a specification that lies in the folder of another model or version.

    Raises:
        BundleError: it does.

    """
    if (folder.parent.name, folder.name) != (spec.name, str(spec.version)):
        msg = (
            f"{folder.name}/{SPEC}: says {spec.name} version {spec.version}, but lies in {folder.parent.name}/"
            f"{folder.name}; copy it to {spec.name}/{spec.version}, or pack a version of its own"
        )
        raise BundleError(msg)


def _check_complete(folder: Path, spec: ModelSpec) -> None:
    network = NETWORKS[spec.weights]
    for needed in (network, CALIBRATION, *spec.tokenizer_files()):
        if needed not in spec.files:
            msg = f"{folder.name}/{SPEC}: files: no digest for {needed}; pack the bundle again"
            raise BundleError(msg)
    for other in {WEIGHTS, EXPORTED} - {network}:
        if other in spec.files:
            msg = f"{folder.name}/{SPEC}: weights: says {spec.weights}, but there is {other} too; remove one of them"
            raise BundleError(msg)
    check_all_named(folder, spec.files)


def _read_spec(folder: Path) -> tuple[ModelSpec, str]:
    path = folder / SPEC
    if not path.is_file() or path.stat().st_size > MAX_SPEC_BYTES:
        msg = f"{folder}: no readable {SPEC} of at most {MAX_SPEC_BYTES} bytes"
        raise BundleError(msg)
    with open_plain(path) as file:
        raw = file.read(MAX_SPEC_BYTES + 1)
    return parse_spec_bytes(raw, origin=f"{folder.name}/{SPEC}"), hashlib.sha256(raw).hexdigest()


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast, where it was built


class _StrictLoader(_SafeLoader):  # type: ignore[misc] # chosen at run time
    """The safe loader, for which a key that stands twice is an error: the first would silently do nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _check_events(raw: bytes) -> None:
    """Refuse what makes few bytes into much memory or a deep stack, before anything is built from it."""
    depth = 0
    for event in yaml.parse(raw, Loader=_SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            msg = f"an alias (*{event.anchor}), which can make a few lines into gigabytes; write the values out"
            raise yaml.YAMLError(msg)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            msg = f"nested more than {MAX_YAML_DEPTH} deep"
            raise yaml.YAMLError(msg)
