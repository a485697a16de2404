"""The backward pass as docs/backward.md derives it: a kernel and a product for each step, then large products, sums.

With a plan of the persistent kernel the steps are one launch.
"""

from __future__ import annotations

from lstmcore.backend import Gradients, State
from lstmcore_cupy.device import Array
from lstmcore_cupy.launch import Call, Programs
from lstmcore_cupy.persistent import Loop, Pass, Plan
from lstmcore_cupy.tape import Saved


def backward(saved: Saved, dy: Array | None, dstate: State | None, plan: Plan | str) -> Pass[Gradients]:
    """Return the gradients, on the device.

    Parameters
    ----------
    saved
        The tape.
    dy, dstate
        The gradients of y and of the final state; zeros if None.
    plan
        That of the persistent kernel. If it is not a `Plan`, each step is a kernel and a matrix product.
    """
    programs = saved.weights.programs
    config, device = programs.config, programs.device
    steps, batch, width = saved.x.shape
    saved.weights.wait()
    dh = programs.zeros(batch, config.output_size) if dstate is None else programs.widen(dstate.h)
    dc = programs.zeros(batch, config.hidden_size)
    if dstate is not None:
        device.assign(dc, device.array(dstate.c))
    if not steps * batch:
        shapes = config.parameter_shapes
        dx = device.zeros((steps, batch, width), programs.storage)
        zeros = {name: device.zeros(shape, programs.storage) for name, shape in shapes.items()}
        return Gradients(dx, State(programs.narrow(dh), dc), zeros)

    buffers = _buffers(programs, steps, batch)
    dz, dz_x = buffers["dz"], buffers["dz_x" if config.layer_norm else "dz"]
    call = saved.call(dy=None if dy is None else device.array(dy), dh=dh, dc=dc, **buffers)
    if isinstance(plan, Plan):
        yield Loop(plan, programs, call)
    else:
        _run_steps(saved, call, buffers)
    if config.layer_norm:
        call.launch("backward_normalise_input", steps * batch, dz.shape[-1], whole_rows=True)
    dx = programs.matmul_by_rows(dz_x, saved.weights.parameters["weight_x"])
    gradients = _parameter_gradients(saved, buffers)
    parameters = {name: programs.narrow(gradients[name]) for name in config.parameter_shapes}
    return Gradients(programs.narrow(dx), State(programs.narrow(dh), dc), parameters)


def _buffers(programs: Programs, steps: int, batch: int) -> dict[str, Array]:
    """Return what the steps write, as fields of ``struct Call``."""
    config = programs.config
    hidden, columns = config.hidden_size, len(config.gates) * config.hidden_size
    buffers = {"dz": programs.empty(steps, batch, columns)}
    if config.layer_norm:
        sizes = {"dz_x": columns, "dz_h": columns, "dn": hidden, "norm_c": hidden}
        buffers |= {name: programs.empty(steps, batch, size) for name, size in sizes.items()}
    if config.proj_size:
        buffers["d_projected"] = programs.empty(steps, batch, config.output_size)
        buffers["dq"] = programs.empty(batch, hidden)
    return buffers


def _run_steps(saved: Saved, call: Call, buffers: dict[str, Array]) -> None:
    """Run the steps without the persistent kernel, the last one first."""
    programs, p = saved.weights.programs, saved.weights.parameters
    config, (steps, batch, _) = programs.config, saved.x.shape
    dz_h = buffers["dz_h" if config.layer_norm else "dz"]
    dr = programs.zeros(batch, config.recurrent_size)
    call.put(dr=dr)

    def work() -> None:
        for s in reversed(range(steps)):
            t = steps - 1 - s if config.reverse else s
            if config.proj_size:
                call.step(s, "backward_output", batch, config.output_size)
                programs.matmul(buffers["d_projected"][t], p["weight_proj"], buffers["dq"])
            call.step(s, "backward_cell", batch, config.hidden_size, whole_rows=config.layer_norm)
            programs.matmul(dz_h[t], p["weight_h"], dr)
        call.step(-1, "backward_last", batch, config.recurrent_size)

    programs.run_loop(work, lambda: ("backward", call.words.tobytes(), saved.weights.places()))


def _parameter_gradients(saved: Saved, buffers: dict[str, Array]) -> dict[str, Array]:
    """Return the gradients of the parameters in the compute dtype; `buffers` are those of `_buffers`."""
    programs, recorded, dz = saved.weights.programs, saved.buffers, buffers["dz"]
    config, columns, hidden = programs.config, dz.shape[-1], programs.config.hidden_size
    dz_x, dz_h = (buffers["dz_x"], buffers["dz_h"]) if config.layer_norm else (dz, dz)
    stored_r = config.recurrence == "hidden" and saved.masks.recurrent is None
    gradients = {
        "weight_x": programs.outer(dz_x, saved.x, stored=True),
        "weight_h": programs.outer(dz_h, recorded["r"], stored=stored_r),
    }
    if config.proj_size:
        gradients["weight_proj"] = programs.outer(buffers["d_projected"], recorded["q"])
    if config.bias:
        gradients["bias"] = programs.sums(dz, width=columns)
    if config.peephole:
        gradients["peephole"] = _peephole_gradients(programs, saved, dz)
    if config.layer_norm:
        gradients["norm_gain_x"] = programs.sums(dz, recorded["from_x"], width=columns)
        gradients["norm_gain_h"] = programs.sums(dz, recorded["norm_h"], width=columns)
        gradients["norm_gain_c"] = programs.sums(buffers["dn"], buffers["norm_c"], width=hidden)
        gradients["norm_bias_c"] = programs.sums(buffers["dn"], width=hidden)
    return gradients


def _peephole_gradients(programs: Programs, saved: Saved, dz: Array) -> Array:
    """Return the sums of ``dz c``. Rows of length 0 are not read, because their state may be NaN."""
    config, c, hidden = programs.config, saved.buffers["c"], programs.config.hidden_size
    gradients = programs.empty(len(config.peephole_gates), hidden)
    for row, gate in enumerate(config.peephole_gates):
        first = config.gates.index(gate) * hidden
        cells = c[1:] if gate == "o" else c[:-1]
        sums = programs.sums(dz[:, :, first:], cells, width=hidden, ends=saved.ends, b_backwards=config.reverse)
        programs.device.assign(gradients[row], sums)
    return gradients
