"""Classifiers that are trained from end to end: an LSTM and a linear readout of its last outputs.

With arrays of the host, each call of the LSTM copies its arrays to the device and back, and the rest runs on the host.
With arrays of the device all of a step runs there, and the host waits for it once an epoch, for the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore import LSTM
from lstmcore.arrays import is_on_host, namespace_of, to_host
from lstmcore.backend import Array, Backend, Formula

Arrays = Literal["host", "device"]

#: Of stochastic gradient descent with momentum.
RATE: Final = 0.2
MOMENTUM: Final = 0.9


class Batch(NamedTuple):
    """Padded sequences (T, N, I), their lengths, and their classes as rows with one 1."""

    x: Array
    lengths: list[int]
    wanted: Array


class Start(NamedTuple):
    """What every side starts from.

    Attributes
    ----------
    lstm
        Arguments of `lstmcore.LSTM`, but for the backend and the precision; a seed is one of them.
    classes
        Outputs of the readout.
    """

    lstm: Mapping[str, Any]
    classes: int

    def make(self, precision: str, backend: Backend) -> tuple[LSTM, dict[str, npt.NDArray[np.float32]]]:
        """Return the LSTM, and weight and bias of the readout."""
        lstm = LSTM(**self.lstm, dtype=precision, backend=backend)
        bound = lstm.output_width**-0.5
        weight = np.random.default_rng(1).uniform(-bound, bound, (self.classes, lstm.output_width))
        return lstm, {"weight": weight.astype(np.float32), "bias": np.zeros(self.classes, np.float32)}


class Classifier(ABC):
    """A classifier that learns by stochastic gradient descent."""

    @abstractmethod
    def take(self, batches: Sequence[Batch]) -> list[Batch]:
        """Return batches of the host where `learn` takes them."""

    @abstractmethod
    def learn(self, batch: Batch) -> Array:
        """Take a step and return the loss before it, as an array ()."""

    @abstractmethod
    def read(self, loss: Array) -> float:
        """Return a loss, or a sum of losses, as a number; the host waits for it."""


class OwnClassifier(Classifier):
    """A classifier of ours.

    Parameters
    ----------
    backend, precision, start
        Those of the LSTM.
    move
        Returns an array of the host where the parameters and the batches shall be.
    """

    def __init__(self, backend: Backend, precision: str, start: Start, move: Callable[[Any], Array]) -> None:
        self.lstm, readout = start.make(precision, backend)
        self.move = move
        self.parameters = {name: move(value) for name, value in {**self.lstm.parameters, **readout}.items()}
        updates = None if is_on_host(self.parameters["bias"]) else backend.updates()
        self.updates = updates if updates is not None and updates.refusal("sgd", "float32") is None else None
        self.moments = {name: value * 0 for name, value in self.parameters.items()}
        self.flat_moments: list[Array] = []

    def take(self, batches: Sequence[Batch]) -> list[Batch]:
        """See `Classifier.take`."""
        return [batch._replace(x=self.move(batch.x), wanted=self.move(batch.wanted)) for batch in batches]

    def learn(self, batch: Batch) -> Array:
        """See `Classifier.learn`."""
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

    def read(self, loss: Array) -> float:
        """See `Classifier.read`."""
        return float(to_host(loss))

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
