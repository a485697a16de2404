"""Copies to a GPU from pinned buffers, on a stream of their own, while other streams compute."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.uploads import Uploader
from lstmcore_cupy import tuning
from lstmcore_cupy.device import Array, Device

#: Arrays of one copy begin at multiples of so many bytes, a line of the cache.
_ALIGNMENT: Final = 128
#: Bytes of a buffer at least, a page.
_PAGE: Final = 1 << 12
_BYTE: Final = np.dtype(np.uint8)


@dataclass(slots=True)
class _Buffer:
    """Pinned memory, the event after its newest copy, and the memory of the GPU that nobody has taken yet."""

    memory: npt.NDArray[np.uint8]
    copied: Any
    block: Array | None


class PinnedUploader(Uploader):
    """Copies arrays to a GPU: all that one `start` is given by one copy.

    Memory of the GPU is taken on the caller's stream, which also gives it back. It may be memory that this stream was
    given work for before, so the copy waits for what the stream was given so far. The host waits for a copy only if
    all buffers are in use, which is the case if it is so many batches ahead of the GPU.

    Parameters
    ----------
    device
        The GPU.
    cupy
        The library.
    """

    def __init__(self, device: Device, cupy: Any) -> None:
        super().__init__(device.array)
        self._device, self._cuda = device, cupy.cuda
        with device.active():
            self._stream = self._cuda.Stream(non_blocking=True)
        self._buffers: deque[_Buffer] = deque()  # that with the oldest copy first

    def start(self, arrays: Sequence[npt.NDArray[Any]]) -> Callable[[], Sequence[Array]]:
        """See `Uploader.start`."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        begins = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)]).tolist()
        size = begins.pop()
        with self._device.active():
            block = self._device.empty((size,), _BYTE)
            given = self._cuda.Event(disable_timing=True)
            given.record()
            self._stream.wait_event(given)
            buffer = self._free_buffer(size)
            for begin, array in zip(begins, arrays, strict=True):
                buffer.memory[begin : begin + array.nbytes] = array.reshape(-1).view(_BYTE)
            block.data.copy_from_host_async(ctypes.c_void_p(buffer.memory.ctypes.data), size, self._stream)
            buffer.copied, buffer.block = self._cuda.Event(disable_timing=True), block
            buffer.copied.record(self._stream)
        self._buffers.append(buffer)
        copied = buffer.copied

        def take() -> Sequence[Array]:
            with self._device.active():
                self._cuda.get_current_stream().wait_event(copied)
            if buffer.copied is copied:
                buffer.block = None
            return [
                block[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
                for begin, array in zip(begins, arrays, strict=True)
            ]

        return take

    def _free_buffer(self, size: int) -> _Buffer:
        """Return a buffer of at least `size` bytes whose copy is over."""
        if self._buffers and not self._buffers[0].copied.done and len(self._buffers) == tuning.UPLOAD_BUFFERS:
            self._buffers[0].copied.synchronize()
        if self._buffers and self._buffers[0].copied.done:
            buffer = self._buffers.popleft()
            if buffer.memory.size >= size:
                return buffer
        room = 1 << (max(size, _PAGE) - 1).bit_length()  # so that most batches find one that is large enough
        return _Buffer(np.frombuffer(self._cuda.alloc_pinned_memory(room), np.uint8, room), None, None)

    def free_bytes(self) -> int | None:
        """See `Uploader.free_bytes`."""
        with self._device.active():
            return int(self._cuda.runtime.memGetInfo()[0])

    def close(self) -> None:
        """See `Uploader.close`."""
        if self._buffers:
            self._stream.synchronize()
            self._buffers.clear()
