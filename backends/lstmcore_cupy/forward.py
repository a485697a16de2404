"""The forward pass: W x is one product for many steps, and these one launch, or a product and a kernel for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lstmcore.backend import Masks, State
from lstmcore_cupy.device import Array
from lstmcore_cupy.launch import Programs
from lstmcore_cupy.packing import Saved, Weights
from lstmcore_cupy.persistent import Loop, Pass, Plan
from lstmcore_cupy.tuning import Mode

if TYPE_CHECKING:
    from lstmcore_cupy.kernel import CupyKernel

#: Numbers in the buffer of W x when nothing is recorded; more steps than fit are done in several parts.
BUFFER: Final = 1 << 26


def forward(
    kernel: CupyKernel,
    weights: Weights,
    x: Array,
    state: State | None,
    lengths: Any,
    masks: Masks | None,
    *,
    record: bool,
    out: Array | None,
    directions: int = 1,
) -> Pass[tuple[Array, State, Saved | None]]:
    """See `Kernel._forward`. The arrays are of the device, or of the host. `directions` run side by side."""
    programs, config, p = weights.programs, kernel.config, weights.parameters
    device = programs.device
    steps, batch, width = x.shape
    hidden, output, recurrent = config.hidden_size, config.output_size, config.recurrent_size
    columns, normed = len(config.gates) * hidden, config.layer_norm

    ends = None if lengths is None else device.array(lengths)
    own = Masks(*(None if mask is None else device.array(mask) for mask in masks or Masks()))
    if record:
        own = Masks(*(None if mask is None else mask.copy() for mask in own))
    narrow = device.array(x)
    mode: Mode = "training" if record else "inference"
    persistent = kernel.plan(programs, "forward_persistent", batch, directions, mode=mode)
    kept = _buffers(programs, steps, batch, record=record)
    if isinstance(persistent, Plan) and not record:  # one block may write the next r while another reads this one
        kept |= {"r": programs.empty(2, batch, recurrent), "r_stride": batch * recurrent, "r_turns": 1}
    from_x, r, c = kept["from_x"], kept["r"], kept["c"]
    q, projected = kept.get("q"), kept.get("projected")
    from_h = programs.empty(batch, columns) if normed else None
    h = programs.zeros(batch, output) if state is None else programs.widen(state.h)
    device.assign(c[0], programs.zeros(batch, hidden) if state is None else device.array(state.c))
    y = out if device.writable(out) else device.empty((steps, batch, output), programs.storage)
    wide = programs.widen(narrow, ends) if record else None
    saved = None if wide is None else Saved(weights, ends, own, wide, kept, isinstance(x, np.ndarray))
    if not steps * batch:
        return y, State(programs.narrow(h), c[0].copy()), saved

    call = programs.call(T=steps, N=batch, ends=ends, h=h, y=y, from_h=from_h, **weights.fields(), **kept)
    call.put(mask_r=own.recurrent, mask_h=own.zoneout_hidden, mask_c=own.zoneout_cell)
    stored_r, weight_h = config.recurrence == "hidden" and own.recurrent is None, p["weight_h"]
    call.step(0, "begin", batch, recurrent)
    for begin in range(0, steps, len(from_x)):
        count = min(len(from_x), steps - begin)
        first = steps - begin - count if config.reverse else begin
        part = programs.operand(narrow[first : first + count]) if wide is None else wide
        programs.product(part, p["weight_x"], from_x[:count], turn_b=True, stored=True)
        call.put(first=first)
        if normed:
            call.launch("normalise_input", count * batch, columns, whole_rows=True)
        if isinstance(persistent, Plan):
            call.put(s=begin, steps=count)
            yield Loop(persistent, programs, call)
            continue
        for s in range(begin, begin + count):
            t = steps - 1 - s if config.reverse else s
            at = t if record else 0
            if from_h is None:
                programs.product(r[at], weight_h, from_x[t - first], turn_b=True, accumulate=True, stored=stored_r)
            else:
                programs.product(r[at], weight_h, from_h, turn_b=True, stored=stored_r)
            call.step(s, "forward_cell", batch, hidden, whole_rows=normed)
            if q is not None and projected is not None:
                programs.product(q[at], p["weight_proj"], projected[at], turn_b=True)
                call.step(s, "forward_output", batch, output)
    return y, State(programs.narrow(h), c[-1].copy()), saved


def _buffers(programs: Programs, steps: int, batch: int, *, record: bool) -> dict[str, Any]:
    """What steps write, as fields of ``struct Call``: for all of them where they are recorded, else for the newest."""
    config = programs.config
    hidden, output, recurrent = config.hidden_size, config.output_size, config.recurrent_size
    columns = len(config.gates) * hidden
    size = steps if record else max(1, min(steps, BUFFER // max(1, batch * columns)))
    some, stride = (steps, batch) if record else (1, 0)
    found: dict[str, Any] = {
        "from_x": programs.empty(size, batch, columns),
        "r": programs.empty(some, batch, recurrent),
        "r_stride": stride * recurrent,
        "c": programs.empty(steps + 1 if record else 1, batch, hidden),
        "c_stride": stride * hidden,
    }
    if config.proj_size:
        found |= {"q": programs.empty(some, batch, hidden), "q_stride": stride * hidden}
        found |= {"projected": programs.empty(some, batch, output), "projected_stride": stride * output}
    if record:
        found["z"] = programs.empty(steps, batch, columns) if config.layer_norm else found["from_x"]
    if record and config.layer_norm:
        found["norm_h"] = programs.empty(steps, batch, columns)
        found |= {name: programs.empty(steps, batch) for name in ("deviation_x", "deviation_h")}
    return found
