"""The forward pass: one product for many steps of the input, then a product and a kernel for each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lstmcore.backend import Masks, State
from lstmcore_cupy.device import Array
from lstmcore_cupy.weights import Saved, Weights

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
) -> tuple[Array, State, Saved | None]:
    """See `Kernel._forward`. The arrays are of the device, or of the host."""
    programs, config = weights.programs, kernel.config
    device, p = programs.device, weights.parameters
    steps, batch, width = x.shape
    hidden, output, recurrent = config.hidden_size, config.output_size, config.recurrent_size
    columns = len(config.gates) * hidden
    normed, projects = config.layer_norm, bool(config.proj_size)
    to_host = isinstance(x, np.ndarray)

    ends = None if lengths is None else device.array(lengths)
    masks = Masks() if masks is None else masks
    own = Masks(*(None if mask is None else device.array(mask) for mask in masks))
    if record:
        own = Masks(*(None if mask is None else mask.copy() for mask in own))
    h = programs.zeros(batch, output) if state is None else programs.widen(state.h)
    c = programs.empty(steps + 1 if record else 1, batch, hidden)
    device.assign(c[0], programs.zeros(batch, hidden) if state is None else device.array(state.c))
    narrow = device.array(x)
    stored_r = config.recurrence == "hidden" and own.recurrent is None
    direct = device.writable(out)
    y = out if direct else device.empty((steps, batch, output), programs.storage)
    saved = None

    size = steps if record else max(1, min(steps, BUFFER // max(1, batch * columns)))
    some = steps if record else min(1, steps)
    from_x = programs.empty(size, batch, columns)
    r = programs.empty(some, batch, recurrent)
    call = programs.call(T=steps, N=batch, ends=ends, **weights.fields())
    call.put(mask_r=own.recurrent, mask_h=own.zoneout_hidden, mask_c=own.zoneout_cell)
    call.put(from_x=from_x, r=r, r_stride=batch * recurrent if record else 0, h=h, y=y)
    call.put(c=c, c_stride=batch * hidden if record else 0)
    kept: dict[str, Any] = {"r": r, "c": c}
    from_h = programs.empty(batch, columns) if normed else None
    call.put(from_h=from_h)
    if record:
        kept["z"] = programs.empty(steps, batch, columns) if normed else from_x
        if normed:
            kept |= {"from_x": from_x, "norm_h": programs.empty(steps, batch, columns)}
            kept |= {name: programs.empty(steps, batch) for name in ("deviation_x", "deviation_h")}
    q = projected = None
    if projects:
        q, projected = programs.empty(some, batch, hidden), programs.empty(some, batch, output)
        call.put(q_stride=batch * hidden if record else 0, projected_stride=batch * output if record else 0)
        kept |= {"q": q, "projected": projected}
    call.put(**kept)

    if not steps * batch:
        last = State(programs.narrow(h), c[0].copy())
        if record:
            saved = Saved(weights, ends, own, programs.empty(steps, batch, width), kept, to_host)
        return y, last, saved

    wide = programs.widen(narrow, ends) if record else None
    weight_h = p["weight_h"]
    call.step(0, "begin", batch, recurrent)
    for begin in range(0, steps, size):
        count = min(size, steps - begin)
        first = steps - begin - count if config.reverse else begin
        part = programs.operand(narrow[first : first + count]) if wide is None else wide
        programs.product(part, p["weight_x"], from_x[:count], turn_b=True, stored=True)
        call.put(first=first)
        if normed:
            call.launch("normalise_input", count * batch, columns, whole_rows=True)
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
    last = State(programs.narrow(h), c[steps if record else 0].copy())
    if wide is not None:
        saved = Saved(weights, ends, own, wide, kept, to_host)
    return y, last, saved
