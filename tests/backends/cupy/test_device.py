"""What is particular to the GPU's side of the interface, with the host's memory in place of the GPU's."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lstmcore_cupy import device as devices
from lstmcore_cupy.device import CudaDevice

_TYPES: dict[int, type[Any]] = {0: ctypes.c_float, 1: ctypes.c_double}


class _Memory:
    """A NumPy array as CuPy shows one."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.data = SimpleNamespace(ptr=array.ctypes.data)


def _columns(address: int, kind: int, rows: int, columns: int, distance: int) -> npt.NDArray[Any]:
    """A matrix as cuBLAS sees it: column after column, each `distance` entries after the one before."""
    flat = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(_TYPES[kind])), (distance * columns,))
    return flat.reshape(columns, distance)[:, :rows].T


class _Cublas:
    """`gemmEx` as its manual tells it, on the host's memory; keeps the arithmetic that was asked for."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT = 0, 1, -1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77

    def __init__(self) -> None:
        self.asked: list[int] = []

    def gemmEx(self, handle: int, turn_a: int, turn_b: int, m: int, n: int, k: int, *rest: int) -> None:
        alpha, a, a_kind, a_distance, b, b_kind, b_distance, beta, c, c_kind, c_distance, compute, _ = rest
        left = _columns(a, a_kind, *((k, m) if turn_a else (m, k)), a_distance)
        right = _columns(b, b_kind, *((n, k) if turn_b else (k, n)), b_distance)
        product = (left.T if turn_a else left) @ (right.T if turn_b else right)
        out = _columns(c, c_kind, m, n, c_distance)
        one, other = (ctypes.cast(factor, ctypes.POINTER(_TYPES[c_kind]))[0] for factor in (alpha, beta))
        out[...] = one * product + (other * out if other else 0)
        self.asked.append(compute)


@pytest.fixture
def cublas(monkeypatch: pytest.MonkeyPatch) -> _Cublas:
    import cupy_backends.cuda.libs

    fake = _Cublas()
    monkeypatch.setitem(vars(cupy_backends.cuda.libs), "cublas", fake)
    for kept in (devices._cublas_types, devices._factors):
        kept.cache_clear()
    return fake


def _device() -> CudaDevice:
    made = CudaDevice.__new__(CudaDevice)
    made._cupy = SimpleNamespace(cuda=SimpleNamespace(device=SimpleNamespace(get_cublas_handle=lambda: 7)))
    return made


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("turn_b", [False, True])
@pytest.mark.parametrize("turn_a", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(3, 5, 7), (1, 4, 6), (5, 1, 3), (2, 3, 1)])
def test_products_are_asked_for_in_the_order_of_columns(
    cublas: _Cublas, sizes: tuple[int, int, int], dtype: str, turn_a: bool, turn_b: bool, accumulate: bool
) -> None:
    rng, (m, k, n) = np.random.default_rng(5), sizes
    a, b, out = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (m, n)))
    want = a @ b + (out if accumulate else 0)
    given = [_Memory(np.ascontiguousarray(one.T if turn else one)) for one, turn in ((a, turn_a), (b, turn_b))]
    if not accumulate:
        out[...] = np.nan
    _device().product(*given, _Memory(out), compute="ieee", turn_a=turn_a, turn_b=turn_b, accumulate=accumulate)
    np.testing.assert_allclose(out, want, rtol=1e-5)
    assert cublas.asked == [cublas.CUBLAS_COMPUTE_32F if dtype == "float32" else cublas.CUBLAS_COMPUTE_64F]


def test_tf32_is_taken_only_where_it_was_asked_for(cublas: _Cublas) -> None:
    a, b, out = (_Memory(np.ones((2, 2), np.float32)) for _ in range(3))
    _device().product(a, b, out, compute="ieee")
    _device().product(a, b, out, compute="tf32")
    assert cublas.asked == [cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32]


def test_a_struct_goes_to_the_kernel_by_value_as_one_argument() -> None:
    calls: list[tuple[Any, ...]] = []

    class Function:
        def __call__(self, *args: Any, **named: Any) -> None:
            calls.append((*args, named))

    program = devices._CudaProgram.__new__(devices._CudaProgram)
    program._functions = {"one": Function()}
    words = np.arange(5, dtype=np.int64)
    program.launch("one", (3, 2), 64, words, shared_bytes=16)
    grid, block, (argument,), named = calls[0]
    assert (grid, block, named) == ((3, 2), (64,), {"shared_mem": 16, "enable_cooperative_groups": False})
    assert argument.size == 1 and argument.nbytes == words.nbytes and argument.tobytes() == words.tobytes()


class _Driver:
    """The attributes of functions as the driver keeps them: a launch may have no more than it was asked for last."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self.asked.append((function, attribute, value))


def test_shared_memory_is_asked_for_once_and_for_every_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch of one thread takes no room from that of another, which has more."""
    import cupy_backends.cuda.api

    driver = _Driver()
    monkeypatch.setitem(vars(cupy_backends.cuda.api), "driver", driver)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.api.driver", driver)
    program = devices._CudaProgram.__new__(devices._CudaProgram)
    program._functions, program._asked = {"one": SimpleNamespace(ptr=5)}, set()
    program._shared_bytes = (227 << 10) - devices.STATIC_BYTES
    for size in (1 << 10, 48 << 10, 100 << 10, 60 << 10, 200 << 10):
        program._function("one", size)
    assert driver.asked == [(5, 8, program._shared_bytes)]


def test_a_cooperative_launch_of_too_many_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = devices._CudaProgram.__new__(devices._CudaProgram)
    monkeypatch.setattr(program, "resident_blocks", lambda kernel, threads, shared_bytes: 4)
    with pytest.raises(ValueError, match="blocks: expected at most 4, which the device holds at once; got 6"):
        program.launch("one", (3, 2), 64, np.zeros(1, np.int64), cooperative=True)
