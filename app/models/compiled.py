"""``torch.compile``, one program for each bucket."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    Run = Callable[..., torch.Tensor]

log = logging.getLogger(__name__)

WHY_AT_MOST = 300
"""Characters of a compiler's complaint, which runs to pages."""


def compile_for_bucket(module: nn.Module, inputs: dict[str, torch.Tensor], title: str) -> Run:
    """A program for inputs of exactly these shapes; the module itself when the compiler cannot.

    Args:
        module: on its device.
        inputs: of one bucket, on the same device.
        title: names the model in the log.

    Cost: seconds, once for each bucket.

    """
    options: dict[str, Any] = {"compile_threads": 1}  # no pool of compiler processes that outlives the load
    try:
        # Isolated, because otherwise all buckets of all versions share one cache, which is full after eight programs.
        compile_it: Any = torch.compile  # its typed overloads lack isolate_recompiles
        run: Run = compile_it(module, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options)
        run(**inputs)
    except Exception as exc:  # noqa: BLE001 - a compiler may raise anything; slower is better than not at all
        why = " ".join(str(exc).split())[:WHY_AT_MOST]
        bucket = len(inputs["numbers"])
        log.warning("%s: bucket %d runs without torch.compile (%s: %s)", title, bucket, type(exc).__name__, why)
        return module
    return run
