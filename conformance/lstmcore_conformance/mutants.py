"""Backends with one deliberate fault each. A suite that lets one pass does not check what it claims.

Most faults are an edit of the reference's own equations, given as the text that is replaced; the rest change how a
kernel treats its arguments. Each names the check that must catch it, so that every check is known to catch something.
To add one, write `edit(...)` or decorate a function that returns a backend with `fault(...)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import ModuleType
from typing import Any, ClassVar, Final

import numpy as np

from lstmcore import reference
from lstmcore.backend import (
    Array,
    Backend,
    Capabilities,
    Forward,
    Gradients,
    Kernel,
    Masks,
    StackKernel,
    StackMasks,
    State,
)
from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.precision import Precision
from lstmcore.stack import ComposedStack
from lstmcore_conformance.textbook import TextbookBackend, TextbookKernel


@dataclass(frozen=True, slots=True)
class Mutant:
    """A faulty backend.

    Attributes
    ----------
    id, fault
        A name, and what is wrong.
    caught_by
        The check that must catch it.
    precision
        The precision in which it is run.
    make
        Makes the backend.
    """

    id: str
    fault: str
    caught_by: str
    precision: str
    make: Callable[[], Backend]


#: Every mutant by its id.
MUTANTS: Final[dict[str, Mutant]] = {}


def fault(
    id: str, what: str, caught_by: str, precision: str = "float32"
) -> Callable[[Callable[[], Backend]], Callable[[], Backend]]:
    """Register the function that makes a mutant.

    Raises
    ------
    ValueError
        The id is taken.
    """

    def register(make: Callable[[], Backend]) -> Callable[[], Backend]:
        if id in MUTANTS:
            raise ValueError(f"mutant {id!r}: the id is taken")
        MUTANTS[id] = Mutant(id, what, caught_by, precision, make)
        return make

    return register


def backend_of(kernel: type[TextbookKernel], base: type[TextbookBackend] = TextbookBackend) -> Backend:
    """The textbook backend with another kernel."""
    backend = base()
    backend.kernel = kernel
    return backend


# Edits of the equations ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def edited(*edits: tuple[str, str]) -> ModuleType:
    """The reference with some of its text replaced.

    Raises
    ------
    ValueError
        A text that is not there exactly once: the reference has changed, and the mutant must follow.
    """
    source = inspect.getsource(reference)
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(
                f"mutant: expected the reference to have this text once, it is there {source.count(old)} times: {old}"
            )
        source = source.replace(old, new)
    module = ModuleType(reference.__name__)
    module.__file__ = reference.__file__
    module.__dict__["_tf32"] = _tf32
    exec(compile(source, f"<mutant of {reference.__name__}>", "exec"), module.__dict__)
    return module


def edit(id: str, what: str, old: str, new: str, caught_by: str, precision: str = "float32") -> None:
    """Register a mutant in which `old` in the text of the reference is `new`."""

    @fault(id, what, caught_by, precision)
    def make() -> Backend:
        return backend_of(type("EditedKernel", (TextbookKernel,), {"equations": edited((old, new))}))


def _tf32(array: Array) -> Array:
    """`array` in float32 with the mantissa rounded to TF32's 10 bits."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return rounded.view(np.float32)


_F, _B, _J = "forward.switches", "backward.switches", "jvp.switches"

