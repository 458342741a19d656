"""What operators want of the models: wishes on the compacted topic ``model-control``, folded into one state; pure.

====================================  ================================  ==================================
Key                                   Value                             A tombstone means
====================================  ================================  ==================================
``<model>/version/<version>``         ``{"wanted": "loaded"}`` or       the version policy decides again
                                      ``{"wanted": "unloaded"}``
``<model>/label/<label>``             ``{"version": 3}``                the label policy decides again
``<model>/calibration/<version>``     ``{"revision": 2}``               the newest revision counts again
====================================  ================================  ==================================

A value may also say when (``at``, unix micros) and by whom (``by``); other keys are ignored, so that it can grow.
It is JSON, not Avro as on the data topics: with any Kafka client and no schema at hand an operator can write and read
a wish, and a schema registry that is down keeps no worker from what was decided.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from app.errors import SluiceError
from schemas.generate import check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_VERSION = 2**31 - 1
MAX_VALUE_BYTES = 4096
"""A wish takes about a hundred; a longer value is none."""
MAX_WISHES = 4096
"""Wishes that are kept; a bound, because the topic comes from outside."""
_KEY = re.compile(rb"([a-z][a-z0-9_]{0,63})/(version|label|calibration)/([a-z0-9_]{1,64})")
_NUMBER = re.compile(r"[1-9][0-9]{0,9}")


class ControlError(SluiceError):
    """A wish cannot be written or read; the message says what is wrong with it."""


class Kind(StrEnum):
    """What a wish is about."""

    VERSION = "version"
    LABEL = "label"
    CALIBRATION = "calibration"


_FIELDS = {Kind.VERSION: "wanted", Kind.LABEL: "version", Kind.CALIBRATION: "revision"}


@dataclass(frozen=True, slots=True)
class Target:
    """Version, label or calibration of a model.

    Attributes:
        model: its name.
        kind: what ``item`` names.
        item: decimal version, or a label.

    """

    model: str
    kind: Kind
    item: str

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ControlError: the model, the label or the version cannot be one.

        """
        try:
            check_name(self.model)
            if self.kind is Kind.LABEL:
                check_name(self.item)
        except ValueError as exc:
            raise ControlError(str(exc)) from exc
        if self.kind is not Kind.LABEL and not (_NUMBER.fullmatch(self.item) and int(self.item) <= MAX_VERSION):
            msg = f"version {self.item} of {self.model}: a whole number from 1 to {MAX_VERSION} is expected"
            raise ControlError(msg)

    @property
    def key(self) -> bytes:
        """Key of its records.

        Example:
            >>> Target("delays", Kind.LABEL, "champion").key
            b'delays/label/champion'

        """
        return f"{self.model}/{self.kind}/{self.item}".encode()

    def __str__(self) -> str:
        return f"{self.kind} {self.item} of {self.model}"


def of_version(model: str, version: int) -> Target:
    """Whether a version is loaded.

    Raises:
        ControlError: the name or the number cannot be one.

    """
    return Target(model, Kind.VERSION, str(version))


def of_label(model: str, label: str) -> Target:
    """Where a label points, label ``[a-z][a-z0-9_]{0,63}``.

    Raises:
        ControlError: a name cannot be one.

    """
    return Target(model, Kind.LABEL, label)


