"""Checks and sums of arrays that several formats share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def check_floats(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is an array of real floating-point numbers in this machine's byte order."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a tensor or an array; got {type(value).__name__}")
    if value.dtype.kind != "f" and str(value.dtype) != "bfloat16":
        raise TypeError(f"{name}: expected floating-point numbers; got {value.dtype}")
    if not value.dtype.isnative:
        raise TypeError(f"{name}: expected the byte order of this machine; got {value.dtype.str}")


def add_biases(first: Array, second: Array) -> Array:
    """Return the sum of two biases, bit for bit the first where the second is 0; two of 16 bits give float32."""
    wide = np.float32 if first.dtype.itemsize < 4 else first.dtype  # a sum of two 16-bit numbers is not rounded twice
    first, second = first.astype(wide), second.astype(wide)
    return np.where(second == 0, first, first + second)
