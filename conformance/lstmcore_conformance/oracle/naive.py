"""The naive evaluation as a backend: the reference's code in the precision of the call.

Budgets are computed from it, so it uses at most a sixth of them. Mutants are made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmcore import reference
from lstmcore.backend import Array, Backend, Capabilities, Forward, Gradients, Kernel, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import Precision
from lstmcore.stored_weights import WEIGHT_FEATURES


class NaiveKernel(Kernel):
    """The equations, one step and one gate at a time, in one precision."""

    #: The module with forward, backward and jvp. A mutant replaces it.
    equations: Any = reference

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """Return the receipt of the only path."""
        return Receipt(self.backend.name, "cpu", self.precision.name, "equations", "the only path; not made for speed")

    def _pack(self, parameters: Mapping[str, Array]) -> Any:
        return {name: np.array(array) for name, array in parameters.items()}

    def _forward(  # noqa: PLR0913  (the contract's signature)
        self,
        weights: Any,
        x: Array,
        state: State | None,
        lengths: Any,
        masks: Masks | None,
        *,
        record: bool,
        out: Array | None,
    ) -> tuple[Array, State, Any]:
        y, last, tape = self.equations.forward(
            self.config, weights, x, state, lengths=lengths, masks=masks, precision=self.precision
        )
        if out is None:
            return self._stored(y), self._state(last), tape if record else None
        out[...] = y
        return out, self._state(last), tape if record else None

    def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        gradients = self.equations.backward(self.config, saved, dy, dstate)
        named = {name: self._stored(array) for name, array in gradients.parameters.items()}
        return Gradients(self._stored(gradients.x), self._state(gradients.state), named)

    def _jvp(
        self, weights: Any, x: Array, state: State | None, tangents: Tangents, lengths: Any, masks: Masks | None
    ) -> tuple[Forward, Forward]:
        pair = self.equations.jvp(
            self.config, weights, x, state, tangents, lengths=lengths, masks=masks, precision=self.precision
        )
        done, along = (Forward(self._stored(result.y), self._state(result.state)) for result in pair)
        return done, along

    def _stored(self, array: Array) -> Array:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, as IEEE 754 says
            return array.astype(self.precision.storage, copy=False)

    def _state(self, state: State) -> State:
        return State(self._stored(state.h), state.c)


class NaiveBackend(Backend):
    """A backend with every switch, in the precisions for which NumPy has dtypes."""

    name = "naive"
    kernel: type[NaiveKernel] = NaiveKernel

    def capabilities(self) -> Capabilities:
        """Return all features in all precisions but bfloat16."""
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64", "float32", "tf32", "float16"}),
            features=FEATURES | WEIGHT_FEATURES,
            reasons={"bfloat16": "NumPy has no bfloat16"},
        )

    def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
        return self.kernel(self, config, precision)
