"""The LSTM on NumPy: `forward`, `backward` and `jvp` behind the contract of a kernel.

See docs/performance.md for what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Kernel, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, Activation, LSTMConfig
from lstmcore.precision import Precision
from lstmcore_numpy.backward import backward
from lstmcore_numpy.forward import forward
from lstmcore_numpy.parts import Array, Layout, Saved, Weights, apart, folds, pack


class NumpyKernel(Kernel):
    """One layer in one direction. Every call has its own buffers, so calls may run side by side."""

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.layout = Layout.of(config)
        self.fold = folds(config)
        self.dtype = np.dtype(precision.compute)
        self.storage = np.dtype(precision.storage)
        self.rounds = self.dtype != self.storage

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        steps, batch = (2 if number is None else number for number in (steps, batch))
        if not apart(self.config, steps, batch):
            product, why = "one product a step", "W and R stay in the cache"
        elif self.config.layer_norm:
            product, why = "an input product apart", "layer norm of each product"
        else:
            product, why = "an input product apart", "one row, or an input much wider than the state"
        if self.fold:
            product, why = f"{product}, one exp for the sigmoid gates", f"{why}; sigmoid and tanh gates without a clip"
        else:
            product, why = f"{product}, a function for each gate", f"{why}; gate functions or a gate clip of one's own"
        return Receipt(self.backend.name, "cpu", self.precision.name, product, why)

    def function(self, gate: str) -> Activation:
        """The activation of a gate."""
        return self.config.cell_activation if gate == "g" else self.config.gate_activation

    def input_and_forget(self, gates: Array) -> tuple[Array, Array]:
        """The gates i and f of packed gates (G H, N), one made from the other where they are coupled."""
        coupling, places = self.config.coupling, self.layout.places
        if coupling == "forget_from_input":
            i = gates[places["i"]]
            return i, 1 - i
        f = gates[places["f"]]
        return (1 - f if coupling == "input_from_forget" else gates[places["i"]]), f

    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        return pack(self.config, self.precision, parameters, fold=self.fold)

    def _forward(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Saved | None]:
        with np.errstate(all="ignore"):  # what overflows becomes infinite, as IEEE 754 says
            return forward(self, weights, x, state, lengths, masks, record=record, out=out)

    def _backward(self, weights: Weights, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        with np.errstate(all="ignore"):  # as in _forward
            return backward(self, saved, dy, dstate)

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        from lstmcore_numpy.jvp import jvp  # seldom used

        with np.errstate(all="ignore"):  # as in _forward
            y, last, saved = forward(self, weights, x, state, lengths, masks, record=True, out=None)
            if saved is None:
                raise RuntimeError("a recorded call returned no tape")
            return Forward(y, last), jvp(self, saved, tangents)


class NumpyBackend(Backend):
    """Every switch, gradient and jvp on NumPy arrays."""

    name = "numpy"

    def capabilities(self) -> Capabilities:
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32", "float16"}),
            features=FEATURES,
            reasons={
                "tf32": "NumPy's products have no TF32",
                "bfloat16": "NumPy has no bfloat16",
            },
        )

    def _compile(self, config: LSTMConfig, precision: Precision) -> NumpyKernel:
        return NumpyKernel(self, config, precision)
