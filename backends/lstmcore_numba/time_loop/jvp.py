"""The loop over time of the JVP."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.vector import VECTOR_BYTES, call_step, matmul, panel_matmul
from lstmcore_numba.layer_norm import norm_backward
from lstmcore_numba.runtime.tasks import make_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.time_loop.step_arrays import (
    FIELDS,
    address_at,
    apply_recurrent_mask,
    cells_to_blocks,
    set_norm_args,
    store_outputs,
)


@compiled
def _jvp(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
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
    args = np.zeros(FIELDS, np.int64)
    steps, batch = ty.shape[0], ty.shape[1]
    first, last = batch * part // parts, batch * (part + 1) // parts
    blocks, cols, lanes = tz.shape[1], tz.shape[3], tz.shape[4]
    zero, size = th.dtype.type(0), th.itemsize
    rows, k_size = last - first, toperand.shape[1]
    args[KernelArgs.BATCH] = batch
    row_z, row_c, row_h = cols * lanes * size, tc.shape[2] * size, th.shape[2] * size
    output_blocks, width = th.shape[2] // lanes, ty.shape[2]
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    args[KernelArgs.TNORM_C], args[KernelArgs.TGAIN_C] = tnorm_c.ctypes.data, tgain_c.ctypes.data
    args[KernelArgs.TSHIFT_C] = tshift_c.ctypes.data
    args[KernelArgs.LENGTHS], args[KernelArgs.PEEPHOLE], args[KernelArgs.TPEEPHOLE] = (
        lengths.ctypes.data,
        peephole.ctypes.data,
        tpeephole.ctypes.data,
    )
    args[KernelArgs.TQ] = tq.ctypes.data
    ones = np.ones((1, cols, lanes), th.dtype)
    now = 0
    for count in range(steps):
        t = steps - 1 - count if reverse else count
        args[KernelArgs.STEP] = t
        args[KernelArgs.GATES], args[KernelArgs.RAW], args[KernelArgs.TZ] = (
            address_at(gates, t),
            address_at(raw, t),
            address_at(tz, t),
        )
        args[KernelArgs.MASK_C], args[KernelArgs.MASK_H] = address_at(mask_c, t), address_at(mask_h, t)
        args[KernelArgs.C_BEFORE] = address_at(c, t + 1 if reverse else t)
        args[KernelArgs.C] = address_at(c, t if reverse else t + 1)
        args[KernelArgs.PROJECTED], args[KernelArgs.TPROJECTED] = (
            address_at(projected, t),
            address_at(tprojected, t),
        )
        args[KernelArgs.TC_BEFORE], args[KernelArgs.TC] = address_at(tc, now), address_at(tc, 1 - now)
        args[KernelArgs.TH_BEFORE], args[KernelArgs.TH] = address_at(th, now), address_at(th, 1 - now)
        source, pitch = (args[KernelArgs.TC_BEFORE], row_c) if of_cell else (args[KernelArgs.TH_BEFORE], row_h)
        if masked:
            apply_recurrent_mask(toperand, mask_r, tc[now] if of_cell else th[now], first, last)
            source, pitch = toperand.ctypes.data, k_size * size
        for block in range(blocks):
            panel_matmul(
                zero,
                cols,
                source + first * pitch,
                pitch,
                size,
                recurrent_weight.ctypes.data + block * k_size * cols * VECTOR_BYTES,
                cols * VECTOR_BYTES,
                address_at(tz_h, t) + (block * batch + first) * row_z,
                row_z,
                k_size,
                rows,
                False,
            )
            if norms is None:
                call_step(step, args.ctypes.data, block, first, last)
        if norms is not None:
            place = set_norm_args(args, norms, t)
            norm_backward(norms.h[place], norms.deviation_h[place], ones, tz_h[t], tz_h[t], cols * hidden, first, last)
            for row in range(first, last):
                for block in range(blocks):
                    for gate in range(cols):
                        for lane in range(lanes):
                            gain = norms.gain_h[block, gate, lane]
                            tz[t, block, row, gate, lane] += gain * tz_h[t, block, row, gate, lane]
            for block in range(blocks):
                call_step(step, args.ctypes.data, block, first, last)
            cells_to_blocks(tc[1 - now], tnorm_c, hidden, first, last)
            norm_backward(norms.c[place], norms.deviation_c[place], ones[:, :1], tnorm_c, tnorm_c, hidden, first, last)
            for block in range(blocks):
                call_step(step_cell, args.ctypes.data, block, first, last)
        if projects:  # tprojected has W_proj's own tangent applied to q
            matmul(
                zero,
                output_blocks,
                args[KernelArgs.TQ] + first * row_c,
                row_c,
                size,
                projection.ctypes.data,
                args[KernelArgs.TPROJECTED] + first * row_h,
                row_h,
                tc.shape[2],
                rows,
                False,
            )
            for block in range(output_blocks):
                call_step(step_output, args.ctypes.data, block, first, last)
        store_outputs(
            zero, address_at(ty, t), width * size, address_at(th, 1 - now), row_h, lengths, t, first, last, width
        )
        now = 1 - now


@compiled
def jvp(threads: Any, *args: Any) -> None:
    """Run all steps; `tz` starts as the part of the tangent that does not depend on the state's tangent.

    With layer norm ``tz_h`` is the tangent of R r; without, it is `tz`. ``th`` (2, N, Pp) and ``tc`` (2, N, Hp) start
    as the tangent of the initial state.
    """
    run_parts(threads, make_task(_jvp, args))