edit("bias.dropped", "no bias is added", 'z = z + p["bias"]', "z = z", _F)
edit("recurrent.dropped", "R r is left out", "z = from_x + from_h\n", "z = from_x + 0 * from_h\n", _F)
edit(
    "recurrent.transposed",
    "R of every gate is transposed where it is square",
    'step.recurrent @ p["weight_h"].T\n',
    'step.recurrent @ (np.concatenate([b.T for b in np.split(p["weight_h"], len(config.gates))]) '
    'if config.recurrent_size == config.hidden_size else p["weight_h"]).T\n',
    _F,
)
edit(
    "gates.i_f_swapped",
    "the rows of i and f change places",
    "return dict(zip(config.gates, np.split",
    "return dict(zip("
    '[{"i": "f", "f": "i"}.get(k, k) if config.coupling == "none" else k for k in config.gates], np.split',
    _F,
)
edit(
    "gates.g_o_swapped",
    "the rows of g and o change places",
    "return dict(zip(config.gates, np.split",
    'return dict(zip([{"g": "o", "o": "g"}.get(k, k) for k in config.gates], np.split',
    _F,
)
edit(
    "gates.forget_bias",
    "1 is added to the forget gate at run time",
    "z = clip(z, config.gate_clip)\n    return value",
    'z = clip(z, config.gate_clip)\n    z = z + 1 if k == "f" else z\n    return value',
    _F,
)
edit(
    "peephole.dropped",
    "the peepholes of i and f are left out",
    "step.z[k] = step.z[k] + peephole[k] * c_before",
    "pass",
    _F,
)
edit(
    "peephole.f_dropped",
    "the peephole of f is left out",
    "step.z[k] = step.z[k] + peephole[k] * c_before",
    'step.z[k] = step.z[k] + (peephole[k] * c_before if k == "i" else 0)',
    _F,
)
edit(
    "peephole.o_old_cell",
    "the peephole of o reads the old cell",
    'step.z["o"] = step.z["o"] + peephole["o"] * step.c\n',
    'step.z["o"] = step.z["o"] + peephole["o"] * c_before\n',
    _F,
)
edit(
    "peephole.rows_reversed",
    "the rows of the peepholes are o, f, i",
    'return dict(zip(config.peephole_gates, p["peephole"], strict=True)) if',
    'return dict(zip(config.peephole_gates[::-1], p["peephole"], strict=True)) if',
    _F,
)
edit("coupling.not_one_minus", "f = i", 'gate["f"] = 1 - gate["i"]', 'gate["f"] = gate["i"]', _F)
edit(
    "gate_clip.after_activation",
    "the gate clip limits the activation, not what it reads",
    "        z = clip(z, config.gate_clip)\n"
    '    return value(config.cell_activation if k == "g" else config.gate_activation, z)',
    '        return clip(value(config.cell_activation if k == "g" else config.gate_activation, z), config.gate_clip)\n'
    '    return value(config.cell_activation if k == "g" else config.gate_activation, z)',
    _F,
)
edit(
    "gate_clip.not_o",
    "the gate clip leaves out o",
    "    if config.gate_clip is not None:\n        z = clip(z, config.gate_clip)\n",
    '    if config.gate_clip is not None and k != "o":\n        z = clip(z, config.gate_clip)\n',
    _F,
)
edit(
    "cell_clip.dropped",
    "the cell is not clipped",
    "c_new = step.c_unclipped if config.cell_clip is None else clip(step.c_unclipped, config.cell_clip)",
    "c_new = step.c_unclipped",
    _F,
)
edit(
    "cell_clip.after_zoneout",
    "the cell is clipped after the zoneout",
    "    step.c = keep_c * c_before + (1 - keep_c) * c_new\n",
    "    step.c = keep_c * c_before + (1 - keep_c) * c_new\n"
    "    step.c = step.c if config.cell_clip is None else clip(step.c, config.cell_clip)\n",
    _F,
)
edit(
    "proj_clip.dropped",
    "the projected output is not clipped",
    "h_new = step.h_unclipped if config.proj_clip is None else clip(step.h_unclipped, config.proj_clip)",
    "h_new = step.h_unclipped",
    _F,
)
edit(
    "activation.hidden_is_tanh",
    "the cell's way out is always tanh",
    'step.q = gate["o"] * value(config.hidden_activation, step.c_out)',
    'step.q = gate["o"] * np.tanh(step.c_out)',
    _F,
)
edit(
    "activation.g_is_gate",
    "g has the activation of the gates",
    '    return value(config.cell_activation if k == "g" else config.gate_activation, z)',
    "    return value(config.gate_activation, z)",
    _F,
)
edit(
    "layer_norm.sample_variance",
    "the variance divides by n - 1",
    "deviation = np.sqrt((centred * centred).mean(axis=1, keepdims=True)",
    "deviation = np.sqrt((centred * centred).sum(axis=1, keepdims=True) / max(a.shape[1] - 1, 1)",
    _F,
)
edit("layer_norm.eps_fixed", "eps is always 1e-5", "+ config.layer_norm_eps)", "+ 1e-5)", _F)
edit(
    "layer_norm.gains_swapped",
    "the gains of x and h change places",
    'from_x = p["norm_gain_x"] * step.norms["x"].value\n        from_h = p["norm_gain_h"]',
    'from_x = p["norm_gain_h"] * step.norms["x"].value\n        from_h = p["norm_gain_x"]',
    _F,
)
edit(
    "layer_norm.c_carried",
    "the normalised cell is what the next step reads",
    "return keep_h * step.h_before + (1 - keep_h) * h_new, step.c\n",
    "return keep_h * step.h_before + (1 - keep_h) * h_new, step.c_out\n",
    _F,
)
edit(
    "zoneout.inverted",
    "1 takes the new value of c",
    "step.c = keep_c * c_before + (1 - keep_c) * c_new",
    "step.c = (1 - keep_c) * c_before + keep_c * c_new",
    "masks.kept",
)
edit(
    "zoneout.rate_ignored",
    "without masks there is no zoneout of h",
    "np.full((batch, config.output_size), config.zoneout_hidden, dtype)",
    "np.zeros((batch, config.output_size), dtype)",
    _F,
)
edit(
    "zoneout.partial",
    "a zoneout of c without a mask is none at all where other masks are given",
    "np.full((batch, config.hidden_size), config.zoneout_cell, dtype)\n",
    "np.full((batch, config.hidden_size), 0 if masks else config.zoneout_cell, dtype)\n",
    "masks.partial",
)
edit(
    "recurrence.cell_is_hidden",
    "recurrence='cell' reads something else: c after the sign is lost",
    'keep_r * (c_before if config.recurrence == "cell" else h_before)',
    'keep_r * (np.abs(c_before) if config.recurrence == "cell" else h_before)',
    _F,
)
edit(
    "dropout.each_row_same",
    "the recurrent mask of the first row serves all",
    "np.asarray(np.ones((batch, config.recurrent_size)) if recurrent is None else recurrent, dtype)",
    "np.asarray("
    "np.ones((batch, config.recurrent_size)) if recurrent is None else recurrent[:1].repeat(batch, 0), dtype)",
    "masks.forward",
)
edit(
    "precision.h_coarse",
    "h is rounded to 8 bits where float16 has 11",
    "h_new = _stored(h_new, policy)",
    'h_new = _stored(_stored(h_new, get_precision("bfloat16")), policy)',
    "backward.combinations",
    "float16",
)
edit(
    "lengths.off_by_one",
    "the last step of every row is left out",
    "yield t, (t < ends)",
    "yield t, (t < ends - 1)",
    "lengths.forward",
)
edit(
    "lengths.one_more",
    "rows run one step past their end",
    "yield t, (t < ends)",
    "yield t, (t <= ends)",
    "lengths.forward",
)
edit(
    "lengths.state_not_held",
    "the state runs on past the end",
    "h, c = np.where(active, h_new, h), np.where(active, c_new, c)\n        y[t]",
    "h, c = h_new, c_new\n        y[t]",
    "lengths.exact",
)
edit(
    "lengths.output_held", "y past the end is the last h", "y[t] = np.where(active, h, 0)", "y[t] = h", "lengths.exact"
)
edit(
    "lengths.reverse_from_T",
    "a reversed row starts at T",
    "yield t, (t < ends)",
    "yield t, ((t >= steps - ends) if config.reverse else (t < ends))",
    "lengths.forward",
)
edit(
    "lengths.padding_read",
    "padding is multiplied by 0, so NaN comes through",
    "x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))",
    "(h_before, c_before), x = (np.where(active, array, 0) for array in before), x * active",
    "lengths.padding",
)
edit(
    "lengths.empty_row_read",
    "the state past the end of a row is multiplied by 0, so a NaN of a row of length 0 comes through",
    "x, h_before, c_before = (np.where(active, array, 0) for array in (x, *before))",
    "x, (h_before, c_before) = np.where(active, x, 0), (array * active for array in before)",
    "lengths.empty_rows",
)
edit(
    "lengths.empty_row_gradient",
    "so is the gradient of the state",
    "dh_step = np.where(step.active, dh, 0) + ",
    "dh_step = dh * step.active + ",
    "lengths.empty_rows",
)
edit(
    "lengths.dy_in_padding",
    "dy past the end is added to the gradient of the state",
    "dh_step = np.where(step.active, dh, 0) + np.where(step.active, incoming, 0)",
    "dh = dh + incoming\n        dh_step = np.where(step.active, dh, 0)",
    "lengths.backward",
)
edit(
    "reverse.y_reversed",
    "y of a reversed direction is in the order of the run",
    "y[t] = np.where(active, h, 0)",
    "y[steps - 1 - t if config.reverse else t] = np.where(active, h, 0)",
    _F,
)

