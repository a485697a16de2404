"""The equations of `lstmcore.reference` behind the contract of a kernel: slow, and right by definition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstmcore import reference
from lstmcore.backend import Array, Backend, Capabilities, Forward, Gradients, Kernel, Masks, Receipt, State, Tangents
from lstmcore.config import FEATURES, LSTMConfig
from lstmcore.precision import Precision
from lstmcore.stored_weights import INT8A16, WEIGHT_FEATURES


class ReferenceKernel(Kernel):
    """The equations in float64, one step and one gate at a time."""

    def receipt(self, steps: int | None = None, batch: int | None = None) -> Receipt:
        """See `Kernel.receipt`."""
        return Receipt(self.backend.name, "cpu", self.precision.name, "equations", "the only path; not made for speed")

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
        y, last, tape = reference.forward(self.config, weights, x, state, lengths=lengths, masks=masks)
        if out is not None:
            out[...] = y
            y = out
        return y, last, tape if record else None

    def _backward(self, weights: dict[str, Array], saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
        return reference.backward(self.config, saved, dy, dstate)

    def _jvp(
        self,
        weights: dict[str, Array],
        x: Array,
        state: State | None,
        tangents: Tangents,
        lengths: Any,
        masks: Masks | None,
    ) -> tuple[Forward, Forward]:
        return reference.jvp(self.config, weights, x, state, tangents, lengths=lengths, masks=masks)


class ReferenceBackend(Backend):
    """Every switch, float64 only."""

    name = "reference"

    def capabilities(self) -> Capabilities:
        """Return all features and derivatives, in float64."""
        reason = "the reference is evaluated in float64"
        return Capabilities(
            device="cpu",
            precisions=frozenset({"float64"}),
            features=FEATURES | WEIGHT_FEATURES - {f"weights:{INT8A16}"},
            reasons=dict.fromkeys(("float32", "tf32", "bfloat16", "float16", f"weights:{INT8A16}"), reason),
        )

    def _compile(self, config: LSTMConfig, precision: Precision) -> ReferenceKernel:
        return ReferenceKernel(self, config, precision)
