"""A GPU with CuPy on the processor: `CudaDevice` itself, on arrays that NumPy refuses, with the emulator's kernels.

Copies between host and device, waits of the host and launches are counted. Copies from pinned memory run late, see
`emulation.streams`, so no other missing wait between streams is found.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from emulation import EmulatedDevice
from emulation.recording import OwnProducts, Recorder, RecordingProgram
from emulation.streams import Event, Stream
from lstmcore_cupy.cuda_device import STATIC_BYTES, CudaDevice
from lstmcore_cupy.device import Program


@dataclass(slots=True)
class Counts:
    """The work that a GPU was given since `clear`.

    Attributes
    ----------
    launches
        The names of kernels, of matrix products and of CuPy's functions, in order. A view is none, nor is a `memset`.
    copies_in, copies_out
        Copies from the host and to it. Those from it do not wait.
    waits
        Waits of the host for the device.
    stream_waits
        Waits of one stream for another.
    streams
        The streams that were given launches.
    order
        What streams were given, but that launches in a row are one entry.
    copied
        The bytes of each copy from pinned memory.
    """

    launches: list[str] = field(default_factory=list)
    memsets: int = 0
    copies_in: int = 0
    copies_out: int = 0
    waits: int = 0
    stream_waits: int = 0
    streams: set[str] = field(default_factory=set)
    order: list[str] = field(default_factory=list)
    copied: list[int] = field(default_factory=list)

    def clear(self) -> None:
        self.launches.clear()
        self.streams.clear()
        self.order.clear()
        self.copied.clear()
        self.memsets = self.copies_in = self.copies_out = self.waits = self.stream_waits = 0


#: Methods of CuPy's arrays that are those of NumPy's.
_METHODS: Final = (
    *("all", "any", "argmax", "argmin", "argsort", "astype", "clip", "copy", "cumsum", "dot", "max", "mean", "min"),
    *("prod", "ravel", "repeat", "reshape", "round", "squeeze", "std", "sum", "swapaxes", "take", "transpose", "var"),
    *("view", "__abs__", "__invert__", "__neg__", "__pos__"),
)
_BINARY: Final = ("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow", "rshift", "sub", "truediv")
_COMPARED: Final = ("eq", "ge", "gt", "le", "lt", "ne")


class GpuArray:
    """An array of a GPU as CuPy's: NumPy refuses it, and it has no flag that makes it read-only."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]  # as arrays of NumPy and CuPy

    def __init__(self, own: npt.NDArray[Any], cupy: CupyOnHost, number: int | None = None) -> None:
        self._own, self._cupy = own, cupy
        self._number = cupy.current if number is None else number

    def __array__(self, *arguments: Any, **named: Any) -> npt.NDArray[Any]:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_namespace__(self, *, api_version: str | None = None) -> CupyOnHost:
        """Return the namespace. CuPy's arrays lack this: array-api-compat knows them by their type."""
        return self._cupy

    shape = property(lambda self: self._own.shape)
    dtype = property(lambda self: self._own.dtype)
    ndim = property(lambda self: self._own.ndim)
    size = property(lambda self: self._own.size)
    nbytes = property(lambda self: self._own.nbytes)
    itemsize = property(lambda self: self._own.itemsize)
    strides = property(lambda self: self._own.strides)
    T = property(lambda self: self._same_place(self._own.T))
    device = property(lambda self: Gpus(self._cupy, self._number))
    data = property(lambda self: _Memory(self))

    @property
    def flags(self) -> SimpleNamespace:
        own = self._own.flags
        return SimpleNamespace(c_contiguous=own.c_contiguous, f_contiguous=own.f_contiguous, owndata=own.owndata)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        own = self._own
        strides = None if own.flags.c_contiguous else own.strides
        data = (own.ctypes.data if own.size else 0, False)  # version 3: 0 without entries
        return {"shape": own.shape, "typestr": own.dtype.str, "data": data, "strides": strides, "version": 3}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._number

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("an array of a GPU, where memory of the host was asked for")

    def _same_place(self, own: npt.NDArray[Any]) -> GpuArray:
        return GpuArray(own, self._cupy, self._number)

    def get(self) -> npt.NDArray[Any]:
        self._cupy.recorder.refuse("get")
        self._cupy.counts.copies_out += 1
        self._cupy.counts.waits += 1
        return self._own.copy()

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[GpuArray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> GpuArray:
        parts = index if isinstance(index, tuple) else (index,)
        if any(getattr(part, "dtype", None) == np.bool_ for part in parts):
            self._cupy.counts.waits += 1  # for the number of entries
        return self._cupy.run("getitem", operator.getitem, self, index)  # type: ignore[no-any-return]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._cupy.run("setitem", operator.setitem, self, index, value)

    def fill(self, value: Any) -> None:
        self[...] = value

    def __copy__(self) -> GpuArray:
        return self.copy()  # type: ignore[no-any-return, attr-defined]

    def __deepcopy__(self, memory: Any) -> GpuArray:
        return self.copy()  # type: ignore[no-any-return, attr-defined]


class _Memory:
    """The memory of an array from its first entry on."""

    def __init__(self, array: GpuArray) -> None:
        self._array, self.ptr, self.device_id = array, array._own.ctypes.data, array._number

    def memset_async(self, value: int, size: int) -> None:
        own = self._array._own
        self._array._cupy.recorder.refuse("memset")
        if not own.flags.c_contiguous or size != own.nbytes:
            raise ValueError("bytes that are not those of the array")
        own.reshape(-1).view(np.uint8)[...] = value
        self._array._cupy.counts.memsets += 1

    def copy_from_host_async(self, source: Any, size: int, stream: Stream) -> None:
        if size > self._array._own.nbytes or not self._array._own.flags.c_contiguous:
            raise ValueError("bytes that are not those of the array")
        stream.copy(self._array._own, source, size)


def _add_method(name: str) -> None:
    def call(self: GpuArray, *arguments: Any, **named: Any) -> Any:
        return self._cupy.run(name.strip("_"), getattr(np.ndarray, name), self, *arguments, **named)

    setattr(GpuArray, name, call)


for _name in (
    *_METHODS,
    *(f"__{prefix}{name}__" for prefix in ("", "r", "i") for name in _BINARY if (prefix, name) != ("i", "matmul")),
    *(f"__{name}__" for name in _COMPARED),
):
    _add_method(_name)


class Gpus:
    """A device of CuPy: ``cupy.cuda.Device``."""

    compute_capability = "90"

    def __init__(self, cupy: CupyOnHost, number: int | None = None) -> None:
        self._cupy, self.id = cupy, cupy.current if number is None else number
        self._before: list[int] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gpus) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __enter__(self) -> Gpus:
        self._before.append(self._cupy.current)
        self._cupy.current = self.id
        return self

    def __exit__(self, *_: object) -> None:
        self._cupy.current = self._before.pop()

    def synchronize(self) -> None:
        self._cupy.counts.waits += 1


