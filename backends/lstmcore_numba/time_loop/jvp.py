"""The loop over time of the JVP."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.operands import Panel, Plane, Sums, address_of
from lstmcore_numba.gemm.product import Panels, all_rows, dense_rows, multiply_panel
from lstmcore_numba.gemm.thread_share import ThreadShare, row_range
from lstmcore_numba.gemm.vector import VECTOR_BYTES, call_step
from lstmcore_numba.layer_norm import norm_backward
from lstmcore_numba.runtime.tasks import make_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.time_loop.step_arrays import (
    FIELDS,
    LayerSteps,
    StepRows,
    TapeArrays,
    address_at,
    apply_recurrent_mask,
    call_blocks,
    cells_to_blocks,
    project,
    set_norm_args,
    set_tape_args,
    store_outputs,
)


class JvpArrays(NamedTuple):
    """The arrays of a pass: the table of step functions, and the arguments of `_jvp` of the same names."""

    args: Any
    lengths: Any
    recurrent_weight: Any
    tape: Any
    tz: Any
    tz_h: Any
    tnorm_c: Any
    tprojected: Any
    toperand: Any
    th: Any
    tc: Any
    ty: Any


@compiled
def _jvp(  # noqa: PLR0913  (the flat entry of a pass)  # long: the flat entry of a pass
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
    """Run one thread's part of all steps; see `jvp`."""
    args = np.zeros(FIELDS, np.int64)
    args[KernelArgs.BATCH], args[KernelArgs.TQ] = ty.shape[1], address_of(tq)
    args[KernelArgs.TNORM_C], args[KernelArgs.TGAIN_C] = address_of(tnorm_c), address_of(tgain_c)
    args[KernelArgs.TSHIFT_C], args[KernelArgs.LENGTHS] = address_of(tshift_c), address_of(lengths)
    args[KernelArgs.PEEPHOLE], args[KernelArgs.TPEEPHOLE] = address_of(peephole), address_of(tpeephole)
    first, last = row_range(part, parts, False, ty.shape[1])
    share = ThreadShare(part, parts, False, first, last, 0, tz.shape[1], 0, toperand.shape[1])
    layer = LayerSteps(step, step_output, step_cell, hidden, reverse, of_cell, mask_r.shape[0] > 0)
    tape = TapeArrays(projection, mask_r, mask_h, mask_c, gates, raw, projected, c)
    arrays = JvpArrays(args, lengths, recurrent_weight, tape, tz, tz_h, tnorm_c, tprojected, toperand, th, tc, ty)
    _run_steps(share, layer, arrays, norms)


@compiled
def _run_steps(  # long: the time loop
    share: Any, layer: Any, arrays: Any, norms: Any
) -> None:
    args, tz, tz_h, th, tc, ty = arrays.args, arrays.tz, arrays.tz_h, arrays.th, arrays.tc, arrays.ty
    (steps, batch, width), (first, last) = ty.shape, (share.first, share.last)
    blocks, cols, lanes, size, k_size = tz.shape[1], tz.shape[3], tz.shape[4], th.itemsize, arrays.toperand.shape[1]
    row_z, row_c, row_h = cols * lanes * size, tc.shape[2] * size, th.shape[2] * size
    output_blocks = th.shape[2] // lanes
    ones = np.ones((1, cols, lanes), th.dtype)
    now = 0
    for count in range(steps):
        t = steps - 1 - count if layer.reverse else count
        set_tape_args(args, arrays.tape, t, layer.reverse)
        args[KernelArgs.TZ] = address_at(tz, t)
        args[KernelArgs.TPROJECTED] = address_at(arrays.tprojected, t)
        args[KernelArgs.TC_BEFORE], args[KernelArgs.TC] = address_at(tc, now), address_at(tc, 1 - now)
        args[KernelArgs.TH_BEFORE], args[KernelArgs.TH] = address_at(th, now), address_at(th, 1 - now)
        state, pitch = (args[KernelArgs.TC_BEFORE], row_c) if layer.of_cell else (args[KernelArgs.TH_BEFORE], row_h)
        if layer.masked:
            masked = arrays.toperand
            apply_recurrent_mask(masked, arrays.tape.mask_r, tc[now] if layer.of_cell else th[now], first, last)
            state, pitch = address_of(masked), k_size * size
        left = dense_rows(th, Plane(state + first * pitch, pitch), k_size)
        for block in range(blocks):
            weights = address_of(arrays.recurrent_weight) + block * k_size * cols * VECTOR_BYTES
            sums = Sums(address_at(tz_h, t) + (block * batch + first) * row_z, row_z, 0, False)
            multiply_panel(left, Panel(weights, cols), sums, all_rows(last - first))
            if norms is None:
                call_step(layer.step, address_of(args), block, first, last)
        if norms is not None:
            norm, count_h = set_norm_args(args, norms, t), cols * layer.hidden
            norm_backward(norms.h[norm], norms.deviation_h[norm], ones, tz_h[t], tz_h[t], count_h, first, last)
            _add_scaled(tz[t], norms.gain_h, tz_h[t], first, last)
            call_blocks(layer.step, args, blocks, share)
            cells, deviation, tnorm_c = norms.c[norm], norms.deviation_c[norm], arrays.tnorm_c
            cells_to_blocks(tc[1 - now], tnorm_c, layer.hidden, first, last)
            norm_backward(cells, deviation, ones[:, :1], tnorm_c, tnorm_c, layer.hidden, first, last)
            call_blocks(layer.step_cell, args, blocks, share)
        if layer.step_output != 0:  # tprojected has W_proj's own tangent applied to q
            panels = Panels(address_of(arrays.tape.projection), output_blocks)
            result = Sums(args[KernelArgs.TPROJECTED], row_h, 0, False)
            project(Plane(args[KernelArgs.TQ], row_c), panels, th, tc.shape[2], result, share)
            call_blocks(layer.step_output, args, output_blocks, share)
        source, to = Plane(address_at(th, 1 - now), row_h), Plane(address_at(ty, t), width * size)
        store_outputs(ty, to, source, StepRows(arrays.lengths, t, first, last), width)
        now = 1 - now


@compiled
def _add_scaled(target: Any, gain: Any, source: Any, first: int, last: int) -> None:
    """Add ``gain * source`` (B, N, G, lanes) to `target` in some rows; `gain` is (B, G, lanes)."""
    blocks, _, gates, lanes = target.shape
    for row in range(first, last):
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    target[block, row, gate, lane] += gain[block, gate, lane] * source[block, row, gate, lane]


@compiled
def jvp(threads: Any, *args: Any) -> None:
    """Run all steps; `tz` starts as the part of the tangent that does not depend on the state's tangent.

    With layer norm ``tz_h`` is the tangent of R r; without, it is `tz`. ``th`` (2, N, Pp) and ``tc`` (2, N, Hp) start
    as the tangent of the initial state.
    """
    run_parts(threads, make_task(_jvp, args))
