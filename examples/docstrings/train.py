"""Training: a tokenizer and a bag of its tokens, calibrated on files of their own, packed as a bundle."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from app.calibration import Calibration
from app.models.architectures import build
from app.models.bundle import versions
from app.models.packing import pack_bundle
from app.models.spec import Architecture, Feature, ModelSpec, Output
from app.postprocess import Postprocessor
from app.preprocess import Preprocessor
from app.threshold import best_threshold_for_f1

from .data import FAMILIES, part

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from numpy.typing import NDArray

MODEL = "docstring_family"
TOKENIZER = "tokenizer.json"
OTHERWISE = "unsure"
VOCABULARY = 8000
MAX_TOKENS = 128
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""A text costs 0.1 ms to tokenize: larger micro-batches would only make their first rows wait."""
EPOCHS = 8
BATCH_ROWS = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
DROPPED_SHARE = 0.3
"""Of the tokens of a text, anew in each epoch: else the network learns by heart which file a text is from."""


def train(docstrings: pd.DataFrame, repository: Path, *, seed: int = 6, epochs: int = EPOCHS) -> Path:
    """Trains, calibrates and packs; the same docstrings and seed give the same bundle.

    Args:
        docstrings: as ``load_docstrings`` gives them; the held-out part is not used.
        repository: root folder of all models; the next free version is written.
        seed: of weights and of the order of rows.
        epochs: passes over the training rows.

    Returns:
        The bundle's folder.

    Cost: about 10 s on one core.

    """
    fit, calibrate = part(docstrings, "fit"), part(docstrings, "calibrate")
    version = max(versions(repository, MODEL), default=0) + 1
    with tempfile.TemporaryDirectory(prefix="sluice-docstrings-") as folder:
        tokenizer = Path(folder) / TOKENIZER
        train_tokenizer(fit["text"]).save(str(tokenizer))
        spec = make_spec(version)
        preprocessor = Preprocessor(spec, tokenizer.parent)
        module = _fit(spec, preprocessor, fit, seed=seed, epochs=epochs)
        logits, labels = _logits(module, preprocessor, calibrate), label_index(calibrate)
        calibration = Calibration.fit_temperature(logits, labels)
        scored = Postprocessor(spec.output, calibration).apply(logits)
        output = spec.output.model_copy(
            update={"thresholds": _thresholds(scored.outputs, labels), "otherwise": OTHERWISE}
        )
        spec = spec.model_copy(update={"output": output})
        reference = calibrate[["text"]].assign(raw_score=scored.raw, score=scored.score, label=labels.astype(float))
        return pack_bundle(repository, spec, module, calibration, reference, tokenizers={TOKENIZER: tokenizer})


def make_spec(version: int) -> ModelSpec:
    """The model's declaration, before thresholds are known."""
    text = Feature(name="text", type="text", required=True, tokenizer=TOKENIZER, max_tokens=MAX_TOKENS)
    return ModelSpec(
        name=MODEL,
        version=version,
        description="Which package a docstring comes from.",
        architecture=Architecture(name="text_bag", arguments={"embedding_dim": 64, "hidden": [64]}),
        features=(text,),
        output=Output(kind="softmax", labels=tuple(FAMILIES)),
        buckets=BUCKETS,
    )


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level pairs, lower case; there is no text that it cannot take."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["[PAD]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def label_index(docstrings: pd.DataFrame) -> NDArray[np.int64]:
    """The place of each row's label among the outputs, shape (n,)."""
    places = {label: place for place, label in enumerate(FAMILIES)}
    return np.array([places[label] for label in docstrings["label"]], dtype=np.int64)


def _fit(spec: ModelSpec, preprocessor: Preprocessor, frame: pd.DataFrame, *, seed: int, epochs: int) -> nn.Module:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads are added in no fixed order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _descend(spec, preprocessor, frame, epochs)
    finally:
        torch.set_num_threads(threads)


def _descend(spec: ModelSpec, preprocessor: Preprocessor, frame: pd.DataFrame, epochs: int) -> nn.Module:
    module = build(spec, preprocessor.layout)
    inputs, labels = _tensors(preprocessor, frame), torch.from_numpy(label_index(frame))
    optimiser = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(labels) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(labels)), BATCH_ROWS):
            batch = {name: tensor[rows] for name, tensor in inputs.items()}
            batch["text_mask"] = batch["text_mask"] * (torch.rand(batch["text_mask"].shape) >= DROPPED_SHARE)
            optimiser.zero_grad(set_to_none=True)
            loss_of(module(**batch), labels[rows]).backward()
            optimiser.step()
            schedule.step()
    return module.eval()


def _tensors(preprocessor: Preprocessor, frame: pd.DataFrame) -> dict[str, torch.Tensor]:
    inputs = preprocessor.transform(preprocessor.from_frame(frame))
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def _logits(module: nn.Module, preprocessor: Preprocessor, frame: pd.DataFrame) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = module(**_tensors(preprocessor, frame)).numpy()
    return logits


def _thresholds(outputs: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """For each label the probability from which on saying it has the best F1."""
    return {
        label: best_threshold_for_f1(outputs[:, place], (labels == place).astype(np.float64))[0]
        for place, label in enumerate(FAMILIES)
    }
