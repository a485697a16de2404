"""The directional derivative, carried along the recorded steps. Names with t_ are tangents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lstmcore.backend import Forward, State, Tangents
from lstmcore_cupy.backward import call_of
from lstmcore_cupy.packing import Saved

if TYPE_CHECKING:
    from lstmcore_cupy.kernel import CupyKernel

#: Field of ``struct Call`` -> the parameter whose tangent it is.
_VECTORS = {
    "t_bias": "bias",
    "t_peephole": "peephole",
    "t_gain_x": "norm_gain_x",
    "t_gain_h": "norm_gain_h",
    "t_gain_c": "norm_gain_c",
    "t_shift_c": "norm_bias_c",
}


def jvp(kernel: CupyKernel, saved: Saved, tangents: Tangents) -> Forward:
    """The derivative of y and of the final state along `tangents`, at the recorded call."""
    config, weights = kernel.config, saved.weights
    programs, p = weights.programs, weights.parameters
    device, shapes = programs.device, config.parameter_shapes
    steps, batch, _ = saved.x.shape
    hidden, output = config.hidden_size, config.output_size
    columns = len(config.gates) * hidden

    given = {name: programs.widen(array) for name, array in (tangents.parameters or {}).items()}
    th = programs.zeros(batch, output) if tangents.state is None else programs.widen(tangents.state.h)
    tc = programs.zeros(batch, hidden)
    if tangents.state is not None:
        device.assign(tc, device.array(tangents.state.c))
    ty = device.empty((steps, batch, output), programs.storage)
    if not steps * batch:
        return Forward(ty, State(programs.narrow(th), tc))

    from_x = programs.zeros(steps, batch, columns)
    if tangents.x is not None:
        programs.product(programs.widen(tangents.x, saved.ends), p["weight_x"], from_x, turn_b=True, stored=True)
    if "weight_x" in given:
        more = tangents.x is not None
        programs.product(saved.x, given["weight_x"], from_x, turn_b=True, accumulate=more, stored=True)
    weight_h = None
    if "weight_h" in given:
        weight_h = programs.empty(steps, batch, columns)
        programs.product(saved.kept["r"], given["weight_h"], weight_h, turn_b=True)
    from_h, tr = programs.empty(batch, columns), programs.empty(batch, config.recurrent_size)
    call = call_of(saved, t_from_x=from_x, t_from_h=from_h, t_weight_h=weight_h, t_r=tr, t_c=tc, t_h=th, t_y=ty)
    for name, parameter in _VECTORS.items():
        if parameter in shapes:
            call.put(**{name: given[parameter] if parameter in given else programs.zeros(*shapes[parameter])})
    tq = projected = None
    if config.proj_size:
        tq, projected = programs.empty(batch, hidden), programs.empty(batch, output)
        call.put(t_q=tq, t_projected=projected)

    call.launch("tangent_input", steps * batch, columns, whole_rows=config.layer_norm)
    call.launch("tangent_begin", batch, config.recurrent_size)
    for s in range(steps):
        programs.product(tr, p["weight_h"], from_h, turn_b=True)
        call.step(s, "tangent_cell", batch, hidden, whole_rows=config.layer_norm)
        if tq is not None and projected is not None:
            programs.product(tq, p["weight_proj"], projected, turn_b=True)
            if "weight_proj" in given:
                t = steps - 1 - s if config.reverse else s
                programs.product(saved.kept["q"][t], given["weight_proj"], projected, turn_b=True, accumulate=True)
            call.step(s, "tangent_output", batch, output)
    return Forward(ty, State(programs.narrow(th), tc))