# Terms of the gradient
edit(
    "backward.zoneout_h",
    "no gradient through the h that zoneout keeps",
    "dh_before = keep_h * dh\n",
    "dh_before = 0 * dh\n",
    _B,
)
edit(
    "backward.zoneout_h_new", "the new h gets all of the gradient", "dh_new = (1 - keep_h) * dh\n", "dh_new = dh\n", _B
)
edit(
    "backward.zoneout_c",
    "no gradient through the c that zoneout keeps",
    "dc_before = keep_c * dc\n",
    "dc_before = 0 * dc\n",
    _B,
)
edit(
    "backward.proj_clip",
    "the clip of the output is not in backward",
    "dh_new = dh_new * inside(step.h_unclipped, config.proj_clip)",
    "pass",
    _B,
)
edit(
    "backward.cell_clip",
    "the clip of the cell is not in backward",
    "dc_new = dc_new * inside(step.c_unclipped, config.cell_clip)",
    "pass",
    _B,
)
edit(
    "backward.gate_clip",
    "the clip of the gates is not in backward",
    "derivative(function, clip(z, config.gate_clip)) * inside(z, config.gate_clip)",
    "derivative(function, clip(z, config.gate_clip))",
    _B,
)
edit(
    "backward.clip_side",
    "on the bound of the gate clip the gradient is 0",
    "derivative(function, clip(z, config.gate_clip)) * inside(z, config.gate_clip)",
    "derivative(function, clip(z, config.gate_clip)) * (np.abs(z) < config.gate_clip)",
    "backward.kinks",
)
edit("backward.c_from_h", "no gradient from h to c", "dc = dc + dc_out\n", "dc = dc + 0 * dc_out\n", _B)
edit(
    "backward.peephole_o", "no gradient through the peephole of o to c", 'dc = dc + dz["o"] * peephole["o"]', "pass", _B
)
edit(
    "backward.peephole_o_stale",
    "the gradient of the peephole of o takes the old cell",
    'dpeephole["o"] += (dz["o"] * step.c).sum(axis=0)',
    'dpeephole["o"] += (dz["o"] * step.c_before).sum(axis=0)',
    _B,
)
edit(
    "backward.peephole_if",
    "no gradient through the peepholes of i and f to c",
    "dc_before = dc_before + dz[k] * peephole[k]",
    "pass",
    _B,
)
edit(
    "backward.f_stale",
    "the gradient of f takes the new cell",
    'dgate["f"] = dc_new * step.c_before',
    'dgate["f"] = dc_new * step.c',
    _B,
)
edit("backward.c_chain", "no gradient from c to the c before", 'dc_before = dc_before + dc_new * gate["f"]', "pass", _B)
edit("backward.coupling", "the gate that follows gives no gradient", 'dgate["i"] = dgate["i"] - dgate["f"]', "pass", _B)
edit(
    "backward.bias_doubled",
    "the gradient of the bias is there twice",
    'dp["bias"] += dz_all.sum(axis=0)',
    'dp["bias"] += 2 * dz_all.sum(axis=0)',
    _B,
)
edit("backward.h_chain", "no gradient from the gates to h", "dh_before = dh_before + dr", "pass", _B)
edit("backward.r_chain", "no gradient from the gates to the recurrent cell", "dc_before = dc_before + dr", "pass", _B)
edit(
    "backward.dropout",
    "the recurrent mask is not in backward",
    'dr = keep_r * (from_h @ p["weight_h"])',
    'dr = from_h @ p["weight_h"]',
    "masks.backward",
)
edit(
    "backward.norm_mean",
    "the gradient of the layer norm leaves out the mean",
    "result: Array = (d - d.mean(axis=1, keepdims=True) - along)",
    "result: Array = (d - along)",
    _B,
)
edit(
    "backward.final_c_ignored",
    "the gradient of the final c is ignored",
    "dh, dc = _state(config, batch, dstate, tape.dtype)",
    "dh, dc = _state(config, batch, dstate and State(dstate.h, 0 * dstate.c), tape.dtype)",
    "backward.uses",
)
edit(
    "backward.needs_dy",
    "without dy the gradient is 0",
    "dh, dc = _state(config, batch, dstate, tape.dtype)",
    "dh, dc = _state(config, batch, None if dy is None else dstate, tape.dtype)",
    "backward.uses",
)
edit(
    "backward.dx_scaled",
    "dx of the first step is left out",
    "dx[t], dh_before, dc_before = _backward_step(config, tape.parameters, step, dh_step, dc_step, dp)",
    "dx[t], dh_before, dc_before = _backward_step(config, tape.parameters, step, dh_step, dc_step, dp)\n"
    "        dx[0] = 0",
    _B,
)
edit("jvp.bias", "the tangent of the bias is ignored", 'tz_all = tz_all + tp["bias"]', "pass", _J)
edit(
    "jvp.c_chain",
    "no tangent from c to the next c",
    'tc_new = tgate["f"] * step.c_before + gate["f"] * tc_before +',
    'tc_new = tgate["f"] * step.c_before +',
    _J,
)
edit(
    "jvp.weight_h",
    "the tangent of R is ignored",
    'tr @ p["weight_h"].T + step.recurrent @ tp["weight_h"].T',
    'tr @ p["weight_h"].T',
    _J,
)
edit(
    "jvp.adjoint",
    "jvp and backward differ: the clip of the cell is not in jvp",
    "tc_new = tc_new * inside(step.c_unclipped, config.cell_clip)",
    "pass",
    "jvp.adjoint",
)

