"""The loop over time, forward."""

from __future__ import annotations

import inspect
from typing import Any, Final

import numpy as np

from lstmcore_numba.cell import At
from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.amx import DEPTH, PARTS, TILE, TILE_BYTES, amx_panel, release_tiles, shape_tiles
from lstmcore_numba.gemm.bf16 import shorten_outputs, shorten_rows
from lstmcore_numba.gemm.bf16x3 import cut_rows
from lstmcore_numba.gemm.bf16x3_passes import cut_input_products, cut_inputs, mixed_panel, some_wild
from lstmcore_numba.gemm.vector import BYTES, call_step, grouped_panel, panel, product
from lstmcore_numba.layer_norm import normalise, normalise_cells
from lstmcore_numba.runtime.worker_loop import (
    MANY_SPINS,
    call_part,
    kept,
    meet,
    outlined,
    side_by_side,
    wait_for,
    write,
)
from lstmcore_numba.time_loop.step_arrays import FIELDS, at, masked_operand, put_outputs, set_norms


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
    cut: Any,
    short: Any,
    counter: Any,
    wave: Any,
) -> None:
    table = np.zeros(FIELDS, np.int64)
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
    own_blocks, tail = block_last - block_first, hidden - (blocks - 1) * lanes
    column = 0 if projects else block_first * lanes
    columns = width if projects else min(width, block_last * lanes)
    table[At.LENGTHS], table[At.BIAS], table[At.PEEPHOLE] = lengths.ctypes.data, bias.ctypes.data, peephole.ctypes.data
    table[At.BATCH] = batch
    products = norms.x if norms is not None else gates
    all_kept = products.shape[0] == steps
    now = steps if reverse and kept else 0
    origin, met = 0, 0
    shared = by_units and parts > 1
    if wave is not None and part == 0:
        for other in range(parts, wave.done.shape[0]):
            write(at(wave.done, other), steps)
    own, own_size = (
        (block_first * lanes, min(inner, block_last * lanes) - block_first * lanes) if by_units else (0, inner)
    )
    cutters = (0, parts) if by_units else (part, part + 1)
    chunks, step_bytes = (inner + DEPTH - 1) // DEPTH, cols * PARTS * TILE_BYTES
    if cut is not None:
        shape_tiles(min(TILE, rows))
        cut_slot, cut_part, cut_row = cut.state.strides[:3]
        flags = part * batch if by_units else 0
        cut_to, flags_to, row_source = cut.state.ctypes.data, cut.wild.ctypes.data + flags, row_c if of_cell else row_h
        slot_flags = cut.wild.strides[0]
        cut_x, x_shares = (part, parts) if by_units else (0, 1)
        if not masked:
            start = (at(c, now) if of_cell else at(h, now)) + own * size
            cut.any_wild[0, part] = cut_rows(
                start, row_source, cut_to + own * 2, cut_row, cut_part, first, last, 1, 0, own_size, flags_to
            )
            if shared:
                met += 1
                meet(counter.ctypes.data, parts * met)
    if short is not None:
        pair, pairs = short.recurrent.dtype.type(0), short.recurrent.shape[1]
        short_h, (short_slot, short_row) = short.h.ctypes.data, short.h.strides[:2]
        shorten_rows(at(h, now) + own * size, row_h, short_h + own * 2, short_row, first, last, own_size)
        if shared:
            met += 1
            meet(counter.ctypes.data, parts * met)
    for count in range(steps):
        t = steps - 1 - count if reverse else count
        following = (t if reverse else t + 1) if kept else 1 - now
        if cut is not None:
            slot_now = count % 2
            here_cut = cut_to + slot_now * cut_slot
        if count % ahead == 0:
            some = min(ahead, steps - count)
            begin = t - some + 1 if reverse else t
            origin = 0 if all_kept else begin
            if wave is not None:
                for other in range(wave.below.shape[0]):
                    wait_for(at(wave.below, other), count + some, MANY_SPINS)
            if cut is not None:
                cut.any_wild[2, part] = cut_inputs(cut_x, x_shares, x, cut, begin, some, first, last)
                if shared:
                    met += 1
                    meet(counter.ctypes.data, parts * met)
                wild = some_wild(cut.any_wild, 2, *cutters)
                cut_input_products(
                    x,
                    input_weight,
                    cut,
                    wild,
                    products,
                    begin,
                    begin - origin,
                    some,
                    first,
                    last,
                    block_first,
                    block_last,
                )
            else:
                _input_products(
                    x, input_weight, products, begin, begin - origin, some, first, last, block_first, block_last
                )
            if norms is not None:
                for k in range(begin, begin + some):
                    normalise(norms.x[k - origin], norms.deviation_x[k], cols * hidden, tail, norms.eps, first, last)
        place = t - origin
        table[At.STEP] = t
        table[At.GATES], table[At.RAW] = at(gates, place), at(raw, t)
        table[At.MASK_C], table[At.MASK_H] = at(mask_c, t), at(mask_h, t)
        table[At.C_BEFORE], table[At.C] = at(c, now), at(c, following)
        table[At.H_BEFORE], table[At.H] = at(h, now), at(h, following)
        table[At.Q], table[At.PROJECTED] = at(q, t), at(projected, t)
        source, pitch = (table[At.C_BEFORE], row_c) if of_cell else (table[At.H_BEFORE], row_h)
        if masked:
            slot = t if operand.shape[0] > 1 else 0
            masked_operand(operand[slot], mask_r, c[now] if of_cell else h[now], first, last)
            source, pitch = at(operand, t), inner * size
            if cut is not None:
                cut.any_wild[slot_now, part] = cut_rows(
                    source,
                    pitch,
                    here_cut,
                    cut_row,
                    cut_part,
                    first,
                    last,
                    1,
                    0,
                    inner,
                    flags_to + slot_now * slot_flags,
                )
        if cut is not None:
            wild = some_wild(cut.any_wild, slot_now, *cutters)
        held, target = 0, table[At.GATES]
        if norms is not None:
            held = set_norms(table, norms, t)
            table[At.NORM_X] = at(norms.x, place)
            target = table[At.NORM_H]
        for index in range(own_blocks):
            # To and fro, so that a step starts with the weights that the one before ended with, in the cache.
            block = block_first + index if count % 2 == 0 else block_last - 1 - index
            weights = recurrent_weight.ctypes.data + block * inner * cols * BYTES
            there = target + (block * batch + first) * row_z
            if cut is not None:
                cut_weight = cut.recurrent.ctypes.data + block * chunks * step_bytes
                if wild:
                    mixed_panel(
                        zero,
                        cols,
                        here_cut,
                        cut_row,
                        cut_part,
                        cut_weight,
                        source,
                        pitch,
                        weights,
                        there,
                        row_z,
                        1,
                        0,
                        inner,
                        first,
                        last,
                        norms is not None,
                        cut.wild[slot_now, : parts if by_units else 1],
                        min(TILE, rows),
                    )
                else:
                    turn = 0 if index == own_blocks - 1 else chunks * step_bytes
                    amx_panel(
                        cols,
                        here_cut + first * cut_row,
                        cut_row,
                        cut_part,
                        cut_weight,
                        step_bytes,
                        there,
                        row_z,
                        chunks,
                        rows,
                        norms is not None,
                        cut_weight + turn if count % 2 == 0 else cut_weight - turn,
                        min(TILE, rows),
                    )
            elif short is not None:
                panel(
                    pair,
                    cols,
                    short_h + count % 2 * short_slot + first * short_row,
                    short_row,
                    4,
                    short.recurrent.ctypes.data + block * pairs * cols * BYTES,
                    cols * BYTES,
                    there,
                    row_z,
                    pairs,
                    rows,
                    norms is not None,
                )
            else:
                panel(
                    zero,
                    cols,
                    source + first * pitch,
                    pitch,
                    size,
                    weights,
                    cols * BYTES,
                    there,
                    row_z,
                    inner,
                    rows,
                    norms is not None,
                )
            # A block is worked on while the next one's product is under way, whose last sums are late.
            if norms is None and index > 0:
                call_step(step, table.ctypes.data, block - 1 if count % 2 == 0 else block + 1, first, last)
        if norms is None:
            call_step(step, table.ctypes.data, block_last - 1 if count % 2 == 0 else block_first, first, last)
        if norms is not None:
            normalise(norms.h[held], norms.deviation_h[held], cols * hidden, tail, norms.eps, first, last)
            for block in range(blocks):
                call_step(step, table.ctypes.data, block, first, last)
            normalise_cells(c[following], norms.c[held], norms.deviation_c[held], hidden, tail, norms.eps, first, last)
            for block in range(blocks):
                call_step(step_cell, table.ctypes.data, block, first, last)
        if projects:
            product(
                zero,
                output_blocks,
                table[At.Q] + first * row_c,
                row_c,
                size,
                projection.ctypes.data,
                table[At.PROJECTED] + first * row_h,
                row_h,
                c.shape[2],
                rows,
                True,
            )
            for block in range(output_blocks):
                call_step(step_output, table.ctypes.data, block, first, last)
        new = at(h, following) + column * size
        if short is not None:
            to = at(y, t) + column * 2
            shorten_outputs(new, row_h, to, width * 2, lengths, t, first, last, columns - column)
            to = short_h + (1 - count % 2) * short_slot + own * 2
            shorten_rows(at(h, following) + own * size, row_h, to, short_row, first, last, own_size)
        else:
            to = at(y, t) + column * size
            put_outputs(zero, to, width * size, new, row_h, lengths, t, first, last, columns - column)
        if wave is not None:
            if wave.mask.shape[0] > 0:
                _drop_out(y[t], wave.mask[t], wave.masked[t], lengths, t, first, last, column, columns)
            write(at(wave.done, part), count + 1)
        if cut is not None and not masked:
            after, other = (at(c, following) if of_cell else at(h, following)) + own * size, 1 - slot_now
            to = cut_to + other * cut_slot + own * 2
            cut.any_wild[other, part] = cut_rows(
                after, row_source, to, cut_row, cut_part, first, last, 1, 0, own_size, flags_to + other * slot_flags
            )
        if shared:
            met += 1
            meet(counter.ctypes.data, parts * met)
        now = following
    if cut is not None:
        release_tiles()


