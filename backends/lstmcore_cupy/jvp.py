"""The directional derivative, carried along the recorded steps. Names with t_ are tangents."""

from __future__ import annotations

from collections.abc import Mapping

from lstmcore.backend import Forward, State, Tangents
from lstmcore_cupy.device import Array
from lstmcore_cupy.launch import Call
from lstmcore_cupy.tape import Saved

#: Field of ``struct Call`` -> the parameter whose tangent it is.
_VECTORS = {
    "t_bias": "bias",
    "t_peephole": "peephole",
    "t_gain_x": "norm_gain_x",
    "t_gain_h": "norm_gain_h",
    "t_gain_c": "norm_gain_c",
    "t_shift_c": "norm_bias_c",
}


def jvp(saved: Saved, tangents: Tangents) -> Forward:
    """Return the derivative of y and of the final state along `tangents`, at the recorded call."""
    programs = saved.weights.programs
    config, device = programs.config, programs.device
    steps, batch, _ = saved.x.shape
    directions = {name: programs.widen(array) for name, array in (tangents.parameters or {}).items()}
    th = programs.zeros(batch, config.output_size) if tangents.state is None else programs.widen(tangents.state.h)
    tc = programs.zeros(batch, config.hidden_size)
    if tangents.state is not None:
        device.assign(tc, device.array(tangents.state.c))
    ty = device.empty((steps, batch, config.output_size), programs.storage)
    if steps * batch:
        from_x, weight_h = _input_tangents(saved, tangents.x, directions)
        call = saved.call(t_from_x=from_x, t_weight_h=weight_h, t_c=tc, t_h=th, t_y=ty)
        for name, parameter in _VECTORS.items():
            if parameter in config.parameter_shapes:
                shape = config.parameter_shapes[parameter]
                call.put(**{name: directions[parameter] if parameter in directions else programs.zeros(*shape)})
        _run_steps(saved, call, directions)
    return Forward(ty, State(programs.narrow(th), tc))


def _input_tangents(saved: Saved, tx: Array | None, directions: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """Return the tangents of ``W x`` (T, N, G H), and what the tangent of R adds to those of ``R r``, or None."""
    programs, p = saved.weights.programs, saved.weights.parameters
    steps, batch, _ = saved.x.shape
    columns = len(programs.config.gates) * programs.config.hidden_size
    from_x = programs.zeros(steps, batch, columns)
    if tx is not None:
        programs.matmul(programs.widen(tx, saved.ends), p["weight_x"], from_x, transpose_b=True, stored=True)
    if "weight_x" in directions:
        accumulate = tx is not None
        programs.matmul(saved.x, directions["weight_x"], from_x, transpose_b=True, accumulate=accumulate, stored=True)
    weight_h = None
    if "weight_h" in directions:
        weight_h = programs.empty(steps, batch, columns)
        programs.matmul(saved.buffers["r"], directions["weight_h"], weight_h, transpose_b=True)
    return from_x, weight_h


def _run_steps(saved: Saved, call: Call, directions: Mapping[str, Array]) -> None:
    """Run the steps of `call`; `directions` are the tangents of the parameters in the compute dtype."""
    programs, p, config = saved.weights.programs, saved.weights.parameters, saved.weights.programs.config
    steps, batch, _ = saved.x.shape
    columns = len(config.gates) * config.hidden_size
    from_h, tr = programs.empty(batch, columns), programs.empty(batch, config.recurrent_size)
    call.put(t_from_h=from_h, t_r=tr)
    tq = projected = None
    if config.proj_size:
        tq, projected = programs.empty(batch, config.hidden_size), programs.empty(batch, config.output_size)
        call.put(t_q=tq, t_projected=projected)

    call.launch("tangent_input", steps * batch, columns, whole_rows=config.layer_norm)
    call.launch("tangent_begin", batch, config.recurrent_size)
    for s in range(steps):
        programs.matmul(tr, p["weight_h"], from_h, transpose_b=True)
        call.step(s, "tangent_cell", batch, config.hidden_size, whole_rows=config.layer_norm)
        if tq is not None and projected is not None:
            programs.matmul(tq, p["weight_proj"], projected, transpose_b=True)
            if "weight_proj" in directions:
                q = saved.buffers["q"][steps - 1 - s if config.reverse else s]
                programs.matmul(q, directions["weight_proj"], projected, transpose_b=True, accumulate=True)
            call.step(s, "tangent_output", batch, config.output_size)
