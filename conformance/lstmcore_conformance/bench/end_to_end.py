"""Training from end to end on a device, ours beside the peer's: Japanese Vowels, and drawn sequences.

All sides start from the same parameters and take the same steps, so their losses have to agree. The peer trains once in
each precision and kind of arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import Final

import numpy as np

from lstmcore.datasets import load
from lstmcore_conformance.bench.classifiers import Arrays, Batch, Classifier, OwnClassifier, Start
from lstmcore_conformance.bench.grids import TrainingSize
from lstmcore_conformance.bench.timed_device import Device

#: The losses of two sides may differ by this share: each sums in its own order, step after step.
AGREEMENT: Final = 0.02
#: Classes of the drawn sequences.
CLASSES: Final = 9


@dataclass(frozen=True, slots=True)
class Trained:
    """A training run.

    Attributes
    ----------
    precision, path, arrays
        The LSTM's precision, the path of the backend, where the arrays were.
    steps
        Batches of an epoch.
    step_s
        Seconds of a step: the median over the epochs, but for the first one.
    losses
        The mean loss of each epoch.
    data
        The sequences and their sizes; see `TrainingSize.name`.
    peer
        The peer's name, an empty text for ours.
    """

    precision: str
    path: str
    arrays: Arrays
    steps: int
    step_s: float
    losses: tuple[float, ...]
    data: str = ""
    peer: str = ""

    def __str__(self) -> str:
        named = (self.data, self.precision, self.peer or self.path, f"arrays of the {self.arrays}")
        return ", ".join(text for text in named if text)


@lru_cache(maxsize=1)
def batches_of(size: TrainingSize) -> list[Batch]:
    """Return the batches of an epoch on the host; those of the last size are kept, and nobody writes to them."""
    rng = np.random.default_rng(0)
    inputs, targets = _drawn(size, rng) if size.steps else _vowels(size, rng)
    classes, found = int(targets.max()) + 1, []
    for first in range(0, len(inputs), size.rows):
        rows = inputs[first : first + size.rows]
        lengths = [len(row) for row in rows]
        x = np.zeros((max(lengths), len(rows), rows[0].shape[1]), np.float32)
        for place, row in enumerate(rows):
            x[: lengths[place], place] = row
        found.append(Batch(x, lengths, np.eye(classes, dtype=np.float32)[targets[first : first + size.rows]]))
    return found


def _vowels(size: TrainingSize, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    data = load("japanese-vowels").train
    order = rng.permutation(len(data))[: size.sequences]
    return [data.inputs[row] for row in order], data.targets[order]


def _drawn(size: TrainingSize, rng: np.random.Generator) -> tuple[list[np.ndarray], np.ndarray]:
    """Return noise around a mean of each class, so that a loss can fall."""
    targets = np.arange(size.sequences) % CLASSES
    means = 0.1 * rng.standard_normal((CLASSES, size.hidden), np.float32)
    return [rng.standard_normal((size.steps, size.hidden), np.float32) + means[row] for row in targets], targets


def start_of(size: TrainingSize, batches: list[Batch]) -> Start:
    """Return the model: both directions for Japanese Vowels, one for drawn sequences."""
    x, _, wanted = batches[0]
    sizes = {"input_size": x.shape[2], "hidden_size": size.hidden, "bidirectional": not size.steps, "seed": 0}
    return Start(sizes, wanted.shape[1])


def train(device: Device, precision: str, arrays: Arrays, size: TrainingSize, *, peer: bool = False) -> Trained | None:
    """Train with arrays of one kind, by the path of the device's backend or by the peer; None if there is no peer."""
    on_host = batches_of(size)
    start = start_of(size, on_host)
    model: Classifier | None
    if peer:
        model = device.peer_classifier(precision, start, arrays)
    else:
        model = OwnClassifier(
            device.backend,
            precision,
            start,
            lambda array: array if arrays == "host" else device.to_device(array, "float32"),
        )
    if model is None:
        return None
    seconds, losses = _epochs(device, model, on_host, size.epochs)
    steps = len(on_host)
    label = device.peer.label if peer else ""
    return Trained(precision, "", arrays, steps, median(seconds[1:]) / steps, tuple(losses), size.name, label)


def _epochs(device: Device, model: Classifier, on_host: list[Batch], epochs: int) -> tuple[list[float], list[float]]:
    """Return the seconds and the mean loss of each epoch."""
    batches, losses = model.take(on_host), list[float]()

    def epoch() -> None:
        total = sum((model.learn(batch) for batch in batches[1:]), start=model.learn(batches[0]))
        losses.append(model.read(total) / len(batches))

    return [device.seconds(epoch) for _ in range(epochs)], losses


def trained(device: Device) -> Iterator[Trained]:
    """Yield each run: sizes, precisions, then ours on each path and the peer, with arrays of the host and the device.

    Raises
    ------
    ValueError
        A loss does not fall, or the losses of two runs differ.
    """
    for size in device.grid.training:
        for precision in (name for name in ("float32", "tf32") if name in device.grid.precisions):
            yield from _agreeing(device, precision, size)


def _agreeing(device: Device, precision: str, size: TrainingSize) -> Iterator[Trained]:
    """Yield the runs of a size in a precision; all have to agree with the first one."""
    first: Trained | None = None
    for path in ("", *device.paths, None):  # None: the peer
        here = device.on(path) if path else device
        if path is not None and here.refusal(precision) is not None:
            continue
        for arrays in ("host", "device"):
            run = train(here, precision, arrays, size, peer=path is None)
            if run is None:
                continue
            run = replace(run, path=path or "")
            yield run
            first = first or run
            if not run.losses[-1] < run.losses[0]:
                raise ValueError(f"{run}: the loss does not fall: {run.losses}")
            if abs(run.losses[-1] - first.losses[-1]) > AGREEMENT * abs(first.losses[-1]):
                raise ValueError(f"{run}: a loss of {run.losses[-1]:.6g}, and of {first.losses[-1]:.6g} in: {first}")
