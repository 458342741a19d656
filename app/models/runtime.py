"""A loaded network on its device; batches are padded to a bucket, so a row's score never depends on its neighbours."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from app.errors import BundleError, SluiceError
from app.models.compiled import compile_for_bucket
from app.models.devices import choose_device, raise_if_lost
from app.models.exported import skip_input_checks
from app.models.loading import DTYPES, load_network
from app.models.staging import CudaStage
from app.preprocess import Preprocessor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn

    from app.models.bundle import Bundle
    from app.preprocess import InputLayout, Inputs

TIMED_RUNS = 2
"""Of each bucket in warm-up, after one that may be slow; the faster one counts."""


class ScoringModel:
    """One version of one model on one device, ready to predict.

    Args:
        bundle: verified.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (CUDA when there is one).

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        preprocessor: makes the inputs.
        memory_bytes: what parameters and buffers take on the device.
        is_mapped: they are the bundle's file itself, which all processes of the machine share.

    Raises:
        BundleError: the network does not fit the inputs, the outputs or the weights that the bundle declares.
        UnsafeBundle: it is an exported program and not trusted.
        SettingsError: the device is not there.
        DeviceLost: the device fails, or has too little memory.

    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle = bundle
        self.spec = bundle.spec
        self.device = choose_device(device)
        self.preprocessor = Preprocessor(bundle.spec, bundle.folder)
        smallest = self.spec.buckets[0]
        samples = {name: torch.from_numpy(array) for name, array in self._zeros(smallest).items()}
        try:
            network = load_network(bundle, self.preprocessor.layout, samples, self.device)
            self._stage = None if self.device == "cpu" else CudaStage(self.device)
        except RuntimeError as exc:
            raise_if_lost(exc, self.device)
            raise
        self.memory_bytes, self.is_mapped = network.memory_bytes, network.is_mapped
        self._dtype = DTYPES[self.spec.precision]
        self._module: nn.Module | None = network.module
        self._runs: dict[int, Callable[..., torch.Tensor]] = dict.fromkeys(self.spec.buckets, network.module)
        self._check_output(smallest)

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"{self.spec.name} version {self.spec.version}"

    def warm_up(self, samples: Inputs | None = None) -> dict[int, float]:
        """Run every bucket, so that no request pays for a first time; compile them if the bundle says so.

        Args:
            samples: inputs of recorded requests, any number of rows, repeated or cut to each bucket; none: zeros.

        Returns:
            Seconds that a run takes, by bucket.

        Raises:
            BundleError: the network raises, a logit is not finite on all-zero inputs, or the smallest bucket is slower
                than ``max_run_ms``.
            DeviceLost: the device fails, or has too little memory.

        """
        has_samples = samples is not None and len(samples["numbers"]) > 0
        seconds: dict[int, float] = {}
        for bucket in self.spec.buckets:
            zeros = self._zeros(bucket)
            inputs = _repeated(samples, bucket) if samples is not None and has_samples else zeros
            if self.spec.compile:
                self._compile(bucket)
            if not np.isfinite(self._tried(zeros)).all():
                msg = f"{self.title}: warm-up gives a logit that is not finite; train again, or scale its inputs"
                raise BundleError(msg)
            seconds[bucket] = min(self._timed(inputs) for _ in range(TIMED_RUNS))
        if self.spec.weights == "pt2" and self._module is not None:
            skip_input_checks(self._module)
        self._check_speed(seconds)
        return seconds

    def predict(self, inputs: Inputs) -> tuple[NDArray[np.float32], int]:
        """Logits float32 (n,), or (n, outputs) when there are several, and the bucket that the batch was padded to.

        Args:
            inputs: as the preprocessor makes them, 1 <= n <= largest bucket; they are left as they are.

        Raises:
            DeviceLost: the device failed, or ran out of memory.

        """
        return self.submit(inputs).result()

    def submit(self, inputs: Inputs) -> PendingLogits:
        """As ``predict``, but on CUDA it returns while the device still copies and computes.

        Whoever submits the next batch before asking for the result of this one has its copies overlap this one's run.
        """
        rows = len(inputs["numbers"])
        bucket = self.spec.bucket_for(rows)
        if not self._runs:
            msg = f"{self.title} is unloaded; ask for a version that is loaded"
            raise BundleError(msg)
        try:
            with torch.inference_mode():
                logits = self._runs[bucket](**self._placed(inputs, rows, bucket))
                if logits.dtype != torch.float32:
                    logits = logits.float()
                if self._stage is None:
                    return PendingLogits(logits, None, rows, bucket, self.device)
                return PendingLogits(*self._stage.fetch(logits), rows, bucket, self.device)
        except RuntimeError as exc:
            raise_if_lost(exc, self.device)
            raise

    def moved_to(self, device: str) -> ScoringModel:
        """The same version on another device, its weights read from the bundle again: the device may be gone."""
        return type(self)(self.bundle, device)

    def close(self) -> None:
        """Let go of the network and its memory; every later ``predict`` is refused."""
        self._module, self._runs = None, {}
        if self._stage is not None:
            with suppress(RuntimeError):  # a device that is lost has nothing left to free
                torch.cuda.empty_cache()

    def _placed(self, inputs: Inputs, rows: int, bucket: int) -> dict[str, torch.Tensor]:
        if self._stage is not None:
            placed = self._stage.put(inputs, bucket)
        elif rows == bucket:
            placed = {name: torch.from_numpy(array) for name, array in inputs.items()}
        else:
            placed = {name: torch.from_numpy(_padded(array, bucket)) for name, array in inputs.items()}
        if self._dtype != torch.float32:
            placed = {name: t.to(self._dtype) if t.is_floating_point() else t for name, t in placed.items()}
        return placed

    def _zeros(self, rows: int) -> Inputs:
        return zero_inputs(self.preprocessor.layout, rows)

    def _tried(self, inputs: Inputs) -> NDArray[np.float32]:
        """Logits of a trial; whatever the network raises on it is the bundle's fault."""
        try:
            return self.submit(inputs).result()[0]
        except SluiceError:
            raise
        except Exception as exc:
            first_line = str(exc).partition("\n")[0]
            bucket = len(inputs["numbers"])
            msg = f"{self.title}: the network raises {type(exc).__name__} on bucket {bucket} ({first_line})"
            raise BundleError(msg) from exc

    def _timed(self, inputs: Inputs) -> float:
        started_s = time.monotonic()
        self._tried(inputs)
        return time.monotonic() - started_s

    def _compile(self, bucket: int) -> None:
        assert self._module is not None, "closed"
        with torch.inference_mode():
            placed = self._placed(self._zeros(bucket), bucket, bucket)
            self._runs[bucket] = compile_for_bucket(self._module, placed, self.title)

    def _check_output(self, bucket: int) -> None:
        shape = self._tried(self._zeros(bucket)).shape
        outputs = len(self.spec.output.output_names)
        expected = (bucket,) if outputs == 1 else (bucket, outputs)
        if shape != expected:
            msg = (
                f"{self.title}: the network gives logits of shape {shape} for {bucket} rows, {expected} is expected;"
                " model.yaml: output: name as many outputs as the network has"
            )
            raise BundleError(msg)

    def _check_speed(self, seconds: dict[int, float]) -> None:
        limit_ms, bucket = self.spec.max_run_ms, self.spec.buckets[0]
        took_ms = seconds[bucket] * 1e3
        if limit_ms is not None and took_ms > limit_ms:
            msg = (
                f"{self.title}: too slow: bucket {bucket} takes {took_ms:.3g} ms on {self.device}, max_run_ms is"
                f" {limit_ms:g}; make the network smaller, or raise max_run_ms"
            )
            raise BundleError(msg)


