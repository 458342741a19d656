"""Which model version answers which request: one immutable table, replaced as a whole; pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from app.models.spec import ModelSpec

CHAMPION = "champion"
"""The label that answers requests which pin nothing."""


class Served(Protocol):
    """What a table needs to know of a live model."""

    @property
    def spec(self) -> ModelSpec:
        """Its specification."""


S = TypeVar("S", bound=Served)


class Refusal(NamedTuple):
    """Why no version answers a request; ``error_class`` as in the dead letters."""

    error_class: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class LiveTable(Generic[S]):
    """All versions that are READY, and where the labels point.

    Attributes:
        default: model of requests that name none.
        versions: by name and number.
        labels: number by name and label; each model has ``champion``.

    """

    default: str
    versions: Mapping[tuple[str, int], S]
    labels: Mapping[tuple[str, str], int]
    names: tuple[str, ...] = field(init=False)
    champion: S = field(init=False)

    def __post_init__(self) -> None:
        """Check that every label points to a version, and that the default model answers.

        Raises:
            ValueError: it does not.

        """
        for (name, label), number in self.labels.items():
            if (name, number) not in self.versions:
                msg = f"label {label} of {name} points to version {number}, which is not live"
                raise ValueError(msg)
        if (self.default, CHAMPION) not in self.labels:
            msg = f"no version of the default model {self.default} is the {CHAMPION}"
            raise ValueError(msg)
        object.__setattr__(self, "names", tuple(sorted({name for name, _ in self.versions})))
        object.__setattr__(self, "champion", self.versions[self.default, self.labels[self.default, CHAMPION]])

    @classmethod
    def of(cls, models: Iterable[S], *, default: str | None = None) -> LiveTable[S]:
        """A table of some models in which the highest version of each is the champion.

        Args:
            models: at least one.
            default: name of the default model; none: that of the first.

        """
        versions = {(m.spec.name, m.spec.version): m for m in models}
        labels: dict[tuple[str, str], int] = {}
        for name, number in versions:
            labels[name, CHAMPION] = max(number, labels.get((name, CHAMPION), 0))
        return cls(default or next(iter(versions))[0], versions, labels)

    def find(self, name: str | None, *, version: bytes | None = None, label: bytes | None = None) -> S | Refusal:
        """The version that answers a request, or why none does.

        Args:
            name: of the model; None: the default one.
            version: pinned by header, decimal.
            label: pinned by header.

        Example:
            >>> from types import SimpleNamespace as Model
            >>> table = LiveTable.of([Model(spec=Model(name="demo", version=v)) for v in (1, 2)])
            >>> table.find(None).spec.version, table.find("demo", version=b"1").spec.version
            (2, 1)
            >>> table.find("demo", label=b"challenger").message
            'label challenger pinned by x-model-label is not set for demo; set are champion'

        """
        wanted = self.default if name is None else name
        if wanted not in self.names:
            return Refusal("UnknownModel", f"model {_shown(wanted)} is not live here; live are {', '.join(self.names)}")
        if version is not None:
            found = self._by_version(wanted, version)
            agrees = label is None or isinstance(found, Refusal) or self._by_label(wanted, label) is found
            if not agrees:
                message = "x-model-version and x-model-label name two versions; pin one of them"
                return Refusal("ConflictingPins", message)
            return found
        return self._by_label(wanted, CHAMPION.encode() if label is None else label)

    def _by_version(self, name: str, version: bytes) -> S | Refusal:
        number = int(version) if version.isdigit() and len(version) <= 10 else 0
        found = self.versions.get((name, number))
        if found is not None:
            return found
        live = ", ".join(str(n) for n in sorted(n for other, n in self.versions if other == name))
        message = f"version {_shown(version)} pinned by x-model-version is not live for {name}; live are {live}"
        return Refusal("UnknownVersion", message)

    def _by_label(self, name: str, label: bytes) -> S | Refusal:
        number = self.labels.get((name, label.decode("utf-8", "replace")))
        if number is not None:
            return self.versions[name, number]
        known = ", ".join(sorted(key for other, key in self.labels if other == name)) or "none"
        message = f"label {_shown(label)} pinned by x-model-label is not set for {name}; set are {known}"
        return Refusal("UnknownLabel", message)


def _shown(value: str | bytes) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text if len(text) <= 64 else f"{text[:64]}…"
