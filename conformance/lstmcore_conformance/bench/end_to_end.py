"""Training from end to end on a device: an LSTM and a linear readout on Japanese Vowels.

With arrays of the host, each call of the LSTM copies its arrays there and back, and the rest runs on the host. With
arrays of the device all of a step runs there, and the host waits for it once an epoch, for the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore import LSTM
from lstmcore.arrays import is_on_host, namespace_of, to_host
from lstmcore.backend import Array, Backend, Formula
from lstmcore.datasets import load
from lstmcore_conformance.bench.grids import TrainingSize
from lstmcore_conformance.bench.timed_device import Device

Arrays = Literal["host", "device"]

#: Of stochastic gradient descent with momentum.
RATE: Final = 0.2
MOMENTUM: Final = 0.9
#: The losses of both kinds of arrays may differ by this share: each sums in its own order, step after step.
AGREEMENT: Final = 0.02


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
    """

    precision: str
    path: str
    arrays: Arrays
    steps: int
    step_s: float
    losses: tuple[float, ...]

    def __str__(self) -> str:
        path = f", {self.path}" if self.path else ""
        return f"{self.precision}{path}, arrays of the {self.arrays}"


class _Batch(NamedTuple):
    """Padded sequences (T, N, I), their lengths, and their classes as rows with one 1."""

    x: Array
    lengths: list[int]
    wanted: Array


def _batches(size: TrainingSize) -> list[_Batch]:
    """Return the batches of an epoch on the host."""
    data = load("japanese-vowels").train
    rng, classes = np.random.default_rng(0), int(data.targets.max()) + 1
    order = rng.permutation(len(data))[: size.sequences]
    found = []
    for first in range(0, len(order), size.rows):
        rows = order[first : first + size.rows]
        lengths = [len(data.inputs[row]) for row in rows]
        x = np.zeros((max(lengths), len(rows), data.inputs[0].shape[1]), np.float32)
        for place, row in enumerate(rows):
            x[: lengths[place], place] = data.inputs[row]
        found.append(_Batch(x, lengths, np.eye(classes, dtype=np.float32)[data.targets[rows]]))
    return found


class _Classifier:
    """An LSTM in both directions and a linear readout of its last outputs, trained by gradient descent."""

    def __init__(
        self, backend: Backend, precision: str, size: TrainingSize, batch: _Batch, move: Callable[[Any], Array]
    ) -> None:
        lstm = LSTM(batch.x.shape[2], size.hidden, bidirectional=True, dtype=precision, backend=backend, seed=0)
        rng, classes = np.random.default_rng(1), batch.wanted.shape[1]
        bound = lstm.output_width**-0.5
        readout: dict[str, npt.NDArray[np.float32]] = {
            "weight": rng.uniform(-bound, bound, (classes, lstm.output_width)).astype(np.float32),
            "bias": np.zeros(classes, np.float32),
        }
        self.lstm = lstm
        self.parameters = {name: move(value) for name, value in {**lstm.parameters, **readout}.items()}
        updates = None if is_on_host(self.parameters["bias"]) else backend.updates()
        self.updates = updates if updates is not None and updates.refusal("sgd", "float32") is None else None
        self.moments = {name: value * 0 for name, value in self.parameters.items()}
        self.flat_moments: list[Array] = []

    def learn(self, batch: _Batch) -> Array:
        """Take a step and return the loss before it, as an array ()."""
        p, xp = self.parameters, namespace_of(batch.x)
        _, last, tape = self.lstm.record(batch.x, lengths=batch.lengths)
        features = self.lstm.last_output(last)
        z = features @ p["weight"].T + p["bias"]
        z = z - xp.max(z, axis=1, keepdims=True)
        logarithms = z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
        dz = (xp.exp(logarithms) - batch.wanted) / batch.wanted.shape[0]
        dstate = self.lstm.last_output_gradient(last, dz @ p["weight"])
        gradients = {
            **self.lstm.backward(tape, dstate=dstate).parameters,
            "weight": dz.T @ features,
            "bias": xp.sum(dz, axis=0),
        }
        self._move(gradients)
        self.lstm.load_parameters({name: p[name] for name in self.lstm.stack.parameter_shapes})
        return -xp.sum(logarithms * batch.wanted) / batch.wanted.shape[0]

    def _move(self, gradients: Mapping[str, Array]) -> None:
        """Take a step of gradient descent with momentum: one kernel for arrays of the device, if the backend has it."""
        p = self.parameters
        if self.updates is None:
            for name, value in p.items():
                self.moments[name] = self.moments[name] * MOMENTUM + gradients[name]
                p[name] = value - self.moments[name] * RATE
            return
        xp, values, slopes = namespace_of(*p.values()), list(p.values()), [gradients[name] for name in p]
        if not self.flat_moments:
            self.flat_moments = [xp.concat([xp.reshape(value, (-1,)) for value in self.moments.values()])]
        numbers = {"lr": RATE, "momentum": MOMENTUM, "weight_decay": 0.0, "initial": 0.0, "nesterov": 0.0}
        moved, start = self.updates.move(Formula("sgd", numbers), values, slopes, self.flat_moments), 0
        for name, value in p.items():
            p[name] = xp.reshape(moved[start : start + value.size], value.shape)
            start += value.size


def train(device: Device, precision: str, arrays: Arrays, size: TrainingSize) -> Trained:
    """Train with arrays of one kind, by the path of the device's backend."""

    def move(array: npt.NDArray[np.float32]) -> Array:
        return array if arrays == "host" else device.to_device(array, "float32")

    on_host = _batches(size)
    model = _Classifier(device.backend, precision, size, on_host[0], move)
    batches = [batch._replace(x=move(batch.x), wanted=move(batch.wanted)) for batch in on_host]
    losses: list[float] = []

    def epoch() -> None:
        total = sum((model.learn(batch) for batch in batches[1:]), start=model.learn(batches[0]))
        losses.append(float(to_host(total)) / len(batches))

    times = [device.seconds(epoch) for _ in range(size.epochs)]
    steps = len(batches)
    return Trained(precision, "", arrays, steps, median(times[1:]) / steps, tuple(losses))


def trained(device: Device) -> Iterator[Trained]:
    """Yield a run with arrays of the host and one with those of the device, in each precision and on each path.

    Raises
    ------
    ValueError
        A loss does not fall, or the losses of both kinds of arrays differ.
    """
    size = device.grid.training
    for precision in (name for name in ("float32", "tf32") if name in device.grid.precisions):
        for path in ("", *device.paths):
            here = device.on(path) if path else device
            if here.refusal(precision) is not None:
                continue
            runs = []
            for arrays in ("host", "device"):
                made = train(here, precision, arrays, size)
                runs.append(Trained(precision, path, arrays, made.steps, made.step_s, made.losses))
                yield runs[-1]
                if not made.losses[-1] < made.losses[0]:
                    raise ValueError(f"{runs[-1]}: the loss does not fall: {made.losses}")
            one, other = (run.losses[-1] for run in runs)
            if abs(one - other) > AGREEMENT * abs(one):
                raise ValueError(f"{runs[-1]}: a loss of {other:.6g}, and of {one:.6g} with arrays of the host")
