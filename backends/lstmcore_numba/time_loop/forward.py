"""The loop over time of the forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.codegen.step_emitter import KernelArgs
from lstmcore_numba.gemm.forward_operands import (
    InputChunk,
    begin_gemm,
    end_gemm,
    forward_gemm,
    multiply_input,
    publish_input,
    publish_state,
    recurrent_panel,
    recurrent_rows,
)
from lstmcore_numba.gemm.operands import Plane, Sums, address_of
from lstmcore_numba.gemm.product import Panels, all_rows, multiply_panel
from lstmcore_numba.gemm.thread_share import ThreadShare, row_range
from lstmcore_numba.gemm.vector import call_step
from lstmcore_numba.layer_norm import normalise, normalise_cells
from lstmcore_numba.runtime.barrier import wait_for, write
from lstmcore_numba.time_loop.step_arrays import (
    FIELDS,
    LayerSteps,
    StepRows,
    address_at,
    apply_recurrent_mask,
    call_blocks,
    meet,
    project,
    set_norm_args,
    store_outputs,
)
from lstmcore_numba.tuning import LONG_WAIT_SPINS, PRODUCTS_FIRST_BYTES


class ForwardArrays(NamedTuple):
    """The arrays of a pass: the table of step functions, and the arguments of `run_part` of the same names."""

    args: Any
    h: Any
    c: Any
    y: Any
    x: Any
    lengths: Any
    mask_r: Any
    mask_h: Any
    mask_c: Any
    gates: Any
    raw: Any
    operand: Any
    q: Any
    projected: Any
    projection: Any
    counter: int
    input_chunk: int


@compiled
def run_part(  # noqa: PLR0913  (the flat entry of a pass)  # long: the flat entry of a pass
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
    """Run one thread's part of all steps; see `entries.store_forward` for the arguments."""
    args = np.zeros(FIELDS, np.int64)
    args[KernelArgs.LENGTHS], args[KernelArgs.BIAS] = address_of(lengths), address_of(bias)
    args[KernelArgs.PEEPHOLE], args[KernelArgs.BATCH] = address_of(peephole), y.shape[1]
    blocks, lanes, k_size = gates.shape[1], gates.shape[4], operand.shape[2]
    block_first, block_last = (blocks * part // parts, blocks * (part + 1) // parts) if by_units else (0, blocks)
    first, last = row_range(part, parts, by_units, y.shape[1])
    unit, units = 0, k_size
    if by_units:
        unit, units = block_first * lanes, min(k_size, block_last * lanes) - block_first * lanes
    share = ThreadShare(part, parts, by_units, first, last, block_first, block_last, unit, units)
    layer = LayerSteps(step, step_output, step_cell, hidden, reverse, of_cell, mask_r.shape[0] > 0)
    arrays = ForwardArrays(
        args,
        h,
        c,
        y,
        x,
        lengths,
        mask_r,
        mask_h,
        mask_c,
        gates,
        raw,
        operand,
        q,
        projected,
        projection,
        address_of(counter),
        input_chunk,
    )
    gemm = forward_gemm(split, packed, input_weight, recurrent_weight, h)
    begin_gemm(gemm, last - first)
    if wavefront is not None and part == 0:
        for other in range(parts, wavefront.done.shape[0]):
            write(address_at(wavefront.done, other), y.shape[0])
    _run_steps(share, layer, arrays, gemm, norms, wavefront)
    end_gemm(gemm)


@compiled
def _run_steps(  # long: the time loop
    share: Any, layer: Any, arrays: Any, gemm: Any, norms: Any, wavefront: Any
) -> None:
    args, h, c, y, x, gates = arrays.args, arrays.h, arrays.c, arrays.y, arrays.x, arrays.gates
    (steps, batch, width), (first, last) = y.shape, (share.first, share.last)
    blocks, cols, lanes = gates.shape[1], gates.shape[3], gates.shape[4]
    hidden, size, k_size, output_blocks = layer.hidden, h.itemsize, arrays.operand.shape[2], h.shape[2] // lanes
    row_z, row_c, row_h, row_y = cols * lanes * size, c.shape[2] * size, h.shape[2] * size, width * y.itemsize
    row_state, tail = row_c if layer.of_cell else row_h, hidden - (blocks - 1) * lanes
    column, columns = (0, width) if layer.step_output != 0 else (share.block_first * lanes, share.block_last * lanes)
    columns, own_blocks = min(width, columns) - column, share.block_last - share.block_first
    products = norms.x if norms is not None else gates
    all_kept, kept = products.shape[0] == steps, h.shape[0] == steps + 1
    now = steps if layer.reverse and kept else 0
    origin, barriers = 0, 0
    state = Plane(address_at(c, now) if layer.of_cell else address_at(h, now), row_state)
    if not layer.masked and publish_state(gemm, state, 0, share):
        barriers = meet(arrays.counter, barriers, share)
    for count in range(steps):
        t = steps - 1 - count if layer.reverse else count
        following = (t if layer.reverse else t + 1) if kept else 1 - now
        if count % arrays.input_chunk == 0:
            some = min(arrays.input_chunk, steps - count)
            begin = t - some + 1 if layer.reverse else t
            origin = 0 if all_kept else begin
            if wavefront is not None:
                _wait_for_layer_below(wavefront, count + some)
            chunk = InputChunk(begin, begin - origin, some)
            if publish_input(gemm, x, chunk, share):
                barriers = meet(arrays.counter, barriers, share)
            multiply_input(gemm, x, products, chunk, share)
            if norms is not None:
                for k in range(begin, begin + some):
                    normalise(norms.x[k - origin], norms.deviation_x[k], cols * hidden, tail, norms.eps, first, last)
        place, slot, turn = t - origin, count % 2, 1 - 2 * (count % 2)
        args[KernelArgs.STEP], args[KernelArgs.GATES] = t, address_at(gates, place)
        args[KernelArgs.RAW], args[KernelArgs.Q] = address_at(arrays.raw, t), address_at(arrays.q, t)
        args[KernelArgs.MASK_C], args[KernelArgs.MASK_H] = address_at(arrays.mask_c, t), address_at(arrays.mask_h, t)
        args[KernelArgs.C_BEFORE], args[KernelArgs.C] = address_at(c, now), address_at(c, following)
        args[KernelArgs.H_BEFORE], args[KernelArgs.H] = address_at(h, now), address_at(h, following)
        args[KernelArgs.PROJECTED], target = address_at(arrays.projected, t), args[KernelArgs.GATES]
        state = Plane(args[KernelArgs.C_BEFORE] if layer.of_cell else args[KernelArgs.H_BEFORE], row_state)
        if layer.masked:
            masked = arrays.operand[t if arrays.operand.shape[0] > 1 else 0]
            apply_recurrent_mask(masked, arrays.mask_r, c[now] if layer.of_cell else h[now], first, last)
            state = Plane(address_of(masked), k_size * size)
            publish_state(gemm, state, slot, share)
        norm = 0
        if norms is not None:
            norm = set_norm_args(args, norms, t)
            args[KernelArgs.NORM_X], target = address_at(norms.x, place), args[KernelArgs.NORM_H]
        left = recurrent_rows(gemm, state, k_size, slot, share)
        interleaved = norms is None and own_blocks * (last - first) * row_z > PRODUCTS_FIRST_BYTES
        for index in range(own_blocks):
            # The order of blocks alternates: a step starts with the weights that are in the cache from the one before.
            block = share.block_first + index if turn == 1 else share.block_last - 1 - index
            panel = recurrent_panel(gemm, block, block + turn if index < own_blocks - 1 else block, cols, k_size)
            sums = Sums(target + (block * batch + first) * row_z, row_z, 0, norms is not None)
            multiply_panel(left, panel, sums, all_rows(last - first))
            # The step function of a block runs after the GEMM of the next one, whose last sums are not ready earlier.
            if interleaved and index > 0:
                _run_block(args, layer, block - turn, share)
        if norms is None:
            _run_waiting_blocks(args, layer, share, 1 if interleaved else own_blocks, turn)
        else:
            _run_normalised_step(args, layer, norms, norm, c[following], share)
        if layer.step_output != 0:
            panels, result = Panels(address_of(arrays.projection), output_blocks), args[KernelArgs.PROJECTED]
            project(Plane(args[KernelArgs.Q], row_c), panels, h, c.shape[2], Sums(result, row_h, 0, True), share)
            call_blocks(layer.step_output, args, output_blocks, share)
        rows, to = StepRows(arrays.lengths, t, first, last), Plane(address_at(y, t) + column * y.itemsize, row_y)
        store_outputs(y, to, Plane(address_at(h, following) + column * size, row_h), rows, columns)
        if wavefront is not None:
            _finish_wavefront_step(wavefront, y, rows, (column, columns), share.part, count + 1)
        if not layer.masked:
            state = Plane(address_at(c, following) if layer.of_cell else address_at(h, following), row_state)
            publish_state(gemm, state, 1 - slot, share)
        barriers = meet(arrays.counter, barriers, share)
        now = following


@compiled
def _run_block(args: Any, layer: Any, block: int, share: Any) -> None:
    """Call the step functions for a block of units."""
    call_step(layer.step, address_of(args), block, share.first, share.last)
    if layer.step_cell != 0:
        call_step(layer.step_cell, address_of(args), block, share.first, share.last)


@compiled
def _run_waiting_blocks(args: Any, layer: Any, share: Any, waiting: int, turn: int) -> None:
    """Call the step functions for the blocks whose products came last; see `_run_steps`."""
    begin = share.block_last - waiting if turn == 1 else share.block_first
    for block in range(begin, begin + waiting):
        call_step(layer.step, address_of(args), block, share.first, share.last)
    if layer.step_cell != 0:
        for block in range(begin, begin + waiting):
            call_step(layer.step_cell, address_of(args), block, share.first, share.last)


@compiled
def _run_normalised_step(args: Any, layer: Any, norms: Any, place: int, cells: Any, share: Any) -> None:
    """Run a step with layer norm after its products, whose normalised rows go to index `place` of `norms`."""
    blocks, _, cols, lanes = norms.h.shape[1:]
    first, last, hidden, tail = share.first, share.last, layer.hidden, layer.hidden - (blocks - 1) * lanes
    normalise(norms.h[place], norms.deviation_h[place], cols * hidden, tail, norms.eps, first, last)
    call_blocks(layer.step, args, blocks, share)
    normalise_cells(cells, norms.c[place], norms.deviation_c[place], hidden, tail, norms.eps, first, last)
    call_blocks(layer.step_cell, args, blocks, share)


@compiled
def _wait_for_layer_below(wavefront: Any, steps: int) -> None:
    """Wait until all threads of the layer below have finished `steps` steps."""
    for other in range(wavefront.below.shape[0]):
        wait_for(address_at(wavefront.below, other), steps, LONG_WAIT_SPINS)


@compiled
def _finish_wavefront_step(wavefront: Any, y: Any, rows: Any, columns: Any, part: int, steps: int) -> None:
    """Apply the dropout to the outputs of a step, and tell the layer above that `steps` steps are finished.

    `columns` are the first column and the number of columns of this thread.
    """
    if wavefront.mask.shape[0] > 0:
        column, count = columns
        _apply_dropout(y[rows.t], wavefront.mask[rows.t], wavefront.masked[rows.t], rows, column, count)
    write(address_at(wavefront.done, part), steps)


@compiled
def _apply_dropout(source: Any, mask: Any, target: Any, rows: Any, column: int, columns: int) -> None:
    """Compute ``target = mask * source`` (N, P) for `StepRows` and some columns; 0 past a row's end."""
    for row in range(rows.first, rows.last):
        for k in range(column, column + columns):
            target[row, k] = source[row, k] * mask[row, k] if rows.t < rows.lengths[row] else 0
