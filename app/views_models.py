"""Models as the Open Inference Protocol shows them: metadata, readiness, statistics, and the repository.

For people and tools that know Triton or another model server: the shapes are theirs, the figures ours. There is no
``infer``: requests come over Kafka, and ``sluice score`` sends one. All is made from a worker's own states, as the
document of ``ModelManager`` has them; of a version it needs ``name``, ``version``, ``state``, ``reason``, ``labels``,
``device``, ``memory_bytes`` and ``requests``, and shows ``batches`` and ``compute_us`` where they are counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from app.errors import SluiceError
from app.models.control import Wish, describe, of_version
from app.models.lifecycle import State
from app.models.live_table import CHAMPION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from app.models.control import Target
    from app.models.spec import ModelSpec

Entry = Mapping[str, Any]
"""What the document says of one version."""
DATATYPES = {"number": "FP64", "category": "BYTES", "text": "BYTES", "time": "INT64", "flag": "BOOL"}
"""A time is unix micros."""
REPOSITORY_STATES = {
    State.NEW: "LOADING",
    State.LOADING: "LOADING",
    State.WARMING: "LOADING",
    State.READY: "READY",
    State.DRAINING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
}
"""Our states in the words of Triton's repository index."""


class UnknownVersion(SluiceError):
    """There is no such model, or no such version of it."""


class ModelsView(Protocol):
    """What the web views ask about models, and tell them."""

    def document(self) -> dict[str, Any]:
        """The states of all versions."""

    def metadata(self, name: str, version: int) -> dict[str, Any] | None:
        """What a version takes and gives; None when it is not loaded."""

    async def load(self, name: str, version: int | None) -> str:
        """Have all workers load a version, None: the newest there is; returns what was asked for, in words.

        Raises:
            UnknownVersion: there is none.
            SluiceError: it cannot be asked for.

        """

    async def unload(self, name: str, version: int | None) -> str:
        """Have all workers unload a version, None: all that are there; returns what was asked for, in words.

        Raises:
            UnknownVersion: there is none.
            SluiceError: it cannot be asked for.

        """