_ARGUMENTS: Final = list(inspect.signature(_forward).parameters)[2:]
#: Where `y` and `x` are among what `keep_forward` keeps.
Y_PLACE: Final = _ARGUMENTS.index("y")
X_PLACE: Final = _ARGUMENTS.index("x")


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
def _drop_out(
    source: Any, mask: Any, target: Any, lengths: Any, t: int, first: int, last: int, column: int, columns: int
) -> None:
    """``target = mask source``, (N, P), in some rows and columns of step `t`; 0 past a row's end."""
    for row in range(first, last):
        for k in range(column, columns):
            target[row, k] = source[row, k] * mask[row, k] if t < lengths[row] else 0


@compiled
def _put(source: Any, target: Any) -> None:
    """Copy a state (N, P) to (N, Pp), with 0 behind the last unit."""
    for row in range(source.shape[0]):
        for k in range(target.shape[1]):
            target[row, k] = source[row, k] if k < source.shape[1] else 0


@compiled
def _take(source: Any, target: Any) -> None:
    """The inverse of `_put`. An assignment of slices would take seconds to compile, for the texts of its errors."""
    for row in range(target.shape[0]):
        for k in range(target.shape[1]):
            target[row, k] = source[row, k]


@compiled
def _prepare(counter: Any, first_h: Any, first_c: Any, reverse: bool, h: Any, c: Any, y: Any) -> None:
    """Put the first state where the first step reads it."""
    start = y.shape[0] if reverse and h.shape[0] == y.shape[0] + 1 else 0
    _put(first_h, h[start])
    _put(first_c, c[start])
    counter[0] = 0


