"""A plain LSTM: bias or none, both directions, lengths, forward and backward, float32 and float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmcore.backend import Array, Backend, Capabilities, Gradients, Kernel, Masks, Receipt, State
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import PRECISIONS, Precision

FEATURES_HERE = frozenset({"no_bias", "reverse", "lengths"})


def sigmoid(z: Array) -> Array:
    """Return the logistic function of `z`, without overflow, and exact where a gate is all but closed."""
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


class ExampleKernel(Kernel):
    """One layer in one direction. The contract checks arguments before it calls these methods."""

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        return Receipt(self.backend.name, "cpu", self.precision.name, "step by step", "the only path")

    def _pack(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.array(array) for name, array in parameters.items()}

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
        self,
        weights: dict[str, Array],
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Any]:
        (steps, batch, _), hidden, dtype = x.shape, self.config.hidden_size, self.precision.storage
        y = np.empty((steps, batch, hidden), dtype) if out is None else out
        h, c = (np.zeros((batch, hidden), dtype), np.zeros((batch, hidden), dtype)) if state is None else state
        ends = np.full(batch, steps) if lengths is None else lengths
        tape = []
        for t in reversed(range(steps)) if self.config.reverse else range(steps):
            active = (t < ends)[:, None]
            # zeros in padding rows, so that a NaN there reaches no sum
            x_t, h_t, c_t = (np.where(active, array, np.zeros((), dtype)) for array in (x[t], h, c))
            z = x_t @ weights["weight_x"].T + h_t @ weights["weight_h"].T
            if self.config.bias:
                z += weights["bias"]
            i, f, g, o = np.split(z, 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            c_new = f * c_t + i * g
            u = np.tanh(c_new)
            tape.append((t, active, x_t, h_t, c_t, i, f, g, o, u))
            h, c = np.where(active, o * u, h), np.where(active, c_new, c)
            y[t] = np.where(active, h, 0)
        return y, State(np.array(h), np.array(c)), (x.shape, tape) if record else None

    def _backward(self, weights: dict[str, Array], saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        shape, tape = saved
        dtype, state = self.precision.storage, (shape[1], self.config.hidden_size)
        dh, dc = (np.zeros(state, dtype), np.zeros(state, dtype)) if dstate is None else map(np.array, dstate)
        dx = np.zeros(shape, dtype)
        gradients = {name: np.zeros(shape, dtype) for name, shape in self.config.parameter_shapes.items()}
        for t, active, x_t, h_before, c_before, i, f, g, o, u in reversed(tape):
            dh_t = np.where(active, dh if dy is None else dh + dy[t], np.zeros((), dtype))
            dc_t = np.where(active, dc, np.zeros((), dtype)) + dh_t * o * (1 - u * u)
            dz = np.concatenate(
                [
                    dc_t * g * i * (1 - i),
                    dc_t * c_before * f * (1 - f),
                    dc_t * i * (1 - g * g),
                    dh_t * u * o * (1 - o),
                ],
                axis=1,
            )
            gradients["weight_x"] += dz.T @ x_t
            gradients["weight_h"] += dz.T @ h_before
            if self.config.bias:
                gradients["bias"] += dz.sum(axis=0)
            dx[t] = dz @ weights["weight_x"]
            dh = np.where(active, dz @ weights["weight_h"], dh)
            dc = np.where(active, dc_t * f, dc)
        return Gradients(dx, State(dh, dc), gradients)


class ExampleBackend(Backend):
    """Declares what the kernel does, and why not the rest."""

    name = "example"

    def capabilities(self) -> Capabilities:
        """Return what the kernel implements, and a reason for everything else."""
        precisions = frozenset({"float32", "float64"})
        rest = (FEATURES - FEATURES_HERE) | (PRECISIONS.keys() - precisions) | {"jvp"}
        reasons = dict.fromkeys(rest, "the example shows the plain LSTM only")
        return Capabilities("cpu", precisions, FEATURES_HERE, frozenset({"backward"}), reasons)

    def _compile(self, config: LSTMConfig, precision: Precision) -> ExampleKernel:
        return ExampleKernel(self, config, precision)