def of_calibration(model: str, version: int) -> Target:
    """Which revision of its calibration a version uses.

    Raises:
        ControlError: the name or the number cannot be one.

    """
    return Target(model, Kind.CALIBRATION, str(version))


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of a target.

    Attributes:
        value: of a version 1 (loaded) or 0 (unloaded), of a label the version, of a calibration the revision.
        at_us: when it was said, unix micros; 0: it does not say.
        by: by whom; empty: it does not say.

    """

    value: int
    at_us: int = 0
    by: str = ""


def describe(target: Target, wish: Wish | None) -> str:
    """A wish in words, the same on the page, in a worker's refusals and on the command line.

    Example:
        >>> describe(of_version("delays", 3), Wish(0)), describe(of_label("delays", "champion"), Wish(3))
        ('unload delays 3', 'label champion of delays -> 3')
        >>> describe(of_calibration("delays", 3), Wish(2)), describe(of_version("delays", 3), None)
        ('calibrate delays 3 -> 2', 'reset version 3 of delays')

    """
    if wish is None:
        return f"reset {target}"
    if target.kind is Kind.LABEL:
        return f"{target} -> {wish.value}"
    if target.kind is Kind.CALIBRATION:
        return f"calibrate {target.model} {target.item} -> {wish.value}"
    return f"{'load' if wish.value else 'unload'} {target.model} {target.item}"


def encode(target: Target, wish: Wish) -> tuple[bytes, bytes]:
    """Key and value of the record that says it.

    Raises:
        ControlError: the value does not fit the target.

    Example:
        >>> encode(of_version("delays", 3), Wish(1, at_us=5, by="ops"))
        (b'delays/version/3', b'{"wanted": "loaded", "at": 5, "by": "ops"}')

    """
    value: int | str = wish.value
    if target.kind is Kind.VERSION:
        value = "loaded" if wish.value else "unloaded"
    document: dict[str, Any] = {_FIELDS[target.kind]: value}
    if wish.at_us:
        document["at"] = wish.at_us
    if wish.by:
        document["by"] = wish.by
    raw = json.dumps(document).encode()
    parse_wish(target, raw)  # whoever writes what nobody reads should hear of it
    return target.key, raw


def parse_target(key: bytes | None) -> Target:
    """What a record is about.

    Raises:
        ControlError: its key is not one of the three shapes.

    Example:
        >>> str(parse_target(b"delays/calibration/3"))
        'calibration 3 of delays'

    """
    found = None if key is None else _KEY.fullmatch(key)
    if found is None:
        shown = (key or b"")[:100]
        msg = f"key {shown!r} is not <model>/version/<n>, <model>/label/<label> or <model>/calibration/<n>"
        raise ControlError(msg)
    model, kind, item = (part.decode() for part in found.groups())
    return Target(model, Kind(kind), item)


def parse_wish(target: Target, raw: bytes) -> Wish:
    """What a record's value says of its target.

    Raises:
        ControlError: it says nothing that fits.

    Example:
        >>> parse_wish(of_label("delays", "champion"), b'{"version": 3}')
        Wish(value=3, at_us=0, by='')

    """
    try:
        document = json.loads(raw) if len(raw) <= MAX_VALUE_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        msg = f"{target}: its value is no JSON object of at most {MAX_VALUE_BYTES} bytes: {raw[:60]!r}"
        raise ControlError(msg)
    name = _FIELDS[target.kind]
    value = document.get(name)
    if target.kind is Kind.VERSION:
        value = {"loaded": 1, "unloaded": 0}.get(value) if isinstance(value, str) else None
    least = 1 if target.kind is Kind.LABEL else 0
    if not _is_whole(value, least):
        wanted = '"loaded" or "unloaded"' if target.kind is Kind.VERSION else f"a whole number from {least} on"
        msg = f"{target}: {name} must be {wanted}, not {document.get(name)!r}"
        raise ControlError(msg)
    at_us, by = document.get("at"), document.get("by")
    assert isinstance(value, int)
    return Wish(value, at_us if isinstance(at_us, int) else 0, by[:100] if isinstance(by, str) else "")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MAX_VERSION


@dataclass(frozen=True, slots=True)
class ControlState:
    """All wishes that hold, as of an offset of the topic; never changed, ``apply`` gives another.

    Attributes:
        wishes: what is wanted, by target.
        offset: of the record that comes next; one beyond the last that was applied.
        problem: why the last record was skipped; None when it was not.

    Example:
        >>> state = ControlState.empty().apply(*encode(of_version("delays", 3), Wish(1)), offset=0)
        >>> state = state.apply(*encode(of_label("delays", "champion"), Wish(3)), offset=1)
        >>> state.wanted("delays"), state.labels("delays"), state.offset
        ({3: True}, {'champion': 3}, 2)
        >>> state.apply(b"delays/version/3", None, offset=2).wanted("delays")
        {}

    """

    wishes: Mapping[Target, Wish] = field(default_factory=lambda: MappingProxyType({}))
    offset: int = 0
    problem: str | None = None

    @classmethod
    def empty(cls) -> ControlState:
        """Before the first record: nothing is wanted, the policies decide."""
        return cls()

    def apply(self, key: bytes | None, value: bytes | None, offset: int) -> ControlState:
        """The state after a record; one that cannot be read changes nothing but ``offset`` and ``problem``.

        Args:
            key: of the record.
            value: of the record; None takes the wish of the same key back.
            offset: of the record; compaction leaves gaps.

        """
        try:
            target = parse_target(key)
            wish = None if value is None else parse_wish(target, value)
        except ControlError as exc:
            return replace(self, offset=offset + 1, problem=str(exc))
        if wish is not None and target not in self.wishes and len(self.wishes) >= MAX_WISHES:
            problem = f"{target}: {MAX_WISHES} wishes are kept at most; take some back (`sluice model reset`)"
            return replace(self, offset=offset + 1, problem=problem)
        wishes = {known: kept for known, kept in self.wishes.items() if known != target}
        if wish is not None:
            wishes[target] = wish
        return ControlState(MappingProxyType(wishes), offset + 1)

    def wanted(self, model: str) -> dict[int, bool]:
        """Versions of a model that somebody decided about: True is to be loaded, False is to be unloaded."""
        return {int(item): bool(value) for item, value in self._of(model, Kind.VERSION).items()}

    def labels(self, model: str) -> dict[str, int]:
        """The version that each label of a model shall point to."""
        return self._of(model, Kind.LABEL)

    def calibrations(self, model: str) -> dict[int, int]:
        """The revision of its calibration that each version of a model shall use."""
        return {int(item): value for item, value in self._of(model, Kind.CALIBRATION).items()}

    def models(self) -> tuple[str, ...]:
        """Names of the models that somebody decided something about, sorted."""
        return tuple(sorted({target.model for target in self.wishes}))

    def _of(self, model: str, kind: Kind) -> dict[str, int]:
        return {t.item: wish.value for t, wish in self.wishes.items() if t.model == model and t.kind is kind}
