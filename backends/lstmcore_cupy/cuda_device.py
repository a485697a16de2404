"""An NVIDIA GPU through CuPy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.locks import ForkSafeLock
from lstmcore.uploads import Uploader
from lstmcore_cupy import tuning
from lstmcore_cupy.cublas_request import gemm_request
from lstmcore_cupy.device import Array, Compute, Device, Program, Words
from lstmcore_cupy.nvrtc import cached_cubin
from lstmcore_cupy.pinned_uploads import PinnedUploader
from lstmcore_cupy.recorded_products import RecordedProducts, loaded_cublas

_BITS: Final = np.dtype(np.uint16)
#: DLPack's device types for memory of a GPU, and for managed memory, which moves there by itself.
_DLPACK_CUDA: Final = (2, 13)
#: Bytes of shared memory that every kernel may have, static ones included; a kernel has to ask for more.
_SHARED_BYTES: Final = 48 << 10
#: Bytes of shared memory that a persistent kernel declares statically. They count towards a block's limit.
STATIC_BYTES: Final = 64


class _CudaProgram(Program):
    """A loaded module and its functions."""

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
        """See `Program.launch`."""
        if cooperative:  # CuPy would start fewer blocks, with a warning only
            resident, wanted = self.resident_blocks(kernel, threads, shared_bytes), int(np.prod(blocks))
            if wanted > resident:
                raise ValueError(f"blocks: expected at most {resident}, which the device holds at once; got {wanted}")
        argument = words.view(_struct_type(words.nbytes))  # one entry: CuPy passes it by value
        self._function(kernel, shared_bytes)(
            blocks, (threads,), (argument,), shared_mem=shared_bytes, enable_cooperative_groups=cooperative
        )

    def bind(self, kernel: str, blocks: tuple[int, ...], threads: int, words: Words) -> Callable[[], None]:
        """See `Program.bind`."""
        argument = words.view(_struct_type(words.nbytes))  # shares the memory of `words`
        return partial(self._function(kernel, 0), blocks, (threads,), (argument,))

    def resident_blocks(self, kernel: str, threads: int, shared_bytes: int = 0) -> int:
        """See `Program.resident_blocks`."""
        from cupy_backends.cuda.api import driver

        function = self._function(kernel, shared_bytes)
        per_multiprocessor = int(driver.occupancyMaxActiveBlocksPerMultiprocessor(function.ptr, threads, shared_bytes))
        return per_multiprocessor * self._multiprocessors

    def _function(self, kernel: str, shared_bytes: int) -> Any:
        function = self._functions.get(kernel)
        if function is None:
            function = self._functions[kernel] = self._module.get_function(kernel)
        if shared_bytes > _SHARED_BYTES - STATIC_BYTES and kernel not in self._asked:
            from cupy_backends.cuda.api import driver

            # The limit, not what this launch takes: another thread's launch may take more.
            limit = driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.funcSetAttribute(function.ptr, limit, self._shared_bytes)
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
        self._bound = threading.local()
        with self.active():
            pinned = cupy.cuda.alloc_pinned_memory(np.dtype(np.int64).itemsize)
        self.failed = np.frombuffer(pinned, np.int64, 1)
        self.failed[0] = 0
        self._programs: dict[str, _CudaProgram] = {}
        self._lock = ForkSafeLock()
        self._recording_lock = ForkSafeLock()
        self._recorded_products: RecordedProducts | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """See `Device.active`."""
        with self._cupy.cuda.Device(self.number):
            if not hasattr(self._bound, "context"):
                # `_CudaProgram` calls the driver, which needs the context that a call of the runtime binds.
                self._cupy.cuda.runtime.free(0)
                self._bound.context = True
            yield

    def started(self) -> Callable[[], None]:
        """See `Device.started`."""
        cuda = self._cupy.cuda
        event = cuda.Event(disable_timing=True)
        event.record()

        def wait() -> None:
            if not event.done:
                cuda.get_current_stream().wait_event(event)

        return wait

    def program(self, text: str) -> Program:
        """See `Device.program`."""
        with self._lock.lock:
            if text not in self._programs:
                with self.active():
                    code = cached_cubin(text, self.architecture)
                    self._programs[text] = _CudaProgram(code, self.multiprocessors, self.shared_bytes)
            return self._programs[text]

    def home(self, array: Array) -> Device:
        """See `Device.home`."""
        number = self._number(array)
        return self if number is None or number == self.number else cuda_device(number)

    def _number(self, array: Array) -> int | None:
        """Return the number of the GPU that holds `array`, None for arrays of the host."""
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

    def locate(self, array: Array) -> tuple[str, Array] | None:
        """See `Device.locate`."""
        number = self._number(array)
        if number is None:
            return None
        with self._cupy.cuda.Device(number):
            return f"cuda:{number}", self._adopt(array)

    def _adopt(self, array: Array) -> Array:
        """Return an array of a GPU as CuPy's."""
        if isinstance(array, self._cupy.ndarray):
            return array
        if hasattr(array, "__dlpack_device__"):  # first, since it tells the producer which stream reads
            return self._cupy.from_dlpack(array)
        return self._cupy.asarray(array)

    def array(self, array: Array) -> Array:
        """See `Device.array`."""
        cupy = self._cupy
        if isinstance(array, np.ndarray):
            bits = np.asarray(array, order="C")  # an array () stays one
            return cupy.asarray(bits.view(_as_bits(bits.dtype))).view(bits.dtype)
        if hasattr(array, "__dlpack_device__") and self._number(array) is None:
            return self.array(np.from_dlpack(array))
        result = self._adopt(array)
        if result.device.id != self.number:
            raise ValueError(
                f"array: expected one on {self.name}, where this call runs; got one on cuda:{result.device.id}"
            )
        dtype = result.dtype
        if result.ndim:  # it would make an array (1,) of an array ()
            result = cupy.ascontiguousarray(result.view(_as_bits(dtype))).view(dtype)
        if result.data.ptr % dtype.itemsize:  # kernels may not read it unaligned; its bytes can be copied
            result = result.view(np.uint8).copy().view(dtype)
        return result

    def host(self, array: Array) -> npt.NDArray[Any]:
        """See `Device.host`."""
        if isinstance(array, np.ndarray):
            return array
        array = self.array(array)
        bits: npt.NDArray[Any] = array.view(_as_bits(array.dtype)).get()
        return bits.view(array.dtype)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """See `Device.empty`."""
        return self._cupy.empty(shape, _as_bits(dtype)).view(dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """See `Device.zeros`."""
        return self._cupy.zeros(shape, _as_bits(dtype)).view(dtype)

    def clear(self, array: Array) -> None:
        """See `Device.clear`."""
        array.data.memset_async(0, array.nbytes)

    def assign(self, target: Array, source: Array) -> None:
        """See `Device.assign`."""
        if isinstance(target, np.ndarray):
            target[...] = self.host(source)
        else:
            bits = _as_bits(target.dtype)
            target.view(bits)[...] = source.view(bits)

    def writable(self, array: Array | None) -> bool:
        """See `Device.writable`."""
        if not isinstance(array, self._cupy.ndarray) or array.device.id != self.number:
            return False
        return bool(array.flags.c_contiguous) and array.data.ptr % array.dtype.itemsize == 0

    def address(self, array: Array) -> int:
        """See `Device.address`."""
        return int(array.data.ptr)

    def matmul(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        compute: Compute,
        transpose: tuple[bool, bool] = (False, False),
        accumulate: bool = False,
    ) -> None:
        """See `Device.matmul`."""
        # cuBLAS counts by columns: it sees our matrices transposed, so it computes out' = b' a'.
        rows, columns = out.shape
        b_columns, (a_rows, a_columns) = b.shape[1], a.shape
        gemm = gemm_request(out.dtype, compute, transpose, accumulate)
        own = getattr(self._bound, "products", None)
        start = gemm.function if own is None else own.gemm
        start(
            self._cupy.cuda.device.get_cublas_handle() if own is None else own.handle,
            *gemm.operations,
            columns,
            rows,
            a_rows if transpose[0] else a_columns,
            gemm.one,
            b.data.ptr,
            gemm.number_type,
            b_columns,
            a.data.ptr,
            gemm.number_type,
            a_columns,
            gemm.scale,
            out.data.ptr,
            gemm.number_type,
            columns,
            *gemm.arithmetic,
        )

    @contextmanager
    def on_stream(self, number: int, address: int) -> Iterator[None]:
        """See `Device.on_stream`."""
        cuda = self._cupy.cuda
        # Not `Stream.from_external`, which CuPy 14 advises: its end may destroy the stream of the other library.
        with cuda.Device(number), cuda.ExternalStream(address, number):
            yield

    def stream(self) -> int:
        """See `Device.stream`."""
        return int(self._cupy.cuda.get_current_stream().ptr)

    def uploader(self) -> Uploader:
        """See `Device.uploader`."""
        return PinnedUploader(self, self._cupy)

    def rehearse(self, work: Callable[[], None]) -> None:
        """See `Device.rehearse`."""
        with self._products_on(self._cupy.cuda.get_current_stream(), self._workspace()):
            work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Device.capture`."""
        stream, workspace = self._cupy.cuda.Stream(non_blocking=True), self._workspace()
        with self._products_on(stream, workspace), stream:
            stream.begin_capture()
            try:
                work()
            except BaseException:
                with suppress(Exception):  # it would say that the record is void, and not why
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        return partial(_launch_graph, graph, workspace)

    def _workspace(self) -> Array:
        return self._cupy.empty((tuning.GRAPH_WORKSPACE,), np.uint8)

    @contextmanager
    def _products_on(self, stream: Any, workspace: Array) -> Iterator[None]:
        """Let products of this thread go to a stream by a handle that may be recorded; one thread at a time."""
        with self._recording_lock.lock:
            if self._recorded_products is None:
                self._recorded_products = self._make_products()
            self._recorded_products.use(stream.ptr, workspace.data.ptr, workspace.nbytes)
            self._bound.products = self._recorded_products
            try:
                yield
            finally:
                self._bound.products = None

    def _make_products(self) -> RecordedProducts:
        from cupy_backends.cuda.libs import cublas

        handle = cublas.create()  # which loads the library
        return RecordedProducts(loaded_cublas(), handle)

    def versions(self) -> dict[str, str]:
        """See `Device.versions`."""
        runtime = self._cupy.cuda.runtime
        return {
            "cupy": str(self._cupy.__version__),
            "cuda runtime": str(runtime.runtimeGetVersion()),
            "cuda driver": str(runtime.driverGetVersion()),
            "gpu": self.model,
        }


def _launch_graph(graph: Any, workspace: Array) -> None:
    """Start a graph on the current stream; its products have addresses in the workspace, which is kept with it."""
    graph.launch()


@cache
def cuda_device(number: int) -> CudaDevice:
    """Return the GPU of a number; each number has one object."""
    return CudaDevice(number)


def _as_bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which arrays of `dtype` are copied: unsigned integers for the 16-bit formats."""
    return _BITS if dtype.itemsize == _BITS.itemsize else dtype


@cache
def _struct_type(size: int) -> np.dtype[Any]:
    """Return the dtype of one entry of `size` bytes; making it takes longer than all else of a launch in Python."""
    return np.dtype((np.void, size))