@compiled
def _finish(last_h: Any, last_c: Any, reverse: bool, h: Any, c: Any, y: Any) -> None:
    """Take the last state from where the last step left it."""
    steps = y.shape[0]
    end = steps % 2
    if h.shape[0] == steps + 1:
        end = 0 if reverse else steps
    _take(h[end], last_h)
    _take(c[end], last_c)


@compiled
def keep_forward(room: Any, places: Any, *args: Any) -> int:
    """Keep what `_forward` takes after `part` and `parts` in the array `room`, and return the address of its code.

    ``h`` (T + 1 or 2, N, Pp) and ``c`` (T + 1 or 2, N, Hp) hold the states, all of them or two in turn. The products of
    the input are made for `ahead` steps at a time, into `gates` (T or `ahead`, B, N, G, lanes), or into ``norms.x``.
    Where there is `short`, `x` and its weights are pairs of bfloat16, and `y` is the bits of such numbers.
    """
    code: int = kept(_forward, args, room.ctypes.data, places.ctypes.data)
    return code


@compiled
def forward(
    team: Any,
    code: int,
    room: int,
    counter: Any,
    first_h: Any,
    first_c: Any,
    last_h: Any,
    last_c: Any,
    reverse: bool,
    h: Any,
    c: Any,
    y: Any,
) -> None:
    """All steps of all rows, shared by rows, or by hidden units if `by_units`: then threads meet after every step.

    `code` and `room` are addresses: of what `keep_forward` returned, and of its arguments.
    """
    _prepare(counter, first_h, first_c, reverse, h, c, y)
    side_by_side(team, (code, room))
    _finish(last_h, last_c, reverse, h, c, y)


