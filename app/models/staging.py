"""Inputs onto a CUDA device and logits back, so that the copies of one batch overlap the run of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from app.preprocess import Inputs


class CudaStage:
    """Copies of one model instance, on a stream of their own.

    Staging memory is pinned and comes from torch's caching host allocator: after warm-up each bucket finds its own
    again, and memory that a copy still reads is not handed out anew.

    Args:
        device: ``cuda:N``.

    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def put(self, inputs: Inputs, bucket: int) -> dict[str, torch.Tensor]:
        """The inputs on the device, padded to the bucket; runs queued on the current stream find them there.

        Returns before they are copied.
        """
        computes = torch.cuda.current_stream(self._device)
        placed: dict[str, torch.Tensor] = {}
        with torch.cuda.stream(self._copies):
            for name, array in inputs.items():
                shape = (bucket, *array.shape[1:])
                staged = torch.empty(shape, dtype=_dtype(array), pin_memory=True)
                into = staged.numpy()
                into[: len(array)], into[len(array) :] = array, 0
                placed[name] = staged.to(self._device, non_blocking=True)
        computes.wait_stream(self._copies)
        for tensor in placed.values():
            tensor.record_stream(computes)  # made on the one stream, used on the other
        return placed

    def fetch(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Pinned memory that will hold the logits, and the event after which it does."""
        landed = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
        landed.copy_(logits, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._device))
        return landed, done


def _dtype(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
