"""The gradients of the input and of weights: products over all steps, after the loop over time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from lstmcore_numba.jit import compiled
from lstmcore_numba.parallel import outlined, side_by_side
from lstmcore_numba.tiles import BYTES, grouped_product, panel

#: Rows of the input that are multiplied by all weights before the next ones.
_CHUNK: Final = 96
#: Rows whose part of a gradient is summed before the next ones, so that they stay in the cache.
_DEPTH: Final = 512
#: Columns of a gradient that are turned around together.
_COLUMNS: Final = 32


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
    some = np.empty((cols, lanes), dz.dtype)
    first, last = blocks * part // parts, blocks * (part + 1) // parts
    found[first:last] = 0
    sums[first:last] = 0
    for begin in range(0, rows, _DEPTH):
        depth = min(_DEPTH, rows - begin)
        for block in range(first, last):
            t, row = begin // batch, begin % batch
            some[:] = 0
            for k in range(depth):
                for gate in range(cols):
                    for lane in range(lanes):
                        value = dz[t, block, row, gate, lane]
                        packed[k, gate * lanes + lane] = value
                        some[gate, lane] += value
                row += 1
                if row == batch:
                    t, row = t + 1, 0
            sums[block] += some
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