class LiveModels:
    """The models of a scoring worker, as ``ModelsView``.

    Args:
        document: of its manager.
        spec: of a version that is loaded; None when it is not.
        versions: the version numbers that the repository has of a model; blocking.
        send: writes wishes to the control topic, acknowledged.

    """

    def __init__(
        self,
        document: Callable[[], dict[str, Any]],
        spec: Callable[[str, int], ModelSpec | None],
        versions: Callable[[str], list[int]],
        send: Callable[[list[tuple[Target, Wish]]], Awaitable[object]],
    ) -> None:
        self.document = document
        self._spec, self._versions, self._send = spec, versions, send

    def metadata(self, name: str, version: int) -> dict[str, Any] | None:
        """What a version takes and gives; None when it is not loaded."""
        spec = self._spec(name, version)
        if spec is None:
            return None
        ready = [int(entry["version"]) for entry in versions_of(self.document(), name) if is_ready(entry)]
        return model_metadata(spec, ready)

    async def load(self, name: str, version: int | None) -> str:
        """Write the wish that a version be loaded, None: the newest one of the repository.

        Raises:
            UnknownVersion: the repository has none.
            SluiceError: the control topic or the repository cannot be had.

        """
        there = await asyncio.to_thread(self._versions, name)
        if not there or version not in {None, *there}:
            msg = f"the repository has no {_called(name, version)}; it has {', '.join(map(str, there)) or 'none'}"
            raise UnknownVersion(msg)
        return await self._wish(name, [version or there[-1]], is_loaded=True)

    async def unload(self, name: str, version: int | None) -> str:
        """Write the wish that a version be unloaded, None: all of them that are not.

        Raises:
            UnknownVersion: none is loaded.
            SluiceError: the control topic cannot be had.

        """
        own = versions_of(self.document(), name)
        loaded = [int(entry["version"]) for entry in own if entry["state"] != State.UNLOADED]
        if not loaded or version not in {None, *loaded}:
            msg = f"no {_called(name, version)} is loaded; loaded are {', '.join(map(str, loaded)) or 'none'}"
            raise UnknownVersion(msg)
        return await self._wish(name, loaded if version is None else [version], is_loaded=False)

    async def _wish(self, name: str, versions: list[int], *, is_loaded: bool) -> str:
        wish = Wish(int(is_loaded), time.time_ns() // 1000, "web")
        wishes = [(of_version(name, version), wish) for version in versions]
        await self._send(wishes)
        return ", ".join(describe(target, wish) for target, _ in wishes)


def _called(name: str, version: int | None) -> str:
    return f"model {name}" if version is None else f"version {version} of {name}"


def find(document: Entry, name: str, *, version: str | None = None, label: str | None = None) -> Entry | None:
    """The version that a path names; None when there is none.

    Args:
        document: the states of all versions.
        name: of the model.
        version: decimal; None: the champion, else the newest.
        label: instead of a version.

    Example:
        >>> versions = [{"name": "d", "version": v, "state": "READY", "labels": []} for v in (1, 2)]
        >>> find({"versions": versions}, "d")["version"], find({"versions": versions}, "d", version="3")
        (2, None)

    """
    own = versions_of(document, name)
    if version is not None:
        own = [entry for entry in own if str(entry["version"]) == version]
    elif label is not None:
        own = [entry for entry in own if label in entry["labels"]]
    else:
        own = [entry for entry in own if CHAMPION in entry["labels"]] or own[-1:]
    return own[0] if own else None


def versions_of(document: Entry, name: str) -> list[Entry]:
    """What the document says of a model's versions, the newest last."""
    return sorted((e for e in document["versions"] if e["name"] == name), key=lambda entry: int(entry["version"]))


def is_ready(entry: Entry) -> bool:
    """Whether a version answers requests."""
    return bool(entry["state"] == State.READY)


def model_metadata(spec: ModelSpec, versions: Sequence[int]) -> dict[str, Any]:
    """The Open Inference Protocol's model metadata.

    Inputs are the features of a request; what comes from the online store is not sent, so it is not named.

    Args:
        spec: of the version that is asked for.
        versions: those that answer.

    """
    requested = [feature for feature in spec.features if feature.source == "request"]
    return {
        "name": spec.name,
        "versions": [str(version) for version in versions],
        "platform": f"sluice_{spec.weights}",
        "inputs": [{"name": f.name, "datatype": DATATYPES[f.type], "shape": [-1]} for f in requested],
        "outputs": [{"name": name, "datatype": "FP64", "shape": [-1]} for name in spec.output.output_names],
    }


def model_statistics(entry: Entry) -> dict[str, Any]:
    """Triton's statistics of a version, as far as they are counted here; what is not counted is left out.

    Args:
        entry: what the document says of the version.

    """
    statistics: dict[str, Any] = {
        "name": entry["name"],
        "version": str(entry["version"]),
        "inference_count": entry.get("requests", 0),
        "memory_usage": [{"type": _memory_type(device), "id": _device_id(device), "byte_size": share}
                         for device, share in _memory(entry)],
    }  # fmt: skip
    if "batches" in entry:
        statistics["execution_count"] = entry["batches"]
        ns = 1000 * int(entry["compute_us"])
        statistics["inference_stats"] = {"compute_infer": {"count": entry["batches"], "ns": ns}}
    return statistics


def _memory(entry: Entry) -> list[tuple[str, int]]:
    devices = str(entry.get("device") or "").split(",")
    total = int(entry.get("memory_bytes") or 0)
    return [(device, total // len(devices)) for device in devices if device]


def _memory_type(device: str) -> str:
    return "GPU" if device.startswith("cuda") else "CPU"


def _device_id(device: str) -> int:
    number = device.partition(":")[2]
    return int(number) if number.isdecimal() else 0


def repository_index(document: Entry, *, only_ready: bool = False) -> list[dict[str, str]]:
    """Triton's index of the repository; ``reason`` says in our words why a version does not answer.

    Args:
        document: the states of all versions.
        only_ready: leave out what does not answer.

    Example:
        >>> repository_index({"versions": [{"name": "d", "version": 1, "state": "WARMING", "reason": ""}]})
        [{'name': 'd', 'version': '1', 'state': 'LOADING', 'reason': 'WARMING'}]

    """
    return [
        {
            "name": entry["name"],
            "version": str(entry["version"]),
            "state": REPOSITORY_STATES[State(entry["state"])],
            "reason": "" if is_ready(entry) else str(entry["reason"] or entry["state"]),
        }
        for entry in document["versions"]
        if is_ready(entry) or not only_ready
    ]
