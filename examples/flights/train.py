"""Training: January and February, calibrated on their last fifth, packed as bundles that any worker can serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import nn

from app.calibration import Calibration
from app.models.architectures import build
from app.models.bundle import versions
from app.models.packing import pack_bundle
from app.postprocess import sigmoid
from app.preprocess import Preprocessor
from app.threshold import best_threshold_for_f1

from .features import TICK_US, simulate
from .model import make_spec, request_frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from app.models.spec import ModelSpec

    from .data import FlightData

HELD_OUT_SHARE = 0.2
EPOCHS = 4
BATCH_ROWS = 512
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.3


@dataclass(frozen=True, slots=True)
class Trained:
    """Where the two bundles lie: with store features, and without them."""

    model: Path
    static_model: Path


def train(
    data: FlightData, repository: Path, *, months: Sequence[int] = (1, 2), seed: int = 2013, epochs: int = EPOCHS
) -> Trained:
    """Trains, calibrates and packs both models; the same seed gives the same bundles.

    Args:
        data: flights and weather; nothing after the last of ``months`` is used.
        repository: root folder of all models; the next free version of each is written.
        months: of 2013, the training period.
        seed: of weights and of the order of rows.
        epochs: passes over the training rows.

    Cost: about 5 s on one core.

    """
    frame = training_frame(data, months)
    folders = [
        _train_one(frame, repository, with_store=with_store, seed=seed, epochs=epochs) for with_store in (True, False)
    ]
    return Trained(*folders)


def training_frame(data: FlightData, months: Sequence[int]) -> pd.DataFrame:
    """Features and ``label`` of the flights that have an outcome, in the order of departure."""
    flights = data.months(tuple(f"2013-{month:02d}" for month in months))
    end_us = int(flights["departure_us"].max()) + 1
    features = simulate(data, TICK_US, until_us=end_us)
    frame = pd.concat([request_frame(flights), features.loc[flights.index], flights[["label"]]], axis=1)
    return frame[frame["label"].notna()].reset_index(drop=True)


def _train_one(frame: pd.DataFrame, repository: Path, *, with_store: bool, seed: int, epochs: int) -> Path:
    fitted_rows = int(len(frame) * (1 - HELD_OUT_SHARE))
    fit, held_out = frame.iloc[:fitted_rows], frame.iloc[fitted_rows:].reset_index(drop=True)
    spec = make_spec(fit, version=1, with_store=with_store)
    spec = spec.model_copy(update={"version": max(versions(repository, spec.name), default=0) + 1})
    module = _fit(spec, fit, seed=seed, epochs=epochs)
    raw = _predict(spec, module, held_out)
    labels = held_out["label"].to_numpy(np.float64)
    calibration = Calibration.fit_platt(raw, labels)
    scores = calibration.apply(raw)
    output = spec.output.model_copy(update={"threshold": best_threshold_for_f1(scores, labels)[0]})
    spec = spec.model_copy(update={"output": output})
    reference = held_out[[f.name for f in spec.features]].assign(raw_score=raw, score=scores, label=labels)
    return pack_bundle(repository, spec, module, calibration, reference)


def _fit(spec: ModelSpec, frame: pd.DataFrame, *, seed: int, epochs: int) -> nn.Module:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads are added in no fixed order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _descend(spec, frame, epochs)
    finally:
        torch.set_num_threads(threads)


def _descend(spec: ModelSpec, frame: pd.DataFrame, epochs: int) -> nn.Module:
    module = build(spec)
    numbers, codes, labels = _tensors(spec, frame)
    steps_an_epoch = -(-len(labels) // BATCH_ROWS)
    optimiser = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=epochs * steps_an_epoch)
    loss_of = nn.BCEWithLogitsLoss()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(labels)), BATCH_ROWS):
            optimiser.zero_grad(set_to_none=True)
            loss_of(module(numbers[rows], codes[rows]), labels[rows]).backward()
            optimiser.step()
            schedule.step()
    return module.eval()


def _tensors(spec: ModelSpec, frame: pd.DataFrame) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    preprocessor = Preprocessor(spec)
    inputs = preprocessor.transform(preprocessor.from_frame(frame))
    labels = torch.from_numpy(frame["label"].to_numpy(np.float32, copy=True))
    return torch.from_numpy(inputs["numbers"]), torch.from_numpy(inputs["codes"]), labels


def _predict(spec: ModelSpec, module: nn.Module, frame: pd.DataFrame) -> NDArray[np.float64]:
    numbers, codes, _ = _tensors(spec, frame)
    with torch.inference_mode():
        return sigmoid(module(numbers, codes).numpy())