class CupyOnHost(ModuleType):
    """The parts of CuPy that its namespace of the array API standard, and `CudaDevice`, have."""

    ndarray = GpuArray

    def __init__(self) -> None:
        super().__init__("cupy")
        self.counts, self.current, self.free_bytes = Counts(), 0, 1 << 37
        self.recorder = Recorder()
        self._pinned: list[bytearray] = []
        self._made = 0
        self.streams = [Stream(self, "null")]
        self.cuda = self._cuda()

    def _cuda(self) -> SimpleNamespace:
        properties = {"name": b"a GPU on the processor", "multiProcessorCount": EmulatedDevice.multiprocessors}
        properties |= {"sharedMemPerBlockOptin": EmulatedDevice.shared_bytes + STATIC_BYTES}
        return SimpleNamespace(
            Device=lambda number=None: Gpus(self, number),
            Event=lambda **_: Event(self),
            Stream=lambda **_: self._new_stream(),
            ExternalStream=lambda address, device: Stream(self, f"stream at {address} of GPU {device}"),
            get_current_stream=lambda: self.streams[-1],
            alloc_pinned_memory=self._pin,
            runtime=SimpleNamespace(
                free=lambda address: None,
                getDeviceProperties=lambda number: properties,
                memGetInfo=lambda: (self.free_bytes, 1 << 37),
            ),
        )

    def _new_stream(self) -> Stream:
        self._made += 1
        return Stream(self, f"stream {self._made}")

    def _pin(self, size: int) -> bytearray:
        self._pinned.append(bytearray(size))
        return self._pinned[-1]

    def pinned(self) -> Iterator[tuple[int, int]]:
        """Yield the addresses at which pinned memory begins and ends; it is never given back."""
        for memory in self._pinned:
            begin = np.frombuffer(memory, np.uint8).ctypes.data
            yield begin, begin + len(memory)

    def launched(self, name: str, number: int | None = None) -> None:
        if number not in (None, self.current):
            raise ValueError(f"{name}: an array of GPU {number}, while GPU {self.current} is current")
        self.recorder.refuse(name)
        if self.recorder.replaying:
            return
        self.counts.launches.append(name)
        self.streams[-1].launch()
        self.counts.streams.add(self.streams[-1].name)

    def run(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Return what NumPy's function makes of arrays of GPUs."""
        numbers: set[int] = set()

        def unwrap(value: Any) -> Any:
            if isinstance(value, GpuArray):
                numbers.add(value._number)
                return value._own
            if isinstance(value, np.ndarray):
                raise TypeError(f"Unsupported type {type(value)}")
            return type(value)(map(unwrap, value)) if type(value) in (tuple, list) else value

        given = [unwrap(value) for value in arguments]
        named = {key: unwrap(value) for key, value in named.items() if key != "device"}
        if len(numbers) > 1:
            raise ValueError(f"{name}: arrays of GPUs {sorted(numbers)}")
        number = numbers.pop() if numbers else self.current
        made = function(*given, **named)
        own = [value for value in given if isinstance(value, np.ndarray)]
        if made is None or any(made is value for value in own):
            self.launched(name, number)  # into one of the arguments
        return self._wrapped(name, made, own, number)

    def _wrapped(self, name: str, made: Any, own: list[npt.NDArray[Any]], number: int) -> Any:
        if isinstance(made, tuple | list):
            return type(made)(self._wrapped(name, each, own, number) for each in made)
        if not isinstance(made, np.ndarray | np.generic):
            return made
        array = np.asarray(made)
        if not any(np.shares_memory(array, value) for value in own) and array.size:
            self.launched(name, number)
        return GpuArray(array, self, number)

    def __getattr__(self, name: str) -> Any:
        """Return a function of NumPy, or a dtype, that array-api-compat's namespace of CuPy has."""
        import array_api_compat.cupy

        if not hasattr(array_api_compat.cupy, name):
            raise AttributeError(name)
        found = getattr(np, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *arguments, **named: self.run(name, found, *arguments, **named)

    def asarray(self, values: Any, dtype: Any = None, *, device: Any = None, copy: bool | None = None) -> GpuArray:
        if isinstance(values, GpuArray):
            if device is not None:
                with device:
                    return self.asarray(values, dtype, copy=copy)
            changed = values if dtype is None or values.dtype == dtype else values.astype(dtype)  # type: ignore[attr-defined]
            return changed.copy() if copy else changed  # type: ignore[no-any-return]
        self.recorder.refuse("copy")
        self.counts.copies_in += 1
        return GpuArray(np.array(values, dtype), self, None if device is None else device.id)

    array = asarray

    def from_dlpack(self, array: Any) -> GpuArray:
        kind, number = array.__dlpack_device__()
        if kind not in (2, 13):
            raise RuntimeError("CuPy is built against CUDA, different from the backend that backs the tensor")
        return GpuArray(array._own, self, number)

    def ascontiguousarray(self, array: GpuArray) -> GpuArray:
        if not array.ndim:
            return array.reshape((1,))  # type: ignore[no-any-return, attr-defined]  # as CuPy and NumPy do
        return array if array._own.flags.c_contiguous else array.copy()  # type: ignore[no-any-return, attr-defined]

    def empty(self, shape: Any, dtype: Any = np.float64, *, device: Any = None) -> GpuArray:
        self.recorder.refuse("allocation")
        own = np.empty(shape, dtype)
        own.reshape(-1).view(np.uint8)[...] = 0xFF
        return GpuArray(own, self, None if device is None else device.id)

    def zeros(self, shape: Any, dtype: Any = np.float64, *, device: Any = None) -> GpuArray:
        self.recorder.refuse("allocation")
        self.counts.memsets += 1
        return GpuArray(np.zeros(shape, dtype), self, None if device is None else device.id)


class Gpu(CudaDevice):
    """A GPU whose kernels and matrix products are the emulator's; all else is the backend's own code.

    Parameters
    ----------
    number
        Its number.
    cupy
        The library; several GPUs share one. None makes one.
    options
        Of `EmulatedDevice`.
    """

    def __init__(self, number: int = 0, cupy: CupyOnHost | None = None, **options: Any) -> None:
        cupy = CupyOnHost() if cupy is None else cupy
        with patch.dict(sys.modules, {"cupy": cupy}):
            super().__init__(number)
        self.cupy, self.counts = cupy, cupy.counts
        self.emulated = EmulatedDevice(launched=cupy.launched, **options)

    def array_of(self, values: Any) -> GpuArray:
        """Return an array on this GPU, not counted as a copy."""
        return GpuArray(np.array(values), self.cupy, self.number)

    def active(self) -> AbstractContextManager[None]:
        return super().active()

    def program(self, text: str) -> Program:
        return RecordingProgram(self.emulated.program(text), self.cupy.recorder)

    def matmul(self, a: GpuArray, b: GpuArray, out: GpuArray, **options: Any) -> None:  # type: ignore[override]
        recorder, own = self.cupy.recorder, getattr(self._bound, "products", None)
        if recorder.active and own is None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        if own is not None and own.used[-1][0] != self.cupy.streams[-1].ptr:
            raise RuntimeError("a product on another stream")

        def multiply() -> None:
            self.cupy.launched("matmul")
            self.emulated.matmul(a._own, b._own, out._own, **options)

        recorder.start(multiply)

    def _make_products(self) -> Any:
        return OwnProducts()

    def versions(self) -> dict[str, str]:
        return {}