edit(
    "jvp.lengths",
    "the tangent of the state runs on past the end",
    "th, tc = np.where(step.active, th_new, th), np.where(step.active, tc_new, tc)",
    "th, tc = th_new, tc_new",
    "lengths.jvp",
)
edit("jvp.masks", "the recurrent mask is not in jvp", "tr = keep_r * (tc_before", "tr = (tc_before", "masks.jvp")
edit(
    "backward.not_linear",
    "gradients are clipped to +-1 on their way",
    "dc = dc + dc_out\n",
    "dc = np.clip(dc + dc_out, -1, 1)\n",
    "backward.linear",
)
edit(
    "combined.clip_coupled",
    "the clip of the cell is left out where gates are coupled",
    "c_new = step.c_unclipped if config.cell_clip is None else",
    'c_new = step.c_unclipped if config.cell_clip is None or config.coupling != "none" else',
    "forward.combinations",
)
edit(
    "combined.peephole_clip",
    "no gradient through the peephole of o where gates are clipped",
    'dc = dc + dz["o"] * peephole["o"]',
    'dc = dc + dz["o"] * peephole["o"] * (config.gate_clip is None)',
    "backward.combinations",
)
edit(
    "combined.norm_proj",
    "no tangent of the projection with layer norm",
    'th_new = tq @ p["weight_proj"].T + step.q @ tp["weight_proj"].T',
    'th_new = tq @ p["weight_proj"].T + step.q @ tp["weight_proj"].T * (not config.layer_norm)',
    "jvp.combinations",
)
edit(
    "first_step.zoneout",
    "zoneout spares the first step of a call",
    "h_new, c_new = _forward_step(config, p, step)",
    "step.masks = (step.masks[0], *(m * bool(tape) for m in step.masks[1:]))\n"
    "        h_new, c_new = _forward_step(config, p, step)",
    "state.resume",
)
edit(
    "first_step.dx",
    "a last step alone gives no gradient of the c before",
    "dc = np.where(step.active, dc_before, dc)\n",
    "dc = np.where(step.active, dc_before * (steps > 2), dc)\n",
    "state.pieces_backward",
)
edit(
    "sizes.gradient_of_one_row",
    "with one row the gradient of R is left out",
    'dp["weight_h"] += from_h.T @ step.recurrent',
    'dp["weight_h"] += from_h.T @ step.recurrent * (len(from_h) > 1)',
    "backward.sizes",
)
edit(
    "sizes.tangent_of_one_unit",
    "with one hidden unit the tangent of R is left out",
    'tr @ p["weight_h"].T + step.recurrent @ tp["weight_h"].T',
    'tr @ p["weight_h"].T + step.recurrent @ tp["weight_h"].T * (config.hidden_size > 1)',
    "jvp.sizes",
)

