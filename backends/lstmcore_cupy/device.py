"""What kernels are run on: arrays, compiled programs and products of matrices, of a GPU or of what stands in for it."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Array = Any
Words = npt.NDArray[np.int64]

#: How a product multiplies: as the operands are, or with those of float32 rounded to TF32. Sums are at least float32.
Compute = Literal["ieee", "tf32"]

#: Of NVRTC. Unlike CuPy's own there is no -ftz: denormal numbers stay.
OPTIONS: Final = ("-std=c++17",)
_BITS: Final = np.dtype(np.uint16)
#: DLPack's numbers for memory of a GPU, and for memory that moves there by itself.
_DLPACK_CUDA: Final = (2, 13)
#: Of shared memory that every kernel may have; for more it has to be asked.
_SHARED_BYTES: Final = 48 << 10
#: Of shared memory that a persistent kernel has beside what it is launched with: it counts towards a block's most.
STATIC_BYTES: Final = 64


class Program(ABC):
    """Compiled kernels. Each takes one ``struct`` by value, all of whose fields have 8 bytes."""

    @abstractmethod
    def launch(
        self,
        kernel: str,
        blocks: tuple[int, ...],
        threads: int,
        words: Words,
        *,
        shared_bytes: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Start a kernel on the current stream.

        Parameters
        ----------
        kernel
            Its name.
        blocks
            The grid, one to three numbers, all at least 1.
        threads
            Of each block.
        words
            The struct, copied before this returns.
        shared_bytes
            Dynamic shared memory of each block.
        cooperative
            Whether all blocks have to be resident at once.
        """

    @abstractmethod
    def resident_blocks(self, kernel: str, threads: int, shared_bytes: int = 0) -> int:
        """How many blocks of a kernel the whole device holds at once."""


