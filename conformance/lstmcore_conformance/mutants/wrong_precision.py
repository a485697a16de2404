"""Lost precision: operands, states or whole passes in a shorter format than the precision promises."""

from __future__ import annotations

from typing import Any

from lstmcore import reference
from lstmcore.backend import Array, Backend, Masks, State
from lstmcore.precision import Precision
from lstmcore_conformance.mutants.construction import backend_of, edit, fault
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
