"""The loop over time, backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.cell import At
from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.amx import DEPTH, PARTS, TILE, TILE_BYTES, release_tiles, shape_tiles
from lstmcore_numba.gemm.bf16x3 import cut_rows
from lstmcore_numba.gemm.bf16x3_passes import cut_product, some_wild
from lstmcore_numba.gemm.vector import BYTES, PANEL, add_numbers, call_step, grouped_product, product
from lstmcore_numba.layer_norm import linear
from lstmcore_numba.runtime.worker_loop import meet, outlined, side_by_side
from lstmcore_numba.time_loop.step_arrays import FIELDS, add_cells, at, set_norms


@compiled
def _backward(
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
    cut: Any,
    counter: Any,
) -> None:
    table = np.zeros(FIELDS, np.int64)
    steps, blocks, batch, cols, lanes = dz.shape
    inner = cols * lanes
    cut_chunks = (blocks * inner + DEPTH - 1) // DEPTH
    panels = (blocks + PANEL - 1) // PANEL
    first, last = (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)
    block_first = panels * part // parts * PANEL if by_units else 0
    block_last = min(blocks, panels * (part + 1) // parts * PANEL) if by_units else blocks
    zero, size = dh.dtype.type(0), dh.itemsize
    rows = last - first
    table[At.BATCH] = batch
    row_z, row_c, row_h = inner * size, dc.shape[1] * size, dh.shape[1] * size
    output_blocks, width = dh.shape[1] // lanes, dy.shape[2]
    column, columns = (block_first * lanes, min(width, block_last * lanes)) if by_units else (0, width)
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    table[At.DNORM_C] = dnorm_c.ctypes.data
    table[At.LENGTHS], table[At.PEEPHOLE] = lengths.ctypes.data, peephole.ctypes.data
    table[At.DH], table[At.DC], table[At.DQ] = dh.ctypes.data, dc.ctypes.data, dq.ctypes.data
    one = np.ones((1, 1, lanes), dh.dtype)
    shared = by_units and parts > 1
    own, own_blocks = (block_first, block_last - block_first) if by_units else (0, blocks)
    cutters = (0, parts) if by_units else (part, part + 1)
    if cut is not None:
        shape_tiles(min(TILE, rows))
        cut_slot, cut_part, cut_row = cut.dz.strides[:3]
        flags = part * batch if by_units else 0
        cut_to, flags_to = cut.dz.ctypes.data + own * inner * 2, cut.wild.ctypes.data + flags
    for count in range(steps):
        t = count if reverse else steps - 1 - count
        table[At.STEP] = t
        table[At.GATES], table[At.RAW], table[At.DZ] = at(gates, t), at(raw, t), at(dz, t)
        table[At.MASK_C], table[At.MASK_H] = at(mask_c, t), at(mask_h, t)
        table[At.C_BEFORE] = at(c, t + 1 if reverse else t)
        table[At.C] = at(c, t if reverse else t + 1)
        table[At.PROJECTED], table[At.DPROJECTED] = at(projected, t), at(dprojected, t)
        place = 0
        for row in range(first, last):
            if t < lengths[row] and columns > column:
                new, old = at(dy, t) + (row * width + column) * size, dh.ctypes.data + row * row_h + column * size
                add_numbers(zero, new, old, columns - column)
        if projects:
            for block in range(output_blocks):
                call_step(step_output, table.ctypes.data, block, first, last)
            product(
                zero,
                blocks,
                table[At.DPROJECTED] + first * row_h,
                row_h,
                size,
                projection.ctypes.data,
                table[At.DQ] + first * row_c,
                row_c,
                dh.shape[1],
                rows,
                True,
            )
        if norms is not None:
            place = set_norms(table, norms, t)
            table[At.DC_OUT] = at(dc_out, t)
            for block in range(blocks):
                call_step(step_cell, table.ctypes.data, block, first, last)
            linear(norms.c[place], norms.deviation_c[place], one, dnorm_c, dnorm_c, hidden, first, last)
            add_cells(dnorm_c, dc, lengths, t, first, last)
        for block in range(block_first, block_last):
            call_step(step, table.ctypes.data, block, first, last)
        if norms is not None:
            linear(norms.h[place], norms.deviation_h[place], norms.gain_h, dz[t], dz_h[t], cols * hidden, first, last)
        if cut is not None:
            slot = count % 2
            cut.any_wild[slot, part] = cut_rows(
                at(dz_h, t) + own * batch * row_z,
                row_z,
                cut_to + slot * cut_slot,
                cut_row,
                cut_part,
                first,
                last,
                own_blocks,
                batch * row_z,
                inner,
                flags_to + slot * cut.wild.strides[0],
            )
        if shared:
            meet(counter.ctypes.data, parts * (count + 1))
        target, pitch = (table[At.DC], row_c) if of_cell else (table[At.DH], row_h)
        vectors = blocks if of_cell else output_blocks
        vector = 0
        if by_units:
            vector, vectors = block_first, block_last - block_first
        if masked:
            target = doperand.ctypes.data
        if cut is not None:
            cut_product(
                zero,
                vectors,
                cut.dz.ctypes.data + slot * cut_slot,
                cut_row,
                cut_part,
                cut.recurrent.ctypes.data + vector * cut_chunks * PARTS * TILE_BYTES,
                at(dz_h, t),
                row_z,
                recurrent_weight.ctypes.data + vector * blocks * inner * BYTES,
                target + first * pitch + vector * BYTES,
                pitch,
                blocks,
                batch * row_z,
                inner,
                first,
                last,
                masked,
                count % 2 == 1,
                some_wild(cut.any_wild, slot, *cutters),
                cut.wild[slot, : parts if by_units else 1],
                min(TILE, rows),
            )
        else:
            grouped_product(
                zero,
                vectors,
                at(dz_h, t) + first * row_z,
                row_z,
                size,
                batch * row_z,
                0,
                recurrent_weight.ctypes.data + vector * blocks * inner * BYTES,
                target + first * pitch + vector * BYTES,
                pitch,
                blocks,
                inner,
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
    if cut is not None:
        release_tiles()


@compiled
def backward(team: Any, *args: Any) -> None:
    """All steps, last to first; `dh` and `dc` go from the gradient of the final state to that of the initial one.

    ``dz_h`` is the gradient of what R gives; without layer norm it is `dz` itself. Shared by rows, or by hidden units
    if `by_units`: a thread then needs what the others found of `dz` before it can go on with its own units.
    """
    side_by_side(team, outlined(_backward, args))


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
def backward_both(team: Any, first: Any, second: Any) -> None:
    """`backward` of two directions, whose arguments are two tuples; each on half of the threads."""
    side_by_side(team, outlined(_backward_both, (first, second)))
