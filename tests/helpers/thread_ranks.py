"""An engine whose ranks are threads of one process, for tests of what all ranks compute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from lstmcore.distributed import DistributedError, Engine


class ThreadEngine(Engine):
    """One rank; sums are taken in the order of the ranks. `sums` keeps the sizes of the buffers that were added."""

    def __init__(self, rank: int, size: int, room: dict[str, Any]) -> None:
        self.rank, self.size, self._room = rank, size, room
        self.sums: list[int] = []

    def allreduce_sum(self, buffer: np.ndarray) -> None:
        assert buffer.flags.c_contiguous and buffer.dtype in (np.float32, np.float64)
        self.sums.append(buffer.size)
        buffer[:] = sum(self._exchange(buffer))

    def broadcast(self, buffer: np.ndarray, root: int = 0) -> None:
        buffer[:] = self._exchange(buffer)[root]

    def barrier(self) -> None:
        self._exchange(np.zeros(0))

    def abort(self, message: str) -> None:
        self._room.setdefault("aborted", message)
        self._room["barrier"].abort()

    def _exchange(self, buffer: np.ndarray) -> list[np.ndarray]:
        slots = self._room["slots"]
        slots[self.rank] = buffer.copy()
        self._meet()
        found = list(slots)
        assert {(array.shape, array.dtype) for array in found} == {(buffer.shape, buffer.dtype)}
        self._meet()
        return found

    def _meet(self) -> None:
        try:
            self._room["barrier"].wait(60)
        except threading.BrokenBarrierError:
            raise DistributedError(self._room.get("aborted", "a rank did not come"), told=True) from None


def on_ranks(size: int, work: Callable[[ThreadEngine], Any]) -> list[Any]:
    """Return what `work` gives on each rank, or the exception that it raises there."""
    room: dict[str, Any] = {"slots": [None] * size, "barrier": threading.Barrier(size)}

    def run(rank: int) -> Any:
        try:
            return work(ThreadEngine(rank, size, room))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