@compiled
def forward_again(
    team: Any,
    code: int,
    room: int,
    y_place: int,
    x_place: int,
    counter: Any,
    first_h: Any,
    first_c: Any,
    last_h: Any,
    last_c: Any,
    reverse: bool,
    h: Any,
    c: Any,
    y: Any,
    x: Any,
) -> None:
    """`forward` with another `x` and `y`; states are (1, N, P) and (1, N, H)."""
    write(y_place, y.ctypes.data)
    write(x_place, x.ctypes.data)
    _prepare(counter, first_h[0], first_c[0], reverse, h, c, y)
    side_by_side(team, (code, room))
    _finish(last_h[0], last_c[0], reverse, h, c, y)


@compiled
def _forward_both(part: int, parts: int, first: Any, second: Any) -> None:
    if parts == 1:
        call_part(first[0], first[1], 0, 1)
        call_part(second[0], second[1], 0, 1)
    elif part % 2 == 0:
        call_part(first[0], first[1], part // 2, (parts + 1) // 2)
    else:
        call_part(second[0], second[1], part // 2, parts // 2)


@compiled
def forward_both(team: Any, first: Any, second: Any) -> None:
    """`forward` of two directions, whose arguments are two tuples; each on half of the threads."""
    _prepare(first[2], first[3], first[4], first[7], first[8], first[9], first[10])
    _prepare(second[2], second[3], second[4], second[7], second[8], second[9], second[10])
    side_by_side(team, outlined(_forward_both, (first[:2], second[:2])))
    _finish(first[5], first[6], first[7], first[8], first[9], first[10])
    _finish(second[5], second[6], second[7], second[8], second[9], second[10])


@compiled
def _forward_wave(part: int, parts: int, codes: Any) -> None:
    count = len(codes)
    for layer in range(part % count, count, parts):
        sharers = max(1, (parts - layer + count - 1) // count)
        call_part(codes[layer, 0], codes[layer, 1], part // count, sharers)


@compiled
def forward_wave(team: Any, codes: Any, layers: Any) -> None:
    """`forward` of the layers of a stack in a wavefront, whose passes have a `Wave` each.

    `codes` (layers, 2) are what `forward` takes as `code` and `room`, `layers` the rest of what it takes.

    Threads are dealt to the layers in turn; where there are fewer, layers to the threads, from the first one up. A
    layer waits only for the one below, which its own thread has finished or a thread that is there has begun or will
    begin without waiting for this one: side by side run only those that have come. So one of them always goes on.
    """
    for layer in range(len(codes)):
        args = layers[layer]
        _prepare(args[0], args[1], args[2], args[5], args[6], args[7], args[8])
    side_by_side(team, outlined(_forward_wave, (codes,)))
    for layer in range(len(codes)):
        args = layers[layer]
        _finish(args[3], args[4], args[5], args[6], args[7], args[8])
