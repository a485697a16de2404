"""The matrix product of the Numba backend on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmcore_numba.codegen.numba_compiler import compiled
from lstmcore_numba.gemm.operands import Plane, Sums, address_of
from lstmcore_numba.gemm.product import Panels, all_rows, dense_rows, multiply
from lstmcore_numba.gemm.tile_shapes import PANEL_VECTORS


def pack(weights: Any) -> Any:
    """Return weights (K, vectors, lanes) in panels."""
    vectors = range(0, weights.shape[1], PANEL_VECTORS)
    return np.concatenate([weights[:, k : k + PANEL_VECTORS].ravel() for k in vectors])


@compiled
def matmul(a: Any, packed: Any, vectors: int, c: Any, fresh: bool) -> None:
    """Compute ``c = a b``, or ``c += a b`` unless `fresh`; `a` is (rows, K), and `packed` has `vectors` vectors of b.

    If `a` has packed bfloat16 pairs, so has `packed`, and K counts pairs.
    """
    rows, k_size = a.shape
    left = dense_rows(a, Plane(address_of(a), a.strides[0]), k_size)
    sums = Sums(address_of(c), c.strides[0], 0, fresh)
    multiply(left, Panels(address_of(packed), vectors), k_size, sums, all_rows(rows), False)
