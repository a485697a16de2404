"""The loops over time: forward, backward and along tangents, and the products around them.

Every public pass takes a team of threads and what the function with an underscore before it takes after `part` and
`parts`.

Arrays have whole vectors on their last axis: Hp and Pp are H and P padded, B the blocks of hidden units, and a row of
gates is (B, G, lanes). Names of arrays are those of the equations.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore_numba.jit import compiled
from lstmcore_numba.norms import linear, normalise
from lstmcore_numba.parallel import meet, outlined, side_by_side
from lstmcore_numba.steps import At
from lstmcore_numba.tiles import BYTES, PANEL, call_step, panel, product

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
_NORM_X: Final = int(At.NORM_X)
_NORM_H: Final = int(At.NORM_H)
_NORM_C: Final = int(At.NORM_C)
_GAIN_X: Final = int(At.GAIN_X)
_GAIN_H: Final = int(At.GAIN_H)
_GAIN_C: Final = int(At.GAIN_C)
_SHIFT_C: Final = int(At.SHIFT_C)
_DC_OUT: Final = int(At.DC_OUT)
_DNORM_C: Final = int(At.DNORM_C)
_TGAIN_C: Final = int(At.TGAIN_C)
_TSHIFT_C: Final = int(At.TSHIFT_C)
_TNORM_C: Final = int(At.TNORM_C)
_FIELDS: Final = len(At)
#: Rows of the input that are multiplied by all weights before the next ones.
_CHUNK: Final = 96
#: Rows whose part of a gradient is summed before the next ones, so that they stay in the cache.
_DEPTH: Final = 512
#: Columns of a gradient that are turned around together.
_COLUMNS: Final = 32


@compiled
def at(array: Any, index: int) -> Any:
    """The address of ``array[index]``; of the first where there is but one (what is not kept, or does not change)."""
    return array.ctypes.data + (index * array.strides[0] if array.shape[0] > 1 else 0)


class Norms(NamedTuple):
    """What layer norm needs and leaves: normalised rows, what they were divided by, gains and the shift of the cell.

    ``x`` and ``h`` are (T or 1, N, B, G, lanes), ``c`` (T or 1, N, B, 1, lanes), deviations (T or 1, N).
    """

    x: Any
    deviation_x: Any
    h: Any
    deviation_h: Any
    c: Any
    deviation_c: Any
    gain_x: Any
    gain_h: Any
    gain_c: Any
    shift_c: Any
    eps: float


@compiled
def set_norms(table: Any, norms: Any, t: int) -> int:
    """Put the addresses for step `t` into the table; the place of the step in the arrays."""
    table[_NORM_X], table[_NORM_H], table[_NORM_C] = at(norms.x, t), at(norms.h, t), at(norms.c, t)
    table[_GAIN_X], table[_GAIN_H] = norms.gain_x.ctypes.data, norms.gain_h.ctypes.data
    table[_GAIN_C], table[_SHIFT_C] = norms.gain_c.ctypes.data, norms.shift_c.ctypes.data
    return t if norms.h.shape[0] > 1 else 0


@compiled
def whole_cells(source: Any, target: Any, hidden: int, first: int, last: int) -> None:
    """Copy cells (N, Hp) to (N, B, 1, lanes), with 0 behind the last unit."""
    lanes = target.shape[3]
    for row in range(first, last):
        for k in range(source.shape[1]):
            target[row, k // lanes, 0, k % lanes] = source[row, k] if k < hidden else 0


@compiled
def _rows_product(part: int, parts: int, a: Any, weight: Any, out: Any) -> None:
    inner, size = a.shape[1], a.itemsize
    row_a, row_out = inner * size, out.shape[1] * size
    begin, end = a.shape[0] * part // parts, a.shape[0] * (part + 1) // parts
    for start in range(begin, end, _CHUNK):
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
            min(_CHUNK, end - start),
            True,
        )


@compiled
def rows_product(team: Any, *args: Any) -> None:
    """``out = a W`` with W in panels and the columns of `out` in whole vectors: ``(a, weight, out)``."""
    side_by_side(team, outlined(_rows_product, args))


@compiled
def _weight_gradient(
    part: int, parts: int, dz: Any, a: Any, hidden: int, sums: Any, found: Any, of_weight: Any, of_bias: Any
) -> None:
    rows, blocks, cols, lanes = dz.shape
    width, size = of_weight.shape[1], dz.itemsize
    zero, wide = dz.dtype.type(0), cols * lanes
    room = np.empty((_DEPTH + 1) * wide, dz.dtype)
    start = (-room.ctypes.data % BYTES) // size
    packed = room[start : start + _DEPTH * wide].reshape(_DEPTH, wide)
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    found[first:last] = 0
    sums[first:last] = 0
    for begin in range(0, rows, _DEPTH):
        depth = min(_DEPTH, rows - begin)
        for block in range(first, last):
            for k in range(depth):
                for gate in range(cols):
                    for lane in range(lanes):
                        value = dz[begin + k, block, gate, lane]
                        packed[k, gate * lanes + lane] = value
                        sums[block, gate, lane] += value
            panel(
                zero,
                cols,
                a.ctypes.data + begin * a.shape[1] * size,
                size,
                a.shape[1] * size,
                packed.ctypes.data,
                cols * BYTES,
                found.ctypes.data + block * width * cols * BYTES,
                cols * BYTES,
                depth,
                width,
                False,
            )
    for block in range(first, last):
        real = min(lanes, hidden - block * lanes)
        for gate in range(cols):
            here = gate * hidden + block * lanes
            of_bias[here : here + real] = sums[block, gate, :real]
            for begin in range(0, width, _COLUMNS):
                for lane in range(real):
                    for k in range(begin, min(begin + _COLUMNS, width)):
                        of_weight[here + lane, k] = found[block, k, gate, lane]


@compiled
def weight_gradient(team: Any, *args: Any) -> None:
    """``dz^T a``, and the sums of the rows of `dz`, where dz is (rows, B, G, lanes) and a (rows, columns or more).

    Takes ``(dz, a, hidden, sums, found, of_weight, of_bias)``: `of_weight` (G H, columns) and `of_bias` (G H,) get the
    results, `sums` (B, G, lanes) and `found` (B, columns, G, lanes) are room to work in.
    """
    side_by_side(team, outlined(_weight_gradient, args))


@compiled
def _forward(
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
    ahead: int,
    counter: Any,
) -> None:
    table = np.zeros(_FIELDS, np.int64)
    steps, batch, width = y.shape
    blocks, cols, lanes = gates.shape[2], gates.shape[3], gates.shape[4]
    first, last = (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)
    block_first, block_last = (blocks * part // parts, blocks * (part + 1) // parts) if by_units else (0, blocks)
    zero, size = h.dtype.type(0), h.itemsize
    rows, inner = last - first, operand.shape[2]
    row_z, row_c, row_h = blocks * cols * lanes * size, c.shape[2] * size, h.shape[2] * size
    output_blocks = h.shape[2] // lanes
    kept = h.shape[0] > 2 or steps < 2
    masked, projects, normed = mask_r.shape[0] > 0, step_output != 0, step_cell != 0
    tail = hidden - (blocks - 1) * lanes
    column = 0 if projects else block_first * lanes
    columns = width if projects else min(width, block_last * lanes)
    table[_LENGTHS], table[_BIAS], table[_PEEPHOLE] = lengths.ctypes.data, bias.ctypes.data, peephole.ctypes.data
    products = norms.x if normed else gates
    all_kept = products.shape[0] == steps
    now = steps if reverse and kept else 0
    origin = 0
    for count in range(steps):
        t = steps - 1 - count if reverse else count
        following = (t if reverse else t + 1) if kept else 1 - now
        if count % ahead == 0:
            some = min(ahead, steps - count)
            begin = t - some + 1 if reverse else t
            origin = 0 if all_kept else begin
            _input_products(x, input_weight, products, begin, begin - origin, some, first, last, block_first, block_last)
            if normed:
                for k in range(begin, begin + some):
                    normalise(norms.x[k - origin], norms.deviation_x[k], cols * hidden, tail, norms.eps, first, last)
        place = t - origin
        table[_STEP] = t
        table[_GATES], table[_RAW] = at(gates, place), at(raw, t)
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
        held = 0
        if normed:
            held = set_norms(table, norms, t)
            table[_NORM_X] = at(norms.x, place)
        for block in range(block_first, block_last):
            panel(
                zero,
                cols,
                source + first * pitch,
                pitch,
                size,
                recurrent_weight.ctypes.data + block * inner * cols * BYTES,
                cols * BYTES,
                (table[_NORM_H] if normed else table[_GATES]) + first * row_z + block * cols * BYTES,
                row_z,
                inner,
                rows,
                normed,
            )
            if not normed:
                call_step(step, table.ctypes.data, block, first, last)
        if normed:
            normalise(norms.h[held], norms.deviation_h[held], cols * hidden, tail, norms.eps, first, last)
            for block in range(blocks):
                call_step(step, table.ctypes.data, block, first, last)
            whole_cells(c[following], norms.c[held], hidden, first, last)
            normalise(norms.c[held], norms.deviation_c[held], hidden, tail, norms.eps, first, last)
            for block in range(blocks):
                call_step(step_cell, table.ctypes.data, block, first, last)
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
        if by_units and parts > 1:
            meet(counter.ctypes.data, parts * (count + 1))
        now = following


@compiled
def _input_products(
    x: Any,
    weight: Any,
    products: Any,
    begin: int,
    place: int,
    steps: int,
    first: int,
    last: int,
    block_first: int,
    block_last: int,
) -> None:
    """``W x`` of `steps` steps from `begin` on, into `products` (room, N, B, G, lanes) from `place` on.

    The weights of a block are read once for all of them.
    """
    batch, inner = x.shape[1], x.shape[2]
    blocks, cols, lanes = products.shape[2], products.shape[3], products.shape[4]
    zero, size = x.dtype.type(0), x.itemsize
    row_x, row_z = inner * size, blocks * cols * lanes * size
    whole = last - first == batch
    for block in range(block_first, block_last):
        for step in range(1 if whole else steps):
            panel(
                zero,
                cols,
                x.ctypes.data + ((begin + step) * batch + first) * row_x,
                row_x,
                size,
                weight.ctypes.data + block * inner * cols * BYTES,
                cols * BYTES,
                products.ctypes.data + ((place + step) * batch + first) * row_z + block * cols * BYTES,
                row_z,
                inner,
                steps * batch if whole else last - first,
                True,
            )


@compiled
def forward(team: Any, *args: Any) -> None:
    """All steps of all rows, shared by rows, or by hidden units if `by_units`: then threads meet after every step.

    ``h`` (T + 1 or 2, N, Pp) and ``c`` (T + 1 or 2, N, Hp) have the initial state where the first step reads it.
    The products of the input are made for `ahead` steps at a time, into `gates` (T or `ahead`, N, B, G, lanes), or into
    ``norms.x``.
    """
    side_by_side(team, outlined(_forward, args))


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
    counter: Any,
) -> None:
    table = np.zeros(_FIELDS, np.int64)
    steps, inner = dz.shape[0], dz.shape[2] * dz.shape[3] * dz.shape[4]
    batch, blocks, lanes = dz.shape[1], dz.shape[2], dz.shape[4]
    panels = (blocks + PANEL - 1) // PANEL
    first, last = (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)
    block_first = panels * part // parts * PANEL if by_units else 0
    block_last = min(blocks, panels * (part + 1) // parts * PANEL) if by_units else blocks
    zero, size = dh.dtype.type(0), dh.itemsize
    rows = last - first
    row_z, row_c, row_h = inner * size, dc.shape[1] * size, dh.shape[1] * size
    output_blocks, width = dh.shape[1] // lanes, dy.shape[2]
    column, columns = (block_first * lanes, min(width, block_last * lanes)) if by_units else (0, width)
    masked, projects, normed = mask_r.shape[0] > 0, step_output != 0, step_cell != 0
    table[_DNORM_C] = dnorm_c.ctypes.data
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
        place = 0
        for row in range(first, last):
            if t < lengths[row]:
                for k in range(column, columns):
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
        if normed:
            place = set_norms(table, norms, t)
            table[_DC_OUT] = at(dc_out, t)
            for block in range(blocks):
                call_step(step_cell, table.ctypes.data, block, first, last)
            linear(norms.c[place], norms.deviation_c[place], dnorm_c, hidden, first, last)
            for row in range(first, last):
                if t < lengths[row]:
                    for k in range(hidden):
                        dc[row, k] += dnorm_c[row, k // lanes, 0, k % lanes]
        for block in range(block_first, block_last):
            call_step(step, table.ctypes.data, block, first, last)
        if by_units and parts > 1:
            meet(counter.ctypes.data, parts * (count + 1))
        if normed:
            for row in range(first, last):
                for block in range(blocks):
                    for gate in range(dz.shape[3]):
                        for lane in range(lanes):
                            gain = norms.gain_h[block, gate, lane]
                            dz_h[t, row, block, gate, lane] = gain * dz[t, row, block, gate, lane]
            linear(norms.h[place], norms.deviation_h[place], dz_h[t], dz.shape[3] * hidden, first, last)
        target, pitch = (table[_DC], row_c) if of_cell else (table[_DH], row_h)
        vectors = blocks if of_cell else output_blocks
        vector = 0
        if by_units:
            vector, vectors = block_first, block_last - block_first
        if masked:
            target = doperand.ctypes.data
        product(
            zero,
            vectors,
            at(dz_h, t) + first * row_z,
            row_z,
            size,
            recurrent_weight.ctypes.data + vector * inner * BYTES,
            target + first * pitch + vector * BYTES,
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
def backward(team: Any, *args: Any) -> None:
    """All steps, last to first; `dh` and `dc` go from the gradient of the final state to that of the initial one.

    ``dz_h`` is the gradient of what R gives; without layer norm it is `dz` itself. Shared by rows, or by hidden units
    if `by_units`: a thread then needs what the others found of `dz` before it can go on with its own units.
    """
    side_by_side(team, outlined(_backward, args))


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
    table = np.zeros(_FIELDS, np.int64)
    steps, batch = ty.shape[0], ty.shape[1]
    first, last = batch * part // parts, batch * (part + 1) // parts
    blocks, cols, lanes = tz.shape[2], tz.shape[3], tz.shape[4]
    zero, size = th.dtype.type(0), th.itemsize
    rows, inner = last - first, toperand.shape[1]
    row_z, row_c, row_h = blocks * cols * lanes * size, tc.shape[2] * size, th.shape[2] * size
    output_blocks, width = th.shape[2] // lanes, ty.shape[2]
    masked, projects, normed = mask_r.shape[0] > 0, step_output != 0, step_cell != 0
    table[_TNORM_C], table[_TGAIN_C] = tnorm_c.ctypes.data, tgain_c.ctypes.data
    table[_TSHIFT_C] = tshift_c.ctypes.data
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
                at(tz_h, t) + first * row_z + block * cols * BYTES,
                row_z,
                inner,
                rows,
                False,
            )
            if not normed:
                call_step(step, table.ctypes.data, block, first, last)
        if normed:
            place = set_norms(table, norms, t)
            linear(norms.h[place], norms.deviation_h[place], tz_h[t], cols * hidden, first, last)
            for row in range(first, last):
                for block in range(blocks):
                    for gate in range(cols):
                        for lane in range(lanes):
                            gain = norms.gain_h[block, gate, lane]
                            tz[t, row, block, gate, lane] += gain * tz_h[t, row, block, gate, lane]
            for block in range(blocks):
                call_step(step, table.ctypes.data, block, first, last)
            whole_cells(tc[1 - now], tnorm_c, hidden, first, last)
            linear(norms.c[place], norms.deviation_c[place], tnorm_c, hidden, first, last)
            for block in range(blocks):
                call_step(step_cell, table.ctypes.data, block, first, last)
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


@compiled
def tangent(team: Any, *args: Any) -> None:
    """All steps; `tz` has all that does not depend on the tangent of the state.

    With layer norm ``tz_h`` has what the tangent of R gives; without, it is `tz` itself. ``th`` (2, N, Pp) and ``tc``
    (2, N, Hp) begin with the tangent of the initial state.
    """
    side_by_side(team, outlined(_tangent, args))
