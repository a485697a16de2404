"""Lost precision: operands, states or whole passes in a shorter format than the precision promises."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore import reference
from lstmcore.backend import Array, Backend, Forward, Gradients, Masks, State
from lstmcore.precision import Precision
from lstmcore_conformance.mutants.construction import Hooked, backend_of, edit, edits, fault
from lstmcore_conformance.oracle.naive import NaiveKernel

_F, _B = "forward.switches", "backward.switches"

edit(
    "precision.h_coarse",
    "h is rounded to 8 bits where float16 has 11",
    "h_new = _stored(h_new, policy)",
    'h_new = _stored(_stored(h_new, get_precision("bfloat16")), policy)',
    "backward.combinations",
    "float16",
)
edit(
    "precision.tf32",
    "products of TF32 in float32",
    'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T',
    'from_x, from_h = _tf32(step.x) @ _tf32(p["weight_x"]).T, _tf32(step.recurrent) @ _tf32(p["weight_h"]).T',
    _F,
)
edit(
    "precision.tf32_recurrent",
    "the recurrent product alone in TF32",
    'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T',
    'from_x, from_h = step.x @ p["weight_x"].T, _tf32(step.recurrent) @ _tf32(p["weight_h"]).T',
    _F,
)
edit(
    "precision.tf32_gradient",
    "the gradient of x in TF32",
    'dx = from_x @ p["weight_x"]',
    'dx = _tf32(from_x) @ _tf32(p["weight_x"])',
    _B,
)
edit(
    "precision.bfloat16_in_tf32",
    "products of bfloat16 in TF32",
    "return _shortened(array, 13, policy",
    "return _shortened(array, 16, policy",
    _F,
    "tf32",
)
edit(
    "precision.bfloat16_recurrent_in_tf32",
    "the recurrent product alone in bfloat16 where TF32 is said",
    "x, recurrent = _operand(x, policy), _operand(recurrent, policy)",
    "x, recurrent = _operand(x, policy), _shortened(recurrent, 16)",
    "masks.partial",
    "tf32",
)
edit(
    "precision.forget_bias_1e-3",
    "the forget bias is off by 1e-3",
    "z = clip(z, config.gate_clip)\n    return value",
    'z = clip(z, config.gate_clip)\n    z = z + 1e-3 * (k == "f")\n    return value',
    _F,
)
edit(
    "precision.cell_in_half",
    "the cell is kept in float16",
    "h, c = np.where(active, h_new, h), np.where(active, c_new, c)\n        y[t]",
    "h, c = np.where(active, h_new, h), np.where(active, c_new, c).astype(np.float16).astype(dtype)\n        y[t]",
    _F,
)
edit(
    "precision.float32_in_float64",
    "float64 is computed in float32",
    "dtype = np.dtype(np.complex128 if any(np.iscomplexobj(a) for a in arrays) else policy.compute)",
    'dtype = np.dtype("float32")',
    _F,
    "float64",
)


@fault("precision.half_arithmetic", "float16 arithmetic inside float32", "forward.switches")
def _half_arithmetic() -> Backend:
    half = Precision("float16", "float16", "float16", 2.0**-10)

    class Half(NaiveKernel):
        def _forward(
            self,
            weights: Any,
            x: Array,
            state: State | None,
            lengths: Any,
            masks: Masks | None,
            *,
            out: Array | None,
            **_: Any,
        ) -> tuple[Array, State, Any]:
            y, last, tape = reference.forward(
                self.config, weights, x, state, lengths=lengths, masks=masks, precision=half
            )
            return (self._give(y, out), State(last.h.astype("float32"), last.c.astype("float32")), tape)

        def _give(self, y: Array, out: Array | None) -> Array:
            if out is None:
                return y.astype("float32")
            out[...] = y
            return out

    return backend_of(Half)


# 16 bits --------------------------------------------------------------------------------------------------------------

edit(
    "half.products",
    "sums of more than 32 products W x are rounded to float16 before they are added up",
    'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T\n',
    'from_x, from_h = step.x @ p["weight_x"].T, step.recurrent @ p["weight_h"].T\n'
    '    short = step.precision.storage == "float16" and config.input_size > 32\n'
    "    from_x = from_x.astype(np.float16 if short else from_x.dtype)\n",
    "bits16.first_step",
    "float16",
)
edits(
    "half.next_step",
    "the next step reads h of more than 32 units cut off, and y has it rounded",
    (
        ("        h_new = _stored(h_new, policy)\n", "        whole, h_new = h_new, _stored(h_new, policy)\n"),
        (
            "        h, c = np.where(active, h_new, h), np.where(active, c_new, c)\n"
            "        y[t] = np.where(active, h, 0)\n",
            "        y[t] = np.where(active, h_new, 0)\n"
            "        short = policy.storage == 'float16' and config.hidden_size > 32\n"
            "        cut = _shortened(whole, 13, False) if short else h_new\n"
            "        h, c = np.where(active, cut, h), np.where(active, c_new, c)\n",
        ),
    ),
    "bits16.next_step",
    precision="float16",
)


@fault("half.masks", "masks are rounded to float16", "bits16.masks", "float16")
class _RoundedMasks(Hooked):
    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None) -> tuple[Any, ...]:
        if masks is not None and self.precision.storage == "float16":
            masks = Masks(*(None if mask is None else np.float32(np.float16(mask)) for mask in masks))
        return weights, x, state, lengths, masks


class _Derivatives(NaiveKernel):
    """A kernel with another rounding of gradients, of tangents, or of both."""

    gradients = tangents = False
    _differs = False

    def _backward(self, *arguments: Any) -> Gradients:
        self._differs = self.gradients
        return super()._backward(*arguments)

    def _jvp(self, *arguments: Any) -> tuple[Forward, Forward]:
        self._differs = self.tangents
        return super()._jvp(*arguments)

    def _stored(self, array: Array) -> Array:
        if not self._differs or self.precision.storage != "float16":
            return super()._stored(array)
        return self._round(array)

    def _round(self, array: Array) -> Array:
        """Return `array` in float16, cut off."""
        nearest = super()._stored(array)
        return np.where(np.abs(nearest) > np.abs(array), np.nextafter(nearest, np.zeros_like(nearest)), nearest)


@fault("half.gradients_cut", "gradients are cut off where they should be rounded", "bits16.derivatives", "float16")
class _GradientsCut(_Derivatives):
    gradients = True


@fault("half.tangents_cut", "tangents are cut off where they should be rounded", "bits16.derivatives", "float16")
class _TangentsCut(_Derivatives):
    tangents = True


@fault(
    "half.gradients_saturated", "a gradient beyond the largest number is that number", "bits16.derivatives", "float16"
)
class _GradientsSaturated(_Derivatives):
    gradients = True

    def _round(self, array: Array) -> Array:
        return np.clip(array, -65504, 65504).astype(np.float16)
