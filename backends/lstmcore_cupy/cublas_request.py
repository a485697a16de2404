"""What a product of matrices asks cuBLAS for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lstmcore_cupy.device import Compute


class GemmRequest(NamedTuple):
    """What products of one kind ask cuBLAS for.

    Attributes
    ----------
    function
        ``gemmEx``.
    operations
        Of its first operand, our second one, and of the other.
    number_type
        That of all matrices.
    one, scale
        The addresses of 1, and of the factor of what `out` contains.
    arithmetic
        The type of the arithmetic, and cuBLAS's choice of a kernel.
    owner
        The numbers at these addresses.
    """

    function: Callable[..., None]
    operations: tuple[int, int]
    number_type: int
    one: int
    scale: int
    arithmetic: tuple[int, int]
    owner: npt.NDArray[Any]


@cache
def gemm_request(dtype: np.dtype[Any], compute: Compute, transpose: tuple[bool, bool], accumulate: bool) -> GemmRequest:
    """Return what products of one kind ask for: a step has no time to find it out."""
    from cupy_backends.cuda.api import runtime
    from cupy_backends.cuda.libs import cublas

    if dtype.itemsize == 8:
        number_type, arithmetic = runtime.CUDA_R_64F, cublas.CUBLAS_COMPUTE_64F
    else:
        tf32 = compute == "tf32"
        arithmetic = cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if tf32 else cublas.CUBLAS_COMPUTE_32F
        number_type = runtime.CUDA_R_32F
    first, second = (cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N for transposed in transpose)
    owner = np.array([1, 0], dtype)
    one = owner.ctypes.data
    scale = one if accumulate else one + dtype.itemsize
    kind = (arithmetic, cublas.CUBLAS_GEMM_DEFAULT)
    return GemmRequest(cublas.gemmEx, (second, first), number_type, one, scale, kind, owner)
