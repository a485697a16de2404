"""The loop over time of the forward pass."""

# long file: the loop and its entries (next issue)

from __future__ import annotations

import inspect
from typing import Any, Final

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.amx import (
    SPLIT_PARTS,
    TILE_BYTES,
    TILE_K,
    TILE_ROWS,
    amx_panel_matmul,
    configure_tiles,
    release_tiles,
)
from lstmcore_numba.gemm.bf16 import narrow_outputs, narrow_rows
from lstmcore_numba.gemm.bf16x3 import split_row_range
from lstmcore_numba.gemm.bf16x3_passes import has_non_finite, mixed_panel_matmul, split_input_projection, split_inputs
from lstmcore_numba.gemm.vector import (
    VECTOR_BYTES,
    call_step,
    copy_numbers,
    grouped_panel_matmul,
    matmul,
    panel_matmul,
)
from lstmcore_numba.layer_norm import normalise, normalise_cells
from lstmcore_numba.runtime.barrier import barrier, wait_for, write
from lstmcore_numba.runtime.tasks import call_task, make_task, store_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.time_loop.step_arrays import FIELDS, address_at, apply_recurrent_mask, set_norm_args, store_outputs
from lstmcore_numba.tuning import LONG_WAIT_SPINS


@compiled
def _forward(  # noqa: C901, PLR0913  (next issue: groups of arguments)  # long: next issue
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
    input_chunk: int,
    split: Any,
    packed: Any,
    counter: Any,
    wavefront: Any,
) -> None:
    args = np.zeros(FIELDS, np.int64)
    steps, batch, width = y.shape
    blocks, cols, lanes = gates.shape[1], gates.shape[3], gates.shape[4]
    first, last = (0, batch) if by_units else (batch * part // parts, batch * (part + 1) // parts)
    block_first, block_last = (blocks * part // parts, blocks * (part + 1) // parts) if by_units else (0, blocks)
    zero, size = h.dtype.type(0), h.itemsize
    rows, k_size = last - first, operand.shape[2]
    row_z, row_c, row_h = cols * lanes * size, c.shape[2] * size, h.shape[2] * size
    output_blocks = h.shape[2] // lanes
    kept = h.shape[0] == steps + 1
    masked, projects = mask_r.shape[0] > 0, step_output != 0
    own_blocks, tail = block_last - block_first, hidden - (blocks - 1) * lanes
    column = 0 if projects else block_first * lanes
    columns = width if projects else min(width, block_last * lanes)
    args[KernelArgs.LENGTHS], args[KernelArgs.BIAS], args[KernelArgs.PEEPHOLE] = (
        lengths.ctypes.data,
        bias.ctypes.data,
        peephole.ctypes.data,
    )
    args[KernelArgs.BATCH] = batch
    products = norms.x if norms is not None else gates
    all_kept = products.shape[0] == steps
    now = steps if reverse and kept else 0
    origin, barriers = 0, 0
    shared = by_units and parts > 1
    if wavefront is not None and part == 0:
        for other in range(parts, wavefront.done.shape[0]):
            write(address_at(wavefront.done, other), steps)
    own, own_size = (
        (block_first * lanes, min(k_size, block_last * lanes) - block_first * lanes) if by_units else (0, k_size)
    )
    splitters = (0, parts) if by_units else (part, part + 1)
    chunks, step_bytes = (k_size + TILE_K - 1) // TILE_K, cols * SPLIT_PARTS * TILE_BYTES
    if split is not None:
        configure_tiles(min(TILE_ROWS, rows))
        split_slot, split_part, split_row = split.state.strides[:3]
        flags = part * batch if by_units else 0
        split_to, flags_to, row_source = (
            split.state.ctypes.data,
            split.non_finite.ctypes.data + flags,
            row_c if of_cell else row_h,
        )
        slot_flags = split.non_finite.strides[0]
        x_part, x_parts = (part, parts) if by_units else (0, 1)
        if not masked:
            start = (address_at(c, now) if of_cell else address_at(h, now)) + own * size
            split.any_non_finite[0, part] = split_row_range(
                start, row_source, split_to + own * 2, split_row, split_part, first, last, 1, 0, own_size, flags_to
            )
            if shared:
                barriers += 1
                barrier(counter.ctypes.data, parts * barriers)
    if packed is not None:
        pair, pairs = packed.recurrent.dtype.type(0), packed.recurrent.shape[1]
        packed_h, (packed_slot, packed_row) = packed.h.ctypes.data, packed.h.strides[:2]
        narrow_rows(address_at(h, now) + own * size, row_h, packed_h + own * 2, packed_row, first, last, own_size)
        if shared:
            barriers += 1
            barrier(counter.ctypes.data, parts * barriers)
    for count in range(steps):
        t = steps - 1 - count if reverse else count
        following = (t if reverse else t + 1) if kept else 1 - now
        if split is not None:
            slot_now = count % 2
            split_now = split_to + slot_now * split_slot
        if count % input_chunk == 0:
            some = min(input_chunk, steps - count)
            begin = t - some + 1 if reverse else t
            origin = 0 if all_kept else begin
            if wavefront is not None:
                for other in range(wavefront.below.shape[0]):
                    wait_for(address_at(wavefront.below, other), count + some, LONG_WAIT_SPINS)
            if split is not None:
                split.any_non_finite[2, part] = split_inputs(x_part, x_parts, x, split, begin, some, first, last)
                if shared:
                    barriers += 1
                    barrier(counter.ctypes.data, parts * barriers)
                non_finite = has_non_finite(split.any_non_finite, 2, *splitters)
                split_input_projection(
                    x,
                    input_weight,
                    split,
                    non_finite,
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
                _input_projection(
                    x, input_weight, products, begin, begin - origin, some, first, last, block_first, block_last
                )
            if norms is not None:
                for k in range(begin, begin + some):
                    normalise(norms.x[k - origin], norms.deviation_x[k], cols * hidden, tail, norms.eps, first, last)
        place = t - origin
        args[KernelArgs.STEP] = t
        args[KernelArgs.GATES], args[KernelArgs.RAW] = address_at(gates, place), address_at(raw, t)
        args[KernelArgs.MASK_C], args[KernelArgs.MASK_H] = address_at(mask_c, t), address_at(mask_h, t)
        args[KernelArgs.C_BEFORE], args[KernelArgs.C] = address_at(c, now), address_at(c, following)
        args[KernelArgs.H_BEFORE], args[KernelArgs.H] = address_at(h, now), address_at(h, following)
        args[KernelArgs.Q], args[KernelArgs.PROJECTED] = address_at(q, t), address_at(projected, t)
        source, pitch = (args[KernelArgs.C_BEFORE], row_c) if of_cell else (args[KernelArgs.H_BEFORE], row_h)
        if masked:
            slot = t if operand.shape[0] > 1 else 0
            apply_recurrent_mask(operand[slot], mask_r, c[now] if of_cell else h[now], first, last)
            source, pitch = address_at(operand, t), k_size * size
            if split is not None:
                split.any_non_finite[slot_now, part] = split_row_range(
                    source,
                    pitch,
                    split_now,
                    split_row,
                    split_part,
                    first,
                    last,
                    1,
                    0,
                    k_size,
                    flags_to + slot_now * slot_flags,
                )
        if split is not None:
            non_finite = has_non_finite(split.any_non_finite, slot_now, *splitters)
        norm_index, target = 0, args[KernelArgs.GATES]
        if norms is not None:
            norm_index = set_norm_args(args, norms, t)
            args[KernelArgs.NORM_X] = address_at(norms.x, place)
            target = args[KernelArgs.NORM_H]
        for index in range(own_blocks):
            # The order of blocks alternates: a step starts with the weights that are in the cache from the one before.
            block = block_first + index if count % 2 == 0 else block_last - 1 - index
            weights = recurrent_weight.ctypes.data + block * k_size * cols * VECTOR_BYTES
            there = target + (block * batch + first) * row_z
            if split is not None:
                split_weight = split.recurrent.ctypes.data + block * chunks * step_bytes
                if non_finite:
                    mixed_panel_matmul(
                        zero,
                        cols,
                        split_now,
                        split_row,
                        split_part,
                        split_weight,
                        source,
                        pitch,
                        weights,
                        there,
                        row_z,
                        1,
                        0,
                        k_size,
                        first,
                        last,
                        norms is not None,
                        split.non_finite[slot_now, : parts if by_units else 1],
                        min(TILE_ROWS, rows),
                    )
                else:
                    turn = 0 if index == own_blocks - 1 else chunks * step_bytes
                    amx_panel_matmul(
                        cols,
                        split_now + first * split_row,
                        split_row,
                        split_part,
                        split_weight,
                        step_bytes,
                        there,
                        row_z,
                        chunks,
                        rows,
                        norms is not None,
                        split_weight + turn if count % 2 == 0 else split_weight - turn,
                        min(TILE_ROWS, rows),
                    )
            elif packed is not None:
                panel_matmul(
                    pair,
                    cols,
                    packed_h + count % 2 * packed_slot + first * packed_row,
                    packed_row,
                    4,
                    packed.recurrent.ctypes.data + block * pairs * cols * VECTOR_BYTES,
                    cols * VECTOR_BYTES,
                    there,
                    row_z,
                    pairs,
                    rows,
                    norms is not None,
                )
            else:
                panel_matmul(
                    zero,
                    cols,
                    source + first * pitch,
                    pitch,
                    size,
                    weights,
                    cols * VECTOR_BYTES,
                    there,
                    row_z,
                    k_size,
                    rows,
                    norms is not None,
                )
            # The step function of a block runs after the GEMM of the next one, whose last sums are not ready earlier.
            if norms is None and index > 0:
                call_step(step, args.ctypes.data, block - 1 if count % 2 == 0 else block + 1, first, last)
        if norms is None:
            call_step(step, args.ctypes.data, block_last - 1 if count % 2 == 0 else block_first, first, last)
        if norms is not None:
            normalise(norms.h[norm_index], norms.deviation_h[norm_index], cols * hidden, tail, norms.eps, first, last)
            for block in range(blocks):
                call_step(step, args.ctypes.data, block, first, last)
            normalise_cells(
                c[following], norms.c[norm_index], norms.deviation_c[norm_index], hidden, tail, norms.eps, first, last
            )
            for block in range(blocks):
                call_step(step_cell, args.ctypes.data, block, first, last)
        if projects:
            matmul(
                zero,
                output_blocks,
                args[KernelArgs.Q] + first * row_c,
                row_c,
                size,
                projection.ctypes.data,
                args[KernelArgs.PROJECTED] + first * row_h,
                row_h,
                c.shape[2],
                rows,
                True,
            )
            for block in range(output_blocks):
                call_step(step_output, args.ctypes.data, block, first, last)
        new = address_at(h, following) + column * size
        if packed is not None:
            to = address_at(y, t) + column * 2
            narrow_outputs(new, row_h, to, width * 2, lengths, t, first, last, columns - column)
            to = packed_h + (1 - count % 2) * packed_slot + own * 2
            narrow_rows(address_at(h, following) + own * size, row_h, to, packed_row, first, last, own_size)
        else:
            to = address_at(y, t) + column * size
            store_outputs(zero, to, width * size, new, row_h, lengths, t, first, last, columns - column)
        if wavefront is not None:
            if wavefront.mask.shape[0] > 0:
                _apply_dropout(y[t], wavefront.mask[t], wavefront.masked[t], lengths, t, first, last, column, columns)
            write(address_at(wavefront.done, part), count + 1)
        if split is not None and not masked:
            after, other = (
                (address_at(c, following) if of_cell else address_at(h, following)) + own * size,
                1 - slot_now,
            )
            to = split_to + other * split_slot + own * 2
            split.any_non_finite[other, part] = split_row_range(
                after, row_source, to, split_row, split_part, first, last, 1, 0, own_size, flags_to + other * slot_flags
            )
        if shared:
            barriers += 1
            barrier(counter.ctypes.data, parts * barriers)
        now = following
    if split is not None:
        release_tiles()


_ARGUMENTS: Final = list(inspect.signature(_forward).parameters)[2:]
#: Index of `y` and `x` among the stored arguments.
Y_INDEX: Final = _ARGUMENTS.index("y")
X_INDEX: Final = _ARGUMENTS.index("x")


@compiled
def _input_projection(  # noqa: PLR0913  (next issue: groups of arguments)
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
    """Compute ``W x`` of `steps` steps from `begin` on, into `products` (steps, B, N, G, lanes) from `place` on.

    The weights of a block are read once for all of them. A single row is multiplied twice, as two equal rows: the
    microkernel of one row adds in another order, and a step would have other bits where its call has no other steps.
    """
    batch, k_size = x.shape[1], x.shape[2]
    blocks, cols, lanes = products.shape[1], products.shape[3], products.shape[4]
    zero, size, group = x.dtype.type(0), x.itemsize, last - first
    row_x, row_z = k_size * size, cols * lanes * size
    single = steps * group == 1
    twice = np.empty((2 if single else 0, cols * lanes), products.dtype)
    for block in range(block_first, block_last):
        target = products.ctypes.data + ((place * blocks + block) * batch + first) * row_z
        grouped_panel_matmul(
            zero,
            cols,
            x.ctypes.data + (begin * batch + first) * row_x,
            0 if single else row_x,
            size,
            0,
            (batch - group) * row_x,
            weight.ctypes.data + block * k_size * cols * VECTOR_BYTES,
            cols * VECTOR_BYTES,
            twice.ctypes.data if single else target,
            row_z,
            (blocks * batch - group) * row_z,
            1,
            k_size,
            2 if single else steps * group,
            2 if single else max(group, 1),
            True,
        )
        if single:
            copy_numbers(products.dtype.type(0), twice.ctypes.data, target, cols * lanes, True)


@compiled
def _apply_dropout(  # noqa: PLR0913  (next issue: groups of arguments)
    source: Any, mask: Any, target: Any, lengths: Any, t: int, first: int, last: int, column: int, columns: int
) -> None:
    """Compute ``target = mask * source`` (N, P) for some rows and columns of step `t`; 0 past a row's end."""
    for row in range(first, last):
        for k in range(column, columns):
            target[row, k] = source[row, k] * mask[row, k] if t < lengths[row] else 0


@compiled
def _load_state(source: Any, target: Any) -> None:
    """Copy a state (N, P) to (N, Pp), with 0 behind the last unit."""
    for row in range(source.shape[0]):
        for k in range(target.shape[1]):
            target[row, k] = source[row, k] if k < source.shape[1] else 0


@compiled
def _store_state(source: Any, target: Any) -> None:
    """Copy a state (N, Pp) to (N, P).

    A loop, since an assignment of slices takes seconds to compile.
    """
    for row in range(target.shape[0]):
        for k in range(target.shape[1]):
            target[row, k] = source[row, k]


@compiled
def _prepare(  # noqa: PLR0913  (next issue: groups of arguments)
    counter: Any, first_h: Any, first_c: Any, reverse: bool, h: Any, c: Any, y: Any
) -> None:
    """Copy the initial state to where the first step reads it, and reset the barrier."""
    start = y.shape[0] if reverse and h.shape[0] == y.shape[0] + 1 else 0
    _load_state(first_h, h[start])
    _load_state(first_c, c[start])
    counter[0] = 0


@compiled
def _finish(last_h: Any, last_c: Any, reverse: bool, h: Any, c: Any, y: Any) -> None:
    """Copy the final state from where the last step wrote it."""
    steps = y.shape[0]
    end = steps % 2
    if h.shape[0] == steps + 1:
        end = 0 if reverse else steps
    _store_state(h[end], last_h)
    _store_state(c[end], last_c)


@compiled
def store_forward(arguments: Any, fields: Any, *args: Any) -> int:
    """Store the arguments of `_forward` after `part` and `parts`, and return the address of the task's function.

    ``h`` (T + 1 or 2, N, Pp) and ``c`` (T + 1 or 2, N, Hp) hold the states, all of them or two in turn. The input
    projections are computed for `input_chunk` steps at a time, into `gates` (T or `input_chunk`, B, N, G, lanes), or
    into ``norms.x``. With `packed`, `x` and its weights are packed pairs, and `y` holds the bits of bfloat16.

    Parameters
    ----------
    arguments
        An array of `tasks.STORED_TASK_BYTES`, which gets the arguments.
    fields
        (arguments,) int64, see `tasks.store_task`.
    args
        The arguments.
    """
    function: int = store_task(_forward, args, arguments.ctypes.data, fields.ctypes.data)
    return function


@compiled
def forward(  # noqa: PLR0913  (next issue: groups of arguments)
    threads: Any,
    function: int,
    arguments: int,
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
    """Run all steps of all rows. Threads share rows, or hidden units if `by_units`, with a barrier after each step.

    `function` is what `store_forward` returned, and `arguments` is the address of the stored arguments.
    """
    _prepare(counter, first_h, first_c, reverse, h, c, y)
    run_parts(threads, (function, arguments))
    _finish(last_h, last_c, reverse, h, c, y)


@compiled
def replay_forward(  # noqa: PLR0913  (next issue: groups of arguments)
    threads: Any,
    function: int,
    arguments: int,
    y_field: int,
    x_field: int,
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
    """Run `forward` with another `x` and `y`, whose data pointers go to the addresses of the two fields.

    States are (1, N, P) and (1, N, H).
    """
    write(y_field, y.ctypes.data)
    write(x_field, x.ctypes.data)
    _prepare(counter, first_h[0], first_c[0], reverse, h, c, y)
    run_parts(threads, (function, arguments))
    _finish(last_h[0], last_c[0], reverse, h, c, y)


@compiled
def _forward_both(part: int, parts: int, first: Any, second: Any) -> None:
    if parts == 1:
        call_task(first[0], first[1], 0, 1)
        call_task(second[0], second[1], 0, 1)
    elif part % 2 == 0:
        call_task(first[0], first[1], part // 2, (parts + 1) // 2)
    else:
        call_task(second[0], second[1], part // 2, parts // 2)


@compiled
def forward_both(threads: Any, first: Any, second: Any) -> None:
    """Run `forward` of two directions, each on half of the threads. Their arguments are two tuples."""
    _prepare(first[2], first[3], first[4], first[7], first[8], first[9], first[10])
    _prepare(second[2], second[3], second[4], second[7], second[8], second[9], second[10])
    run_parts(threads, make_task(_forward_both, (first[:2], second[:2])))
    _finish(first[5], first[6], first[7], first[8], first[9], first[10])
    _finish(second[5], second[6], second[7], second[8], second[9], second[10])


@compiled
def _forward_wavefront(part: int, parts: int, tasks: Any) -> None:
    count = len(tasks)
    for layer in range(part % count, count, parts):
        sharers = max(1, (parts - layer + count - 1) // count)
        call_task(tasks[layer, 0], tasks[layer, 1], part // count, sharers)


@compiled
def forward_wavefront(threads: Any, tasks: Any, layers: Any) -> None:
    """Run `forward` of the layers of a stack in a wavefront. Each pass has a `WavefrontProgress`.

    `tasks` (layers, 2) holds the arguments `function` and `arguments` of `forward`, `layers` the rest of its arguments.

    Threads are dealt to the layers in turn. If there are fewer threads than layers, layers are dealt to threads, from
    the lowest up. A layer waits only for the layer below. Either its own thread has finished that layer, or another
    thread runs it or will run it without waiting for this one. So one thread can always go on.
    """
    for layer in range(len(tasks)):
        args = layers[layer]
        _prepare(args[0], args[1], args[2], args[5], args[6], args[7], args[8])
    run_parts(threads, make_task(_forward_wavefront, (tasks,)))
    for layer in range(len(tasks)):
        args = layers[layer]
        _finish(args[3], args[4], args[5], args[6], args[7], args[8])
