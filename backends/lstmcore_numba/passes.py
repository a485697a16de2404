"""The loops over time: forward, backward and along tangents, and the products around them.

Every public pass takes a team of threads and what the function with an underscore before it takes after `part` and
`parts`.

Arrays have whole vectors on their last axis: Hp and Pp are H and P padded, B the blocks of hidden units, and gates of
one step are (B, N, G, lanes). Names of arrays are those of the equations.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from lstmcore_numba.jit import compiled
from lstmcore_numba.norms import linear, normalise
from lstmcore_numba.parallel import meet, outlined, side_by_side
from lstmcore_numba.steps import At
from lstmcore_numba.tiles import BYTES, PANEL, call_step, grouped_panel, grouped_product, panel, product

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
_BATCH: Final = int(At.BATCH)
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

    ``x`` and ``h`` are (T or 1, B, N, G, lanes), ``c`` (T or 1, B, N, 1, lanes), deviations (T or 1, N).
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
    """Copy cells (N, Hp) to (B, N, 1, lanes), with 0 behind the last unit."""
    lanes = target.shape[3]
    for row in range(first, last):
        for k in range(source.shape[1]):
            target[k // lanes, row, 0, k % lanes] = source[row, k] if k < hidden else 0


@compiled
def _input_gradient(part: int, parts: int, dz: Any, weight: Any, dx: Any) -> None:
    steps, blocks, batch, cols, lanes = dz.shape
    size, wide = dz.itemsize, cols * lanes
    row_z, row_x = wide * size, dx.shape[1] * size
    first, last = 0, batch
    begin, end = steps * part // parts, steps * (part + 1) // parts
    if steps == 1:
        first, last, begin, end = batch * part // parts, batch * (part + 1) // parts, 0, 1
    at_once = max(1, _CHUNK // max(batch, 1))
    pieces = (end - begin + at_once - 1) // at_once
    for piece in range(pieces):
        t = begin + (end - begin) * piece // pieces
        some = begin + (end - begin) * (piece + 1) // pieces - t
        grouped_product(
            dz.dtype.type(0),
            row_x // BYTES,
            dz.ctypes.data + (t * blocks * batch + first) * row_z,
            row_z,
            size,
            batch * row_z,
            (blocks - 1) * batch * row_z,
            weight.ctypes.data,
            dx.ctypes.data + (t * batch + first) * row_x,
            row_x,
            blocks,
            wide,
            some * (last - first),
            max(last - first, 1),
            True,
            False,
        )


@compiled
def input_gradient(team: Any, *args: Any) -> None:
    """``dx = dz W`` of all steps, for dz (T, B, N, G, lanes), W in panels and dx (T N, whole vectors)."""
    side_by_side(team, outlined(_input_gradient, args))


@compiled
def _weight_gradient(
    part: int, parts: int, dz: Any, a: Any, hidden: int, sums: Any, found: Any, of_weight: Any, of_bias: Any
) -> None:
    steps, blocks, batch, cols, lanes = dz.shape
    rows = steps * batch
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
            t, row = begin // batch, begin % batch
            for k in range(depth):
                for gate in range(cols):
                    for lane in range(lanes):
                        value = dz[t, block, row, gate, lane]
                        packed[k, gate * lanes + lane] = value
                        sums[block, gate, lane] += value
                row += 1
                if row == batch:
                    t, row = t + 1, 0
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
    """``dz^T a``, and the sums of the rows of `dz`, where dz is (T, B, N, G, lanes) and a (T N, columns or more).

    Takes ``(dz, a, hidden, sums, found, of_weight, of_bias)``: `of_weight` (G H, columns) and `of_bias` (G H,) get the
    results, `sums` (B, G, lanes) and `found` (B, columns, G, lanes) are room to work in.
    """
    side_by_side(team, outlined(_weight_gradient, args))


@compiled
def _forward(
    part: int,
    parts: int,
    reverse: bool,
    h: Any,
    c: Any,
    y: Any,
    by_units: bool,
    step: int,
    step_output: int,
    step_cell: int,
    hidden: int,
    norms: Any,
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
    ahead: int,
    counter: Any,
) -> None:
    table = np.zeros(_FIELDS, np.int64)
    steps, batch, width = y.shape
    blocks, cols, lanes = gates.shape[1], gates.shape[3], gates.shape[4]
    first, last = (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)
    block_first, block_last = (blocks * part // parts, blocks * (part + 1) // parts) if by_units else (0, blocks)
    zero, size = h.dtype.type(0), h.itemsize
    rows, inner = last - first, operand.shape[2]
    row_z, row_c, row_h = cols * lanes * size, c.shape[2] * size, h.shape[2] * size
    output_blocks = h.shape[2] // lanes
    kept = h.shape[0] == steps + 1
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    tail = hidden - (blocks - 1) * lanes
    column = 0 if projects else block_first * lanes
    columns = width if projects else min(width, block_last * lanes)
    table[_LENGTHS], table[_BIAS], table[_PEEPHOLE] = lengths.ctypes.data, bias.ctypes.data, peephole.ctypes.data
    table[_BATCH] = batch
    products = norms.x if norms is not None else gates
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
            _input_products(
                x, input_weight, products, begin, begin - origin, some, first, last, block_first, block_last
            )
            if norms is not None:
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
        held, target = 0, table[_GATES]
        if norms is not None:
            held = set_norms(table, norms, t)
            table[_NORM_X] = at(norms.x, place)
            target = table[_NORM_H]
        for index in range(block_last - block_first):
            # To and fro, so that a step starts with the weights that the one before ended with, in the cache.
            block = block_first + index if count % 2 == 0 else block_last - 1 - index
            panel(
                zero,
                cols,
                source + first * pitch,
                pitch,
                size,
                recurrent_weight.ctypes.data + block * inner * cols * BYTES,
                cols * BYTES,
                target + (block * batch + first) * row_z,
                row_z,
                inner,
                rows,
                norms is not None,
            )
            if norms is None:
                call_step(step, table.ctypes.data, block, first, last)
        if norms is not None:
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
    """``W x`` of `steps` steps from `begin` on, into `products` (room, B, N, G, lanes) from `place` on.

    The weights of a block are read once for all of them.
    """
    batch, inner = x.shape[1], x.shape[2]
    blocks, cols, lanes = products.shape[1], products.shape[3], products.shape[4]
    zero, size, group = x.dtype.type(0), x.itemsize, last - first
    row_x, row_z = inner * size, cols * lanes * size
    for block in range(block_first, block_last):
        grouped_panel(
            zero,
            cols,
            x.ctypes.data + (begin * batch + first) * row_x,
            row_x,
            size,
            0,
            (batch - group) * row_x,
            weight.ctypes.data + block * inner * cols * BYTES,
            cols * BYTES,
            products.ctypes.data + ((place * blocks + block) * batch + first) * row_z,
            row_z,
            (blocks * batch - group) * row_z,
            1,
            inner,
            steps * group,
            max(group, 1),
            True,
        )


@compiled
def _put(source: Any, target: Any) -> None:
    """Copy a state (N, P) to (N, Pp), with 0 behind the last unit."""
    for row in range(source.shape[0]):
        for k in range(target.shape[1]):
            target[row, k] = source[row, k] if k < source.shape[1] else 0


@compiled
def forward(
    team: Any,
    counter: Any,
    first_h: Any,
    first_c: Any,
    last_h: Any,
    last_c: Any,
    reverse: bool,
    h: Any,
    c: Any,
    y: Any,
    *args: Any,
) -> None:
    """All steps of all rows, shared by rows, or by hidden units if `by_units`: then threads meet after every step.

    ``h`` (T + 1 or 2, N, Pp) and ``c`` (T + 1 or 2, N, Hp) hold the states, all of them or two in turn. The products of
    the input are made for `ahead` steps at a time, into `gates` (T or `ahead`, B, N, G, lanes), or into ``norms.x``.
    """
    steps = y.shape[0]
    kept = h.shape[0] == steps + 1
    start = steps if reverse and kept else 0
    _put(first_h, h[start])
    _put(first_c, c[start])
    counter[0] = 0
    side_by_side(team, outlined(_forward, (reverse, h, c, y, *args, counter)))
    end = steps - start if kept else steps % 2
    last_h[:] = h[end, :, : last_h.shape[1]]
    last_c[:] = c[end, :, : last_c.shape[1]]


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
    steps, blocks, batch, cols, lanes = dz.shape
    inner = cols * lanes
    panels = (blocks + PANEL - 1) // PANEL
    first, last = (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)
    block_first = panels * part // parts * PANEL if by_units else 0
    block_last = min(blocks, panels * (part + 1) // parts * PANEL) if by_units else blocks
    zero, size = dh.dtype.type(0), dh.itemsize
    rows = last - first
    table[_BATCH] = batch
    row_z, row_c, row_h = inner * size, dc.shape[1] * size, dh.shape[1] * size
    output_blocks, width = dh.shape[1] // lanes, dy.shape[2]
    column, columns = (block_first * lanes, min(width, block_last * lanes)) if by_units else (0, width)
    masked, projects = mask_r.shape[0] > 0, step_output != 0
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
        if norms is not None:
            place = set_norms(table, norms, t)
            table[_DC_OUT] = at(dc_out, t)
            for block in range(blocks):
                call_step(step_cell, table.ctypes.data, block, first, last)
            linear(norms.c[place], norms.deviation_c[place], dnorm_c, hidden, first, last)
            for row in range(first, last):
                if t < lengths[row]:
                    for k in range(hidden):
                        dc[row, k] += dnorm_c[k // lanes, row, 0, k % lanes]
        for block in range(block_first, block_last):
            call_step(step, table.ctypes.data, block, first, last)
        if by_units and parts > 1:
            meet(counter.ctypes.data, parts * (count + 1))
        if norms is not None:
            for row in range(first, last):
                for block in range(blocks):
                    for gate in range(cols):
                        for lane in range(lanes):
                            gain = norms.gain_h[block, gate, lane]
                            dz_h[t, block, row, gate, lane] = gain * dz[t, block, row, gate, lane]
            linear(norms.h[place], norms.deviation_h[place], dz_h[t], cols * hidden, first, last)
        target, pitch = (table[_DC], row_c) if of_cell else (table[_DH], row_h)
        vectors = blocks if of_cell else output_blocks
        vector = 0
        if by_units:
            vector, vectors = block_first, block_last - block_first
        if masked:
            target = doperand.ctypes.data
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
    blocks, cols, lanes = tz.shape[1], tz.shape[3], tz.shape[4]
    zero, size = th.dtype.type(0), th.itemsize
    rows, inner = last - first, toperand.shape[1]
    table[_BATCH] = batch
    row_z, row_c, row_h = cols * lanes * size, tc.shape[2] * size, th.shape[2] * size
    output_blocks, width = th.shape[2] // lanes, ty.shape[2]
    masked, projects = mask_r.shape[0] > 0, step_output != 0
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
            linear(norms.h[place], norms.deviation_h[place], tz_h[t], cols * hidden, first, last)
            for row in range(first, last):
                for block in range(blocks):
                    for gate in range(cols):
                        for lane in range(lanes):
                            gain = norms.gain_h[block, gate, lane]
                            tz[t, block, row, gate, lane] += gain * tz_h[t, block, row, gate, lane]
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
