"""A pool of memory for large arrays.

The system zeroes new memory page by page. For a training step of some tens of megabytes, this takes a tenth to a third
of the time of the step. So a buffer goes back to a pool when its last array is gone.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.locks import ForkSafeLock
from lstmcore_numba.tuning import BUFFER_POOL_BYTES, POOLED_BUFFER_BYTES


class BufferPool:
    """Free buffers by size, at most `max_bytes` in all. Any thread may use it."""

    def __init__(self, max_bytes: int = BUFFER_POOL_BYTES) -> None:
        self.max_bytes = max_bytes
        self.free: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self.free_bytes = 0
        # Reentrant: the garbage collector may call `release` at any point, also inside `acquire`.
        self.owner = ForkSafeLock(threading.RLock)

    def acquire(self, size: int) -> npt.NDArray[np.uint8]:
        """Return a buffer of at least `size` bytes, and of at most an eighth more."""
        grain = 1 << max(0, size.bit_length() - 4)
        size = -(-size // grain) * grain
        with self.owner.lock:
            buffers = self.free.get(size)
            if buffers:
                self.free_bytes -= size
                return buffers.pop()
        return np.empty(size, np.uint8)

    def release(self, buffer: npt.NDArray[np.uint8]) -> None:
        """Keep `buffer` for later calls, unless the pool is full."""
        with self.owner.lock:
            if self.free_bytes + buffer.nbytes <= self.max_bytes:
                self.free_bytes += buffer.nbytes
                self.free.setdefault(buffer.nbytes, []).append(buffer)


POOL: Final = BufferPool()


class Lease:
    """Owner of a buffer for NumPy arrays. Releases the buffer when the last of these arrays is gone."""

    __slots__ = ("__array_interface__", "buffer", "pool")

    def __init__(self, pool: BufferPool, buffer: npt.NDArray[np.uint8]) -> None:
        self.pool, self.buffer = pool, buffer
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self) -> None:
        self.pool.release(self.buffer)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return an uninitialised array."""
    size = math.prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if size < POOLED_BUFFER_BYTES else empty_aligned(shape, dtype, dtype.itemsize)


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype[Any], alignment: int) -> npt.NDArray[Any]:
    """Return an uninitialised array whose address is a multiple of `alignment` bytes."""
    size = math.prod(shape) * dtype.itemsize
    if size < POOLED_BUFFER_BYTES:
        buffer = np.empty(size + alignment, np.uint8)
    else:
        buffer = np.asarray(Lease(POOL, POOL.acquire(size + alignment)))
    start = -buffer.ctypes.data % alignment
    return buffer[start : start + size].view(dtype).reshape(shape)
