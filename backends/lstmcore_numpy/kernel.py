"""The LSTM on NumPy: forward, backward and jvp behind the contract of a kernel. See docs/explanation/numpy.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmcore.backend import Backend, Capabilities, Forward, Gradients, Kernel, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import Precision
from lstmcore.stored_weights import WEIGHT_FEATURES
from lstmcore_numpy.backward import backward
from lstmcore_numpy.cell_plan import CellPlan
from lstmcore_numpy.forward import ForwardPass
from lstmcore_numpy.jvp import jvp
from lstmcore_numpy.packing import Array, Weights, pack
from lstmcore_numpy.step_schedule import StepSchedule
from lstmcore_numpy.tape import Saved


class NumpyKernel(Kernel):
    """One layer in one direction. Every call has its own buffers, so calls may run in parallel."""

    def __init__(self, backend: Backend, config: LSTMConfig, precision: Precision) -> None:
        super().__init__(backend, config, precision)
        self.plan = CellPlan.of(config, precision)

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        steps, batch = (2 if number is None else number for number in (steps, batch))
        if not self.plan.splits_input(steps, batch):
            product, reason = "one product a step", "W and R stay in the cache"
        elif self.config.layer_norm:
            product, reason = "an input product apart", "layer norm of each product"
        else:
            product, reason = "an input product apart", "one row, or an input much wider than the state"
        if self.plan.folded:
            path = f"{product}, one exp for the sigmoid gates"
            reason = f"{reason}; sigmoid and tanh gates without a clip"
        else:
            path = f"{product}, a function for each gate"
            reason = f"{reason}; gate functions or a gate clip of one's own"
        if self.plan.integers:
            path = f"{path}, activations rounded to int16 and multiplied in float32"
        return Receipt(self.backend.name, "cpu", self.precision.name, path, reason)

    def _pack(self, parameters: Mapping[str, Array]) -> Weights:
        return pack(self.config, self.precision, parameters, fold=self.plan.folded)

    def _forward(  # noqa: PLR0913  (the contract of a kernel)
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
        schedule = StepSchedule.of(self.config, lengths, len(x))
        with np.errstate(all="ignore"):  # an overflow becomes infinite, as IEEE 754 says
            columns = schedule.masks(masks, self.plan.dtype)
            call = ForwardPass(self.plan, weights, schedule, columns, x.shape[1], record=record)
            y, last = call.run(x, state, out)
        return y, last, call.saved

    def _backward(self, weights: Weights, saved: Saved, dy: Array | None, dstate: State | None) -> Gradients:
        with np.errstate(all="ignore"):  # as in _forward
            return backward(self.plan, saved, dy, dstate)

    def _jvp(
        self,
        weights: Weights,
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        y, last, saved = self._forward(weights, x, state, lengths, masks, record=True, out=None)
        if saved is None:
            raise RuntimeError("a recorded call returned no tape")
        with np.errstate(all="ignore"):  # as in _forward
            return Forward(y, last), jvp(self.plan, saved, tangents)


class NumpyBackend(Backend):
    """Every switch, gradient and jvp on NumPy arrays."""

    name = "numpy"

    def capabilities(self) -> Capabilities:
        """Return all features and derivatives, in the precisions that NumPy has."""
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32", "float16"}),
            features=FEATURES | WEIGHT_FEATURES,
            reasons={
                "tf32": "NumPy's products have no TF32",
                "bfloat16": "NumPy has no bfloat16",
            },
        )

    def _compile(self, config: LSTMConfig, precision: Precision) -> NumpyKernel:
        return NumpyKernel(self, config, precision)