class PendingLogits:
    """Logits that a device may still be working on.

    Args:
        logits: on the CPU, padded.
        done: after which they are there; none: they are.
        rows: of the batch.
        bucket: that it was padded to.
        device: that works on it.

    """

    __slots__ = ("_bucket", "_device", "_done", "_logits", "_rows")

    def __init__(
        self, logits: torch.Tensor, done: torch.cuda.Event | None, rows: int, bucket: int, device: str
    ) -> None:
        self._logits = logits
        self._done = done
        self._rows = rows
        self._bucket = bucket
        self._device = device

    def result(self) -> tuple[NDArray[np.float32], int]:
        """Logits and bucket, as ``predict`` gives them; waits for the device.

        Raises:
            DeviceLost: the device failed.

        """
        if self._done is not None:
            try:
                self._done.synchronize()
            except RuntimeError as exc:
                raise_if_lost(exc, self._device)
                raise
        logits: NDArray[np.float32] = self._logits.numpy()
        return logits[: self._rows], self._bucket


def zero_inputs(layout: InputLayout, rows: int) -> Inputs:
    """Inputs of rows in which every number is 0, every category unknown and every text missing.

    Example:
        >>> from app.preprocess import InputLayout
        >>> {name: array.shape for name, array in zero_inputs(InputLayout(3, (5,)), 2).items()}
        {'numbers': (2, 3), 'codes': (2, 1)}

    """
    inputs: Inputs = {
        "numbers": np.zeros((rows, layout.number_width), np.float32),
        "codes": np.zeros((rows, len(layout.code_sizes)), np.int64),
    }
    for name, text in layout.texts.items():
        inputs[f"{name}_ids"] = np.zeros((rows, text.max_tokens), np.int64)
        inputs[f"{name}_mask"] = np.zeros((rows, text.max_tokens), np.int64)
    return inputs


def _padded(array: NDArray[Any], bucket: int) -> NDArray[Any]:
    padded = np.zeros((bucket, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _repeated(samples: Inputs, rows: int) -> Inputs:
    places = np.arange(rows) % len(samples["numbers"])
    return {name: array[places] for name, array in samples.items()}
