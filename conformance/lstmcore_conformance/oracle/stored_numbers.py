"""The formats of stored weights in section 8 of SPEC.md, implemented a second time from its text, by arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from lstmcore_conformance.cases.case import Array


def _nearest(numbers: Array, bits: int, least: int) -> Array:
    """Return the nearest numbers of so many significant bits that are multiples of ``2**least``, ties to even."""
    exponents = np.frexp(numbers)[1] - bits
    quantum = np.ldexp(1.0, np.maximum(exponents, least))
    nearest: Array = np.rint(numbers / quantum) * quantum
    return nearest


def _by_scales(numbers: Array) -> Array:
    """Return what is read back from int8. A quotient in float64, rounded to float32, is the quotient in float32."""
    largest = np.abs(numbers).max(axis=1, keepdims=True, initial=0.0)
    fractions, exponents = np.frexp(np.asarray(largest / 127, np.float32).astype(np.float64))
    scales = np.ldexp(np.floor(fractions * 2.0**16), exponents - 16)
    scales = np.where(largest == 0, 1.0, np.maximum(scales, 2.0**-100))
    quotients = np.asarray(numbers / scales, np.float32).astype(np.float64)
    read: Array = np.clip(np.rint(quotients), -127, 127) * scales
    return read


_FORMATS: Final[Mapping[str, Callable[[Array], Array]]] = {
    "bfloat16": lambda numbers: _nearest(numbers, 8, -133),
    "float16": lambda numbers: _nearest(numbers, 11, -24),
    "int8": _by_scales,
}


def read_back(matrix: Array, form: str) -> Array:
    """Return ``DEC(ENC(matrix))`` in float64; `form` is bfloat16, float16 or int8, and can hold every number."""
    return _FORMATS[form](np.asarray(matrix, np.float32).astype(np.float64))
