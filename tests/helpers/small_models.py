"""Small models and data sets that the tests of training share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lstmcore.lstm import LSTM
from lstmcore.training import (
    Readout,
    SequenceModel,
    Standardizer,
    Trainer,
)


def make(
    *,
    bidirectional: bool = True,
    steps: Any = "last",
    x: bool = False,
    dtype: str = "float64",
    hidden: int = 4,
    outputs: int = 3,
    **switches: Any,
) -> SequenceModel:
    lstm = LSTM(2, hidden, bidirectional=bidirectional, dtype=dtype, seed=1, backend="numpy", **switches)
    width = lstm.stack.num_directions * lstm.stack.output_size
    return SequenceModel(lstm, Readout(width, outputs, steps=steps, x_size=2 if x else 0, dtype=dtype, seed=2))


def data(count: int = 24, seed: int = 0) -> tuple[list[Any], Any]:
    """Three classes of noisy sequences of different lengths."""
    random = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    inputs = [random.standard_normal((int(random.integers(3, 8)), 2)) + np.array([2.0 * t, -t]) for t in targets]
    return inputs, targets


def nothing_to_learn() -> tuple[list[Any], Any]:
    """Sequences whose targets are drawn by lot, so that a validation loss must rise in the end."""
    inputs, targets = data(40)
    return inputs, np.random.default_rng(8).permutation(targets)


def trainer(model: SequenceModel, **settings: Any) -> Trainer:
    return Trainer(model, **({"epochs": 6, "batch_size": 5, "validation": 0.25, "quiet": True, "seed": 3} | settings))


NOISY: dict[str, Any] = {"num_layers": 2, "dropout": 0.3, "recurrent_dropout": 0.2, "zoneout_cell": 0.1}


REGRESSION: dict[str, Any] = {"loss": "mean-squared-error"}


def saved(tmp_path: Path, **switches: Any) -> tuple[SequenceModel, Path]:
    model = make(**switches)
    model.input_scaling = Standardizer(np.array([1.0, -2.0]), np.array([0.5, 3.0]))
    model.target_scaling = Standardizer(np.arange(3.0), np.ones(3))
    model.task = {"kind": "classify", "classes": ["a", "b", "c"]}
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the header of a file."""
    with safe_open(path, framework="numpy") as stream:
        return load_file(path), json.loads(stream.metadata()["lstmcore"])


def rewrite(path: Path, *, drop: str | None = None, version: int = 1, kind: str = "lstmcore-model", **new: Any) -> None:
    tensors, header = opened(path)
    tensors |= {name.replace("__", "."): value for name, value in new.items()}
    if drop is not None:
        tensors.pop(drop, None)
        header.pop(drop, None)
    save_file(tensors, path, metadata={"lstmcore": json.dumps(header | {"format": kind, "version": version})})
