"""The backward pass as docs/backward.md derives it: a kernel and a product for each step, then large products, sums.

The steps are one launch where there is a plan for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lstmcore.backend import Gradients, State
from lstmcore_cupy.device import Array
from lstmcore_cupy.launch import Call, Programs
from lstmcore_cupy.packing import Saved
from lstmcore_cupy.persistent import Loop, Pass, Plan

if TYPE_CHECKING:
    from lstmcore_cupy.kernel import CupyKernel


def call_of(saved: Saved, **values: Array | int | None) -> Call:
    """A call on what was recorded."""
    weights = saved.weights
    steps, batch, _ = saved.x.shape
    masks = saved.masks
    call = weights.programs.call(T=steps, N=batch, ends=saved.ends, **weights.fields(), **saved.kept, **values)
    call.put(mask_r=masks.recurrent, mask_h=masks.zoneout_hidden, mask_c=masks.zoneout_cell)
    return call


def backward(
    kernel: CupyKernel, saved: Saved, dy: Array | None, dstate: State | None, directions: int = 1
) -> Pass[Gradients]:
    """See `Kernel._backward`. `directions` run side by side."""
    config, weights = kernel.config, saved.weights
    programs, p = weights.programs, weights.parameters
    device = programs.device
    steps, batch, width = saved.x.shape
    hidden, output = config.hidden_size, config.output_size
    columns = len(config.gates) * hidden
    normed = config.layer_norm

    dh = programs.zeros(batch, output) if dstate is None else programs.widen(dstate.h)
    dc = programs.zeros(batch, hidden)
    if dstate is not None:
        device.assign(dc, device.array(dstate.c))
    if not steps * batch:
        shapes = config.parameter_shapes
        dx = device.zeros((steps, batch, width), programs.storage)
        zeros = {name: device.zeros(shape, programs.storage) for name, shape in shapes.items()}
        return Gradients(dx, State(programs.narrow(dh), dc), zeros)

    dz = programs.empty(steps, batch, columns)
    call = call_of(saved, dy=None if dy is None else device.array(dy), dh=dh, dc=dc, dz=dz)
    dz_x = dz_h = dz
    dn = d_projected = dq = None
    if normed:
        dz_x, dz_h, dn, norm_c = (programs.empty(steps, batch, size) for size in (columns, columns, hidden, hidden))
        call.put(dz_x=dz_x, dz_h=dz_h, dn=dn, norm_c=norm_c)
    if config.proj_size:
        d_projected, dq = programs.empty(steps, batch, output), programs.empty(batch, hidden)
        call.put(d_projected=d_projected, dq=dq)
    persistent = kernel.plan(programs, "backward_persistent", batch, directions)
    if isinstance(persistent, Plan):
        yield Loop(persistent, programs, call)
    else:
        dr = programs.zeros(batch, config.recurrent_size)
        call.put(dr=dr)
        for s in reversed(range(steps)):
            t = steps - 1 - s if config.reverse else s
            if d_projected is not None:
                call.step(s, "backward_output", batch, output)
                programs.product(d_projected[t], p["weight_proj"], dq)
            call.step(s, "backward_cell", batch, hidden, whole_rows=normed)
            programs.product(dz_h[t], p["weight_h"], dr)
        call.step(-1, "backward_last", batch, config.recurrent_size)
    if normed:
        call.launch("backward_normalise_input", steps * batch, columns, whole_rows=True)

    dx = programs.empty(steps, batch, width)
    programs.product(dz_x, p["weight_x"], dx)
    found = {"weight_x": programs.outer(dz_x, saved.x), "weight_h": programs.outer(dz_h, saved.kept["r"])}
    if d_projected is not None:
        found["weight_proj"] = programs.outer(d_projected, saved.kept["q"])
    if config.bias:
        found["bias"] = programs.sums(dz, width=columns)
    if config.peephole:
        found["peephole"] = _peephole_gradients(programs, saved, dz)
    if dn is not None:
        found["norm_gain_x"] = programs.sums(dz, saved.kept["from_x"], width=columns)
        found["norm_gain_h"] = programs.sums(dz, saved.kept["norm_h"], width=columns)
        found["norm_gain_c"] = programs.sums(dn, norm_c, width=hidden)
        found["norm_bias_c"] = programs.sums(dn, width=hidden)
    parameters = {name: programs.narrow(found[name]) for name in config.parameter_shapes}
    return Gradients(programs.narrow(dx), State(programs.narrow(dh), dc), parameters)


def _peephole_gradients(programs: Programs, saved: Saved, dz: Array) -> Array:
    """Sums of dz c; rows of length 0, whose state may be anything, are not read."""
    config, c, hidden = programs.config, saved.kept["c"], programs.config.hidden_size
    found = programs.empty(len(config.peephole_gates), hidden)
    for row, gate in enumerate(config.peephole_gates):
        first = config.gates.index(gate) * hidden
        cells = c[1:] if gate == "o" else c[:-1]
        one = programs.sums(dz[:, :, first:], cells, width=hidden, ends=saved.ends, b_backwards=config.reverse)
        programs.device.assign(found[row], one)
    return found
