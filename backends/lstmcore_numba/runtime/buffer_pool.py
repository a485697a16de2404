"""Memory for large arrays, which is kept for the next ones.

The system hands memory out page by page and empties each: for a training step of some tens of megabytes that takes
as long as a tenth to a third of the step itself.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: Bytes of what is kept in all, and of a block that is worth it.
_MOST: Final = 1 << 28
_LEAST: Final = 1 << 20


class _Pool:
    """Blocks of memory by size."""

    def __init__(self) -> None:
        self.blocks: dict[int, list[npt.NDArray[np.uint8]]] = {}
        self.size = 0
        self.renew_lock()

    def renew_lock(self) -> None:
        """Make the lock: another one in a forked process, whose parent's may be held by a thread that it has not."""
        # One that the same thread may take twice: the collector can call `give` at any place, also within `take`.
        self.lock = threading.RLock()

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        """A block of at least `size` bytes; at most an eighth more."""
        grain = 1 << max(0, size.bit_length() - 4)
        size = -(-size // grain) * grain
        with self.lock:
            blocks = self.blocks.get(size)
            if blocks:
                self.size -= size
                return blocks.pop()
        return np.empty(size, np.uint8)

    def give(self, block: npt.NDArray[np.uint8]) -> None:
        """Keep a block, unless there is enough."""
        with self.lock:
            if self.size + block.nbytes <= _MOST:
                self.size += block.nbytes
                self.blocks.setdefault(block.nbytes, []).append(block)


_POOL: Final = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.renew_lock)


class _Lease:
    """Gives its block back when the last array that lies in it is gone."""

    __slots__ = ("__array_interface__", "block", "pool")

    def __init__(self, pool: _Pool, block: npt.NDArray[np.uint8]) -> None:
        self.pool, self.block = pool, block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self.pool.give(self.block)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array with anything in it."""
    size = math.prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if size < _LEAST else aligned(shape, dtype, dtype.itemsize)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any], alignment: int) -> npt.NDArray[Any]:
    """An array with anything in it that starts at a multiple of `alignment` bytes."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LEAST:
        room = np.empty(size + alignment, np.uint8)
    else:
        room = np.asarray(_Lease(_POOL, _POOL.take(size + alignment)))
    start = -room.ctypes.data % alignment
    return room[start : start + size].view(dtype).reshape(shape)