class Device(ABC):
    """A device. Its arrays have ``shape``, ``dtype``, ``reshape``, ``view``, ``copy`` and slices as NumPy's have."""

    #: As receipts name it.
    name: str
    #: As its maker names it: what was measured on one holds for the others of that name.
    model: str
    multiprocessors: int
    #: The most dynamic shared memory of a block, in bytes.
    shared_bytes: int
    #: One number of the host's memory to which kernels can write: not 0 where blocks gave up waiting for each other.
    failed: Words

    @abstractmethod
    def active(self) -> AbstractContextManager[object]:
        """While this is entered, arrays are made and kernels run on this device."""

    @abstractmethod
    def program(self, text: str) -> Program:
        """The kernels of a source, compiled once."""

    @abstractmethod
    def home(self, array: Array) -> Device:
        """The device where `array` is; this one for arrays of the host."""

    @abstractmethod
    def array(self, array: Array) -> Array:
        """`array` on this device in row-major order and aligned, without a copy where it is so already."""

    @abstractmethod
    def host(self, array: Array) -> npt.NDArray[Any]:
        """`array` as a NumPy array, without a copy where it is one already."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new array."""

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new array of zeros."""

    @abstractmethod
    def assign(self, target: Array, source: Array) -> None:
        """Copy into `target`, which is of this device or of the host and may have any strides."""

    @abstractmethod
    def writable(self, array: Array | None) -> bool:
        """Whether kernels can write to `array` as it is: on this device, in row-major order, aligned."""

    @abstractmethod
    def address(self, array: Array) -> int:
        """Where the first entry of `array` is."""

    @abstractmethod
    def product(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: Compute,
        turn_a: bool = False,
        turn_b: bool = False,
        accumulate: bool = False,
    ) -> None:
        """``out = a b``, or ``out += a b``, of matrices in row-major order and of one dtype; `turn_a` transposes a."""

    def versions(self) -> dict[str, str]:
        """Of the libraries that it computes with."""
        return {}

    def check(self) -> None:
        """Raise RuntimeError where a launch that has run by now gave up, once for it. Waits for nothing."""
        if self.failed[0]:
            self.failed[0] = 0
            raise RuntimeError(
                f"{self.name}: the blocks of a persistent kernel waited too long for each other, and what it computed "
                "is NaN; run without it: CupyBackend(device, persistent=False)"
            )


def compiled(text: str, architecture: int, *options: str) -> tuple[bytes, str]:
    """The machine code of a source for an architecture such as 90, and the compiler's log. Needs no GPU and no driver.

    Raises
    ------
    cupy.cuda.compiler.CompileException
        The source is wrong.
    """
    from io import StringIO

    from cupy.cuda.compiler import _NVRTCProgram

    log = StringIO()
    program = _NVRTCProgram(text, "lstmcore.cu", method="cubin")
    code, _ = program.compile((*OPTIONS, f"-arch=sm_{architecture}", *options), log)
    return code, log.getvalue()


class _CudaProgram(Program):
    def __init__(self, code: bytes, multiprocessors: int, shared_bytes: int) -> None:
        from cupy.cuda.function import Module

        self._module = Module()
        self._module.load(code)
        self._functions: dict[str, Any] = {}
        self._asked: set[str] = set()
        self._multiprocessors, self._shared_bytes = multiprocessors, shared_bytes

    def launch(
        self,
        kernel: str,
        blocks: tuple[int, ...],
        threads: int,
        words: Words,
        *,
        shared_bytes: int = 0,
        cooperative: bool = False,
    ) -> None:
        if cooperative:  # CuPy would take fewer blocks, with a warning only
            held, wanted = self.resident_blocks(kernel, threads, shared_bytes), int(np.prod(blocks))
            if wanted > held:
                raise ValueError(f"blocks: expected at most {held}, which the device holds at once; got {wanted}")
        argument = words.view(np.dtype((np.void, words.nbytes)))  # one entry: CuPy passes it by value
        self._function(kernel, shared_bytes)(
            blocks, (threads,), (argument,), shared_mem=shared_bytes, enable_cooperative_groups=cooperative
        )

    def resident_blocks(self, kernel: str, threads: int, shared_bytes: int = 0) -> int:
        from cupy_backends.cuda.api import driver

        function = self._function(kernel, shared_bytes)
        each = int(driver.occupancyMaxActiveBlocksPerMultiprocessor(function.ptr, threads, shared_bytes))
        return each * self._multiprocessors

    def _function(self, kernel: str, shared_bytes: int) -> Any:
        function = self._functions.get(kernel)
        if function is None:
            function = self._functions[kernel] = self._module.get_function(kernel)
        if shared_bytes > _SHARED_BYTES and kernel not in self._asked:
            from cupy_backends.cuda.api import driver

            # All that there is, and not what this launch takes: another thread's launch may take more.
            most = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, most, self._shared_bytes)
            self._asked.add(kernel)
        return function


class CudaDevice(Device):
    """An NVIDIA GPU through CuPy: its memory pool, its current stream, its cuBLAS."""

    def __init__(self, number: int | None = None) -> None:
        import cupy

        self._cupy = cupy
        self._device = cupy.cuda.Device(number)
        self.number = int(self._device.id)
        self.name = f"cuda:{self.number}"
        properties = cupy.cuda.runtime.getDeviceProperties(self.number)
        self.model = properties["name"].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])
        self.shared_bytes = int(properties["sharedMemPerBlockOptin"]) - STATIC_BYTES
        self.architecture = int(self._device.compute_capability)
        with self.active():
            pinned = cupy.cuda.alloc_pinned_memory(np.dtype(np.int64).itemsize)
        self.failed = np.frombuffer(pinned, np.int64, 1)
        self.failed[0] = 0
        self._programs: dict[str, _CudaProgram] = {}
        self._lock = threading.Lock()

    def active(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._cupy.cuda.Device(self.number)
        return context

    def program(self, text: str) -> Program:
        with self._lock:
            if text not in self._programs:
                with self.active():
                    code = machine_code(text, self.architecture)
                    self._programs[text] = _CudaProgram(code, self.multiprocessors, self.shared_bytes)
            return self._programs[text]

    def home(self, array: Array) -> Device:
        number = self._number(array)
        return self if number is None or number == self.number else cuda_device(number)

    def _number(self, array: Array) -> int | None:
        """The GPU where `array` is, None for arrays of the host."""
        if isinstance(array, np.ndarray):
            return None
        if isinstance(array, self._cupy.ndarray):
            return int(array.device.id)
        if hasattr(array, "__dlpack_device__"):
            kind, number = array.__dlpack_device__()
            return int(number) if int(kind) in _DLPACK_CUDA else None
        if hasattr(array, "__cuda_array_interface__"):
            return int(self._cupy.asarray(array).device.id)
        return None

    def array(self, array: Array) -> Array:
        cupy = self._cupy
        if isinstance(array, cupy.ndarray):
            found = array
        elif isinstance(array, np.ndarray):
            bits = np.ascontiguousarray(array)
            return cupy.asarray(bits.view(_as_bits(bits.dtype))).view(bits.dtype)
        elif hasattr(array, "__dlpack_device__"):  # first, since it tells the giver which stream reads
            if self._number(array) is None:
                return self.array(np.from_dlpack(array))
            found = cupy.from_dlpack(array)
        else:
            found = cupy.asarray(array)
        if found.device.id != self.number:
            raise ValueError(
                f"array: expected one on {self.name}, where this call runs; got one on cuda:{found.device.id}"
            )
        dtype = found.dtype
        found = cupy.ascontiguousarray(found.view(_as_bits(dtype))).view(dtype)
        if found.data.ptr % dtype.itemsize:  # kernels may not read it so; its bytes can be copied
            found = found.view(np.uint8).copy().view(dtype)
        return found

    def host(self, array: Array) -> npt.NDArray[Any]:
        if isinstance(array, np.ndarray):
            return array
        array = self.array(array)
        bits: npt.NDArray[Any] = array.view(_as_bits(array.dtype)).get()
        return bits.view(array.dtype)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._cupy.empty(shape, _as_bits(dtype)).view(dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._cupy.zeros(shape, _as_bits(dtype)).view(dtype)

    def assign(self, target: Array, source: Array) -> None:
        if isinstance(target, np.ndarray):
            target[...] = self.host(source)
        else:
            bits = _as_bits(target.dtype)
            target.view(bits)[...] = source.view(bits)

    def writable(self, array: Array | None) -> bool:
        if not isinstance(array, self._cupy.ndarray) or array.device.id != self.number:
            return False
        return bool(array.flags.c_contiguous) and array.data.ptr % array.dtype.itemsize == 0

    def address(self, array: Array) -> int:
        return int(array.data.ptr)

    def product(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: Compute,
        turn_a: bool = False,
        turn_b: bool = False,
        accumulate: bool = False,
    ) -> None:
        # cuBLAS counts by columns: to it our matrices are turned, and out' = b' a'.
        from cupy_backends.cuda.libs import cublas

        rows, columns = out.shape
        inner = a.shape[0] if turn_a else a.shape[1]
        kind, how = _cublas_types(out.dtype.itemsize, compute)
        one, zero, *_ = _factors(out.dtype)
        cublas.gemmEx(
            self._cupy.cuda.device.get_cublas_handle(),
            cublas.CUBLAS_OP_T if turn_b else cublas.CUBLAS_OP_N,
            cublas.CUBLAS_OP_T if turn_a else cublas.CUBLAS_OP_N,
            columns,
            rows,
            inner,
            one,
            b.data.ptr,
            kind,
            b.shape[1],
            a.data.ptr,
            kind,
            a.shape[1],
            one if accumulate else zero,
            out.data.ptr,
            kind,
            columns,
            how,
            cublas.CUBLAS_GEMM_DEFAULT,
        )

    def versions(self) -> dict[str, str]:
        runtime = self._cupy.cuda.runtime
        return {
            "cupy": str(self._cupy.__version__),
            "cuda runtime": str(runtime.runtimeGetVersion()),
            "cuda driver": str(runtime.driverGetVersion()),
            "gpu": self.model,
        }


@cache
def cuda_device(number: int) -> CudaDevice:
    """The GPU of a number, one object for each."""
    return CudaDevice(number)


def machine_code(text: str, architecture: int) -> bytes:
    """The machine code of `compiled`, kept on disk in the folder of CuPy's own cache."""
    from cupy_backends.cuda.libs import nvrtc

    key = hashlib.sha256(repr((text, architecture, OPTIONS, nvrtc.getVersion())).encode()).hexdigest()
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))
    kept = folder / f"lstmcore_{key}.cubin"
    with suppress(OSError):  # not there, or not for us to read
        return kept.read_bytes()
    code, _ = compiled(text, architecture)
    with suppress(OSError):  # a folder that cannot be written to costs time and nothing else
        folder.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}")
        part.write_bytes(code)
        part.replace(kept)
    return code


def _as_bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which arrays of `dtype` are copied: that of its bits for the 16-bit formats."""
    return _BITS if dtype.itemsize == _BITS.itemsize else dtype


@cache
def _cublas_types(size: int, compute: Compute) -> tuple[int, int]:
    """The type of the numbers and of the arithmetic, as cuBLAS names them."""
    from cupy_backends.cuda.api import runtime
    from cupy_backends.cuda.libs import cublas

    if size == 8:
        return runtime.CUDA_R_64F, cublas.CUBLAS_COMPUTE_64F
    tf32 = compute == "tf32"
    return runtime.CUDA_R_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32 if tf32 else cublas.CUBLAS_COMPUTE_32F


@cache
def _factors(dtype: np.dtype[Any]) -> tuple[int, int, npt.NDArray[Any]]:
    """Where 1 and 0 are, and the array that keeps them there."""
    kept = np.array([1, 0], dtype)
    return kept.ctypes.data, kept.ctypes.data + dtype.itemsize, kept
