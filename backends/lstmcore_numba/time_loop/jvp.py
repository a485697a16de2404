"""The loop over time along tangents."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.cell import At
from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.vector import BYTES, call_step, panel, product
from lstmcore_numba.layer_norm import linear
from lstmcore_numba.runtime.worker_loop import outlined, side_by_side
from lstmcore_numba.time_loop.step_arrays import FIELDS, at, masked_operand, put_outputs, set_norms, whole_cells


@compiled
def _tangent(
    part: int,
    parts: int,
    step: int,
    step_output: int,
    step_cell: int,
    hidden: int,
    norms: Any,
    reverse: bool,
    of_cell: bool,
    lengths: Any,
    recurrent_weight: Any,
    peephole: Any,
    tpeephole: Any,
    projection: Any,
    mask_r: Any,
    mask_h: Any,
    mask_c: Any,
    gates: Any,
    raw: Any,
    projected: Any,
    c: Any,
    tz: Any,
    tz_h: Any,
    tnorm_c: Any,
    tgain_c: Any,
    tshift_c: Any,
    tprojected: Any,
    tq: Any,
    toperand: Any,
    th: Any,
    tc: Any,
    ty: Any,
) -> None:
    table = np.zeros(FIELDS, np.int64)
    steps, batch = ty.shape[0], ty.shape[1]
    first, last = batch * part // parts, batch * (part + 1) // parts
    blocks, cols, lanes = tz.shape[1], tz.shape[3], tz.shape[4]
    zero, size = th.dtype.type(0), th.itemsize
    rows, inner = last - first, toperand.shape[1]
    table[At.BATCH] = batch
    row_z, row_c, row_h = cols * lanes * size, tc.shape[2] * size, th.shape[2] * size
    output_blocks, width = th.shape[2] // lanes, ty.shape[2]
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    table[At.TNORM_C], table[At.TGAIN_C] = tnorm_c.ctypes.data, tgain_c.ctypes.data
    table[At.TSHIFT_C] = tshift_c.ctypes.data
    table[At.LENGTHS], table[At.PEEPHOLE], table[At.TPEEPHOLE] = (
        lengths.ctypes.data,
        peephole.ctypes.data,
        tpeephole.ctypes.data,
    )
    table[At.TQ] = tq.ctypes.data
    ones = np.ones((1, cols, lanes), th.dtype)
    now = 0
    for count in range(steps):
        t = steps - 1 - count if reverse else count
        table[At.STEP] = t
        table[At.GATES], table[At.RAW], table[At.TZ] = at(gates, t), at(raw, t), at(tz, t)
        table[At.MASK_C], table[At.MASK_H] = at(mask_c, t), at(mask_h, t)
        table[At.C_BEFORE] = at(c, t + 1 if reverse else t)
        table[At.C] = at(c, t if reverse else t + 1)
        table[At.PROJECTED], table[At.TPROJECTED] = at(projected, t), at(tprojected, t)
        table[At.TC_BEFORE], table[At.TC] = at(tc, now), at(tc, 1 - now)
        table[At.TH_BEFORE], table[At.TH] = at(th, now), at(th, 1 - now)
        source, pitch = (table[At.TC_BEFORE], row_c) if of_cell else (table[At.TH_BEFORE], row_h)
        if masked:
            masked_operand(toperand, mask_r, tc[now] if of_cell else th[now], first, last)
            source, pitch = toperand.ctypes.data, inner * size
        for block in range(blocks):
            panel(
                zero,
                cols,
                source + first * pitch,
                pitch,
                size,
                recurrent_weight.ctypes.data + block * inner * cols * BYTES,
                cols * BYTES,
                at(tz_h, t) + (block * batch + first) * row_z,
                row_z,
                inner,
                rows,
                False,
            )
            if norms is None:
                call_step(step, table.ctypes.data, block, first, last)
        if norms is not None:
            place = set_norms(table, norms, t)
            linear(norms.h[place], norms.deviation_h[place], ones, tz_h[t], tz_h[t], cols * hidden, first, last)
            for row in range(first, last):
                for block in range(blocks):
                    for gate in range(cols):
                        for lane in range(lanes):
                            gain = norms.gain_h[block, gate, lane]
                            tz[t, block, row, gate, lane] += gain * tz_h[t, block, row, gate, lane]
            for block in range(blocks):
                call_step(step, table.ctypes.data, block, first, last)
            whole_cells(tc[1 - now], tnorm_c, hidden, first, last)
            linear(norms.c[place], norms.deviation_c[place], ones[:, :1], tnorm_c, tnorm_c, hidden, first, last)
            for block in range(blocks):
                call_step(step_cell, table.ctypes.data, block, first, last)
        if projects:  # tprojected has W_proj's own tangent applied to q
            product(
                zero,
                output_blocks,
                table[At.TQ] + first * row_c,
                row_c,
                size,
                projection.ctypes.data,
                table[At.TPROJECTED] + first * row_h,
                row_h,
                tc.shape[2],
                rows,
                False,
            )
            for block in range(output_blocks):
                call_step(step_output, table.ctypes.data, block, first, last)
        put_outputs(zero, at(ty, t), width * size, at(th, 1 - now), row_h, lengths, t, first, last, width)
        now = 1 - now


@compiled
def tangent(team: Any, *args: Any) -> None:
    """All steps; `tz` has all that does not depend on the tangent of the state.

    With layer norm ``tz_h`` has what the tangent of R gives; without, it is `tz` itself. ``th`` (2, N, Pp) and ``tc``
    (2, N, Hp) begin with the tangent of the initial state.
    """
    side_by_side(team, outlined(_tangent, args))
