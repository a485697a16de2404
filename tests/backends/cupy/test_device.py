"""The interface's GPU side, with host memory in place of the GPU's."""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lstmcore.config import LSTMConfig
from lstmcore_cupy import cuda_device, launch, persistent, program_source
from lstmcore_cupy.cublas_request import gemm_request
from lstmcore_cupy.cuda_device import CudaDevice

_TYPES: dict[int, type[Any]] = {0: ctypes.c_float, 1: ctypes.c_double}


class _Memory:
    """A NumPy array with the attributes of a CuPy array."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.data = SimpleNamespace(ptr=array.ctypes.data)


def _columns(address: int, kind: int, rows: int, columns: int, distance: int) -> npt.NDArray[Any]:
    """Return a matrix as cuBLAS sees it: column after column, each `distance` entries after the one before."""
    flat = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(_TYPES[kind])), (distance * columns,))
    return flat.reshape(columns, distance)[:, :rows].T


class _Cublas:
    """`gemmEx` by its manual, on host memory. `asked` has the arithmetic of every call."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT = 0, 1, -1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77

    def __init__(self) -> None:
        self.asked: list[int] = []

    def gemmEx(self, handle: int, op_a: int, op_b: int, m: int, n: int, k: int, *rest: int) -> None:
        alpha, a, a_kind, a_distance, b, b_kind, b_distance, beta, c, c_kind, c_distance, compute, _ = rest
        left = _columns(a, a_kind, *((k, m) if op_a else (m, k)), a_distance)
        right = _columns(b, b_kind, *((n, k) if op_b else (k, n)), b_distance)
        made = (left.T if op_a else left) @ (right.T if op_b else right)
        out = _columns(c, c_kind, m, n, c_distance)
        scale, old_scale = (ctypes.cast(factor, ctypes.POINTER(_TYPES[c_kind]))[0] for factor in (alpha, beta))
        out[...] = scale * made + (old_scale * out if old_scale else 0)
        self.asked.append(compute)


@pytest.fixture
def cublas(monkeypatch: pytest.MonkeyPatch) -> _Cublas:
    import cupy_backends.cuda.libs

    fake = _Cublas()
    monkeypatch.setitem(vars(cupy_backends.cuda.libs), "cublas", fake)
    gemm_request.cache_clear()
    return fake


def _device() -> CudaDevice:
    device = CudaDevice.__new__(CudaDevice)
    device._bound = threading.local()
    device._cupy = SimpleNamespace(cuda=SimpleNamespace(device=SimpleNamespace(get_cublas_handle=lambda: 7)))
    return device


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("transpose", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(3, 5, 7), (1, 4, 6), (5, 1, 3), (2, 3, 1)])
def test_products_are_asked_for_in_the_order_of_columns(
    cublas: _Cublas, sizes: tuple[int, int, int], dtype: str, transpose: tuple[bool, bool], accumulate: bool
) -> None:
    rng, (m, k, n) = np.random.default_rng(5), sizes
    a, b, out = (rng.standard_normal(shape).astype(dtype) for shape in ((m, k), (k, n), (m, n)))
    want = a @ b + (out if accumulate else 0)
    pairs = zip((a, b), transpose, strict=True)
    operands = [_Memory(np.ascontiguousarray(matrix.T if transposed else matrix)) for matrix, transposed in pairs]
    if not accumulate:
        out[...] = np.nan
    _device().matmul(*operands, _Memory(out), compute="ieee", transpose=transpose, accumulate=accumulate)
    np.testing.assert_allclose(out, want, rtol=1e-5)
    assert cublas.asked == [cublas.CUBLAS_COMPUTE_32F if dtype == "float32" else cublas.CUBLAS_COMPUTE_64F]


def test_tf32_is_taken_only_where_it_was_asked_for(cublas: _Cublas) -> None:
    a, b, out = (_Memory(np.ones((2, 2), np.float32)) for _ in range(3))
    _device().matmul(a, b, out, compute="ieee")
    _device().matmul(a, b, out, compute="tf32")
    assert cublas.asked == [cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32]


def test_a_struct_goes_to_the_kernel_by_value_as_one_argument() -> None:
    calls: list[tuple[Any, ...]] = []

    class Function:
        def __call__(self, *args: Any, **named: Any) -> None:
            calls.append((*args, named))

    program = cuda_device._CudaProgram.__new__(cuda_device._CudaProgram)
    program._functions = {"one": Function()}
    words = np.arange(5, dtype=np.int64)
    program.launch("one", (3, 2), 64, words, shared_bytes=16)
    grid, block, (argument,), named = calls[0]
    assert (grid, block, named) == ((3, 2), (64,), {"shared_mem": 16, "enable_cooperative_groups": False})
    assert argument.size == 1 and argument.nbytes == words.nbytes and argument.tobytes() == words.tobytes()


class _Driver:
    """The driver's attributes of functions. A launch may use no more than the last value that was set."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def funcSetAttribute(self, function: int, attribute: int, value: int) -> None:
        self.asked.append((function, attribute, value))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> _Driver:
    import cupy_backends.cuda.api

    fake = _Driver()
    monkeypatch.setitem(vars(cupy_backends.cuda.api), "driver", fake)
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.api.driver", fake)
    return fake


def _program() -> cuda_device._CudaProgram:
    program = cuda_device._CudaProgram.__new__(cuda_device._CudaProgram)
    program._functions, program._asked = {"one": SimpleNamespace(ptr=5)}, set()
    program._shared_bytes = (227 << 10) - cuda_device.STATIC_BYTES
    return program


def test_shared_memory_is_asked_for_once_and_for_every_launch(driver: _Driver) -> None:
    """A launch of one thread does not lower the limit of another thread's launch, which needs more."""
    program = _program()
    for size in (1 << 10, 48 << 10, 100 << 10, 60 << 10, 200 << 10):
        program._function("one", size)
    assert driver.asked == [(5, 8, program._shared_bytes)]


