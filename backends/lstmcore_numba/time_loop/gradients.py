"""The gradients of the input and of weights: GEMMs over all steps, after the loop over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.amx import (
    ROW_GAP_BYTES,
    SPLIT_PARTS,
    TILE_BYTES,
    TILE_K,
    TILE_ROWS,
    amx_panel_matmul,
    configure_tiles,
    release_tiles,
)
from lstmcore_numba.gemm.bf16x3 import split_row_pairs, split_row_range, split_transposed
from lstmcore_numba.gemm.bf16x3_passes import split_matmul
from lstmcore_numba.gemm.vector import VECTOR_BYTES, add_numbers, copy_numbers, grouped_matmul, panel_matmul
from lstmcore_numba.runtime.tasks import make_task
from lstmcore_numba.runtime.worker_loop import run_parts
from lstmcore_numba.tuning import AMX_WEIGHT_GRADIENT_ROWS, INPUT_GRADIENT_ROWS, TRANSPOSE_COLUMNS, WEIGHT_GRADIENT_ROWS


@compiled
def _input_gradient(  # long: next issue
    part: int, parts: int, dz: Any, weight: Any, split_weight: Any, dx: Any
) -> None:
    steps, blocks, batch, cols, lanes = dz.shape
    size, wide = dz.itemsize, cols * lanes
    row_z, row_x = wide * size, dx.shape[1] * size
    zero, vectors = dz.dtype.type(0), row_x // VECTOR_BYTES
    first, last = 0, batch
    begin, end = steps * part // parts, steps * (part + 1) // parts
    if steps == 1:
        first, last, begin, end = batch * part // parts, batch * (part + 1) // parts, 0, 1
    group = last - first
    at_once = max(1, INPUT_GRADIENT_ROWS // max(batch, 1))
    pieces = (end - begin + at_once - 1) // at_once
    if split_weight is not None:
        configure_tiles(TILE_ROWS)
        split = _empty_split(at_once * group, blocks * wide)
        split_part, split_row = split.strides[:2]
        flags = np.empty((1, at_once * group), np.uint8)
    for piece in range(pieces):
        t = begin + (end - begin) * piece // pieces
        some = begin + (end - begin) * (piece + 1) // pieces - t
        source, step = dz.ctypes.data + (t * blocks * batch + first) * row_z, blocks * batch * row_z
        target = dx.ctypes.data + (t * batch + first) * row_x
        if split_weight is None:
            grouped_matmul(
                zero,
                vectors,
                source,
                row_z,
                size,
                batch * row_z,
                (blocks - 1) * batch * row_z,
                weight.ctypes.data,
                target,
                row_x,
                blocks,
                wide,
                some * group,
                max(group, 1),
                True,
                False,
            )
            continue
        non_finite = 0
        for k in range(some):
            to, flag = split.ctypes.data + k * group * split_row, flags.ctypes.data + k * group
            non_finite |= split_row_range(
                source + k * step, row_z, to, split_row, split_part, 0, group, blocks, batch * row_z, wide, flag
            )
        rows = group if non_finite != 0 else some * group  # with a non-finite row, each step has its own address in dz
        for k in range(some if non_finite != 0 else 1):
            split_matmul(
                zero,
                vectors,
                split.ctypes.data + k * rows * split_row,
                split_row,
                split_part,
                split_weight.ctypes.data,
                source + k * step,
                row_z,
                weight.ctypes.data,
                target + k * rows * row_x,
                row_x,
                blocks,
                batch * row_z,
                wide,
                0,
                rows,
                True,
                False,
                non_finite != 0,
                flags[:, k * rows : (k + 1) * rows],
                TILE_ROWS,
            )
    if split_weight is not None:
        release_tiles()


@compiled
def _empty_split(rows: int, k_size: int) -> Any:
    """Return memory for a split left operand, with 0 behind the last value of a row."""
    whole = (k_size + TILE_K - 1) // TILE_K * TILE_K
    room = np.empty((SPLIT_PARTS, rows, whole + ROW_GAP_BYTES // 2), np.uint16)
    room[:, :, k_size:] = 0
    return room


@compiled
def input_gradient(threads: Any, *args: Any) -> None:
    """Compute ``dx = dz W`` of all steps.

    Takes ``(dz, weight, split_weight, dx)``: dz (T, B, N, G, lanes), W in panels, W split or None (no AMX), and dx
    (T N, whole vectors).
    """
    run_parts(threads, make_task(_input_gradient, args))


@compiled
def _weight_gradient(  # noqa: PLR0913  (next issue: groups of arguments)  # long: next issue
    part: int, parts: int, dz: Any, a: Any, hidden: int, sums: Any, blocked: Any, weight: Any, bias: Any, split: Any
) -> None:
    steps, blocks, batch, cols, lanes = dz.shape
    rows = steps * batch
    width, size = weight.shape[1], dz.itemsize
    zero, wide = dz.dtype.type(0), cols * lanes
    room = np.empty((WEIGHT_GRADIENT_ROWS + 1) * wide, dz.dtype)
    start = (-room.ctypes.data % VECTOR_BYTES) // size
    packed = room[start : start + WEIGHT_GRADIENT_ROWS * wide].reshape(WEIGHT_GRADIENT_ROWS, wide)
    some = np.empty((cols, lanes), dz.dtype)
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    blocked[first:last] = 0
    sums[first:last] = 0
    most = WEIGHT_GRADIENT_ROWS
    if split is not None:
        configure_tiles(TILE_ROWS)
        most = AMX_WEIGHT_GRADIENT_ROWS
        left = np.empty(
            (SPLIT_PARTS, (width + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS, most + ROW_GAP_BYTES // 2), np.uint16
        )
        right = np.empty(most // TILE_K * cols * SPLIT_PARTS * TILE_BYTES, np.uint8)
        result = np.empty(width * wide, dz.dtype)
        flags = np.empty(2, np.uint8)
        left_part, left_row = left.strides[:2]
    for begin in range(0, rows, most):
        depth = min(most, rows - begin)
        source, pitch = a.ctypes.data + begin * a.shape[1] * size, a.shape[1] * size
        if split is not None and first < last:
            flags[0] = 0
            split_transposed(source, pitch, left.ctypes.data, left_row, left_part, depth, width, flags.ctypes.data)
        for block in range(first, last):
            t, row = begin // batch, begin % batch
            some[:] = 0
            row_z, to_some = wide * size, some.ctypes.data
            for k in range(depth):
                here = dz.ctypes.data + ((t * blocks + block) * batch + row) * row_z
                copy_numbers(zero, here, packed.ctypes.data + k * row_z, wide, True)
                add_numbers(zero, here, to_some, wide)
                row += 1
                if row == batch:
                    t, row = t + 1, 0
            sums[block] += some
            to, all_finite = blocked.ctypes.data + block * width * cols * VECTOR_BYTES, False
            if split is not None:
                flags[1] = 0
                step = cols * SPLIT_PARTS * TILE_BYTES
                split_row_pairs(
                    cols, packed.ctypes.data, wide * size, right.ctypes.data, step, depth, flags.ctypes.data + 1
                )
                all_finite = flags[0] == 0 and flags[1] == 0
            if all_finite:
                amx_panel_matmul(
                    cols,
                    left.ctypes.data,
                    left_row,
                    left_part,
                    right.ctypes.data,
                    step,
                    result.ctypes.data,
                    wide * size,
                    (depth + TILE_K - 1) // TILE_K,
                    width,
                    True,
                    right.ctypes.data,
                    TILE_ROWS,
                )
                add_numbers(zero, result.ctypes.data, to, width * wide)
            else:
                panel_matmul(
                    zero,
                    cols,
                    source,
                    size,
                    pitch,
                    packed.ctypes.data,
                    cols * VECTOR_BYTES,
                    to,
                    cols * VECTOR_BYTES,
                    depth,
                    width,
                    False,
                )
    if split is not None:
        release_tiles()
    for block in range(first, last):
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
