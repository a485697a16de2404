"""Activations as int16 numbers with a scale for each row of the batch, for products with int8 weights."""

from __future__ import annotations

from typing import Final

import numpy as np

from lstmcore_numpy.packing import Array, Layout

#: The largest magnitude of an integer, and the least scale.
_LARGEST: Final = np.float32(32767)
_LEAST_SCALE: Final = np.float32(2.0**-100)


def rounded(activations: Array, axis: int) -> Array:
    """Return float32 activations rounded to multiples of their scale, which is the largest along `axis` / 32767.

    Those along `axis` stay as they are if any of them is not finite.
    """
    largest = np.abs(activations).max(axis=axis, keepdims=True, initial=0)
    finite = np.isfinite(largest)
    scale = np.where(finite & (largest > 0), np.maximum(largest / _LARGEST, _LEAST_SCALE), np.float32(1))
    return np.where(finite, np.rint(activations / scale) * scale, activations)


def rounded_operand(operand: Array, layout: Layout, *, split: bool) -> Array:
    """Return the operand of a step with x and r rounded, each with a scale for each column (row of the batch).

    Parameters
    ----------
    operand
        (K, N) as a step multiplies it: all of x, r and ones, or r alone if `split`.
    layout
        The positions in it.
    split
        Whether it is r alone.
    """
    if split:
        return rounded(operand, 0)
    result = operand.copy()
    for part in (layout.x, layout.r):
        result[part] = rounded(operand[part], 0)
    return result