# Precision
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


# Kernels that treat their arguments wrongly -------------------------------------------------------------------------


@fault("precision.half_arithmetic", "float16 arithmetic inside float32", _F)
def _half_arithmetic() -> Backend:
    half = Precision("float16", "float16", "float16", 2.0**-10)

    class Half(TextbookKernel):
        def _forward(
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


class _Hooked(TextbookKernel):
    """A kernel that lets a mutant change what goes in and what comes out of the private methods."""

    def before(self, weights: Any, x: Array, state: State | None, lengths: Any, masks: Masks | None) -> tuple[Any, ...]:
        return weights, x, state, lengths, masks

    def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
        return y, last, tape

    def _forward(
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
        given = self.before(weights, x, state, lengths, masks)
        y, last, tape = super()._forward(*given, record=record, out=out)
        return self.after(y, last, tape, x, state)


@fault("contract.x_written", "x is scaled in place", "inputs.unchanged")
def _x_written() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            if x.flags.writeable:
                x *= 0.5
            return y, last, tape

    return backend_of(K)


@fault("contract.state_written", "the initial c is overwritten with the final one", "inputs.unchanged")
def _state_written() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            if state is not None and state.c.flags.writeable:
                state.c[...] = last.c
            return y, last, tape

    return backend_of(K)


@fault("contract.state_returned", "with T = 0 the initial state itself is returned", "outputs.fresh")
def _state_returned() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            return (y, state, tape) if state is not None and not len(x) else (y, last, tape)

    return backend_of(K)


@fault("contract.buffer_reused", "y lies in a buffer that the next call of that size overwrites", "outputs.kept")
def _buffer_reused() -> Backend:
    class K(_Hooked):
        buffers: ClassVar[dict[Any, Array]] = {}

        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            kept: Any = self.buffers.setdefault((id(self), y.shape), y)
            kept[...] = y
            return kept, last, tape

    return backend_of(K)


@fault("contract.state_leaks", "without a state a call goes on from the last one", "calls.same_bits")
def _state_leaks() -> Backend:
    class K(_Hooked):
        left: Any = 0.0

        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            found = State(last.h, (last.c + self.left).astype(last.c.dtype))
            self.left = 1e-7 if last.c.sum() > 0 else -1e-7
            return y, found, tape

    return backend_of(K)


@fault("contract.not_deterministic", "the last bit of y is random", "calls.same_bits")
def _not_deterministic() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            noise = np.random.default_rng().random(y.shape) < 0.5
            y[noise] = np.nextafter(y, np.ones_like(y))[noise]
            return y, last, tape

    return backend_of(K)


@fault("contract.rows_meet", "every row gets a little of the batch's mean", "rows.nan")
def _rows_meet() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            return (weights, x + np.float32(1e-30) * x.sum(axis=1, keepdims=True, dtype=x.dtype), *rest)

    return backend_of(K)


@fault("contract.batch_multiple", "the last row of an odd batch is computed without its state", "rows.independent")
def _batch_multiple() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
            if state is not None and x.shape[1] % 2:
                state = State(state.h.copy(), state.c.copy())
                state.c[-1] = 0
            return weights, x, state, *rest

    return backend_of(K)


@fault("contract.strides_ignored", "x is read as if it were contiguous", "inputs.transposed")
def _strides_ignored() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            return (weights, x if x.flags.c_contiguous else x.ravel(order="K").reshape(x.shape), *rest)

    return backend_of(K)


@fault("contract.read_only_refused", "a read-only x is an error", "inputs.read_only")
def _read_only_refused() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            x.flags.writeable = x.flags.writeable
            if not x.flags.writeable:
                raise BufferError("assignment destination is read-only")
            return weights, x, *rest

    return backend_of(K)


@fault("contract.no_steps", "T = 0 is an IndexError", "forward.sizes")
def _no_steps() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            y[len(y) - 1].sum() if len(y) else y[0]
            return y, last, tape

    return backend_of(K)


@fault("contract.none_state", "an initial state of None is ones", "forward.no_state")
def _none_state() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
            if state is None:
                shape = ((x.shape[1], self.config.output_size), (x.shape[1], self.config.hidden_size))
                state = State(np.ones(shape[0], x.dtype), np.ones(shape[1], self.precision.compute))
            return weights, x, state, *rest

    return backend_of(K)


@fault("contract.one_step_stateless", "a call with one step starts from an h of zeros", "state.streaming")
def _one_step_stateless() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, state: State | None, *rest: Any) -> tuple[Any, ...]:
            if state is not None and len(x) == 1:
                state = State(np.zeros_like(state.h), state.c)
            return weights, x, state, *rest

    return backend_of(K)


@fault("contract.no_step_no_state", "a call with no step returns a state of zeros", "state.empty_piece")
def _no_step_no_state() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            return (y, last, tape) if len(x) else (y, State(0 * last.h, 0 * last.c), tape)

    return backend_of(K)


@fault(
    "contract.last_stride_ignored", "the columns of x are read one after another, whatever its stride", "inputs.strided"
)
def _last_stride_ignored() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            if x.size and abs(x.strides[-1]) == 2 * x.itemsize:
                x = np.lib.stride_tricks.as_strided(x, strides=(*x.strides[:-1], x.itemsize))
            return weights, x, *rest

    return backend_of(K)


@fault("contract.masks_empty", "Masks() is taken for masks that are all 0", "masks.empty")
def _masks_empty() -> Backend:
    class K(_Hooked):
        def before(self, weights: Any, x: Array, state: Any, lengths: Any, masks: Masks | None) -> tuple[Any, ...]:
            if masks is not None and self.config.zoneout_cell and masks.zoneout_cell is None:
                shape = (*x.shape[:2], self.config.hidden_size)
                masks = masks._replace(zoneout_cell=np.zeros(shape, self.precision.compute))
            return weights, x, state, lengths, masks

    return backend_of(K)


def _backward_mutant(
    change: Callable[[TextbookKernel, Any, Array | None, State | None, Gradients], Gradients],
) -> Backend:
    class K(TextbookKernel):
        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            return change(self, saved, dy, dstate, super()._backward(weights, saved, dy, dstate))

    return backend_of(K)


@fault("contract.no_state_no_gradient", "without an initial state there is no gradient of it", "backward.no_state")
def _no_state_no_gradient() -> Backend:
    def change(kernel: TextbookKernel, saved: Any, dy: Any, dstate: Any, found: Gradients) -> Gradients:
        zero = saved.steps and not np.any(saved.steps[-1 if kernel.config.reverse else 0][1].h_before)
        return found._replace(state=None) if zero else found  # type: ignore[arg-type]  # the fault

    return _backward_mutant(change)


@fault("contract.nothing_used", "a backward of nothing is an error", "backward.nothing")
def _nothing_used() -> Backend:
    def change(kernel: TextbookKernel, saved: Any, dy: Any, dstate: Any, found: Gradients) -> Gradients:
        if dy is None and dstate is None:
            raise TypeError("nothing to differentiate")
        return found

    return _backward_mutant(change)


@fault("contract.tangent_needed", "jvp without a tangent of x is an error", "jvp.partial")
def _tangent_needed() -> Backend:
    class K(TextbookKernel):
        def _jvp(self, weights: Any, x: Array, state: Any, tangents: Any, *rest: Any) -> tuple[Forward, Forward]:
            return super()._jvp(weights, x, state, tangents._replace(x=tangents.x * 1), *rest)

    return backend_of(K)


@fault("contract.out_ignored", "out is not written to", "outputs.out")
def _out_ignored() -> Backend:
    class K(TextbookKernel):
        def _forward(self, *args: Any, out: Array | None, **given: Any) -> tuple[Array, State, Any]:
            return super()._forward(*args, out=None, **given)

    return backend_of(K)


@fault("contract.out_contiguous", "a strided out is filled as if it were contiguous", "outputs.out")
def _out_contiguous() -> Backend:
    class K(TextbookKernel):
        def _forward(self, *args: Any, out: Array | None, **given: Any) -> tuple[Array, State, Any]:
            y, last, tape = super()._forward(*args, out=None, **given)
            if out is None:
                return y, last, tape
            whole = out if out.base is None or out.flags.c_contiguous else out.base
            whole.reshape(-1)[: y.size] = y.ravel()
            return out, last, tape

    return backend_of(K)


@fault("contract.pack_borrows", "weights are the arrays that were packed", "pack.copies")
def _pack_borrows() -> Backend:
    class K(TextbookKernel):
        def _pack(self, parameters: Mapping[str, Array]) -> Any:
            return dict(parameters)

    return backend_of(K)


@fault("contract.one_pack", "the kernel keeps one set of weights", "pack.many")
def _one_pack() -> Backend:
    class K(TextbookKernel):
        def _pack(self, parameters: Mapping[str, Array]) -> Any:
            self.weights = super()._pack(parameters)
            return self.weights

        def _forward(self, weights: Any, *args: Any, **given: Any) -> tuple[Array, State, Any]:
            return super()._forward(self.weights, *args, **given)

    return backend_of(K)


@fault("contract.tape_used_up", "a second backward with the same tape adds to the first", "tape.reuse")
def _tape_used_up() -> Backend:
    class K(TextbookKernel):
        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            found = super()._backward(weights, saved, dy, dstate)
            for _, step in saved.steps:
                step.c_before = step.c_before + 1
            return found

    return backend_of(K)


@fault("contract.tape_shared", "the kernel keeps one tape, of the last recorded call", "tape.reuse")
def _tape_shared() -> Backend:
    class K(TextbookKernel):
        last: Any = None

        def _forward(self, *args: Any, **given: Any) -> tuple[Array, State, Any]:
            y, last, tape = super()._forward(*args, **given)
            self.last = tape or self.last
            return y, last, tape

        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            return super()._backward(weights, self.last, dy, dstate)

    return backend_of(K)


@fault("contract.threads_share", "a scratch array is shared between threads", "calls.threads")
def _threads_share() -> Backend:
    import time

    class K(_Hooked):
        scratch: Any = None

        def before(self, weights: Any, x: Array, *rest: Any) -> tuple[Any, ...]:
            self.scratch = x
            time.sleep(0.002)  # gives the other threads the time that a long product would
            return weights, self.scratch if self.scratch.shape == x.shape else x, *rest

    return backend_of(K)


@fault("contract.dtype_wider", "y and the gradients come back in float64", "forward.switches")
def _dtype_wider() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            return y.astype(np.float64), last, tape

    return backend_of(K)


@fault("contract.cell_narrow", "c comes back in float16 where it is stored in float32", "forward.switches", "float16")
def _cell_narrow() -> Backend:
    class K(_Hooked):
        def after(self, y: Array, last: State, tape: Any, x: Array, state: State | None) -> tuple[Array, State, Any]:
            return y, State(last.h, last.c.astype(np.float16)), tape

    return backend_of(K)


@fault("contract.gradient_missing", "there is no gradient of the bias", "backward.switches")
def _gradient_missing() -> Backend:
    class K(TextbookKernel):
        def _backward(self, weights: Any, saved: Any, dy: Array | None, dstate: State | None) -> Gradients:
            found = super()._backward(weights, saved, dy, dstate)
            named = {name: array for name, array in found.parameters.items() if name != "bias"}
            return found._replace(parameters=named)

    return backend_of(K)


@fault("contract.jvp_claimed", "jvp is declared and not implemented", "jvp.switches")
def _jvp_claimed() -> Backend:
    class K(TextbookKernel):
        def _jvp(self, *args: Any) -> tuple[Forward, Forward]:
            raise NotImplementedError("jvp")

    return backend_of(K)


@fault("contract.peephole_claimed", "peepholes are declared and not implemented", "forward.switches")
def _peephole_claimed() -> Backend:
    class B(TextbookBackend):
        def _compile(self, config: LSTMConfig, precision: Precision) -> Kernel:
            if config.peephole:
                raise NotImplementedError("peephole")
            return super()._compile(config, precision)

    return B()


@fault("contract.refused_always", "a declared switch is refused in every precision", "declared.switches")
def _refused_always() -> Backend:
    class B(TextbookBackend):
        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            return "not now" if config.layer_norm else super().refusal(config, precision)

    return B()


@fault("contract.silent_precision", "a precision that is not declared runs in another one", "refusals.precisions")
def _silent_precision() -> Backend:
    class B(TextbookBackend):
        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            return None

    return B()


@fault("contract.silent_feature", "a switch that is not declared is ignored", "refusals.features")
def _silent_feature() -> Backend:
    class B(TextbookBackend):
        def capabilities(self) -> Capabilities:
            found = super().capabilities()
            return replace(found, features=found.features - {"peephole"})

        def refusal(self, config: LSTMConfig, precision: Precision) -> str | None:
            return None if config.peephole else super().refusal(config, precision)

    return B()


@fault("contract.silent_lengths", "lengths are not declared, and ignored", "refusals.calls")
def _silent_lengths() -> Backend:
    class K(TextbookKernel):
        def _declared(self, what: str, used: bool) -> None:
            return None

    class B(TextbookBackend):
        def capabilities(self) -> Capabilities:
            found = super().capabilities()
            return replace(found, features=found.features - {"lengths"})

    return backend_of(K, B)


@fault("contract.receipt_of_another", "the receipt names another backend", "receipts.true")
def _receipt_of_another() -> Backend:
    class K(TextbookKernel):
        def receipt(self, steps: int | None = None, batch: int | None = None) -> Any:
            return replace(super().receipt(steps, batch), backend="fast")

    return backend_of(K)


def _overridden(id: str, what: str, caught_by: str, methods: Callable[[], dict[str, Any]]) -> None:
    """Register a kernel whose public method is replaced; `final` does not stop a backend from doing so."""

    @fault(id, what, caught_by)
    def make() -> Backend:
        return backend_of(type("OverriddenKernel", (TextbookKernel,), methods()))


def _raising(kind: type[Exception], method: str) -> Callable[[], dict[str, Any]]:
    def methods() -> dict[str, Any]:
        inner = getattr(Kernel, method)

        def call(self: Kernel, *args: Any, **given: Any) -> Any:
            try:
                return inner(self, *args, **given)
            except (TypeError, ValueError) as error:
                raise kind("bad argument") from error

        return {method: call}

    return methods


def _unchecked() -> dict[str, Any]:
    def forward(
        self: Any,
        weights: Any,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        masks: Any = None,
        record: bool = False,
        out: Any = None,
    ) -> Forward:
        if lengths is not None:
            lengths = np.clip(np.asarray(lengths, np.int64).ravel()[: x.shape[1]], 0, len(x))
        return Kernel.forward(self, weights, x, state, lengths=lengths, masks=masks, record=record, out=out)

    return {"forward": forward}


def _converting() -> dict[str, Any]:
    def forward(self: Any, weights: Any, x: Any, state: Any = None, **given: Any) -> Forward:
        x = np.asarray(x, self.precision.storage)
        return Kernel.forward(self, weights, x, state, **given)

    return {"forward": forward}


def _any_tape() -> dict[str, Any]:
    def backward(self: Any, weights: Any, tape: Any, dy: Any = None, dstate: Any = None) -> Gradients:
        tape = replace(tape, owner=self) if hasattr(tape, "owner") else tape
        return Kernel.backward(self, weights, tape, dy, dstate)

    return {"backward": backward}


def _any_parameters() -> dict[str, Any]:
    def pack(self: Any, parameters: Any) -> Any:
        return Kernel.pack(self, {name: parameters[name] for name in self.config.parameter_shapes})

    return {"pack": pack}


_overridden("errors.runtime", "mistakes are RuntimeErrors", "errors.x", _raising(RuntimeError, "forward"))
_overridden(
    "errors.nameless", "the message does not name the argument", "errors.state", _raising(ValueError, "forward")
)
_overridden("errors.lengths_clamped", "wrong lengths are made to fit", "errors.lengths", _unchecked)
_overridden("errors.x_converted", "an x of another dtype is converted in silence", "errors.x", _converting)
_overridden("errors.tape_of_another", "a tape of another kernel is taken", "errors.backward", _any_tape)
_overridden("errors.parameters_extra", "unknown parameters are ignored", "errors.parameters", _any_parameters)
_overridden("errors.masks", "a wrong mask is a RuntimeError", "errors.masks", _raising(RuntimeError, "forward"))
_overridden("errors.out", "a wrong out is a RuntimeError", "errors.out", _raising(RuntimeError, "forward"))
_overridden("errors.tangents", "a wrong tangent is a RuntimeError", "errors.tangents", _raising(RuntimeError, "jvp"))


# Stacks -------------------------------------------------------------------------------------------------------------


def _stack_backend(stack: type[ComposedStack]) -> Backend:
    class B(TextbookBackend):
        def _compile_stack(self, config: StackConfig, precision: Precision) -> StackKernel:
            return stack(self, config, precision)

    return B()


@fault("stack.directions_swapped", "the reversed output comes first", "stack.forward")
def _directions_swapped() -> Backend:
    class S(ComposedStack):
        def forward(self, *args: Any, **given: Any) -> Forward:
            found = super().forward(*args, **given)
            if self.stack.num_directions == 2:
                found.y[...] = np.roll(found.y, self.stack.output_size, axis=2)
            return found

    return _stack_backend(S)


@fault("stack.states_by_direction", "states are ordered by direction first", "stack.forward")
def _states_by_direction() -> Backend:
    class S(ComposedStack):
        def forward(self, *args: Any, **given: Any) -> Forward:
            found = super().forward(*args, **given)
            count = self.stack.num_directions
            order = np.arange(len(self.kernels)).reshape(-1, count).T.ravel()
            return found._replace(state=State(found.state.h[order], found.state.c[order]))

    return _stack_backend(S)


@fault("stack.weights_shared", "both directions use the weights of the first", "stack.forward")
def _weights_shared() -> Backend:
    class S(ComposedStack):
        def pack(self, parameters: Mapping[str, Array]) -> Any:
            packed = super().pack(parameters)
            count = self.stack.num_directions
            return tuple(packed[index - index % count] for index in range(len(packed)))

    return _stack_backend(S)


@fault("stack.dropout_ignored", "the dropout between layers is left out", "stack.forward")
def _dropout_ignored() -> Backend:
    class S(ComposedStack):
        def forward(self, *args: Any, masks: StackMasks | None = None, **given: Any) -> Forward:
            return super().forward(*args, masks=masks and masks._replace(dropout=()), **given)

    return _stack_backend(S)


@fault("stack.dropout_not_in_backward", "the dropout between layers is not in backward", "stack.backward")
def _dropout_not_in_backward() -> Backend:
    class S(ComposedStack):
        def backward(self, weights: Any, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
            return super().backward(weights, tape._replace(dropout=()), dy, dstate)

    return _stack_backend(S)


@fault("stack.dx_of_one_direction", "dx leaves out the reversed direction of the first layer", "stack.backward")
def _dx_of_one_direction() -> Backend:
    class S(ComposedStack):
        def backward(self, weights: Any, tape: Any, dy: Array | None, dstate: State | None) -> Gradients:
            found = super().backward(weights, tape, dy, dstate)
            return found if self.stack.num_directions == 1 else found._replace(x=found.x / 2)

    return _stack_backend(S)


@fault("stack.jvp_first_layer", "the tangents of upper layers are ignored", "stack.jvp")
def _jvp_first_layer() -> Backend:
    class S(ComposedStack):
        def jvp(self, weights: Any, x: Array, state: State | None, tangents: Any, **given: Any) -> Any:
            first = {name: array for name, array in (tangents.parameters or {}).items() if "_l0" in name}
            return super().jvp(weights, x, state, tangents._replace(parameters=first), **given)

    return _stack_backend(S)


@fault("stack.one_receipt", "there is one receipt for all", "stack.receipts")
def _one_receipt() -> Backend:
    class S(ComposedStack):
        def receipts(self, steps: int | None = None, batch: int | None = None) -> Any:
            return super().receipts(steps, batch)[:1]

    return _stack_backend(S)


@fault("stack.upper_stateless", "layers above the first start from zeros", "stack.streaming")
def _upper_stateless() -> Backend:
    class S(ComposedStack):
        def forward(self, weights: Any, x: Array, state: State | None, **given: Any) -> Forward:
            if state is not None:
                state = State(state.h.copy(), state.c.copy())
                state.h[self.stack.num_directions :] = 0
            return super().forward(weights, x, state, **given)

    return _stack_backend(S)
