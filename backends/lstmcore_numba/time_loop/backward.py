"""The loop over time of the backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.backward_operands import (
    backward_gemm,
    gradient_rows,
    publish_gradient,
    recurrent_panels,
)
from lstmcore_numba.gemm.forward_operands import begin_gemm, end_gemm
from lstmcore_numba.gemm.operands import Plane, Rows, Sums, address_of
from lstmcore_numba.gemm.product import Panels, all_rows, multiply
from lstmcore_numba.gemm.thread_share import ThreadShare, row_range
from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS
from lstmcore_numba.gemm.vector import VECTOR_BYTES, add_numbers, call_step
from lstmcore_numba.layer_norm import norm_backward
from lstmcore_numba.runtime.tasks import make_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.time_loop.step_arrays import (
    FIELDS,
    LayerSteps,
    StepRows,
    TapeArrays,
    add_blocks_to_cells,
    address_at,
    call_blocks,
    meet,
    project,
    set_norm_args,
    set_tape_args,
)


class BackwardArrays(NamedTuple):
    """The arrays of a pass: the table of step functions, and the arguments of `_backward` of the same names."""

    args: Any
    tape: Any
    dy: Any
    dz: Any
    dz_h: Any
    dc_out: Any
    dnorm_c: Any
    dprojected: Any
    doperand: Any
    dh: Any
    dc: Any
    lengths: Any
    counter: int


@compiled
def _backward(  # noqa: PLR0913  (the flat entry of a pass)  # long: the flat entry of a pass
    part: int,
    parts: int,
    by_units: bool,
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
    projection: Any,
    mask_r: Any,
    mask_h: Any,
    mask_c: Any,
    gates: Any,
    raw: Any,
    projected: Any,
    c: Any,
    dy: Any,
    dz: Any,
    dz_h: Any,
    dc_out: Any,
    dnorm_c: Any,
    dprojected: Any,
    dq: Any,
    doperand: Any,
    dh: Any,
    dc: Any,
    split: Any,
    counter: Any,
) -> None:
    """Run one thread's part of all steps; see `backward`."""
    args = np.zeros(FIELDS, np.int64)
    args[KernelArgs.LENGTHS], args[KernelArgs.PEEPHOLE] = address_of(lengths), address_of(peephole)
    args[KernelArgs.BATCH], args[KernelArgs.DNORM_C] = dz.shape[2], address_of(dnorm_c)
    args[KernelArgs.DH], args[KernelArgs.DC], args[KernelArgs.DQ] = address_of(dh), address_of(dc), address_of(dq)
    blocks, cols, lanes = dz.shape[1], dz.shape[3], dz.shape[4]
    panels = (blocks + PANEL_VECTORS - 1) // PANEL_VECTORS
    first, last = row_range(part, parts, by_units, dz.shape[2])
    block_first, block_last = 0, blocks
    if by_units:
        block_first = panels * part // parts * PANEL_VECTORS
        block_last = min(blocks, panels * (part + 1) // parts * PANEL_VECTORS)
    share = ThreadShare(
        part, parts, by_units, first, last, block_first, block_last, block_first, block_last - block_first
    )
    layer = LayerSteps(step, step_output, step_cell, hidden, reverse, of_cell, mask_r.shape[0] > 0)
    tape = TapeArrays(projection, mask_r, mask_h, mask_c, gates, raw, projected, c)
    arrays = BackwardArrays(
        args, tape, dy, dz, dz_h, dc_out, dnorm_c, dprojected, doperand, dh, dc, lengths, address_of(counter)
    )
    gemm = backward_gemm(split, recurrent_weight)
    begin_gemm(gemm, last - first)
    _run_steps(share, layer, arrays, gemm, cols * lanes, norms)
    end_gemm(gemm)


@compiled
def _run_steps(  # long: the time loop
    share: Any, layer: Any, arrays: Any, gemm: Any, wide: int, norms: Any
) -> None:
    args, dh, dc, dy, dz, dz_h = arrays.args, arrays.dh, arrays.dc, arrays.dy, arrays.dz, arrays.dz_h
    steps, blocks, batch, cols, lanes = dz.shape
    first, last, size, width = share.first, share.last, dh.itemsize, dy.shape[2]
    row_z, row_c, row_h, output_blocks = wide * size, dc.shape[1] * size, dh.shape[1] * size, dh.shape[1] // lanes
    column, columns = 0, width
    if share.by_units:
        column, columns = share.block_first * lanes, min(width, share.block_last * lanes) - share.block_first * lanes
    vector, vectors = 0, blocks if layer.of_cell else output_blocks
    if share.by_units:
        vector, vectors = share.block_first, share.block_last - share.block_first
    ones = np.ones((1, 1, lanes), dh.dtype)
    for count in range(steps):
        t, norm = count if layer.reverse else steps - 1 - count, 0
        set_tape_args(args, arrays.tape, t, layer.reverse)
        args[KernelArgs.DZ] = address_at(dz, t)
        args[KernelArgs.DPROJECTED] = address_at(arrays.dprojected, t)
        rows = StepRows(arrays.lengths, t, first, last)
        _add_outputs(dy, dh, rows, column, columns)
        if layer.step_output != 0:
            call_blocks(layer.step_output, args, output_blocks, share)
            panels, result = (
                Panels(address_of(arrays.tape.projection), blocks),
                Sums(args[KernelArgs.DQ], row_c, 0, True),
            )
            project(Plane(args[KernelArgs.DPROJECTED], row_h), panels, dh, dh.shape[1], result, share)
        if norms is not None:
            norm = set_norm_args(args, norms, t)
            args[KernelArgs.DC_OUT] = address_at(arrays.dc_out, t)
            call_blocks(layer.step_cell, args, blocks, share)
            cells, deviation, dnorm_c = norms.c[norm], norms.deviation_c[norm], arrays.dnorm_c
            norm_backward(cells, deviation, ones, dnorm_c, dnorm_c, layer.hidden, first, last)
            add_blocks_to_cells(dnorm_c, dc, arrays.lengths, t, first, last)
        for block in range(share.block_first, share.block_last):
            call_step(layer.step, address_of(args), block, first, last)
        if norms is not None:
            of_h, deviation, count_h = norms.h[norm], norms.deviation_h[norm], cols * layer.hidden
            norm_backward(of_h, deviation, norms.gain_h, dz[t], dz_h[t], count_h, first, last)
        of_step = Rows(dh.dtype.type(0), address_at(dz_h, t), row_z, size, blocks, batch * row_z, wide, 0)
        publish_gradient(gemm, of_step, count % 2, share)
        meet(arrays.counter, count, share)
        target, pitch = (args[KernelArgs.DC], row_c) if layer.of_cell else (args[KernelArgs.DH], row_h)
        if layer.masked:
            target = address_of(arrays.doperand)
        left = gradient_rows(gemm, of_step, count % 2, share)
        panels = recurrent_panels(gemm, vector, vectors, blocks * wide)
        sums = Sums(target + first * pitch + vector * VECTOR_BYTES, pitch, 0, layer.masked)
        multiply(left, panels, blocks * wide, sums, all_rows(last - first), count % 2 == 1)
        if layer.masked:
            _add_masked(arrays.doperand, arrays.tape.mask_r, dc if layer.of_cell else dh, rows)


@compiled
def _add_outputs(dy: Any, dh: Any, rows: Any, column: int, columns: int) -> None:
    """Add the gradient of the outputs of a step to that of h, in `StepRows` that have the step and some columns."""
    size, width = dh.itemsize, dy.shape[2]
    for row in range(rows.first, rows.last):
        if rows.t < rows.lengths[row] and columns > 0:
            source = address_at(dy, rows.t) + (row * width + column) * size
            add_numbers(dh.dtype.type(0), source, address_of(dh) + (row * dh.shape[1] + column) * size, columns)


@compiled
def _add_masked(source: Any, mask: Any, target: Any, rows: Any) -> None:
    """Add ``mask * source`` to a gradient, in `StepRows` that have the step."""
    for row in range(rows.first, rows.last):
        if rows.t < rows.lengths[row]:
            for k in range(mask.shape[1]):
                target[row, k] += mask[row, k] * source[row, k]


@compiled
def backward(threads: Any, *args: Any) -> None:
    """Run all steps, last to first.

    `dh` and `dc` start as the gradients of the final state and end as those of the initial state. ``dz_h`` is the
    gradient of R r; without layer norm it is `dz`. Threads share rows, or hidden units if `by_units`. In the second
    case a thread needs the dz of all others before it can go on, so there is a barrier after each step.
    """
    run_parts(threads, make_task(_backward, args))


@compiled
def _backward_both(part: int, parts: int, first: Any, second: Any) -> None:
    if parts == 1:
        _backward(0, 1, *first)
        _backward(0, 1, *second)
    elif part % 2 == 0:
        _backward(part // 2, (parts + 1) // 2, *first)
    else:
        _backward(part // 2, parts // 2, *second)


@compiled
def backward_both(threads: Any, first: Any, second: Any) -> None:
    """Run `backward` of two directions, each on half of the threads. Their arguments are two tuples."""
    run_parts(threads, make_task(_backward_both, (first, second)))
