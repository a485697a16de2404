"""The threads of this process that passes are shared with.

They are started when they are first of use, look for work for two milliseconds after the last (`parallel`), and
sleep until they are woken here.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from functools import cache, lru_cache
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lstmcore.threads import asked_threads
from lstmcore_numba.runtime.worker_loop import Slot, Waiting, look, serve

#: Multiply-adds below which a second thread does not save what it costs.
WORTH: Final = 500_000
#: Multiply-adds in a second, about; and the share of the time of its work that a pass waits for threads to wake up,
#: and the seconds that it waits at most.
_SPEED: Final = 8e10
_SHARE: Final = 0.2
_LONGEST: Final = 5e-3
#: Seconds for which a thread looks for work before it falls asleep.
_PATIENCE: Final = 2e-3
#: Rows of a part at least: more than a tile, since a product of one tile adds in another order than one of several.
ROWS: Final = 7
_CACHE_LINE: Final = 64

#: What a pass takes that runs on the calling thread alone.
ALONE: Final = np.zeros(1, np.int64)


def thread_count() -> int:
    """``LSTMCORE_NUM_THREADS``, else the processors that this process may use.

    Raises
    ------
    ValueError
        The variable is not a whole number of at least 1.
    """
    asked = asked_threads()
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def looks_per_second() -> float:
    """How often a thread that waits can look in a second; processors differ by a factor of ten."""
    look(ALONE.ctypes.data, 100)
    start = time.perf_counter()
    look(ALONE.ctypes.data, 10_000)
    return 10_000 / (time.perf_counter() - start)


def _current_processor() -> Callable[[], int] | None:
    """A function that tells on which processor the calling thread is, where the system has one and threads can move."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    found: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return found


_CURRENT: Final = _current_processor()


class _Worker(threading.Thread):
    """A thread and its slot.

    What the thread runs is compiled before it starts: were it to compile while its process forks, Numba's lock would
    stay locked in the child for ever.
    """

    def __init__(self) -> None:
        super().__init__(name="lstmcore-numba", daemon=True)
        room = np.zeros(3 * _CACHE_LINE // 8, np.int64)
        start = (-room.ctypes.data % _CACHE_LINE) // 8
        self.slot = room[start : start + _CACHE_LINE // 8]
        self.address = self.slot.ctypes.data
        self.asleep = threading.Lock()
        self.asleep.acquire()
        self.patience = int(_PATIENCE * looks_per_second())
        self.slot[Slot.STATE // 8] = Waiting.IDLE
        serve(self.address, 0)  # finds nothing, and leaves the slot asleep
        self.allowed: set[int] = set()

    def run(self) -> None:
        while True:
            self.asleep.acquire()
            if self.allowed:
                os.sched_setaffinity(0, self.allowed)
            serve(self.address, self.patience)

    def wake(self) -> None:
        """Let it look for work, on another processor than this one.

        Linux puts a thread that is woken where the one that woke it is, and leaves it there for some milliseconds. So
        it is kept from that processor until it runs.
        """
        if _CURRENT is not None and self.native_id is not None:
            self.allowed = os.sched_getaffinity(0)
            elsewhere = self.allowed - {_CURRENT()}
            if elsewhere:
                os.sched_setaffinity(self.native_id, elsewhere)
        self.slot[Slot.STATE // 8] = Waiting.IDLE
        self.asleep.release()


class _Team:
    """The threads of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free: list[_Worker] = []
        self.size = 0

    def take(self, wanted: int, limit: int | None = None) -> list[_Worker]:
        """Up to `wanted` threads, awake, as long as no more than `limit` work, with the caller; else `thread_count`.

        What others have taken is not there, so that no call waits for another.
        """
        with self.lock:
            busy = self.size - len(self.free)
            wanted = max(0, min(wanted, (limit or thread_count()) - 1 - busy))
            while len(self.free) < wanted:
                worker = _Worker()
                worker.start()
                self.free.append(worker)
                self.size += 1
            taken = [self.free.pop() for _ in range(wanted)]
        for worker in taken:
            if worker.slot[Slot.STATE // 8] == Waiting.ASLEEP:
                worker.wake()
        return taken

    def give(self, taken: list[_Worker]) -> None:
        """Give them back."""
        with self.lock:
            self.free.extend(reversed(taken))


@lru_cache(maxsize=1)
def _team(process: int) -> _Team:
    """The team of this process; a forked one has its own."""
    return _Team()


class Threads:
    """``with Threads(most, cost) as team``: what a pass of `cost` multiply-adds in at most `most` parts takes.

    `limit` is how many threads the caller allows, None for `thread_count`.
    """

    __slots__ = ("cost", "limit", "taken", "team", "wanted")

    def __init__(self, most: int, cost: float, limit: int | None = None) -> None:
        self.cost, self.wanted = cost, 0
        if most > 1 and cost >= 2 * WORTH:
            self.limit = limit or thread_count()
            self.wanted = min(most, int(cost // WORTH), self.limit) - 1
        self.taken: list[_Worker] = []

    def __enter__(self) -> npt.NDArray[Any]:
        if self.wanted < 1:
            return ALONE
        self.team = _team(os.getpid())
        self.taken = self.team.take(self.wanted, self.limit)
        looks = int(min(_SHARE * self.cost / _SPEED, _LONGEST) * looks_per_second())
        return np.array([looks, *(worker.address for worker in self.taken)])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.taken:
            self.team.give(self.taken)
