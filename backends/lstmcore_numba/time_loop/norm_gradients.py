"""The derivative of layer norm over all steps, and the gradients of its gains and shifts, after the loop over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.layer_norm import add_products, norm_backward
from lstmcore_numba.runtime.tasks import make_task
from lstmcore_numba.runtime.worker_loop import run_parts


@compiled
def _norm_backward_steps(  # noqa: PLR0913  (the flat entry of a pass)
    part: int, parts: int, norm: Any, deviation: Any, gain: Any, d: Any, out: Any, count: int
) -> None:
    steps, rows = d.shape[0], d.shape[2]
    for t in range(steps * part // parts, steps * (part + 1) // parts):
        norm_backward(norm[t], deviation[t], gain, d[t], out[t], count, 0, rows)


@compiled
def norm_backward_steps(threads: Any, *args: Any) -> None:
    """Apply `norm_backward` to all rows of all steps. Takes ``(norm, deviation, gain, d, out, count)``.

    Arrays are (T, B, N, G, lanes), deviations (T, N), and the gain is (B, G, lanes).
    """
    run_parts(threads, make_task(_norm_backward_steps, args))


@compiled
def _gain_gradients(  # noqa: PLR0913  (the flat entry of a pass)
    part: int, parts: int, d: Any, norm_x: Any, norm_h: Any, of_x: Any, of_h: Any, of_bias: Any
) -> None:
    steps, blocks, rows, gates, lanes = d.shape
    zero, row = d.dtype.type(0), gates * lanes * d.itemsize
    ones = np.ones((gates, lanes), d.dtype)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        of_x[block], of_h[block], of_bias[block] = 0, 0, 0
        for t in range(steps):
            place = (t * blocks + block) * rows * row
            here, to = d.ctypes.data + place, block * row
            add_products(zero, gates, here, row, norm_x.ctypes.data + place, row, rows, of_x.ctypes.data + to)
            add_products(zero, gates, here, row, norm_h.ctypes.data + place, row, rows, of_h.ctypes.data + to)
            add_products(zero, gates, here, row, ones.ctypes.data, 0, rows, of_bias.ctypes.data + to)


@compiled
def gain_gradients(threads: Any, *args: Any) -> None:
    """Compute the gradients of both gains and of the bias. Takes ``(d, norm_x, norm_h, of_x, of_h, of_bias)``.

    `d` is the gradient of the pre-activations. The first three are (T, B, N, G, lanes), the results (B, G, lanes).
    """
    run_parts(threads, make_task(_gain_gradients, args))


@compiled
def _cell_gradients(part: int, parts: int, d: Any, norm: Any, of_gain: Any, of_shift: Any) -> None:
    steps, rows = d.shape[0], d.shape[1]
    blocks, lanes = of_gain.shape
    zero, size = d.dtype.type(0), lanes * d.itemsize
    ones = np.ones(lanes, d.dtype)
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        of_gain[block], of_shift[block] = 0, 0
        for t in range(steps):
            here, to = d.ctypes.data + (t * rows * blocks + block) * size, block * size
            norms = norm.ctypes.data + (t * blocks + block) * rows * size
            add_products(zero, 1, here, blocks * size, norms, size, rows, of_gain.ctypes.data + to)
            add_products(zero, 1, here, blocks * size, ones.ctypes.data, 0, rows, of_shift.ctypes.data + to)


@compiled
def cell_gradients(threads: Any, *args: Any) -> None:
    """Compute the gradients of the cell's gain and shift. Takes ``(d, norm, of_gain, of_shift)``.

    `d` is the gradient of the cell after its gain and shift. It is (T, N, Hp), `norm` is (T, B, N, 1, lanes), and the
    results are (B, lanes).
    """
    run_parts(threads, make_task(_cell_gradients, args))
