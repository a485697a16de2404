"""Layer normalisation of whole rows, and its derivative.

Arrays are (blocks, rows, gates, lanes). `tail` lanes of the last block count; what lies behind them is 0 and stays so.
Sums are taken lane by lane first, which the compiler turns into vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.jit import compiled
from lstmcore_numba.parallel import outlined, side_by_side


@compiled
def normalise(a: Any, deviation: Any, count: int, tail: int, eps: float, first: int, last: int) -> None:
    """Rows `first` to `last` of `a` with mean 0 and variance 1, in place; `deviation` is what they were divided by."""
    blocks, gates, lanes = a.shape[0], a.shape[2], a.shape[3]
    sums = np.empty(lanes, a.dtype)
    for row in range(first, last):
        sums[:] = 0
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    sums[lane] += a[block, row, gate, lane]
        mean = a.dtype.type(sums.sum() / count)
        sums[:] = 0
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes if block < blocks - 1 else tail):
                    centred = a[block, row, gate, lane] - mean
                    a[block, row, gate, lane] = centred
                    sums[lane] += centred * centred
        deviation[row] = np.sqrt(sums.sum() / count + eps)
        scale = a.dtype.type(1 / deviation[row])
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    a[block, row, gate, lane] *= scale


@compiled
def linear(norm: Any, deviation: Any, d: Any, count: int, first: int, last: int) -> None:
    """The derivative of `normalise` applied to rows of `d`, in place; it is symmetric, so it serves both directions."""
    blocks, gates, lanes = d.shape[0], d.shape[2], d.shape[3]
    sums, along = np.empty(lanes, d.dtype), np.empty(lanes, d.dtype)
    for row in range(first, last):
        sums[:] = 0
        along[:] = 0
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    sums[lane] += d[block, row, gate, lane]
                    along[lane] += d[block, row, gate, lane] * norm[block, row, gate, lane]
        mean, slope = d.dtype.type(sums.sum() / count), d.dtype.type(along.sum() / count)
        scale = d.dtype.type(1 / deviation[row])
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    value = d[block, row, gate, lane] - mean - norm[block, row, gate, lane] * slope
                    d[block, row, gate, lane] = value * scale


@compiled
def scaled(gain: Any, d: Any, out: Any, first: int, last: int) -> None:
    """``out = gain d`` for rows `first` to `last`."""
    blocks, gates, lanes = d.shape[0], d.shape[2], d.shape[3]
    for block in range(blocks):
        for row in range(first, last):
            for gate in range(gates):
                for lane in range(lanes):
                    out[block, row, gate, lane] = gain[block, gate, lane] * d[block, row, gate, lane]


@compiled
def _linear_steps(part: int, parts: int, norm: Any, deviation: Any, gain: Any, d: Any, out: Any, count: int) -> None:
    steps, rows = d.shape[0], d.shape[2]
    for t in range(steps * part // parts, steps * (part + 1) // parts):
        scaled(gain, d[t], out[t], 0, rows)
        linear(norm[t], deviation[t], out[t], count, 0, rows)


@compiled
def linear_steps(team: Any, *args: Any) -> None:
    """The gradient before the norm of what came after its gain: ``(norm, deviation, gain, d, out, count)``.

    Arrays are (T, B, N, G, lanes), deviations (T, N), and the gain is (B, G, lanes).
    """
    side_by_side(team, outlined(_linear_steps, args))


@compiled
def _gain_gradients(
    part: int, parts: int, d: Any, norm_x: Any, norm_h: Any, of_x: Any, of_h: Any, of_bias: Any
) -> None:
    steps, blocks, rows, gates, lanes = d.shape
    by_x, by_h, by_bias = np.empty((3, gates, lanes), d.dtype)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        of_x[block], of_h[block], of_bias[block] = 0, 0, 0
        for t in range(steps):
            by_x[:], by_h[:], by_bias[:] = 0, 0, 0
            for row in range(rows):
                for gate in range(gates):
                    for lane in range(lanes):
                        value = d[t, block, row, gate, lane]
                        by_x[gate, lane] += value * norm_x[t, block, row, gate, lane]
                        by_h[gate, lane] += value * norm_h[t, block, row, gate, lane]
                        by_bias[gate, lane] += value
            of_x[block] += by_x
            of_h[block] += by_h
            of_bias[block] += by_bias


@compiled
def gain_gradients(team: Any, *args: Any) -> None:
    """Of the two gains and the bias, from that of the pre-activations: ``(d, norm_x, norm_h, of_x, of_h, of_bias)``.

    The first three are (T, B, N, G, lanes), the results (B, G, lanes).
    """
    side_by_side(team, outlined(_gain_gradients, args))
