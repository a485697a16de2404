"""The loop over time of the backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.amx import SPLIT_PARTS, TILE_BYTES, TILE_K, TILE_ROWS, configure_tiles, release_tiles
from lstmcore_numba.gemm.bf16x3 import split_row_range
from lstmcore_numba.gemm.bf16x3_passes import has_non_finite, split_matmul
from lstmcore_numba.gemm.vector import PANEL_VECTORS, VECTOR_BYTES, add_numbers, call_step, grouped_matmul, matmul
from lstmcore_numba.layer_norm import norm_backward
from lstmcore_numba.runtime.barrier import barrier
from lstmcore_numba.runtime.tasks import make_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.time_loop.step_arrays import FIELDS, add_blocks_to_cells, address_at, set_norm_args


@compiled
def _backward(  # noqa: C901, PLR0913  (next issue: groups of arguments)  # long: next issue
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
    args = np.zeros(FIELDS, np.int64)
    steps, blocks, batch, cols, lanes = dz.shape
    k_size = cols * lanes
    split_chunks = (blocks * k_size + TILE_K - 1) // TILE_K
    panels = (blocks + PANEL_VECTORS - 1) // PANEL_VECTORS
    first, last = (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)
    block_first = panels * part // parts * PANEL_VECTORS if by_units else 0
    block_last = min(blocks, panels * (part + 1) // parts * PANEL_VECTORS) if by_units else blocks
    zero, size = dh.dtype.type(0), dh.itemsize
    rows = last - first
    args[KernelArgs.BATCH] = batch
    row_z, row_c, row_h = k_size * size, dc.shape[1] * size, dh.shape[1] * size
    output_blocks, width = dh.shape[1] // lanes, dy.shape[2]
    column, columns = (block_first * lanes, min(width, block_last * lanes)) if by_units else (0, width)
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    args[KernelArgs.DNORM_C] = dnorm_c.ctypes.data
    args[KernelArgs.LENGTHS], args[KernelArgs.PEEPHOLE] = lengths.ctypes.data, peephole.ctypes.data
    args[KernelArgs.DH], args[KernelArgs.DC], args[KernelArgs.DQ] = (
        dh.ctypes.data,
        dc.ctypes.data,
        dq.ctypes.data,
    )
    ones = np.ones((1, 1, lanes), dh.dtype)
    shared = by_units and parts > 1
    own, own_blocks = (block_first, block_last - block_first) if by_units else (0, blocks)
    splitters = (0, parts) if by_units else (part, part + 1)
    if split is not None:
        configure_tiles(min(TILE_ROWS, rows))
        split_slot, split_part, split_row = split.dz.strides[:3]
        flags = part * batch if by_units else 0
        split_to, flags_to = split.dz.ctypes.data + own * k_size * 2, split.non_finite.ctypes.data + flags
    for count in range(steps):
        t = count if reverse else steps - 1 - count
        args[KernelArgs.STEP] = t
        args[KernelArgs.GATES], args[KernelArgs.RAW], args[KernelArgs.DZ] = (
            address_at(gates, t),
            address_at(raw, t),
            address_at(dz, t),
        )
        args[KernelArgs.MASK_C], args[KernelArgs.MASK_H] = address_at(mask_c, t), address_at(mask_h, t)
        args[KernelArgs.C_BEFORE] = address_at(c, t + 1 if reverse else t)
        args[KernelArgs.C] = address_at(c, t if reverse else t + 1)
        args[KernelArgs.PROJECTED], args[KernelArgs.DPROJECTED] = (
            address_at(projected, t),
            address_at(dprojected, t),
        )
        place = 0
        for row in range(first, last):
            if t < lengths[row] and columns > column:
                new, old = (
                    address_at(dy, t) + (row * width + column) * size,
                    dh.ctypes.data + row * row_h + column * size,
                )
                add_numbers(zero, new, old, columns - column)
        if projects:
            for block in range(output_blocks):
                call_step(step_output, args.ctypes.data, block, first, last)
            matmul(
                zero,
                blocks,
                args[KernelArgs.DPROJECTED] + first * row_h,
                row_h,
                size,
                projection.ctypes.data,
                args[KernelArgs.DQ] + first * row_c,
                row_c,
                dh.shape[1],
                rows,
                True,
            )
        if norms is not None:
            place = set_norm_args(args, norms, t)
            args[KernelArgs.DC_OUT] = address_at(dc_out, t)
            for block in range(blocks):
                call_step(step_cell, args.ctypes.data, block, first, last)
            norm_backward(norms.c[place], norms.deviation_c[place], ones, dnorm_c, dnorm_c, hidden, first, last)
            add_blocks_to_cells(dnorm_c, dc, lengths, t, first, last)
        for block in range(block_first, block_last):
            call_step(step, args.ctypes.data, block, first, last)
        if norms is not None:
            norm_backward(
                norms.h[place], norms.deviation_h[place], norms.gain_h, dz[t], dz_h[t], cols * hidden, first, last
            )
        if split is not None:
            slot = count % 2
            split.any_non_finite[slot, part] = split_row_range(
                address_at(dz_h, t) + own * batch * row_z,
                row_z,
                split_to + slot * split_slot,
                split_row,
                split_part,
                first,
                last,
                own_blocks,
                batch * row_z,
                k_size,
                flags_to + slot * split.non_finite.strides[0],
            )
        if shared:
            barrier(counter.ctypes.data, parts * (count + 1))
        target, pitch = (args[KernelArgs.DC], row_c) if of_cell else (args[KernelArgs.DH], row_h)
        vectors = blocks if of_cell else output_blocks
        vector = 0
        if by_units:
            vector, vectors = block_first, block_last - block_first
        if masked:
            target = doperand.ctypes.data
        if split is not None:
            split_matmul(
                zero,
                vectors,
                split.dz.ctypes.data + slot * split_slot,
                split_row,
                split_part,
                split.recurrent.ctypes.data + vector * split_chunks * SPLIT_PARTS * TILE_BYTES,
                address_at(dz_h, t),
                row_z,
                recurrent_weight.ctypes.data + vector * blocks * k_size * VECTOR_BYTES,
                target + first * pitch + vector * VECTOR_BYTES,
                pitch,
                blocks,
                batch * row_z,
                k_size,
                first,
                last,
                masked,
                count % 2 == 1,
                has_non_finite(split.any_non_finite, slot, *splitters),
                split.non_finite[slot, : parts if by_units else 1],
                min(TILE_ROWS, rows),
            )
        else:
            grouped_matmul(
                zero,
                vectors,
                address_at(dz_h, t) + first * row_z,
                row_z,
                size,
                batch * row_z,
                0,
                recurrent_weight.ctypes.data + vector * blocks * k_size * VECTOR_BYTES,
                target + first * pitch + vector * VECTOR_BYTES,
                pitch,
                blocks,
                k_size,
                rows,
                max(rows, 1),
                masked,
                count % 2 == 1,
            )
        if masked:
            for row in range(first, last):
                if t < lengths[row]:
                    for k in range(mask_r.shape[1]):
                        if of_cell:
                            dc[row, k] += mask_r[row, k] * doperand[row, k]
                        else:
                            dh[row, k] += mask_r[row, k] * doperand[row, k]
    if split is not None:
        release_tiles()


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