def test_static_bytes_count_towards_the_default_limit(driver: _Driver) -> None:
    """A kernel with exactly 48 KiB of dynamic bytes has to ask too: its static bytes come on top."""
    program = _program()
    program._function("one", (48 << 10) - cuda_device.STATIC_BYTES)
    assert not driver.asked
    program._function("one", (48 << 10) - cuda_device.STATIC_BYTES + 4)
    assert driver.asked == [(5, 8, program._shared_bytes)]


def _planned_bytes() -> set[int]:
    """Return the dynamic shared memory of every plan of an H100, at sizes of all kinds."""
    device = SimpleNamespace(multiprocessors=132, shared_bytes=(227 << 10) - cuda_device.STATIC_BYTES)
    float32, short = np.dtype(np.float32), np.dtype(np.uint16)
    sizes: set[int] = set()
    for tensor_cores, storage in ((False, float32), (True, float32), (True, short)):
        formats = {"tensor_cores": tensor_cores, "real": float32, "storage": storage}
        for hidden, batch, directions in product((344, *range(5, 1400, 17)), (1, 64, 256), (1, 2)):
            programs: Any = SimpleNamespace(
                config=LSTMConfig(input_size=2, hidden_size=hidden), device=device, **formats
            )
            for kernel in ("forward_persistent", "backward_persistent"):
                plans = persistent._plans(programs, kernel, batch, directions)  # type: ignore[arg-type]
                sizes |= {plan.shared_bytes for plan in plans if plan.shared_bytes <= device.shared_bytes}
    return sizes


def test_every_plan_asks_for_the_shared_memory_it_needs(driver: _Driver) -> None:
    """A kernel that does not ask has 48 KiB, its static bytes included; a launch with more would fail."""
    sizes, most = _planned_bytes(), 48 << 10
    assert len(sizes) > 500
    assert {size for size in sizes if most - cuda_device.STATIC_BYTES < size <= most}  # they have to ask too
    for size in sizes:
        driver.asked.clear()
        program = _program()
        program._function("one", size)
        given = program._shared_bytes if driver.asked else most - cuda_device.STATIC_BYTES
        assert size <= given, size
        assert not driver.asked or size > most - cuda_device.STATIC_BYTES


class _Function:
    """A kernel of CuPy; `seen` has the struct of each launch."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...], bytes]] = []

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Any) -> None:
        (argument,) = arguments
        self.seen.append((grid, block, argument.tobytes()))


def test_a_step_only_starts_what_was_bound_before() -> None:
    """What a launch in Python costs is a number in the struct and a call; all else is found once."""
    program = _program()
    program._functions = {"forward_cell": (function := _Function())}
    call = launch.Call(SimpleNamespace(), program, "Call")  # type: ignore[arg-type]  # no array, no address
    called: list[str] = []

    def listen(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    for s in range(3):
        called.clear()
        call.put(units=10 + s)
        sys.setprofile(listen)
        try:
            call.step(s, "forward_cell", 64, 300)
        finally:
            sys.setprofile(None)
        place = program_source.fields("Call")
        grid, block, struct = function.seen[-1]
        words = np.frombuffer(struct, np.int64)
        assert (grid, block) == ((64, 2), (256,))
        assert (words[place["s"]], words[place["units"]]) == (s, 10 + s)
    assert called == ["step", "__call__"]


class _Runtime:
    """CuPy's devices, events and streams; `log` has what is asked of them, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.done = False
        self.runtime = SimpleNamespace(free=lambda address: self.log.append(f"free {address}"))

    def Device(self, number: int) -> nullcontext[None]:
        return nullcontext()

    def Event(self, *, disable_timing: bool) -> Any:
        return SimpleNamespace(record=lambda: self.log.append("record"), done=self.done)

    def get_current_stream(self) -> Any:
        return SimpleNamespace(wait_event=lambda event: self.log.append("wait"))


def _device_on(runtime: _Runtime) -> CudaDevice:
    device = _device()
    device._cupy, device.number = SimpleNamespace(cuda=runtime), 0
    return device


def test_a_fresh_thread_binds_its_context_once() -> None:
    """The driver's functions find no context in a thread that has called nothing of the runtime."""
    device = _device_on(runtime := _Runtime())

    def twice() -> None:
        for _ in range(2):
            with device.active():
                pass

    twice()
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
    assert runtime.log == ["free 0", "free 0"]


@pytest.mark.parametrize(("done", "log"), [(False, ["record", "wait"]), (True, ["record"])])
def test_a_stream_waits_for_what_another_one_started(done: bool, log: list[str]) -> None:
    runtime = _Runtime()
    runtime.done = done
    _device_on(runtime).started()()
    assert runtime.log == log


def test_a_cooperative_launch_of_too_many_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = cuda_device._CudaProgram.__new__(cuda_device._CudaProgram)
    monkeypatch.setattr(program, "resident_blocks", lambda kernel, threads, shared_bytes: 4)
    with pytest.raises(ValueError, match="blocks: expected at most 4, which the device holds at once; got 6"):
        program.launch("one", (3, 2), 64, np.zeros(1, np.int64), cooperative=True)
