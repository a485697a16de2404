"""The gradients of the input and of weights: products over all steps, after the loop over time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.amx import APART, DEPTH, PARTS, TILE, TILE_BYTES, amx_panel, release_tiles, shape_tiles
from lstmcore_numba.gemm.bf16x3 import cut_rows, pair_rows, turn_rows
from lstmcore_numba.gemm.bf16x3_passes import cut_product
from lstmcore_numba.gemm.vector import BYTES, add_numbers, copy_numbers, grouped_product, panel
from lstmcore_numba.runtime.worker_loop import outlined, side_by_side

#: Rows of the input that are multiplied by all weights before the next ones.
_CHUNK: Final = 96
#: Rows whose part of a gradient is summed before the next ones, so that they stay in the cache.
_DEPTH: Final = 512
#: The same where the product is made of parts, which take more room.
_CUT_DEPTH: Final = 256
#: Columns of a gradient that are turned around together.
_COLUMNS: Final = 32


@compiled
def _input_gradient(part: int, parts: int, dz: Any, weight: Any, cut_weight: Any, dx: Any) -> None:
    steps, blocks, batch, cols, lanes = dz.shape
    size, wide = dz.itemsize, cols * lanes
    row_z, row_x = wide * size, dx.shape[1] * size
    zero, vectors = dz.dtype.type(0), row_x // BYTES
    first, last = 0, batch
    begin, end = steps * part // parts, steps * (part + 1) // parts
    if steps == 1:
        first, last, begin, end = batch * part // parts, batch * (part + 1) // parts, 0, 1
    group = last - first
    at_once = max(1, _CHUNK // max(batch, 1))
    pieces = (end - begin + at_once - 1) // at_once
    if cut_weight is not None:
        shape_tiles(TILE)
        cut = _room_for_parts(at_once * group, blocks * wide)
        cut_part, cut_row = cut.strides[:2]
        flags = np.empty((1, at_once * group), np.uint8)
    for piece in range(pieces):
        t = begin + (end - begin) * piece // pieces
        some = begin + (end - begin) * (piece + 1) // pieces - t
        source, step = dz.ctypes.data + (t * blocks * batch + first) * row_z, blocks * batch * row_z
        target = dx.ctypes.data + (t * batch + first) * row_x
        if cut_weight is None:
            grouped_product(
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
        wild = 0
        for k in range(some):
            to, flag = cut.ctypes.data + k * group * cut_row, flags.ctypes.data + k * group
            wild |= cut_rows(
                source + k * step, row_z, to, cut_row, cut_part, 0, group, blocks, batch * row_z, wide, flag
            )
        rows = group if wild != 0 else some * group  # a row in float32 has to be found in its step
        for k in range(some if wild != 0 else 1):
            cut_product(
                zero,
                vectors,
                cut.ctypes.data + k * rows * cut_row,
                cut_row,
                cut_part,
                cut_weight.ctypes.data,
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
                wild != 0,
                flags[:, k * rows : (k + 1) * rows],
                TILE,
            )
    if cut_weight is not None:
        release_tiles()


@compiled
def _room_for_parts(rows: int, inner: int) -> Any:
    """Room for a left operand, with 0 behind the last value of a row."""
    whole = (inner + DEPTH - 1) // DEPTH * DEPTH
    room = np.empty((PARTS, rows, whole + APART // 2), np.uint16)
    room[:, :, inner:] = 0
    return room


@compiled
def input_gradient(team: Any, *args: Any) -> None:
    """``dx = dz W`` of all steps, for dz (T, B, N, G, lanes), W in panels and dx (T N, whole vectors).

    Takes ``(dz, weight, cut_weight, dx)``; `cut_weight` is W in parts where the product runs on AMX, else None.
    """
    side_by_side(team, outlined(_input_gradient, args))


@compiled
def _weight_gradient(
    part: int, parts: int, dz: Any, a: Any, hidden: int, sums: Any, found: Any, of_weight: Any, of_bias: Any, cut: Any
) -> None:
    steps, blocks, batch, cols, lanes = dz.shape
    rows = steps * batch
    width, size = of_weight.shape[1], dz.itemsize
    zero, wide = dz.dtype.type(0), cols * lanes
    room = np.empty((_DEPTH + 1) * wide, dz.dtype)
    start = (-room.ctypes.data % BYTES) // size
    packed = room[start : start + _DEPTH * wide].reshape(_DEPTH, wide)
    some = np.empty((cols, lanes), dz.dtype)
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    found[first:last] = 0
    sums[first:last] = 0
    most = _DEPTH
    if cut is not None:
        shape_tiles(TILE)
        most = _CUT_DEPTH
        left = np.empty((PARTS, (width + TILE - 1) // TILE * TILE, most + APART // 2), np.uint16)
        right = np.empty(most // DEPTH * cols * PARTS * TILE_BYTES, np.uint8)
        result = np.empty(width * wide, dz.dtype)
        flags = np.empty(2, np.uint8)
        left_part, left_row = left.strides[:2]
    for begin in range(0, rows, most):
        depth = min(most, rows - begin)
        source, pitch = a.ctypes.data + begin * a.shape[1] * size, a.shape[1] * size
        if cut is not None and first < last:
            flags[0] = 0
            turn_rows(source, pitch, left.ctypes.data, left_row, left_part, depth, width, flags.ctypes.data)
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
            to, tame = found.ctypes.data + block * width * cols * BYTES, False
            if cut is not None:
                flags[1] = 0
                step = cols * PARTS * TILE_BYTES
                pair_rows(cols, packed.ctypes.data, wide * size, right.ctypes.data, step, depth, flags.ctypes.data + 1)
                tame = flags[0] == 0 and flags[1] == 0
            if tame:
                amx_panel(
                    cols,
                    left.ctypes.data,
                    left_row,
                    left_part,
                    right.ctypes.data,
                    step,
                    result.ctypes.data,
                    wide * size,
                    (depth + DEPTH - 1) // DEPTH,
                    width,
                    True,
                    right.ctypes.data,
                    TILE,
                )
                add_numbers(zero, result.ctypes.data, to, width * wide)
            else:
                panel(
                    zero,
                    cols,
                    source,
                    size,
                    pitch,
                    packed.ctypes.data,
                    cols * BYTES,
                    to,
                    cols * BYTES,
                    depth,
                    width,
                    False,
                )
    if cut is not None:
        release_tiles()
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

    Takes ``(dz, a, hidden, sums, found, of_weight, of_bias, cut)``: `of_weight` (G H, columns) and `of_bias` (G H,) get
    the results, `sums` (B, G, lanes) and `found` (B, columns, G, lanes) are room to work in; `cut` is None unless the
    product runs on AMX.
    """
    side_by_side(team, outlined(_weight_gradient, args))
