"""The gradients of the input and of weights: GEMMs over all steps, after the loop over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.amx import TILE_ROWS
from lstmcore_numba.gemm.backward_operands import (
    add_weight_gradient,
    gathered_rows,
    input_gradient_gemm,
    input_panels,
    split_columns,
    weight_gradient_gemm,
)
from lstmcore_numba.gemm.forward_operands import begin_gemm, end_gemm
from lstmcore_numba.gemm.operands import Columns, Panel, Plane, RowRange, Rows, Sums, address_of
from lstmcore_numba.gemm.product import multiply
from lstmcore_numba.gemm.vector import VECTOR_BYTES, add_numbers, copy_numbers
from lstmcore_numba.runtime.tasks import make_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.tuning import INPUT_GRADIENT_ROWS, TRANSPOSE_COLUMNS


@compiled
def _input_gradient(part: int, parts: int, dz: Any, weight: Any, split_weight: Any, dx: Any) -> None:
    steps, blocks, batch, cols, lanes = dz.shape
    size, wide = dz.itemsize, cols * lanes
    row_z, row_x = wide * size, dx.shape[1] * size
    first, last = 0, batch
    begin, end = steps * part // parts, steps * (part + 1) // parts
    if steps == 1:
        first, last, begin, end = batch * part // parts, batch * (part + 1) // parts, 0, 1
    group = last - first
    at_once = max(1, INPUT_GRADIENT_ROWS // max(batch, 1))
    pieces = (end - begin + at_once - 1) // at_once
    gemm = input_gradient_gemm(split_weight, weight, at_once * group, blocks * wide)
    begin_gemm(gemm, TILE_ROWS)
    panels = input_panels(gemm, row_x // VECTOR_BYTES)
    for piece in range(pieces):
        t = begin + (end - begin) * piece // pieces
        some = begin + (end - begin) * (piece + 1) // pieces - t
        source, gap = address_of(dz) + (t * blocks * batch + first) * row_z, (blocks - 1) * batch * row_z
        exact, rows = (
            Rows(dz.dtype.type(0), source, row_z, size, blocks, batch * row_z, wide, gap),
            RowRange(some * group, max(group, 1)),
        )
        sums = Sums(address_of(dx) + (t * batch + first) * row_x, row_x, 0, True)
        multiply(gathered_rows(gemm, exact, rows), panels, blocks * wide, sums, rows, False)
    end_gemm(gemm)


@compiled
def input_gradient(threads: Any, *args: Any) -> None:
    """Compute ``dx = dz W`` of all steps.

    Takes ``(dz, weight, split_weight, dx)``: dz (T, B, N, G, lanes), W in panels, W split or None (no AMX), and dx
    (T N, whole vectors).
    """
    run_parts(threads, make_task(_input_gradient, args))


@compiled
def _weight_gradient(  # noqa: PLR0913  (the flat entry of a pass)
    part: int, parts: int, dz: Any, a: Any, hidden: int, sums: Any, blocked: Any, weight: Any, bias: Any, split: Any
) -> None:
    _, blocks, batch, cols, lanes = dz.shape
    rows, width, size, wide = dz.shape[0] * batch, weight.shape[1], dz.itemsize, cols * lanes
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    # Numbers are set and added by their addresses: an expression of arrays takes seconds to compile.
    zero, own = dz.dtype.type(0), (last - first) * wide
    of_sums, of_blocked = address_of(sums) + first * wide * size, address_of(blocked) + first * width * wide * size
    copy_numbers(zero, of_sums, of_sums, own, False)
    copy_numbers(zero, of_blocked, of_blocked, own * width, False)
    gemm = weight_gradient_gemm(split, dz, width, cols)
    begin_gemm(gemm, TILE_ROWS)
    room = np.empty((gemm.most + 1) * wide, dz.dtype)
    start = (-address_of(room) % VECTOR_BYTES) // size
    packed, some = room[start : start + gemm.most * wide].reshape(gemm.most, wide), np.empty((cols, lanes), dz.dtype)
    for begin in range(0, rows, gemm.most):
        depth, pitch = min(gemm.most, rows - begin), a.shape[1] * size
        source = Plane(address_of(a) + begin * pitch, pitch)
        if first < last:
            split_columns(gemm, source, depth, width)
        left = Columns(zero, source.address, size, pitch, 1, 0, depth, 0)
        for block in range(first, last):
            _gather_rows(dz, (block, begin, depth), packed, some)
            add_numbers(zero, address_of(some), address_of(sums) + block * wide * size, wide)
            to = address_of(blocked) + block * width * cols * VECTOR_BYTES
            add_weight_gradient(gemm, left, Panel(address_of(packed), cols), to, width)
    end_gemm(gemm)
    for block in range(first, last):
        _store_gradients(block, hidden, sums, blocked, weight, bias)


@compiled
def _gather_rows(dz: Any, place: Any, packed: Any, total: Any) -> None:
    """Copy rows of a block of dz to adjacent rows, and compute their sum; `place` is (block, first row, rows)."""
    _, blocks, batch, cols, lanes = dz.shape
    block, begin, depth = place
    t, row, zero, wide = begin // batch, begin % batch, dz.dtype.type(0), cols * lanes
    row_z = wide * dz.itemsize
    copy_numbers(zero, address_of(total), address_of(total), wide, False)
    for k in range(depth):
        here = address_of(dz) + ((t * blocks + block) * batch + row) * row_z
        copy_numbers(zero, here, address_of(packed) + k * row_z, wide, True)
        add_numbers(zero, here, address_of(total), wide)
        row += 1
        if row == batch:
            t, row = t + 1, 0


@compiled
def _store_gradients(block: int, hidden: int, sums: Any, blocked: Any, weight: Any, bias: Any) -> None:
    """Copy the gradients of a block to where the parameters' order has them, without the padding."""
    width, cols, lanes = weight.shape[1], sums.shape[1], sums.shape[2]
    real = min(lanes, hidden - block * lanes)
    for gate in range(cols):
        here = gate * hidden + block * lanes
        for lane in range(real):  # an assignment of slices takes seconds to compile
            bias[here + lane] = sums[block, gate, lane]
        for begin in range(0, width, TRANSPOSE_COLUMNS):
            for lane in range(real):
                for k in range(begin, min(begin + TRANSPOSE_COLUMNS, width)):
                    weight[here + lane, k] = blocked[block, k, gate, lane]


@compiled
def weight_gradient(threads: Any, *args: Any) -> None:
    """Compute ``dz^T a`` and the sums of the rows of dz (T, B, N, G, lanes); `a` is (T N, columns or more).

    Takes ``(dz, a, hidden, sums, blocked, weight, bias, split)``. The results go to `weight` (G H, columns) and `bias`
    (G H,). `sums` (B, G, lanes) and `blocked` (B, columns, G, lanes) are a workspace. `split` is None unless the GEMM
    runs on AMX.
    """
    run_parts(threads, make_task(_weight_gradient, args))
