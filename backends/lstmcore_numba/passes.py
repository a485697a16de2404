"""The loops over time: forward, backward and along tangents, for some rows of a batch.

Arrays have whole vectors on their last axis: Hp and Pp are H and P padded, B the blocks of hidden units, and a row of
gates is (B, G, lanes). Names of arrays are those of the equations.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lstmcore_numba.jit import compiled
from lstmcore_numba.steps import At
from lstmcore_numba.tiles import BYTES, PANEL, call_step, meet, panel, product

_LENGTHS: Final = int(At.LENGTHS)
_STEP: Final = int(At.STEP)
_BIAS: Final = int(At.BIAS)
_PEEPHOLE: Final = int(At.PEEPHOLE)
_MASK_C: Final = int(At.MASK_C)
_MASK_H: Final = int(At.MASK_H)
_GATES: Final = int(At.GATES)
_RAW: Final = int(At.RAW)
_C_BEFORE: Final = int(At.C_BEFORE)
_C: Final = int(At.C)
_H_BEFORE: Final = int(At.H_BEFORE)
_H: Final = int(At.H)
_Q: Final = int(At.Q)
_PROJECTED: Final = int(At.PROJECTED)
_DZ: Final = int(At.DZ)
_DC: Final = int(At.DC)
_DH: Final = int(At.DH)
_DQ: Final = int(At.DQ)
_DPROJECTED: Final = int(At.DPROJECTED)
_TZ: Final = int(At.TZ)
_TC_BEFORE: Final = int(At.TC_BEFORE)
_TC: Final = int(At.TC)
_TH_BEFORE: Final = int(At.TH_BEFORE)
_TH: Final = int(At.TH)
_TQ: Final = int(At.TQ)
_TPEEPHOLE: Final = int(At.TPEEPHOLE)
_TPROJECTED: Final = int(At.TPROJECTED)
_FIELDS: Final = len(At)
#: Rows of the input that are multiplied by all weights before the next ones.
_CHUNK: Final = 96
#: Rows whose part of a gradient is summed before the next ones, so that they stay in the cache.
_DEPTH: Final = 128


@compiled
def at(array: Any, index: int) -> Any:
    """The address of ``array[index]``; of the first where there is but one (what is not kept, or does not change)."""
    return array.ctypes.data + (index * array.strides[0] if array.shape[0] > 1 else 0)


@compiled
def input_product(x: Any, weight: Any, gates: Any, first: int, last: int) -> None:
    """``gates = W x`` for rows `first` to `last` of x (rows, I) and gates (rows, B, G, lanes)."""
    inner = x.shape[1]
    blocks, cols, lanes = gates.shape[1], gates.shape[2], gates.shape[3]
    zero, size = x.dtype.type(0), x.itemsize
    row_x, row_z = inner * size, blocks * cols * lanes * size
    for start in range(first, last, _CHUNK):
        rows = min(_CHUNK, last - start)
        for block in range(blocks):
            panel(
                zero,
                cols,
                x.ctypes.data + start * row_x,
                row_x,
                size,
                weight.ctypes.data + block * inner * cols * BYTES,
                cols * BYTES,
                gates.ctypes.data + start * row_z + block * cols * BYTES,
                row_z,
                inner,
                rows,
                True,
            )


@compiled
def rows_product(a: Any, weight: Any, out: Any, first: int, last: int) -> None:
    """``out = a W`` for rows `first` to `last`, with W in panels and the columns of `out` in whole vectors."""
    inner, size = a.shape[1], a.itemsize
    row_a, row_out = inner * size, out.shape[1] * size
    for start in range(first, last, _CHUNK):
        product(
            a.dtype.type(0),
            row_out // BYTES,
            a.ctypes.data + start * row_a,
            row_a,
            size,
            weight.ctypes.data,
            out.ctypes.data + start * row_out,
            row_out,
            inner,
            min(_CHUNK, last - start),
            True,
        )


@compiled
def gradient(a: Any, b: Any, out: Any, first: int, last: int) -> None:
    """``out = a^T b`` for columns `first` to `last` of a (rows, A); the columns of b and out are whole vectors."""
    size, zero = a.itemsize, a.dtype.type(0)
    row_a, row_b = a.shape[1] * size, b.shape[1] * size
    vectors = row_b // BYTES
    out[first:last] = 0
    for start in range(0, a.shape[0], _DEPTH):
        depth = min(_DEPTH, a.shape[0] - start)
        for column in range(0, vectors, PANEL):
            panel(
                zero,
                min(PANEL, vectors - column),
                a.ctypes.data + start * row_a + first * size,
                size,
                row_a,
                b.ctypes.data + start * row_b + column * BYTES,
                row_b,
                out.ctypes.data + first * row_b + column * BYTES,
                row_b,
                depth,
                last - first,
                False,
            )


@compiled
def column_sums(a: Any, out: Any) -> None:
    """The sum of the rows of `a`."""
    out[:] = 0
    for row in range(a.shape[0]):
        for k in range(a.shape[1]):
            out[k] += a[row, k]


@compiled
def forward(
    step: int,
    step_output: int,
    reverse: bool,
    of_cell: bool,
    fused: bool,
    lengths: Any,
    x: Any,
    input_weight: Any,
    recurrent_weight: Any,
    bias: Any,
    peephole: Any,
    projection: Any,
    mask_r: Any,
    mask_h: Any,
    mask_c: Any,
    gates: Any,
    raw: Any,
    operand: Any,
    q: Any,
    projected: Any,
    h: Any,
    c: Any,
    y: Any,
    first: int,
    last: int,
    block_first: int,
    block_last: int,
    counter: Any,
    parts: int,
) -> None:
    """All steps of rows `first` to `last` and of blocks `block_first` to `block_last`.

    Unless `fused`, `gates` has the products of the input.

    ``h`` (T + 1 or 2, N, Pp) and ``c`` (T + 1 or 2, N, Hp) have the initial state where the first step reads it.
    Where the blocks are shared among `parts` threads, these meet after every step.
    """
    table = np.zeros(_FIELDS, np.int64)
    steps = y.shape[0]
    blocks, cols, lanes = gates.shape[2], gates.shape[3], gates.shape[4]
    zero, size = h.dtype.type(0), h.itemsize
    rows, inner = last - first, operand.shape[2]
    row_z, row_c, row_h = blocks * cols * lanes * size, c.shape[2] * size, h.shape[2] * size
    row_x = x.shape[2] * size
    output_blocks, width = h.shape[2] // lanes, y.shape[2]
    kept = h.shape[0] > 2 or steps < 2
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    column = 0 if projects else block_first * lanes
    columns = width if projects else min(width, block_last * lanes)
    table[_LENGTHS], table[_BIAS], table[_PEEPHOLE] = lengths.ctypes.data, bias.ctypes.data, peephole.ctypes.data
    now = steps if reverse and kept else 0
    for count in range(steps):
        t = steps - 1 - count if reverse else count
        following = (t if reverse else t + 1) if kept else 1 - now
        table[_STEP] = t
        table[_GATES], table[_RAW] = at(gates, t), at(raw, t)
        table[_MASK_C], table[_MASK_H] = at(mask_c, t), at(mask_h, t)
        table[_C_BEFORE], table[_C] = at(c, now), at(c, following)
        table[_H_BEFORE], table[_H] = at(h, now), at(h, following)
        table[_Q], table[_PROJECTED] = at(q, t), at(projected, t)
        source, pitch = (table[_C_BEFORE], row_c) if of_cell else (table[_H_BEFORE], row_h)
        if masked:
            slot = t if operand.shape[0] > 1 else 0
            for row in range(first, last):
                for k in range(inner):
                    operand[slot, row, k] = mask_r[row, k] * (c[now, row, k] if of_cell else h[now, row, k])
            source, pitch = at(operand, t), inner * size
        for block in range(block_first, block_last):
            if fused:
                panel(
                    zero,
                    cols,
                    at(x, t) + first * row_x,
                    row_x,
                    size,
                    input_weight.ctypes.data + block * x.shape[2] * cols * BYTES,
                    cols * BYTES,
                    table[_GATES] + first * row_z + block * cols * BYTES,
                    row_z,
                    x.shape[2],
                    rows,
                    True,
                )
            panel(
                zero,
                cols,
                source + first * pitch,
                pitch,
                size,
                recurrent_weight.ctypes.data + block * inner * cols * BYTES,
                cols * BYTES,
                table[_GATES] + first * row_z + block * cols * BYTES,
                row_z,
                inner,
                rows,
                False,
            )
            call_step(step, table.ctypes.data, block, first, last)
        if projects:
            product(
                zero,
                output_blocks,
                table[_Q] + first * row_c,
                row_c,
                size,
                projection.ctypes.data,
                table[_PROJECTED] + first * row_h,
                row_h,
                c.shape[2],
                rows,
                True,
            )
            for block in range(output_blocks):
                call_step(step_output, table.ctypes.data, block, first, last)
        for row in range(first, last):
            if t < lengths[row]:
                for k in range(column, columns):
                    y[t, row, k] = h[following, row, k]
            else:
                for k in range(column, columns):
                    y[t, row, k] = 0
        if parts > 1:
            meet(counter.ctypes.data, parts * (count + 1))
        now = following


@compiled
def backward(
    step: int,
    step_output: int,
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
    dprojected: Any,
    dq: Any,
    doperand: Any,
    dh: Any,
    dc: Any,
    first: int,
    last: int,
) -> None:
    """All steps of rows `first` to `last`, last to first; `dh` and `dc` go from the final state to the initial one."""
    table = np.zeros(_FIELDS, np.int64)
    steps, inner = dz.shape[0], dz.shape[2] * dz.shape[3] * dz.shape[4]
    blocks, lanes = dz.shape[2], dz.shape[4]
    zero, size = dh.dtype.type(0), dh.itemsize
    rows = last - first
    row_z, row_c, row_h = inner * size, dc.shape[1] * size, dh.shape[1] * size
    output_blocks, width = dh.shape[1] // lanes, dy.shape[2]
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    table[_LENGTHS], table[_PEEPHOLE] = lengths.ctypes.data, peephole.ctypes.data
    table[_DH], table[_DC], table[_DQ] = dh.ctypes.data, dc.ctypes.data, dq.ctypes.data
    for count in range(steps):
        t = count if reverse else steps - 1 - count
        table[_STEP] = t
        table[_GATES], table[_RAW], table[_DZ] = at(gates, t), at(raw, t), at(dz, t)
        table[_MASK_C], table[_MASK_H] = at(mask_c, t), at(mask_h, t)
        table[_C_BEFORE] = at(c, t + 1 if reverse else t)
        table[_C] = at(c, t if reverse else t + 1)
        table[_PROJECTED], table[_DPROJECTED] = at(projected, t), at(dprojected, t)
        for row in range(first, last):
            if t < lengths[row]:
                for k in range(width):
                    dh[row, k] += dy[t, row, k]
        if projects:
            for block in range(output_blocks):
                call_step(step_output, table.ctypes.data, block, first, last)
            product(
                zero,
                blocks,
                table[_DPROJECTED] + first * row_h,
                row_h,
                size,
                projection.ctypes.data,
                table[_DQ] + first * row_c,
                row_c,
                dh.shape[1],
                rows,
                True,
            )
        for block in range(blocks):
            call_step(step, table.ctypes.data, block, first, last)
        target, pitch = (table[_DC], row_c) if of_cell else (table[_DH], row_h)
        vectors = blocks if of_cell else output_blocks
        if masked:
            target = doperand.ctypes.data
        product(
            zero,
            vectors,
            table[_DZ] + first * row_z,
            row_z,
            size,
            recurrent_weight.ctypes.data,
            target + first * pitch,
            pitch,
            inner,
            rows,
            masked,
        )
        if masked:
            for row in range(first, last):
                if t < lengths[row]:
                    for k in range(mask_r.shape[1]):
                        if of_cell:
                            dc[row, k] += mask_r[row, k] * doperand[row, k]
                        else:
                            dh[row, k] += mask_r[row, k] * doperand[row, k]


@compiled
def tangent(
    step: int,
    step_output: int,
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
    tprojected: Any,
    tq: Any,
    toperand: Any,
    th: Any,
    tc: Any,
    ty: Any,
    first: int,
    last: int,
) -> None:
    """All steps of rows `first` to `last`; `tz` has all that does not depend on the tangent of the state.

    ``th`` (2, N, Pp) and ``tc`` (2, N, Hp) begin with the tangent of the initial state.
    """
    table = np.zeros(_FIELDS, np.int64)
    steps = ty.shape[0]
    blocks, cols, lanes = tz.shape[2], tz.shape[3], tz.shape[4]
    zero, size = th.dtype.type(0), th.itemsize
    rows, inner = last - first, toperand.shape[1]
    row_z, row_c, row_h = blocks * cols * lanes * size, tc.shape[2] * size, th.shape[2] * size
    output_blocks, width = th.shape[2] // lanes, ty.shape[2]
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    table[_LENGTHS], table[_PEEPHOLE], table[_TPEEPHOLE] = (
        lengths.ctypes.data,
        peephole.ctypes.data,
        tpeephole.ctypes.data,
    )
    table[_TQ] = tq.ctypes.data
    now = 0
    for count in range(steps):
        t = steps - 1 - count if reverse else count
        table[_STEP] = t
        table[_GATES], table[_RAW], table[_TZ] = at(gates, t), at(raw, t), at(tz, t)
        table[_MASK_C], table[_MASK_H] = at(mask_c, t), at(mask_h, t)
        table[_C_BEFORE] = at(c, t + 1 if reverse else t)
        table[_C] = at(c, t if reverse else t + 1)
        table[_PROJECTED], table[_TPROJECTED] = at(projected, t), at(tprojected, t)
        table[_TC_BEFORE], table[_TC] = at(tc, now), at(tc, 1 - now)
        table[_TH_BEFORE], table[_TH] = at(th, now), at(th, 1 - now)
        source, pitch = (table[_TC_BEFORE], row_c) if of_cell else (table[_TH_BEFORE], row_h)
        if masked:
            for row in range(first, last):
                for k in range(inner):
                    toperand[row, k] = mask_r[row, k] * (tc[now, row, k] if of_cell else th[now, row, k])
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
                table[_TZ] + first * row_z + block * cols * BYTES,
                row_z,
                inner,
                rows,
                False,
            )
            call_step(step, table.ctypes.data, block, first, last)
        if projects:  # tprojected has W_proj's own tangent applied to q
            product(
                zero,
                output_blocks,
                table[_TQ] + first * row_c,
                row_c,
                size,
                projection.ctypes.data,
                table[_TPROJECTED] + first * row_h,
                row_h,
                tc.shape[2],
                rows,
                False,
            )
            for block in range(output_blocks):
                call_step(step_output, table.ctypes.data, block, first, last)
        for row in range(first, last):
            if t < lengths[row]:
                for k in range(width):
                    ty[t, row, k] = th[1 - now, row, k]
            else:
                for k in range(width):
                    ty[t, row, k] = 0
        now = 1 - now
