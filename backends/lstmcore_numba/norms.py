"""Layer normalisation of whole rows, and its derivative.

Rows are (blocks, gates, lanes). `tail` lanes of the last block count; what lies behind them is 0 and stays so.
Sums are taken lane by lane first, which the compiler turns into vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.jit import compiled


@compiled
def normalise(a: Any, deviation: Any, count: int, tail: int, eps: float, first: int, last: int) -> None:
    """Rows `first` to `last` of `a` with mean 0 and variance 1, in place; `deviation` is what they were divided by."""
    blocks, gates, lanes = a.shape[1], a.shape[2], a.shape[3]
    sums = np.empty(lanes, a.dtype)
    for row in range(first, last):
        sums[:] = 0
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    sums[lane] += a[row, block, gate, lane]
        mean = a.dtype.type(sums.sum() / count)
        sums[:] = 0
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes if block < blocks - 1 else tail):
                    centred = a[row, block, gate, lane] - mean
                    a[row, block, gate, lane] = centred
                    sums[lane] += centred * centred
        deviation[row] = np.sqrt(sums.sum() / count + eps)
        scale = a.dtype.type(1 / deviation[row])
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    a[row, block, gate, lane] *= scale


@compiled
def linear(norm: Any, deviation: Any, d: Any, count: int, first: int, last: int) -> None:
    """The derivative of `normalise` applied to rows of `d`, in place; it is symmetric, so it serves both directions."""
    blocks, gates, lanes = d.shape[1], d.shape[2], d.shape[3]
    sums, along = np.empty(lanes, d.dtype), np.empty(lanes, d.dtype)
    for row in range(first, last):
        sums[:] = 0
        along[:] = 0
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    sums[lane] += d[row, block, gate, lane]
                    along[lane] += d[row, block, gate, lane] * norm[row, block, gate, lane]
        mean, slope = d.dtype.type(sums.sum() / count), d.dtype.type(along.sum() / count)
        scale = d.dtype.type(1 / deviation[row])
        for block in range(blocks):
            for gate in range(gates):
                for lane in range(lanes):
                    value = d[row, block, gate, lane] - mean - norm[row, block, gate, lane] * slope
                    d[row, block, gate, lane] = value * scale
