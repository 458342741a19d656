"""A loaded network on its device; batches are padded to a bucket, so a row's score never depends on its neighbours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from app.errors import BundleError
from app.models.architectures import build
from app.preprocess import Preprocessor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from app.models.bundle import Bundle


class ScoringModel:
    """One version of one model, ready to predict.

    Args:
        bundle: verified.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (CUDA when there is one).

    Raises:
        BundleError: the weights do not fit the architecture.

    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle = bundle
        self.spec = bundle.spec
        self.device = choose_device(device)
        self.preprocessor = Preprocessor(bundle.spec)
        module = build(bundle.spec)
        try:
            module.load_state_dict(bundle.weights())
        except RuntimeError as exc:
            msg = f"{bundle.spec.name} version {bundle.spec.version}: weights do not fit the architecture: {exc}"
            raise BundleError(msg) from exc
        self._module = module.eval().to(self.device)

    def warm_up(self) -> dict[int, float]:
        """Run every bucket twice, so that no request pays for a first time.

        Returns:
            Seconds that the second run of each bucket took.

        Raises:
            BundleError: a logit is not finite on all-zero inputs.

        """
        seconds: dict[int, float] = {}
        for bucket in self.spec.buckets:
            numbers = np.zeros((bucket, self.preprocessor.number_width), dtype=np.float32)
            codes = np.zeros((bucket, len(self.preprocessor.code_sizes)), dtype=np.int64)
            self.predict(numbers, codes)
            started_s = time.monotonic()
            logits, _ = self.predict(numbers, codes)
            seconds[bucket] = time.monotonic() - started_s
            if not np.isfinite(logits).all():
                msg = f"{self.spec.name} version {self.spec.version}: warm-up gives a logit that is not finite"
                raise BundleError(msg)
        return seconds

    def predict(self, numbers: NDArray[np.float32], codes: NDArray[np.int64]) -> tuple[NDArray[np.float32], int]:
        """Logits float32 (n,), and the bucket that the batch was padded to.

        Args:
            numbers: float32 (n, number_width), 1 <= n <= largest bucket.
            codes: int64 (n, categories).

        """
        rows = len(numbers)
        bucket = self.spec.bucket_for(rows)
        if rows < bucket:
            numbers = np.concatenate([numbers, np.zeros((bucket - rows, numbers.shape[1]), np.float32)])
            codes = np.concatenate([codes, np.zeros((bucket - rows, codes.shape[1]), np.int64)])
        with torch.inference_mode():
            logits = self._module(self._place(numbers), self._place(codes))
            return logits.cpu().numpy()[:rows], bucket

    def _place(self, array: NDArray[np.float32] | NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)


def choose_device(wanted: str) -> str:
    """The device's name.

    Raises:
        BundleError: CUDA is wanted and there is none.

    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        msg = f"device {wanted} is not there; set SLUICE_MODELS__DEVICE=cpu, or auto"
        raise BundleError(msg)
    return wanted
